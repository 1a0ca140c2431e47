"""The panel: one parameter node, seven sections, and the jobs that run in the background."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk

from . import mrml
from .job_runner import JobRunner
from .mrml import SceneError
from .parameter import DRDMDeformParameterNode
from .sections import (
    ApplySection,
    BatchSection,
    DeformSection,
    InputSection,
    PanelContext,
    RegistrationSection,
    Section,
    SetupSection,
    TrainSection,
)
from .sections.section import Severity
from .setup import Environment
from .worker import sharedWorker


class Panel(slicer.util.VTKObservationMixin):
    """Connects the widgets of the .ui file with the scene.

    Args:
        widget: the loaded .ui file.
        logic: the module's logic.
    """

    def __init__(self, widget: Any, logic: Any) -> None:
        super().__init__()
        self.widget = widget
        self.ui = slicer.util.childWidgetVariables(widget)
        self.logic = logic
        self.environment = Environment()
        self.jobRunner = JobRunner()
        self._context = PanelContext(self.ui, logic, self.jobRunner, self.environment, self.update)
        self._guiTag: Any = None
        self._updating = False
        # The transform, the nodes under it, and the parent transform of the transform itself.
        self._preview: tuple[Any, list[Any], Any] | None = None
        self._previewIDs: tuple[Any, ...] = ()
        # The shown sequence and the volume, which are observed, by role.
        self._observed: dict[str, Any] = {}
        self.setup = SetupSection(self._context)
        self.input = InputSection(self._context)
        self.deform = DeformSection(self._context, self.setup, self.input)
        self.apply = ApplySection(self._context, self.input)
        self.batch = BatchSection(self._context, self.setup, self.input)
        self.train = TrainSection(self._context, self.setup, self.input)
        self.registration = RegistrationSection(self._context, self.setup, self.input)
        self.sections: list[Section] = [
            self.setup,
            self.input,
            self.deform,
            self.apply,
            self.batch,
            self.train,
            self.registration,
        ]
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneClosed)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.StartSaveEvent, self.onSceneStartSave)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEnd)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        selection = slicer.app.applicationLogic().GetSelectionNode()
        self.addObserver(selection, vtk.vtkCommand.ModifiedEvent, self.onShownVolume)
        self.attach()
        self.setup.check()

    # The scene

    @property
    def parameter(self) -> Any:
        """The wrapped parameter node; ``None`` while a scene is closed or loaded."""
        return self._context.parameter

    def attach(self) -> None:
        """Use the scene's parameter node; choose the volume that the views show if it has none."""
        self.detach()
        mrml.restoreSequences(slicer.mrmlScene)
        node = self.logic.getParameterNode()
        self._context.parameter = DRDMDeformParameterNode(node)  # type: ignore[call-arg]
        self._guiTag = self.parameter.connectGui(self.widget)
        for section in self.sections:
            section.restore()
        self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self.enter()

    def enter(self) -> None:
        """Update when the module is shown: models or volumes may have been added meanwhile."""
        if self.parameter is None:
            return
        self.input.invalidate()
        if self.parameter.inputVolume is None:
            self.parameter.inputVolume = _shownVolume()
        self.update()

    def detach(self) -> None:
        """Disconnect from the parameter node."""
        if self.parameter is None:
            return
        self.parameter.disconnectGui(self._guiTag)
        self.removeObserver(self.parameter.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self._observe("browser", None)
        self._observe("volume", None)
        self._context.parameter = None
        self._preview, self._previewIDs = None, ()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Cancel a deformation or a registration test, whose volume is removed; batches and trainings continue."""
        self.deform.cleanup()
        self.registration.cleanup()
        self.detach()

    def onSceneStartImport(self, caller: Any, event: Any) -> None:
        """Disconnect, since the node selectors are empty during an import and would clear the parameter node."""
        self.deform.endPreviews()
        self.detach()

    def onSceneStartSave(self, caller: Any, event: Any) -> None:
        """End a preview of the slider, which is not saved."""
        self.deform.endPreviews()

    def onSceneClosed(self, caller: Any, event: Any) -> None:
        """Forget the closed scene, and use the parameter node of the new one."""
        for section in self.sections:
            section.onSceneClosed()
        self.attach()

    def onSceneEnd(self, caller: Any, event: Any) -> None:
        """Use the parameter node of the imported scene."""
        self.attach()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller: Any, event: Any, node: Any) -> None:
        """Choose a segmentation of the volume that was loaded after it, once it has been read."""
        if self.parameter is not None and node.IsA("vtkMRMLSegmentationNode"):
            qt.QTimer.singleShot(0, self.input.chooseNewSegmentation)

    def onNodeRemoved(self, caller: Any, event: Any) -> None:
        """Update once the scene has finished the removal of a node."""
        if not slicer.mrmlScene.IsClosing():
            qt.QTimer.singleShot(0, self.update)

    def onShownVolume(self, caller: Any, event: Any) -> None:
        """Choose the volume that the views begin to show, such as one that was just loaded, if none is chosen."""
        if self.parameter is not None and self.parameter.inputVolume is None and not slicer.mrmlScene.IsClosing():
            self.enter()

    def onModified(self, caller: Any, event: Any) -> None:
        """Update when a setting has changed."""
        self.update()

    def onTransformModified(self, caller: Any, event: Any) -> None:
        """Follow the scene when the volume may have another parent transform, once all nodes of a branch have it."""
        if not self._updating:
            qt.QTimer.singleShot(0, self.followScene)

    def followScene(self) -> None:
        """Show on the panel where the volume was put elsewhere, for example in the module Data."""
        p = self.parameter
        if p is None or p.inputVolume is None or self._updating or self._context.applying:
            return
        volume, shown = p.inputVolume, p.deformations
        parent = volume.GetParentTransformNode()
        if mrml.isLivePreview(parent):
            return
        if mrml.isDeformation(parent) and mrml.volumeOf(parent) is volume:
            if shown is None or self.logic.transformOf(shown) is not parent:
                p.deformations = mrml.browserOf(parent) or parent
            p.preview = True
        elif p.preview and self._preview is not None and volume in self._preview[1]:
            # It shows the original now, so that the other nodes do as well.
            p.preview = False

    # Updating

    def update(self) -> None:
        """Show the current state."""
        if self.parameter is None or self._updating:
            return
        self._updating = True
        try:
            self.input.chooseSegmentation()
            if not self._belongsToVolume(self.parameter.deformations):
                self.parameter.deformations = None
            self._observeShown()
            self._updatePreview()
            for section in self.sections:
                section.update()
            self.deform.showDisplay()
        finally:
            self._updating = False

    def _belongsToVolume(self, deformations: Any) -> bool:
        """Whether the shown deformation is one of the chosen volume."""
        return deformations is None or self.logic.volumeOf(deformations) is self.parameter.inputVolume

    def _observeShown(self) -> None:
        """Observe the shown sequence, which can also be browsed with Slicer's own tool bar, and the volume."""
        deformations = self.parameter.deformations
        browser = deformations if deformations is not None and mrml.isSequence(deformations) else None
        self._observe("browser", browser)
        self._observe("volume", self.parameter.inputVolume)

    def _observe(self, role: str, node: Any) -> None:
        """Observe ``node`` instead of the node that had this role before; ``None`` ends it."""
        event, call = {
            "browser": (vtk.vtkCommand.ModifiedEvent, self.onModified),
            "volume": (slicer.vtkMRMLTransformableNode.TransformModifiedEvent, self.onTransformModified),
        }[role]
        previous = self._observed.get(role)
        if node is previous:
            return
        if previous is not None:
            self.removeObserver(previous, event, call)
        self._observed[role] = node
        if node is not None:
            self.addObserver(node, event, call)

    def _updatePreview(self) -> None:
        """Put the chosen nodes, and only these, under the shown deformation."""
        p = self.parameter
        transform: Any = None if p.deformations is None else self.logic.transformOf(p.deformations)
        nodes = self.input.nodesToDeform() if p.preview and transform is not None else []
        nodeIDs = (transform and transform.GetID(), *(node.GetID() for node in nodes))
        if nodeIDs == self._previewIDs:
            return
        self._previewIDs = nodeIDs
        self.deform.endPreviews()
        if self._preview is not None:
            self._endPreview(transform, nodes)
        if not nodes:
            return
        previewed: list[Any] = []
        errors: list[str] = []
        if p.inputVolume.GetParentTransformNode() is not transform:
            mrml.followVolume(transform, p.inputVolume)
        for node in nodes:
            try:
                self.logic.preview(transform, [node])
                previewed.append(node)
            except SceneError as error:
                errors.append(str(error))
        self._preview = (transform, previewed, transform.GetParentTransformNode())
        if p.inputVolume not in previewed:
            p.preview = False
        if errors:
            self.deform.showMessage(self.ui.statusLabel, " ".join(errors), Severity.ERROR)

    def _endPreview(self, transform: Any, nodes: list[Any]) -> None:
        """Restore the parent of the nodes that are no longer previewed, or previewed with another deformation."""
        assert self._preview is not None
        previous, previewed, parent = self._preview
        self._preview = None
        previewed = [node for node in previewed if slicer.mrmlScene.IsNodePresent(node)]
        if slicer.mrmlScene.IsNodePresent(previous):
            # The others are put under the other transform directly, which takes less time.
            beside = transform is not None and transform.GetParentTransformNode() is previous.GetParentTransformNode()
            ended = [node for node in previewed if node not in nodes or not (beside or previous is transform)]
            self.logic.preview(previous, [n for n in ended if n.GetParentTransformNode() is previous], on=False)
        elif parent is not None and slicer.mrmlScene.IsNodePresent(parent):
            # The transform was deleted in the scene, so the nodes under it have lost its parent as well.
            for node in previewed:
                if node.GetParentTransformNode() is None:
                    node.SetAndObserveTransformNodeID(parent.GetID())

    def cleanup(self) -> None:
        """Cancel all jobs and disconnect from the scene."""
        for section in self.sections:
            section.cleanup()
        self.jobRunner.cleanup()
        sharedWorker.end()
        self.removeObservers()
        self._observed = {}
        if self.parameter is not None:
            self.parameter.disconnectGui(self._guiTag)
            self._context.parameter = None


def _shownVolume() -> Any:
    """The active volume of the slice views if it can be deformed, else ``None``."""
    selection = slicer.app.applicationLogic().GetSelectionNode()
    node = slicer.mrmlScene.GetNodeByID(selection.GetActiveVolumeID() or "")
    # The classes of label maps and color images are derived from that of scalar volumes.
    return node if node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode" else None
