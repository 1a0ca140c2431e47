"""Input: the scan, what moves along with it, and the model."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job, JobState
from ..models import ModelInfo, modelInfo
from ..mrml import SceneError
from .section import ERROR_STYLE, WARNING_STYLE, Section

# Node references of the parameter node: models and markups that move along.
ALSO = "also"


class InputSection(Section):
    """Chooses nodes and model, and says what does not fit."""

    def connect(self) -> None:
        """Connect the widgets that the parameter node does not bind."""
        self._filling = False
        self._models: list[str] = []
        self.ui.alsoSelector.connect("checkedNodesChanged()", self.onAlsoChanged)
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChosen)
        self.ui.downloadButton.connect("clicked()", self.onDownload)
        self._download: Job | None = None

    def update(self) -> None:
        """Show model, its description, and warnings."""
        self.fillModels()
        model = self.model()
        volume = self.parameter.inputVolume
        self.ui.downloadButton.visible = model is not None and not model.here
        self.ui.downloadButton.enabled = self._download is None or not self._download.running
        if volume is None and not self.parameter.model:
            self.say(self.ui.modelInfoLabel, "")
        elif model is None:
            self.say(self.ui.modelInfoLabel, _("No model is here for such images; choose one to download."))
        else:
            trained = _("Trained on {data}.").format(data=model.trainedOn) if model.trainedOn else ""
            kind = _("{n}D: {about}.").format(n=model.ndim, about=model.about)
            self.say(self.ui.modelInfoLabel, f"{kind} {trained}".strip())
        if self._download is not None and self._download.running:
            return
        with self.saying(self.ui.fitLabel):
            if volume is not None and model is not None:
                warnings = self.logic.fitWarnings(volume, model.name)
                self.say(self.ui.fitLabel, " ".join(warnings), WARNING_STYLE)

    def model(self) -> ModelInfo | None:
        """The model in use: the chosen one, or the best one for the volume."""
        try:
            if self.parameter.model:
                return modelInfo(self.parameter.model)
            volume = self.parameter.inputVolume
            return None if volume is None else self.logic.bestModel(volume)
        except (SceneError, DRDMError):
            return None

    def movingNodes(self) -> list[Any]:
        """The volume and what moves along with it."""
        chosen = [self.parameter.inputVolume, self.parameter.inputSegmentation, *self.ui.alsoSelector.checkedNodes()]
        return [node for node in chosen if node is not None and slicer.mrmlScene.IsNodePresent(node)]

    def restore(self) -> None:
        """Tick what a scene says that moves along; the selector itself remembers nothing."""
        node = self.parameter.parameterNode
        wanted = {node.GetNthNodeReferenceID(ALSO, n) for n in range(node.GetNumberOfNodeReferences(ALSO))}
        self._filling = True
        try:
            for choice in (*self.ui.alsoSelector.checkedNodes(), *self.ui.alsoSelector.uncheckedNodes()):
                ticked = qt.Qt.Checked if choice.GetID() in wanted else qt.Qt.Unchecked
                self.ui.alsoSelector.setCheckState(choice, ticked)
        finally:
            self._filling = False

    def onAlsoChanged(self) -> None:
        """Other models or markups are ticked."""
        if self._filling or self.parameter is None:
            return
        node = self.parameter.parameterNode
        node.RemoveNodeReferenceIDs(ALSO)
        for choice in self.ui.alsoSelector.checkedNodes():
            node.AddNodeReferenceID(ALSO, choice.GetID())
        self.panel.update()

    def fillModels(self) -> None:
        """The list: the best one, every model, a file."""
        chosen = self.parameter.model
        entries = [("", _("Best for the volume")), *((m.name, m.label) for m in self.logic.availableModels())]
        if chosen and chosen not in [name for name, _label in entries]:
            entries.append((chosen, chosen))
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
            with self.saying(self.ui.fitLabel):
                modelInfo(path)
                self.parameter.model = path
        self.update()

    def onDownload(self) -> None:
        """Fetch the chosen model in the background."""
        model = self.model()
        if model is None or model.here:
            return
        job = self.logic.downloadModel(model.name)
        job.onProgress = lambda progress: self.say(
            self.ui.fitLabel, _("Downloading: {percent} %").format(percent=round(100 * progress.share))
        )
        job.whenEnded(self.onDownloaded)
        self._download = job
        self.panel.jobs.run(job)
        self.update()

    def onDownloaded(self, job: Job) -> None:
        """Say how it went."""
        self.panel.update()
        if job.state is JobState.FAILED:
            self.say(self.ui.fitLabel, job.text, ERROR_STYLE)

    def cleanup(self) -> None:
        """Stop a download."""
        if self._download is not None:
            self._download.cancel()
