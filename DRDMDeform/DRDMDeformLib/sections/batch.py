"""Batch: training data from many scans, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..job import Job, JobState, Progress
from ..logic import Source
from ..mrml import SceneError
from ..parameter import BatchKind, BatchSource
from .section import ERROR_STYLE, Section, showProgress


class BatchSection(Section):
    """Starts, stops, resumes; ends with a summary."""

    def connect(self) -> None:
        """Connect the buttons."""
        self.job: Job | None = None
        self._made = 0
        self.ui.batchStartButton.connect("clicked()", self.onStart)
        self.ui.batchStopButton.connect("clicked()", self.onStop)
        self.ui.batchSampleButton.connect("clicked()", self.onSample)
        self.ui.batchProgressBar.visible = False
        self.say(self.ui.batchLabel, "")

    def update(self) -> None:
        """Show what the choices need."""
        p = self.parameter
        running = self.job is not None and self.job.running
        stoppable = self.job is not None and self.job.state is JobState.RUNNING
        fromScene = p.batchSource is BatchSource.SCENE
        self.ui.batchVolumesSelector.enabled = fromScene
        self.ui.batchFolderPath.enabled = not fromScene
        self.ui.batchStartButton.enabled = not running
        self.ui.batchStopButton.enabled = stoppable
        self.ui.batchProgressBar.visible = running
        resumable = _isSet(p.batchOutput) and self.logic.canResume(p.batchOutput)
        self.ui.batchStartButton.text = _("Go on") if resumable and not running else _("Start")
        self.ui.batchSampleButton.enabled = resumable and bool(self.logic.summary(p.batchOutput)["made"])

    def onStart(self) -> None:
        """Start, or go on with the run in the output folder."""
        p = self.parameter
        with self.acting(self.ui.batchLabel):
            self.panel.requireTorch()
            if not _isSet(p.batchOutput):
                raise SceneError(_("Choose an output folder first."))
            settings = {
                "copies": p.batchCopies,
                "wait": False,
                "model": p.model or None,
                "seed": p.seed,
                "steps": p.steps or None,
                "device": p.device.value,
                "plane": p.plane.value,
                "resume": self.logic.canResume(p.batchOutput),
            }
            if p.batchKind is BatchKind.AUGMENT:
                job = self.logic.augment(self._source(), p.batchOutput, self._levels(), **settings)
            else:
                job = self.logic.generateRegistrationPairs(self._source(), p.batchOutput, self._pairs(), **settings)
            job.whenEnded(self.onEnd)
            job.onProgress = self.onProgress
            self.job = job
            showProgress(self.ui.batchProgressBar, Progress("batch", 0.0))
            self.say(self.ui.batchLabel, _("Starting ..."))
            self.panel.jobs.run(job)
            self.update()

    def _source(self) -> Source:
        p = self.parameter
        if p.batchSource is BatchSource.FOLDER:
            if not _isSet(p.batchFolder):
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
        showProgress(self.ui.batchProgressBar, progress)
        if self.job is not None and self.job.running:
            self.say(self.ui.batchLabel, _("{n} made in this run.").format(n=len(self.job.items)))

    def onStop(self) -> None:
        """Stop after what is being written."""
        if self.job is not None:
            self.job.stop()
            self.say(self.ui.batchLabel, _("Stopping ..."))
            self.update()

    def onEnd(self, job: Job) -> None:
        """The summary."""
        showProgress(self.ui.batchProgressBar, None)
        self.update()
        summary = self.logic.summary(self.parameter.batchOutput)
        counted = _("{n} results in '{folder}'.").format(n=summary["made"], folder=self.parameter.batchOutput)
        if summary["failures"]:
            counted += " " + _("Left out: {list}").format(list="; ".join(summary["failures"]))
        if job.state is JobState.FAILED:
            self.say(self.ui.batchLabel, f"{job.text} {counted if summary['made'] else ''}".strip(), ERROR_STYLE)
        elif job.state is JobState.CANCELLED:
            self.say(self.ui.batchLabel, _("Stopped.") + f" {counted} " + _("Start again to go on."))
        else:
            self.say(self.ui.batchLabel, _("Done.") + f" {counted}")

    def onSample(self) -> None:
        """Load one result."""
        with self.acting(self.ui.batchLabel, waitCursor=True):
            nodes = self.logic.loadSample(self.parameter.batchOutput, self._made)
            self._made += 1
            slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
            self.say(self.ui.batchLabel, _("Loaded: {names}.").format(names=", ".join(n.GetName() for n in nodes)))

    def cleanup(self) -> None:
        """Stop; the run can be resumed."""
        if self.job is not None:
            self.job.cancel()
            self.job = None


def _isSet(path: Path) -> bool:
    return str(path) not in ("", ".")
