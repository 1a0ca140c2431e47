"""Train: the user's own model, in a separate process."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..job import Job, JobState, Progress
from ..mrml import SceneError
from .folders import FolderField
from .input import InputSection
from .section import JobSection, PanelContext, isSet, requireScansFolder, showProgress
from .setup import SetupSection


class TrainSection(JobSection):
    """Starts, stops and resumes a training; plots the loss; the finished model is added to the list."""

    warningsLabel = "trainWarningsLabel"

    def __init__(self, context: PanelContext, setup: SetupSection, inputSection: InputSection) -> None:
        self.setup = setup
        self.input = inputSection
        super().__init__(context)

    def connect(self) -> None:
        """Connect the buttons."""
        self._curve: Any = None
        # The arrangement of the views before the curve was shown, and the one with the curve.
        self._layouts: tuple[int, int] | None = None
        # Name of the model of the running or last job; the parameter node may be closed with its scene meanwhile.
        self._name = ""
        self.ui.trainStartButton.connect("clicked()", self.onStart)
        self.ui.trainStopButton.connect("clicked()", self.onStop)
        # Names of the models in the list; the first entry, "", is a new model.
        self._sources: list[str] = []
        self._filling = False
        self.ui.trainSourceComboBox.connect("currentIndexChanged(int)", self.onSourceChosen)
        self.ui.trainProgressBar.visible = False
        self.showMessage(self.ui.trainLabel, "")
        self.clearWarnings()
        self._folders = [
            FolderField(self.context, self.ui.trainFolderPath, "trainFolder"),
            FolderField(self.context, self.ui.trainOutputPath, "trainOutput"),
        ]

    def restore(self) -> None:
        """Use the last folders if none are chosen."""
        for field in self._folders:
            field.restore()

    def update(self) -> None:
        """Enable the widgets that can be used now."""
        p, ui, running = self.parameter, self.ui, self.running
        for field in self._folders:
            field.show()
        self.fillSources()
        settings = (ui.trainNameLineEdit, ui.trainSourceComboBox, ui.trainMinutesSpinBox)
        for widget in (*settings, ui.trainFolderPath, ui.trainOutputPath):
            widget.enabled = not running
        for widget in (ui.trainDimensionComboBox, ui.trainSizeSpinBox):
            widget.enabled = not running and not p.trainSource
        ui.trainStartButton.enabled = not running
        ui.trainStopButton.enabled = self.stoppable
        ui.trainProgressBar.visible = running
        resumable = isSet(p.trainOutput) and self.logic.canResume(p.trainOutput)
        ui.trainStartButton.text = _("Resume") if resumable and not running else _("Train")

    def fillSources(self) -> None:
        """Fill the list of models to start from: none, and those that are here."""
        chosen, box = self.parameter.trainSource, self.ui.trainSourceComboBox
        entries = [("", _("A new model")), *((m.name, m.label) for m in self.input.availableModels() if m.here)]
        if chosen and chosen not in [name for name, _label in entries]:
            entries.append((chosen, chosen))
        names = [name for name, _label in entries]
        self._filling = True
        if names != self._sources:
            box.clear()
            for _name, label in entries:
                box.addItem(label)
            self._sources = names
        box.currentIndex = names.index(chosen)
        self._filling = False

    def onSourceChosen(self, index: int) -> None:
        """Store the model to start from, and propose the time that is usual for it."""
        if self._filling or index < 0:
            return
        p, source = self.parameter, self._sources[index]
        usual = {False: 60.0, True: 5.0}
        if p.trainMinutes == usual[bool(p.trainSource)]:
            p.trainMinutes = usual[bool(source)]
        p.trainSource = source
        self.context.updatePanel()

    def onStart(self) -> None:
        """Start a training, or resume the run in the folder."""
        p = self.parameter
        with self.runAction(self.ui.trainLabel):
            self.setup.requireTorch()
            requireScansFolder(p.trainFolder)
            if not isSet(p.trainOutput):
                raise SceneError(_("Choose a run folder first."))
            if p.trainSize % 8 and not p.trainSource:
                raise SceneError(_("The size must be a multiple of 8, such as {n}.").format(n=p.trainSize // 8 * 8))
            job = self.logic.train(
                p.trainFolder,
                p.trainOutput,
                p.trainName,
                p.trainDimension.value,
                p.trainSize,
                p.trainMinutes,
                source=p.trainSource,
                device=p.device.value,
                resume=self.logic.canResume(p.trainOutput),
                wait=False,
                onProgress=self.onProgress,
            )
            job.onFinished(self.onEnd)
            self.job, self._name = job, p.trainName
            for field in self._folders:
                field.remember()
            self._curve = None
            showProgress(self.ui.trainProgressBar, Progress("train", 0.0))
            self.showMessage(self.ui.trainLabel, _("Starting ..."))
            self.runJob(job)
            self.update()

    def onProgress(self, progress: Progress) -> None:
        """Update the progress bar and the loss curve."""
        if progress.task == "read":
            # The preparation before the first step takes a while too.
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
                self._showCurve()
            self._curve.append(step, loss)

    def _showCurve(self) -> None:
        """Show the loss curve in the views; the arrangement of the views is restored at the end of the training."""
        layout = _layoutNode()
        before = layout.GetViewArrangement()
        slicer.modules.plots.logic().ShowChartInLayout(self._curve.chartNode)
        if self._layouts is None and layout.GetViewArrangement() != before:
            self._layouts = before, layout.GetViewArrangement()

    def _restoreLayout(self) -> None:
        """Restore the arrangement of the views, unless the user has chosen another one meanwhile."""
        layout = _layoutNode()
        if self._layouts is not None and layout.GetViewArrangement() == self._layouts[1]:
            layout.SetViewArrangement(self._layouts[0])
        self._layouts = None

    def cleanup(self) -> None:
        """Cancel the training."""
        super().cleanup()
        self._restoreLayout()

    def onSceneClosed(self) -> None:
        """Forget the loss curve, which was removed with the scene; the next step starts a new one."""
        self._curve = None

    def onStop(self) -> None:
        """Stop the training; its state is saved."""
        if self.job is not None:
            self.job.stop()
            self.showMessage(self.ui.trainLabel, _("Stopping; the state of the training is being saved ..."))
            self.update()

    def onEnd(self, job: Job) -> None:
        """Show the result and choose the new model."""
        showProgress(self.ui.trainProgressBar, None)
        self._restoreLayout()
        self.input.invalidate()
        self.context.updatePanel()
        if job.state is JobState.FAILED:
            self.showFailure(self.ui.trainLabel, job)
        elif job.state is JobState.CANCELED:
            self.showMessage(self.ui.trainLabel, _("Stopped. Press Resume to continue the training."))
        else:
            name = job.items[-1]["model"]
            self.parameter.model = name
            texts = [_("Finished: the model '{name}' is chosen in Input.").format(name=name)]
            # Of an adapted model, the command says whether adapting helped.
            texts += job.messages[:1] if len(job.messages) > 1 else []
            self.showMessage(self.ui.trainLabel, " ".join(texts))


def _layoutNode() -> Any:
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
