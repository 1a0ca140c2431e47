"""Puts new nodes into the subject hierarchy, as Slicer does by itself.

Imitates `qSlicerSubjectHierarchyPluginLogic.cxx` (Modules/Loadable/SubjectHierarchy/Widgets): a node that is added and
not hidden gets an item under the scene if one of the plugins knows its kind; a node that goes takes its item along.
The kinds are those that the plugins of Slicer's own modules answer for.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

_KINDS = (
    "vtkMRMLVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLModelNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLTransformNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLPlotSeriesNode",
    "vtkMRMLSequenceNode",
    "vtkMRMLSequenceBrowserNode",
    "vtkMRMLCameraNode",
)


class SubjectHierarchy(VTKObservationMixin):
    """Observes one scene for its whole life."""

    def __init__(self, scene: Any) -> None:
        super().__init__()
        self._scene = scene
        self.addObserver(scene, scene.NodeAddedEvent, self._added)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._about_to_be_removed)
        self.addObserver(scene, scene.EndImportEvent, self._imported, priority=10.0)
        self.addObserver(scene, scene.EndCloseEvent, self._resolve)
        self._resolve()

    def _resolve(self, *_: Any) -> None:
        """Make the hierarchy of the scene if it has none, and one of several."""
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _added(self, _scene: Any, _event: str, node: Any) -> None:
        if self._scene.IsImporting():
            return
        if node.IsA("vtkMRMLSubjectHierarchyNode"):
            self._resolve()
        elif not node.GetHideFromEditors() and any(node.IsA(kind) for kind in _KINDS):
            hierarchy = self._scene.GetSubjectHierarchyNode()
            if not hierarchy.GetItemByDataNode(node):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _about_to_be_removed(self, _scene: Any, _event: str, node: Any) -> None:
        if self._scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = self._scene.GetSubjectHierarchyNode()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _imported(self, scene: Any, event: str) -> None:
        self._resolve()
        for index in range(scene.GetNumberOfNodes()):
            self._added(scene, event, scene.GetNthNode(index))
