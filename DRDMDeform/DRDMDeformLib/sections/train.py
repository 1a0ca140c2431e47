"""Train: a model of one's own, in a process of its own."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..job import Job, JobState, Progress
from ..mrml import SceneError
from .batch import isSet
from .section import ERROR_STYLE, Section, showProgress


class TrainSection(Section):
    """Starts, stops, resumes; draws the loss; the finished model joins the list."""

    def connect(self) -> None:
        """Connect the buttons."""
        self.job: Job | None = None
        self._curve: Any = None
        # Of the running or last job; the scene, and the parameter node with it, may be closed meanwhile.
        self._name = ""
        self.ui.trainStartButton.connect("clicked()", self.onStart)
        self.ui.trainStopButton.connect("clicked()", self.onStop)
        self.ui.trainProgressBar.visible = False
        self.showMessage(self.ui.trainLabel, "")

    def update(self) -> None:
        """Show what can be done."""
        p = self.parameter
        running = self.job is not None and self.job.running
        stoppable = self.job is not None and self.job.state is JobState.RUNNING
        ui = self.ui
        settings = (ui.trainNameLineEdit, ui.trainDimensionComboBox, ui.trainSizeSpinBox, ui.trainMinutesSpinBox)
        for widget in (*settings, ui.trainFolderPath, ui.trainOutputPath):
            widget.enabled = not running
        self.ui.trainStartButton.enabled = not running
        self.ui.trainStopButton.enabled = stoppable
        self.ui.trainProgressBar.visible = running
        resumable = isSet(p.trainOutput) and self.logic.canResume(p.trainOutput)
        self.ui.trainStartButton.text = _("Go on") if resumable and not running else _("Train")

    def onStart(self) -> None:
        """Start, or go on with the run in the folder."""
        p = self.parameter
        with self.runAction(self.ui.trainLabel):
            self.panel.requireTorch()
            if not isSet(p.trainFolder):
                raise SceneError(_("Choose a folder with scans first."))
            if not isSet(p.trainOutput):
                raise SceneError(_("Choose a run folder first."))
            if p.trainSize % 8:
                raise SceneError(_("The size must be a multiple of 8, such as {n}.").format(n=p.trainSize // 8 * 8))
            job = self.logic.train(
                p.trainFolder,
                p.trainOutput,
                p.trainName,
                p.trainDimension.value,
                p.trainSize,
                p.trainMinutes,
                device=p.device.value,
                resume=self.logic.canResume(p.trainOutput),
                wait=False,
                onProgress=self.onProgress,
            )
            job.onFinished(self.onEnd)
            self.job, self._name = job, p.trainName
            self._curve = None
            showProgress(self.ui.trainProgressBar, Progress("train", 0.0))
            self.showMessage(self.ui.trainLabel, _("Starting ..."))
            self.panel.jobRunner.run(job)
            self.update()

    def onProgress(self, progress: Progress) -> None:
        """Move the bar, draw the loss."""
        if progress.task == "read":
            # What comes next, before the first step, takes a while too.
            text = _("Reading the scans ...") if progress.share < 1 else _("Preparing the first deformations ...")
            self.showMessage(self.ui.trainLabel, text)
            return
        showProgress(self.ui.trainProgressBar, progress)
        figures = progress.figures
        if "loss" in figures:
            step, loss = int(figures["step"]), figures["loss"]
            self.showMessage(self.ui.trainLabel, _("Step {n}, loss {loss}").format(n=step, loss=f"{loss:.3f}"))
            if self._curve is None:
                title = _("Training of {name}").format(name=self._name)
                self._curve = mrml.LossCurve(slicer.mrmlScene, title)
                slicer.modules.plots.logic().ShowChartInLayout(self._curve.chartNode)
            self._curve.append(step, loss)

    def onSceneClosed(self) -> None:
        """The curve went with the scene; a new one begins."""
        self._curve = None

    def onStop(self) -> None:
        """Stop; what was learned is kept."""
        if self.job is not None:
            self.job.stop()
            self.showMessage(self.ui.trainLabel, _("Stopping; the state of the training is being saved ..."))
            self.update()

    def onEnd(self, job: Job) -> None:
        """Say how it went; choose the new model."""
        showProgress(self.ui.trainProgressBar, None)
        self.panel.input.invalidate()
        self.panel.update()
        if job.state is JobState.FAILED:
            self.showMessage(self.ui.trainLabel, job.text, ERROR_STYLE)
        elif job.state is JobState.CANCELLED:
            self.showMessage(self.ui.trainLabel, _("Stopped. Press Go on to train further."))
        else:
            name = job.items[-1]["model"]
            self.parameter.model = name
            self.showMessage(self.ui.trainLabel, _("Done: the model '{name}' is chosen in Input.").format(name=name))

    def cleanup(self) -> None:
        """Stop; the run can be resumed from its last checkpoint."""
        if self.job is not None:
            self.job.cancel()
            self.job = None
