"""Puts new nodes into the subject hierarchy, as Slicer does by itself.

Imitates `qSlicerSubjectHierarchyPluginLogic.cxx` (Modules/Loadable/SubjectHierarchy/Widgets): a node that is added and
not hidden gets an item under the scene if one of the plugins knows its kind; a node that goes takes its item along.
The kinds are those that the plugins of Slicer's own modules answer for.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk

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


class SubjectHierarchy:
    """Observes one scene for its whole life."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        events = slicer.vtkMRMLScene
        self._observe(events.NodeAddedEvent, self._added)
        self._observe(events.NodeAboutToBeRemovedEvent, self._about_to_be_removed)
        self._observe(events.EndImportEvent, self._imported, 10.0)
        self._observe(events.EndCloseEvent, self._resolve)
        self._observe(events.EndRestoreEvent, self._resolve)
        self._resolve(None)

    def _observe(self, event: int, method: Any, priority: float = 0.0) -> None:
        def call(_caller: Any, _event: str, data: Any = None) -> None:
            method(data)

        call.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
        self.scene.AddObserver(event, call, priority)

    def _node(self) -> Any:
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)

    def _resolve(self, _data: Any) -> None:
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self.scene)

    def _known(self, node: Any) -> bool:
        return not node.GetHideFromEditors() and any(node.IsA(kind) for kind in _KINDS)

    def _added(self, node: Any) -> None:
        if node is None or self.scene.IsImporting():
            return
        if node.IsA("vtkMRMLSubjectHierarchyNode"):
            self._resolve(None)
        elif self._known(node):
            self._add(node)

    def _add(self, node: Any) -> None:
        hierarchy = self._node()
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    def _about_to_be_removed(self, node: Any) -> None:
        if node is None or self.scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = self._node()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _imported(self, _data: Any) -> None:
        self._resolve(None)
        for index in range(self.scene.GetNumberOfNodes()):
            node = self.scene.GetNthNode(index)
            if self._known(node):
                self._add(node)
