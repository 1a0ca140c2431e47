"""Batch: training data from many scans, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ..batches import Source
from ..job import Job, JobState, Progress
from ..mrml import SceneError
from ..parameter import BatchKind, BatchSource
from .section import ERROR_STYLE, Section, showProgress

# What is offered for each kind.
LEVELS = {BatchKind.AUGMENT: "20 40 60", BatchKind.SYNTHESIZE: "40:24 56:32"}


class BatchSection(Section):
    """Starts, stops, resumes; ends with a summary."""

    def connect(self) -> None:
        """Connect the buttons."""
        self.job: Job | None = None
        # Where the running or last job writes; the scene, and the parameter node with it, may be closed meanwhile.
        self._output = Path()
        self._shown = 0
        self._known: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        ui = self.ui
        ui.batchStartButton.connect("clicked()", self.onStart)
        ui.batchStopButton.connect("clicked()", self.onStop)
        ui.batchSampleButton.connect("clicked()", self.onSample)
        ui.batchQualityButton.connect("clicked()", self.onQuality)
        ui.batchFolderButton.connect("clicked()", self.onFolder)
        ui.batchVolumesSelector.connect("checkedNodesChanged()", self.onVolumes)
        ui.batchProgressBar.visible = False
        self.showMessage(ui.batchLabel, "")

    def update(self) -> None:
        """Show what the choices need."""
        p, ui = self.parameter, self.ui
        running = self.job is not None and self.job.running
        if p.batchLevels in LEVELS.values():
            # Another kind needs levels of another form.
            p.batchLevels = LEVELS[p.batchKind]
        fromScene = p.batchSource is BatchSource.SCENE
        settings = (ui.batchSourceComboBox, ui.batchKindComboBox, ui.batchLevelsLineEdit, ui.batchCopiesSpinBox)
        for widget in (*settings, ui.batchOutputPath):
            widget.enabled = not running
        ui.batchVolumesSelector.enabled = fromScene and not running
        ui.batchVolumesSelector.visible = ui.batchVolumesLabel.visible = fromScene
        ui.batchFolderPath.enabled = not fromScene and not running
        ui.batchFolderPath.visible = ui.batchFolderLabel.visible = not fromScene
        ui.batchStartButton.enabled = not running
        ui.batchStopButton.enabled = running and self.job is not None and self.job.state is JobState.RUNNING
        ui.batchProgressBar.visible = running
        folder = p.batchOutput if isSet(p.batchOutput) else None
        summary = self._summary(folder) if folder is not None else {}
        unfinished = folder is not None and self.logic.canResume(folder) and not _finished(summary)
        ui.batchStartButton.text = _("Go on") if unfinished and not running else _("Start")
        ui.batchSampleButton.enabled = bool(summary.get("made"))
        ui.batchQualityButton.enabled = summary.get("qualityPage") is not None
        ui.batchFolderButton.enabled = folder is not None and folder.is_dir()
        if not running:
            self.showMessage(ui.batchPlanLabel, self._plan())

    def _summary(self, folder: Path) -> dict[str, Any]:
        """The logic's summary, read anew only when the folder has changed: a report may be long."""
        files = [folder / name for name in ("report.json", "run.json", "dataset.json", "quality.html")]
        state = (folder, *(_lastChange(path) for path in files))
        if state != self._known[0]:
            self._known = (state, self.logic.summary(folder))
        return self._known[1]

    def _plan(self) -> str:
        """What will be made, and with which settings of the sections above."""
        p = self.parameter
        try:
            levels = len(self._levels() if p.batchKind is BatchKind.AUGMENT else self._pairs())
        except SceneError as error:
            return str(error)
        each = levels * p.batchCopies
        if p.batchSource is BatchSource.SCENE:
            scans = len(self.ui.batchVolumesSelector.checkedNodes())
            made = _("{n} results (volumes ticked: {scans})").format(n=scans * each, scans=scans)
        else:
            made = _("{n} results of each scan").format(n=each)
        model = _("the model '{name}'").format(name=p.model) if p.model else _("the model that is best for the scans")
        return _("Makes {made}, with {model}; seed, steps, pose and device as above.").format(made=made, model=model)

    def onVolumes(self) -> None:
        """Other volumes are ticked."""
        if self.parameter is not None:
            self.update()

    def onStart(self) -> None:
        """Start, or go on with the run in the output folder."""
        p = self.parameter
        with self.runAction(self.ui.batchLabel, waitCursor=True):
            self.panel.requireTorch()
            if p.model:
                # A run must not begin that the missing download would end at once.
                self.panel.requireModel()
            if not isSet(p.batchOutput):
                raise SceneError(_("Choose an output folder first."))
            if _finished(self.logic.summary(p.batchOutput)):
                raise SceneError(
                    _("'{folder}' holds a complete run; choose another output folder.").format(folder=p.batchOutput)
                )
            settings = {
                "copies": p.batchCopies,
                "wait": False,
                "model": p.model or None,
                "seed": p.seed,
                "steps": p.steps or None,
                "pose": p.pose,
                "device": p.device.value,
                "plane": p.plane.value,
                "resume": self.logic.canResume(p.batchOutput),
            }
            if p.batchKind is BatchKind.AUGMENT:
                job = self.logic.augment(self._source(), p.batchOutput, self._levels(), **settings)
            else:
                job = self.logic.generateRegistrationPairs(self._source(), p.batchOutput, self._pairs(), **settings)
            job.onFinished(self.onEnd)
            job.onProgress = self.onProgress
            # The first result can be looked at while the others are made.
            job.onItem = lambda item: self.panel.update()
            self.job, self._output = job, p.batchOutput
            showProgress(self.ui.batchProgressBar, Progress("batch", 0.0))
            self.showMessage(self.ui.batchLabel, _("Starting ..."))
            self.panel.jobRunner.run(job)
            self.update()

    def _source(self) -> Source:
        p = self.parameter
        if p.batchSource is BatchSource.FOLDER:
            if not isSet(p.batchFolder):
                raise SceneError(_("Choose a folder with scans first."))
            return p.batchFolder
        return list(self.ui.batchVolumesSelector.checkedNodes())

    def _levels(self) -> list[int]:
        words = self.parameter.batchLevels.replace(",", " ").split()
        if not words or not all(word.isdigit() for word in words):
            raise SceneError(_("Levels must be whole numbers from 1 to 79, such as: 20 40 60"))
        return [int(word) for word in words]

    def _pairs(self) -> list[tuple[int, int]]:
        pairs = [word.split(":") for word in self.parameter.batchLevels.replace(",", " ").split()]
        if not pairs or not all(len(pair) == 2 and all(part.isdigit() for part in pair) for pair in pairs):
            raise SceneError(_("For pairs, levels are two numbers each, such as: 40:24 56:32"))
        return [(int(a), int(b)) for a, b in pairs]

    def onProgress(self, progress: Progress) -> None:
        """Move the bar and count."""
        if progress.task == "read":
            self.showMessage(self.ui.batchLabel, _("Reading the scans ..."))
            return
        showProgress(self.ui.batchProgressBar, progress)
        if self.job is not None and self.job.running:
            self.showMessage(self.ui.batchLabel, _("{n} made in this run.").format(n=len(self.job.items)))

    def onStop(self) -> None:
        """Stop after what is being written."""
        if self.job is not None:
            self.job.stop()
            self.showMessage(self.ui.batchLabel, _("Stopping ..."))
            self.update()

    def onEnd(self, job: Job) -> None:
        """The summary."""
        showProgress(self.ui.batchProgressBar, None)
        self.panel.update()
        summary = self.logic.summary(self._output)
        counted = _("{n} results in '{folder}'.").format(n=summary["made"], folder=self._output)
        if summary["redrawn"]:
            counted += " " + _("{n} draws folded too much or went too far, and were drawn again.").format(
                n=summary["redrawn"]
            )
        if summary["failures"]:
            counted += " " + _("Left out: {list}").format(list="; ".join(summary["failures"]))
        if job.state is JobState.FAILED:
            self.showMessage(
                self.ui.batchLabel, f"{job.text} {counted if summary['made'] else ''}".strip(), ERROR_STYLE
            )
        elif job.state is JobState.CANCELLED:
            self.showMessage(self.ui.batchLabel, _("Stopped.") + f" {counted} " + _("Press Go on for the rest."))
        else:
            self.showMessage(self.ui.batchLabel, _("Done.") + f" {counted}")

    def onSample(self) -> None:
        """Load one result; the next press loads the next one."""
        with self.runAction(self.ui.batchLabel, waitCursor=True):
            nodes = self.logic.loadSample(self.parameter.batchOutput, self._shown)
            self._shown += 1
            slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
            self.showMessage(
                self.ui.batchLabel, _("Loaded: {names}.").format(names=", ".join(n.GetName() for n in nodes))
            )

    def onQuality(self) -> None:
        """The page with pictures and figures of all results, in the browser."""
        with self.runAction(self.ui.batchLabel):
            page = self.logic.summary(self.parameter.batchOutput)["qualityPage"]
            if page is None:
                raise SceneError(_("There is no quality page in '{f}'.").format(f=self.parameter.batchOutput))
            _open(page)

    def onFolder(self) -> None:
        """The output folder, in the computer's file manager."""
        _open(self.parameter.batchOutput)

    def cleanup(self) -> None:
        """Stop; the run can be resumed."""
        if self.job is not None:
            self.job.cancel()
            self.job = None


def isSet(path: Path) -> bool:
    """Whether a path of the parameter node has been chosen."""
    return str(path) not in ("", ".")


def _finished(summary: dict[str, Any]) -> bool:
    """Whether nothing is left to do; what could not be used may have been mended."""
    return bool(summary.get("complete")) and not summary["failures"]


def _lastChange(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _open(path: Path) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path.resolve())))
