"""Batch: training data from many scans, in a separate process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.levels import AUTO_TOWARD, DEFAULT_PAIR, FEWEST_TOWARD, STRENGTHS, Level, read_level
from DRDMLib.runtime.reporter import TOWARD

from ..batches import AUTO_POSE, OTHERS, UNLABELED, BatchSettings, Source
from ..job import Job, JobState, Progress
from ..mrml import SceneError
from ..parameter import BatchKind, BatchPose, BatchRegion, BatchSource, BatchToward
from .folders import FolderField
from .input import InputSection
from .section import JobSection, PanelContext, isSet, requireScansFolder, showProgress
from .setup import SetupSection
from .texts import counted

# Default levels of each kind.
LEVELS = {BatchKind.AUGMENT: " ".join(STRENGTHS), BatchKind.SYNTHESIZE: ":".join(map(str, DEFAULT_PAIR))}

# What a run was started with, which is needed to resume it: names in the parameter node.
SETTINGS = (
    *("batchSource", "batchFolder", "batchKind", "batchLevels", "batchCopies", "batchOutput", "batchRegion"),
    *("batchPose", "batchToward", "batchGray", "batchAdapt", "model", "device", "steps", "pose", "plane", "margin"),
)
# Scans that are named when they are left out.
MOST_LEFT_OUT = 3


class BatchSection(JobSection):
    """Starts, stops and resumes a batch; shows a summary at the end."""

    warningsLabel = "batchWarningsLabel"
    # The summary says how many go toward no other scan.
    saysItself = (TOWARD,)

    def __init__(self, context: PanelContext, setup: SetupSection, inputSection: InputSection) -> None:
        self.setup = setup
        self.input = inputSection
        super().__init__(context)

    def connect(self) -> None:
        """Connect the buttons."""
        # Output folder of the running or last job; the parameter node may be closed with its scene meanwhile.
        self._output = Path()
        # Its settings, and whether a new scene takes them over.
        self._settings: dict[str, Any] = {}
        self._carries = False
        self._nextSample = 0
        self._cachedSummary: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        ui = self.ui
        ui.batchStartButton.connect("clicked()", self.onStart)
        ui.batchStopButton.connect("clicked()", self.onStop)
        ui.batchSampleButton.connect("clicked()", self.onSample)
        ui.batchQualityButton.connect("clicked()", self.onQuality)
        ui.batchFolderButton.connect("clicked()", self.onFolder)
        ui.batchVolumesSelector.connect("checkedNodesChanged()", self.onVolumes)
        ui.batchProgressBar.visible = False
        self.showMessage(ui.batchLabel, "")
        self.clearWarnings()
        self._folders = [
            FolderField(self.context, self.ui.batchFolderPath, "batchFolder"),
            FolderField(self.context, self.ui.batchOutputPath, "batchOutput"),
        ]

    def restore(self) -> None:
        """Use the last folders if none are chosen; after the scene was closed during a run, all its settings."""
        if self._carries:
            self._carries = False
            for name, value in self._settings.items():
                setattr(self.parameter, name, value)
        for field in self._folders:
            field.restore()

    def update(self) -> None:
        """Show the widgets that the choices need."""
        p, ui = self.parameter, self.ui
        running = self.running
        for field in self._folders:
            field.show()
        if p.batchLevels in LEVELS.values():
            # Replace the default levels of the other kind.
            p.batchLevels = LEVELS[p.batchKind]
        fromScene = p.batchSource is BatchSource.SCENE
        settings = (ui.batchSourceComboBox, ui.batchKindComboBox, ui.batchLevelsLineEdit, ui.batchCopiesSpinBox)
        more = (ui.batchRegionComboBox, ui.batchPoseComboBox, ui.batchTowardComboBox, ui.batchAdaptSpinBox)
        for widget in (*settings, *more, ui.batchOutputPath):
            widget.enabled = not running
        goes = p.batchKind is BatchKind.AUGMENT and p.batchToward is not BatchToward.NONE
        ui.batchGrayCheckBox.enabled = goes and not running
        ui.batchVolumesSelector.enabled = fromScene and not running
        ui.batchVolumesSelector.visible = ui.batchVolumesLabel.visible = fromScene
        ui.batchFolderPath.enabled = not fromScene and not running
        ui.batchFolderPath.visible = ui.batchFolderLabel.visible = not fromScene
        ui.batchStartButton.enabled = not running
        ui.batchStopButton.enabled = self.stoppable
        ui.batchProgressBar.visible = running
        folder = p.batchOutput if isSet(p.batchOutput) else None
        summary = self._summary(folder) if folder is not None else {}
        unfinished = folder is not None and self.logic.canResume(folder) and not _isComplete(summary)
        # A run that is complete but for scans that were left out has nothing to resume.
        again = _("Try again") if summary.get("complete") else _("Resume")
        ui.batchStartButton.text = again if unfinished and not running else _("Start")
        ui.batchSampleButton.enabled = bool(summary.get("made"))
        ui.batchQualityButton.enabled = summary.get("qualityPage") is not None
        ui.batchFolderButton.enabled = folder is not None and folder.is_dir()
        if not running:
            self.showMessage(ui.batchPlanLabel, self._plan())

    def _summary(self, folder: Path) -> dict[str, Any]:
        """The logic's summary; read again only if the folder has changed, since a report may be long."""
        files = [folder / name for name in ("report.json", "run.json", "dataset.json", "quality.html")]
        state = (folder, *(_fileState(path) for path in files))
        if state != self._cachedSummary[0]:
            self._cachedSummary = (state, self.logic.summary(folder))
        return self._cachedSummary[1]

    def _plan(self) -> str:
        """Describe what will be made with the current settings."""
        p = self.parameter
        try:
            levels = len(self._levels() if p.batchKind is BatchKind.AUGMENT else self._pairs())
            toward = self._toward()
        except SceneError as error:
            return str(error)
        each = levels * p.batchCopies
        if p.batchSource is BatchSource.SCENE:
            volumes, unlabeled, used = self._volumes(toward)
            scans = volumes - (unlabeled if used else 0)
            made = counted(scans * each, _("1 result"), _("{n} results"))
            made += " " + _("(volumes checked: {scans})").format(scans=volumes)
        else:
            made = counted(each, _("1 result for each scan"), _("{n} results for each scan"))
        model = _("the model '{name}'").format(name=p.model) if p.model else _("the best model for the scans")
        if self._pose() in (None, AUTO_POSE):
            text = _("Makes {made} with {model}, in poses of people; seed, steps and device are those chosen above.")
        else:
            text = _("Makes {made} with {model}; seed, steps, pose and device are those chosen above.")
        text = text.format(made=made, model=model)
        if toward == AUTO_TOWARD:
            return f"{text} {self._planOfUnlabeled()}".strip()
        if toward != OTHERS:
            return text
        if p.batchKind is BatchKind.SYNTHESIZE:
            return text + " " + _("Each fixed image goes part of the way from the moving one toward another scan.")
        return text + " " + _("Each version goes part of the way toward another scan.")

    def _planOfUnlabeled(self) -> str:
        """Say whether versions go toward the scans without a label, which is the default."""
        p = self.parameter
        if p.batchKind is BatchKind.SYNTHESIZE:
            return _("Pairs go toward no other scan, unless this is chosen in Other scans.")
        if p.batchRegion is not BatchRegion.WHOLE:
            return _("Versions go toward no other scan, since only a region is deformed.")
        if p.batchSource is BatchSource.FOLDER:
            return _("If at least ten scans have no label, versions go part of the way toward them.")
        volumes, unlabeled, used = self._volumes(AUTO_TOWARD)
        if used:
            return _("Versions go part of the way toward the {n} volumes without a segmentation.").format(n=unlabeled)
        if not volumes:
            return ""
        return _(
            "Versions go toward no other scan: this needs at least {fewest} volumes without a segmentation, and {n} "
            "are checked."
        ).format(fewest=FEWEST_TOWARD, n=unlabeled)

    def _volumes(self, toward: str | None) -> tuple[int, int, bool]:
        """How many volumes are checked, how many of them have no segmentation, and whether versions go toward these."""
        volumes = list(self.ui.batchVolumesSelector.checkedNodes())
        unlabeled = len(self.logic.withoutSegmentation(volumes, self._segmentations()))
        p = self.parameter
        asks = p.batchKind is BatchKind.AUGMENT and p.batchRegion is BatchRegion.WHOLE
        return len(volumes), unlabeled, asks and BatchSettings(toward=toward).usesUnlabeled(len(volumes), unlabeled)

    def _pose(self) -> float | str | None:
        """What the poses are drawn from; ``None`` for what the commands do by themselves, as people differ."""
        p = self.parameter
        if p.batchPose is BatchPose.SCANS:
            return AUTO_POSE
        whole = p.batchKind is BatchKind.AUGMENT and p.batchRegion is BatchRegion.WHOLE
        return None if p.batchPose is BatchPose.AUTO and whole and not p.pose else p.pose

    def _segmentations(self) -> dict[str, Any] | None:
        """The segmentation that is chosen in Input, by the ID of its volume."""
        p = self.parameter
        return {p.inputVolume.GetID(): p.inputSegmentation} if p.inputVolume is not None else None

    def onVolumes(self) -> None:
        """Update the plan when other volumes are checked."""
        if self.parameter is not None:
            self.update()

    def onSceneClosed(self) -> None:
        """Remove the messages of a finished batch; one that is running goes on, and can be resumed."""
        self._carries = self.running
        if not self.running:
            self.showMessage(self.ui.batchLabel, "")
            self.clearWarnings()

    def onStart(self) -> None:
        """Start a batch, or resume the run in the output folder."""
        p = self.parameter
        with self.runAction(self.ui.batchLabel, waitCursor=True):
            self.setup.requireTorch()
            if p.model:
                # Otherwise the run would fail at once.
                self.input.requireModel()
            if not isSet(p.batchOutput):
                raise SceneError(_("Choose an output folder first."))
            if _isComplete(self.logic.summary(p.batchOutput)):
                raise SceneError(
                    _("'{folder}' holds a complete run; choose another output folder.").format(folder=p.batchOutput)
                )
            seed = self.logic.seedOf(p.batchOutput)
            settings: dict[str, Any] = {
                "copies": p.batchCopies,
                "wait": False,
                "model": p.model or None,
                "seed": p.seed if seed is None else seed,
                "steps": p.steps or None,
                "pose": self._pose(),
                "device": p.device.value,
                "plane": p.plane.value,
                "segmentations": self._segmentations(),
                "resume": self.logic.canResume(p.batchOutput),
                "around": p.batchRegion is BatchRegion.LABELS,
                "region": self._roi(),
                "margin": p.margin or None,
                "adapt": p.batchAdapt or None,
                "toward": self._toward(),
                "grayValues": p.batchGray,
            }
            if p.batchKind is BatchKind.AUGMENT:
                job = self.logic.augment(self._source(), p.batchOutput, self._levels(), **settings)
            else:
                job = self.logic.generateRegistrationPairs(self._source(), p.batchOutput, self._pairs(), **settings)
            job.onFinished(self.onEnd)
            job.onProgress = self.onProgress
            # The first results can be loaded while the others are made.
            job.onItem = lambda item: self.context.updatePanel()
            self.job, self._output = job, p.batchOutput
            self._settings = {name: getattr(p, name) for name in SETTINGS}
            for field in self._folders:
                field.remember()
            showProgress(self.ui.batchProgressBar, Progress("batch", 0.0))
            self.showMessage(self.ui.batchLabel, _("Starting ..."))
            self.runJob(job)
            self.update()

    def _source(self) -> Source:
        p = self.parameter
        if p.batchSource is BatchSource.FOLDER:
            return requireScansFolder(p.batchFolder)
        return list(self.ui.batchVolumesSelector.checkedNodes())

    def _roi(self) -> Any:
        if self.parameter.batchRegion is not BatchRegion.ROI:
            return None
        if self.parameter.region is None:
            raise SceneError(_("Choose an ROI in Deform, Advanced, or deform the whole scans."))
        return self.parameter.region

    def _toward(self) -> str | None:
        """What versions go toward, or the fixed images of pairs."""
        p = self.parameter
        if p.batchToward is BatchToward.NONE:
            return None
        if p.batchToward is BatchToward.AUTO:
            return AUTO_TOWARD
        if p.batchRegion is not BatchRegion.WHOLE:
            raise SceneError(
                _(
                    "Only whole scans go toward other scans; choose '{whole}' in Where, or '{none}' in Other scans."
                ).format(whole=BatchRegion.WHOLE.label(), none=BatchToward.NONE.label())
            )
        return OTHERS

    def _levels(self) -> list[Level]:
        levels = _strengths(self.parameter.batchLevels.replace(",", " ").split())
        if not levels:
            raise SceneError(_("Enter strengths: subtle, medium, strong, or levels from 1 to 79 such as 20 40 60."))
        return levels

    def _pairs(self) -> list[tuple[Level, Level]]:
        pairs = [_strengths(word.split(":")) for word in self.parameter.batchLevels.replace(",", " ").split()]
        if not pairs or not all(len(pair) == 2 for pair in pairs):
            raise SceneError(_("Enter two strengths for each pair, such as strong:medium or 40:24."))
        return [(pair[0], pair[1]) for pair in pairs]

    def onProgress(self, progress: Progress) -> None:
        """Update the progress bar and the count."""
        if progress.task == "poses":
            self.showMessage(self.ui.batchLabel, _("Comparing the poses of the scans ..."))
            return
        if progress.task == "read":
            self.showMessage(self.ui.batchLabel, _("Reading the scans ..."))
            return
        showProgress(self.ui.batchProgressBar, progress)
        if self.job is not None and self.job.running:
            made = counted(len(self.job.items), _("1 result made in this run."), _("{n} results made in this run."))
            self.showMessage(self.ui.batchLabel, made)

    def onStop(self) -> None:
        """Stop once the current result is written."""
        if self.job is not None:
            self.job.stop()
            self.showMessage(self.ui.batchLabel, _("Stopping ..."))
            self.update()

    def onEnd(self, job: Job) -> None:
        """Show the summary."""
        showProgress(self.ui.batchProgressBar, None)
        self.context.updatePanel()
        summary = self.logic.summary(self._output)
        made = counted(summary["made"], _("1 result"), _("{n} results"))
        texts = [_("{made} in '{folder}'.").format(made=made, folder=self._output)]
        if summary["redrawn"]:
            texts.append(
                counted(
                    summary["redrawn"],
                    _("1 deformation folded or moved too much and was replaced."),
                    _("{n} deformations folded or moved too much and were replaced."),
                )
            )
        if summary["made"] and summary["toward"] == UNLABELED:
            texts.append(
                counted(
                    summary["made"],
                    _("It goes part of the way toward a scan without a label."),
                    _("They go part of the way toward the scans without a label."),
                )
            )
        alone = [item for item in summary["items"] if not item.get("toward")] if summary["toward"] else []
        if alone:
            texts.append(
                counted(
                    len(alone),
                    _("1 goes toward no other scan, because none could be matched with its own; "),
                    _("{n} go toward no other scan, because none could be matched with theirs; "),
                )
                + _("use scans of the same kind, or choose 'Not used' in Other scans.")
            )
        if summary["failures"]:
            texts.append(_leftOut(summary["failures"]))
        text = " ".join(texts)
        if job.state is JobState.FAILED:
            self.showFailure(self.ui.batchLabel, job, text if summary["made"] else "")
        elif job.state is JobState.CANCELED:
            self.showMessage(self.ui.batchLabel, _("Stopped.") + f" {text} " + _("Press Resume to continue."))
        else:
            self.showMessage(self.ui.batchLabel, _("Finished.") + f" {text}")

    def onSample(self) -> None:
        """Load one result; the next click loads the next one."""
        with self.runAction(self.ui.batchLabel, waitCursor=True):
            nodes = self.logic.loadSample(self.parameter.batchOutput, self._nextSample)
            self._nextSample += 1
            slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
            self.showMessage(
                self.ui.batchLabel, _("Loaded: {names}.").format(names=", ".join(n.GetName() for n in nodes))
            )

    def onQuality(self) -> None:
        """Open the page with pictures and metrics of all results in the browser."""
        with self.runAction(self.ui.batchLabel):
            page = self.logic.summary(self.parameter.batchOutput)["qualityPage"]
            if page is None:
                raise SceneError(
                    _("There is no quality page in '{folder}'; run the batch first.").format(
                        folder=self.parameter.batchOutput
                    )
                )
            _open(page)

    def onFolder(self) -> None:
        """Open the output folder in the file manager."""
        _open(self.parameter.batchOutput)


def _leftOut(failures: Sequence[str]) -> str:
    """Say what was left out and why; of many the first ones, since a folder may have hundreds without a label."""
    text = _("Left out: {list}").format(list=" ".join(failures[:MOST_LEFT_OUT]))
    if len(failures) <= MOST_LEFT_OUT:
        return text
    return text + " " + _("And {n} more, which report.json names.").format(n=len(failures) - MOST_LEFT_OUT)


def _strengths(words: Sequence[str]) -> list[Level]:
    """The strengths in a text; empty if one of them is not valid."""
    try:
        return [read_level(word) for word in words]
    except ValueError:
        return []


def _isComplete(summary: dict[str, Any]) -> bool:
    """Whether nothing is left to do. A run with failures can be resumed after the scans have been repaired."""
    return bool(summary.get("complete")) and not summary["failures"]


def _fileState(path: Path) -> tuple[int, int]:
    """Time of the last change and size; zeros for a missing file."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _open(path: Path) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path.resolve())))
