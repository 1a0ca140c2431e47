"""Input: the scan, what moves along with it, and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job, JobState
from ..models import ModelInfo, modelInfo
from ..mrml import SceneError, links
from .section import ERROR_STYLE, WARNING_STYLE, Section

# Node references of the parameter node: models and markups that move along.
OTHER_NODES = "also"


class InputSection(Section):
    """Chooses nodes and model, and says what does not fit."""

    def connect(self) -> None:
        """Connect the widgets that the parameter node does not bind."""
        self._filling = False
        self._models: list[str] = []
        self._seen: tuple[Any, ...] = ()
        self._volumeID = ""
        self.ui.otherNodesSelector.connect("checkedNodesChanged()", self.onOtherNodesChanged)
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChosen)
        self.ui.downloadButton.connect("clicked()", self.onDownload)
        self._download: Job | None = None

    def update(self) -> None:
        """Show model, its description, and warnings."""
        p, volume = self.parameter, self.parameter.inputVolume
        downloading = self._download is not None and self._download.running
        # Reading what models there are takes a moment, and a slider that is moved asks often.
        seen = (p.model, volume and volume.GetID(), volume and volume.GetMTime(), downloading)
        if seen == self._seen:
            return
        self._seen = seen
        self.fillModels()
        model = self.model()
        self.ui.downloadButton.visible = model is not None and not model.here
        self.ui.downloadButton.enabled = not downloading
        if volume is None and not p.model:
            self.showMessage(self.ui.modelInfoLabel, "")
        elif model is None:
            self.showMessage(self.ui.modelInfoLabel, _("No model is here for such images; choose one to download."))
        else:
            self.showMessage(self.ui.modelInfoLabel, self._about(model))
        if downloading:
            return
        with self.showErrors(self.ui.fitLabel):
            if volume is not None and model is not None:
                warnings = self.logic.fitWarnings(volume, model.name)
                self.showMessage(self.ui.fitLabel, " ".join(warnings), WARNING_STYLE)

    def invalidate(self) -> None:
        """Look at everything anew at the next update: models may have come or gone."""
        self._seen = ()

    def _about(self, model: ModelInfo) -> str:
        # The list itself says only "best".
        name = "" if self.parameter.model else f"{model.label}, "
        kind = _("{name}{n}D: {about}.").format(name=name, n=model.ndim, about=model.about)
        trained = _("Trained on {data}.").format(data=model.trainedOn) if model.trainedOn else ""
        return f"{kind} {trained}".strip()

    def chooseSegmentation(self) -> None:
        """With another volume goes the segmentation that was drawn on it, not one that was drawn on the last one."""
        p, volume = self.parameter, self.parameter.inputVolume
        if volume is None or volume.GetID() == self._volumeID:
            return
        self._volumeID = volume.GetID()
        chosen = p.inputSegmentation
        if chosen is None or links.belongsToOtherVolume(chosen, volume):
            p.inputSegmentation = links.segmentationOf(slicer.mrmlScene, volume)

    def model(self) -> ModelInfo | None:
        """The model in use: the chosen one, or the best one for the volume."""
        try:
            if self.parameter.model:
                return modelInfo(self.parameter.model)
            volume = self.parameter.inputVolume
            return None if volume is None else self.logic.bestModel(volume)
        except (SceneError, DRDMError):
            return None

    def nodesToDeform(self) -> list[Any]:
        """The volume and what moves along with it."""
        chosen = [
            self.parameter.inputVolume,
            self.parameter.inputSegmentation,
            *self.ui.otherNodesSelector.checkedNodes(),
        ]
        return [node for node in chosen if node is not None and slicer.mrmlScene.IsNodePresent(node)]

    def restore(self) -> None:
        """Tick what a scene says that moves along; the selector itself remembers nothing."""
        volume = self.parameter.inputVolume
        # What goes with it has been chosen, or left out, before.
        self._volumeID = volume.GetID() if volume is not None else ""
        node = self.parameter.parameterNode
        wanted = {
            node.GetNthNodeReferenceID(OTHER_NODES, n) for n in range(node.GetNumberOfNodeReferences(OTHER_NODES))
        }
        self._filling = True
        try:
            for choice in (*self.ui.otherNodesSelector.checkedNodes(), *self.ui.otherNodesSelector.uncheckedNodes()):
                ticked = qt.Qt.Checked if choice.GetID() in wanted else qt.Qt.Unchecked
                self.ui.otherNodesSelector.setCheckState(choice, ticked)
        finally:
            self._filling = False

    def onOtherNodesChanged(self) -> None:
        """Other models or markups are ticked."""
        if self._filling or self.parameter is None:
            return
        node = self.parameter.parameterNode
        node.RemoveNodeReferenceIDs(OTHER_NODES)
        for choice in self.ui.otherNodesSelector.checkedNodes():
            node.AddNodeReferenceID(OTHER_NODES, choice.GetID())
        self.panel.update()

    def fillModels(self) -> None:
        """The list: the best one, every model, a file."""
        chosen = self.parameter.model
        entries = [("", _("Best for the volume")), *((m.name, m.label) for m in self.logic.availableModels())]
        if chosen and chosen not in [name for name, _label in entries]:
            entries.append((chosen, Path(chosen).stem))
        names = [name for name, _label in entries]
        self._filling = True
        try:
            texts = [text for _name, text in entries]
            box = self.ui.modelComboBox
            if names != self._models or texts != [box.itemText(i) for i in range(len(texts))]:
                box.clear()
                for text in (*texts, _("From file ...")):
                    box.addItem(text)
                self._models = names
            box.currentIndex = names.index(chosen)
        finally:
            self._filling = False

    def onModelChosen(self, index: int) -> None:
        """A model of the list, or the last entry: a file."""
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
                modelInfo(path)
                self.parameter.model = path
                return
        # Back to the model that was chosen before.
        said = self.ui.fitLabel.text
        self.invalidate()
        self.update()
        if said:
            self.showMessage(self.ui.fitLabel, said, ERROR_STYLE)

    def onDownload(self) -> None:
        """Fetch the chosen model in the background."""
        model = self.model()
        if model is None or model.here:
            return
        job = self.logic.downloadModel(model.name)
        job.onProgress = lambda progress: self.showMessage(
            self.ui.fitLabel, _("Downloading: {percent} %").format(percent=round(100 * progress.share))
        )
        job.onFinished(self.onDownloaded)
        self._download = job
        self.panel.jobRunner.run(job)
        self.update()

    def onDownloaded(self, job: Job) -> None:
        """Say how it went."""
        self.invalidate()
        self.panel.update()
        if job.state is JobState.FAILED:
            self.showMessage(self.ui.fitLabel, job.text, ERROR_STYLE)

    def cleanup(self) -> None:
        """Stop a download."""
        if self._download is not None:
            self._download.cancel()
