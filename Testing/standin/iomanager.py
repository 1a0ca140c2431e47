"""Reading and writing files, as far as `slicer.util.loadScene`, `saveScene` and the sample data ask for it.

Imitates Base/QTCore `qSlicerCoreIOManager.h` and the readers behind it (`qSlicerVolumesReader`,
`qSlicerSegmentationsReader`, `qSlicerSceneReader`, `qSlicerSceneWriter`); the work is done by the same MRML logics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore

from .pythonqt import invokable
from .scene import SceneParts


class qSlicerCoreIOManager(QtCore.QObject):
    """Files to nodes and back."""

    def __init__(self, parts: SceneParts, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._parts = parts

    @invokable("QString", "QVariant", "vtkCollection*", "vtkMRMLMessageCollection*")
    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        path = properties["fileName"]
        if kind == "SceneFile":
            if Path(path).suffix != ".mrb":
                raise NotImplementedError("The stand-in opens scenes as .mrb only")
            return bool(self._parts.scene.ReadFromMRB(path, bool(properties.get("clear", False))))
        node = {"VolumeFile": self._volume, "SegmentationFile": self._segmentation}[kind](path, properties["name"])
        if node is None:
            return False
        loaded.AddItem(node)
        return True

    def _volume(self, path: str, name: str) -> Any:
        node = self._parts.logics["Volumes"].AddArchetypeVolume(path, name, 0)
        if node is not None:
            self._parts.app_logic.GetSelectionNode().SetActiveVolumeID(node.GetID())
            self._parts.app_logic.PropagateVolumeSelection()
        return node

    def _segmentation(self, path: str, name: str) -> Any:
        labels = self._parts.logics["Volumes"].AddArchetypeVolume(path, name, 1)
        if labels is None:
            return None
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        self._parts.logics["Segmentations"].ImportLabelmapToSegmentationNode(labels, node)
        slicer.mrmlScene.RemoveNode(labels)
        node.CreateDefaultDisplayNodes()
        return node

    @invokable("QString", "QVariant", "vtkMRMLMessageCollection*")
    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any) -> bool:
        path = properties["fileName"]
        if kind != "SceneFile" or Path(path).suffix != ".mrb":
            raise NotImplementedError("The stand-in saves scenes as .mrb only")
        return bool(self._parts.scene.WriteToMRB(path, None))
