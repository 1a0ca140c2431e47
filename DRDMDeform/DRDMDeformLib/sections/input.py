"""Input: the scan, the nodes that are deformed with it, and the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job, JobState
from ..models import ModelInfo, modelInfo
from ..mrml import SceneError, links
from .section import Section, Severity

# Role of the node references from the parameter node to the models and markups that are deformed with the volume.
OTHER_NODES = "also"


class InputSection(Section):
    """Chooses nodes and model, and warns if they do not fit."""

    def connect(self) -> None:
        """Connect the widgets that are not bound to the parameter node."""
        self._filling = False
        self._models: list[str] = []
        self._available: list[ModelInfo] = []
        self._lastState: tuple[Any, ...] = ()
        self._volumeID = ""
        self.ui.otherNodesSelector.connect("checkedNodesChanged()", self.onOtherNodesChanged)
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChosen)
        self.ui.downloadButton.connect("clicked()", self.onDownload)
        self.ui.removeModelButton.connect("clicked()", self.onRemoveModel)
        self._download: Job | None = None

    def update(self) -> None:
        """Show the model, its description, and warnings."""
        p, volume = self.parameter, self.parameter.inputVolume
        downloading = self._download is not None and self._download.running
        # Listing the models takes a moment, and this is called at every step of a slider.
        state = (p.model, volume and volume.GetID(), volume and volume.GetMTime(), downloading)
        if state == self._lastState:
            return
        self._lastState = state
        self.fillModels()
        model = self.model()
        self.ui.downloadButton.visible = model is not None and not model.here
        self.ui.downloadButton.enabled = not downloading
        self.ui.removeModelButton.visible = bool(p.model) and model is not None and model.removable
        if volume is None and not p.model:
            self.showMessage(self.ui.modelInfoLabel, "")
        elif model is None:
            self.showMessage(self.ui.modelInfoLabel, _("No model for such images is available; download one."))
        else:
            self.showMessage(self.ui.modelInfoLabel, self._about(model))
        if downloading:
            return
        with self.showErrors(self.ui.fitLabel):
            if volume is not None and model is not None:
                warnings = self.logic.fitWarnings(volume, model.name)
                self.showMessage(self.ui.fitLabel, " ".join(warnings), Severity.WARNING)

    def invalidate(self) -> None:
        """Read the list of models again at the next update: models may have been added or removed."""
        self._lastState = ()
        self._available = []

    def availableModels(self) -> list[ModelInfo]:
        """The list of models; reading it from the disk takes a moment, so it is kept until :meth:`invalidate`."""
        self._available = self._available or self.logic.availableModels()
        return self._available

    def _about(self, model: ModelInfo) -> str:
        # The list itself only says "best".
        name = (
            "" if self.parameter.model else _("{name} (or another one that fits it better), ").format(name=model.label)
        )
        kind = _("{name}{n}D: {about}.").format(name=name, n=model.ndim, about=model.about)
        trained = _("Trained on {data}.").format(data=model.trainedOn) if model.trainedOn else ""
        return f"{kind} {trained}".strip()

    def chooseSegmentation(self) -> None:
        """When another volume is chosen, choose its segmentation instead of that of the previous volume."""
        p, volume = self.parameter, self.parameter.inputVolume
        if volume is None:
            return
        if volume.GetID() == self._volumeID:
            chosen = p.inputSegmentation
            if chosen is not None and not links.belongsToOtherVolume(chosen, volume):
                # Batch uses it too.
                links.chooseSegmentation(volume, chosen)
            return
        self._volumeID = volume.GetID()
        chosen = p.inputSegmentation
        named = links.segmentationNamedAfter(slicer.mrmlScene, volume)
        if chosen is None or links.belongsToOtherVolume(chosen, volume) or named not in (None, chosen):
            p.inputSegmentation = links.segmentationOf(slicer.mrmlScene, volume)

    def chooseNewSegmentation(self) -> None:
        """Choose the segmentation of the volume, one of which was just added, if none is chosen."""
        p = self.parameter
        if p is not None and p.inputVolume is not None and p.inputSegmentation is None:
            p.inputSegmentation = links.segmentationOf(slicer.mrmlScene, p.inputVolume)

    def model(self) -> ModelInfo | None:
        """The chosen model, or the best one for the volume; ``None`` if there is none."""
        try:
            if self.parameter.model:
                return modelInfo(self.parameter.model)
            volume = self.parameter.inputVolume
            return None if volume is None else self.logic.bestModel(volume)
        except (SceneError, DRDMError):
            return None

    def requireModel(self) -> ModelInfo:
        """Return the model to use.

        Raises:
            SceneError: there is none, it has not been downloaded, or the volume cannot be used.
        """
        model = self.model() if self.parameter.model else self.logic.bestModel(self.parameter.inputVolume)
        if model is None:
            raise SceneError(_("Choose a model in Input."))
        if not model.here:
            raise SceneError(
                _("The model '{name}' has not been downloaded; press Download in Input.").format(name=model.name)
            )
        return model

    def nodesToDeform(self) -> list[Any]:
        """The volume and the nodes that are deformed with it."""
        others = self.ui.otherNodesSelector.checkedNodes()
        chosen = [self.parameter.inputVolume, self.parameter.inputSegmentation, *others]
        return [node for node in chosen if node is not None and slicer.mrmlScene.IsNodePresent(node)]

    def restore(self) -> None:
        """Check the nodes that the parameter node refers to; the selector itself does not keep them."""
        volume = self.parameter.inputVolume
        # The segmentation of this volume has been chosen, or left out, before.
        self._volumeID = volume.GetID() if volume is not None else ""
        node = self.parameter.parameterNode
        count = node.GetNumberOfNodeReferences(OTHER_NODES)
        wanted = {node.GetNthNodeReferenceID(OTHER_NODES, n) for n in range(count)}
        selector = self.ui.otherNodesSelector
        with self._ignoringChanges():
            for choice in (*selector.checkedNodes(), *selector.uncheckedNodes()):
                selector.setCheckState(choice, qt.Qt.Checked if choice.GetID() in wanted else qt.Qt.Unchecked)

    @contextmanager
    def _ignoringChanges(self) -> Iterator[None]:
        """Change widgets without reacting to their signals."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    def onOtherNodesChanged(self) -> None:
        """Store which models and markups are checked."""
        if self._filling or self.parameter is None:
            return
        node = self.parameter.parameterNode
        node.RemoveNodeReferenceIDs(OTHER_NODES)
        for choice in self.ui.otherNodesSelector.checkedNodes():
            node.AddNodeReferenceID(OTHER_NODES, choice.GetID())
        self.context.updatePanel()

    def fillModels(self) -> None:
        """Fill the list: the best model, every model, a file."""
        chosen = self.parameter.model
        entries = [("", _("Best for the volume")), *((m.name, m.label) for m in self.availableModels())]
        if chosen and chosen not in [name for name, _label in entries]:
            entries.append((chosen, Path(chosen).stem))
        names = [name for name, _label in entries]
        texts = [text for _name, text in entries]
        box = self.ui.modelComboBox
        with self._ignoringChanges():
            if names != self._models or texts != [box.itemText(i) for i in range(len(texts))]:
                box.clear()
                for text in (*texts, _("From file ...")):
                    box.addItem(text)
                self._models = names
            box.currentIndex = names.index(chosen)

    def onModelChosen(self, index: int) -> None:
        """Use a model of the list, or ask for a file if the last entry is chosen."""
        if self._filling or index < 0:
            return
        if index < len(self._models):
            self.parameter.model = self._models[index]
            return
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Model file"), "", _("Models (*.safetensors *.pth)")
        )
        if path:
            with self.showErrors(self.ui.fitLabel):
                # Raises an error if the file is not a model.
                modelInfo(path)
                self.parameter.model = path
                return
        # Show the previous model again, and keep the error message.
        message = self.ui.fitLabel.text
        self.invalidate()
        self.update()
        if message:
            self.showMessage(self.ui.fitLabel, message, Severity.ERROR)

    def onDownload(self) -> None:
        """Download the chosen model in the background."""
        model = self.model()
        if model is None or model.here:
            return
        job = self.logic.downloadModel(model.name)
        job.onProgress = lambda progress: self.showMessage(
            self.ui.fitLabel, _("Downloading: {percent} %").format(percent=round(100 * progress.share))
        )
        job.onFinished(self.onDownloaded)
        self._download = job
        self.context.jobRunner.run(job)
        self.update()

    def onRemoveModel(self) -> None:
        """Remove the file of the chosen model, after asking; the best model is chosen instead."""
        model = self.model()
        if model is None or not model.removable:
            return
        with self.runAction(self.ui.fitLabel):
            again = _("It can be downloaded again.") if model.megabytes else _("This cannot be undone.")
            question = _("Remove the model '{name}' from this computer? {again}").format(name=model.name, again=again)
            if slicer.util.confirmOkCancelDisplay(question, _("DRDM Deform")):
                self.logic.removeModel(model.name)
                self.parameter.model = ""
                self.invalidate()
                self.context.updatePanel()

    def onDownloaded(self, job: Job) -> None:
        """Show the result of the download."""
        self.invalidate()
        self.context.updatePanel()
        if job.state is JobState.FAILED:
            self.showFailure(self.ui.fitLabel, job)

    def cleanup(self) -> None:
        """Cancel a download."""
        if self._download is not None:
            self._download.cancel()
