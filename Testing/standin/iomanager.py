"""Reading and writing files, as far as `slicer.util.loadVolume`, `loadScene`, `saveNode` and their like ask for it.

Imitates Base/QTCore `qSlicerCoreIOManager.h` and the readers behind it (`qSlicerVolumesReader`,
`qSlicerSegmentationsReader`, `qSlicerModelsReader`, `qSlicerTransformsReader`, `qSlicerMarkupsReader`,
`qSlicerSceneReader`, `qSlicerSceneWriter`); the work is done by the same MRML logics.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore

from .pythonqt import invokable

_SUFFIXES = {
    ".nrrd": "VolumeFile",
    ".nhdr": "VolumeFile",
    ".nii": "VolumeFile",
    ".nii.gz": "VolumeFile",
    ".mha": "VolumeFile",
    ".mhd": "VolumeFile",
    ".seg.nrrd": "SegmentationFile",
    ".vtk": "ModelFile",
    ".vtp": "ModelFile",
    ".stl": "ModelFile",
    ".ply": "ModelFile",
    ".obj": "ModelFile",
    ".h5": "TransformFile",
    ".tfm": "TransformFile",
    ".mrk.json": "MarkupsFile",
    ".fcsv": "MarkupsFile",
    ".mrb": "SceneFile",
    ".mrml": "SceneFile",
}


def file_type(path: str) -> str:
    """Slicer's name of the kind of a file, by the longest known suffix; "NoFile" if there is none."""
    name = Path(path).name.lower()
    known = [suffix for suffix in _SUFFIXES if name.endswith(suffix)]
    return _SUFFIXES[max(known, key=len)] if known else "NoFile"


def _logic(name: str) -> Any:
    return slicer.app.moduleLogic(name)


def _volume(path: str, properties: dict[str, Any]) -> Any:
    stem = Path(path).name.split(".")[0]
    options = 4 if properties.get("singleFile") else 0
    options += 1 if properties.get("labelmap") else 0
    node = _logic("Volumes").AddArchetypeVolume(path, properties.get("name") or stem, options)
    if node is not None and properties.get("show", True) and not properties.get("labelmap"):
        selection = slicer.app.applicationLogic().GetSelectionNode()
        selection.SetActiveVolumeID(node.GetID())
        slicer.app.applicationLogic().PropagateVolumeSelection()
    return node


def _segmentation(path: str, properties: dict[str, Any]) -> Any:
    name = properties.get("name") or Path(path).name.split(".")[0]
    logic = _logic("Segmentations")
    if path.lower().endswith(".seg.nrrd"):
        return logic.LoadSegmentationFromFile(path, True, name)
    volume = _logic("Volumes").AddArchetypeVolume(path, name, 1)
    if volume is None:
        return None
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    good = logic.ImportLabelmapToSegmentationNode(volume, node)
    slicer.mrmlScene.RemoveNode(volume)
    if not good:
        slicer.mrmlScene.RemoveNode(node)
        return None
    node.CreateDefaultDisplayNodes()
    return node


def _model(path: str, _properties: dict[str, Any]) -> Any:
    return _logic("Models").AddModel(path)


def _transform(path: str, _properties: dict[str, Any]) -> Any:
    return _logic("Transforms").AddTransform(path, slicer.mrmlScene)


def _markups(path: str, _properties: dict[str, Any]) -> Any:
    identifier = _logic("Markups").LoadMarkups(path, Path(path).name.split(".")[0])
    return slicer.mrmlScene.GetNodeByID(identifier) if identifier else None


_READERS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "VolumeFile": _volume,
    "SegmentationFile": _segmentation,
    "ModelFile": _model,
    "TransformFile": _transform,
    "MarkupsFile": _markups,
}


def load_scene(path: Path, clear: bool) -> bool:
    """qSlicerSceneReader: open a scene or add it."""
    scene = slicer.mrmlScene
    if path.suffix == ".mrb":
        return bool(scene.ReadFromMRB(str(path), clear))
    scene.SetURL(str(path))
    return bool(scene.Connect() if clear else scene.Import())


def _save_bundle(folder: Path) -> bool:
    # MRML wants an existing folder, deletes it with all that is in it and makes it anew.
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise OSError(f"{folder} is not empty; saving a scene there would delete what is in it")
    return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(str(folder.resolve()), None))


def save_scene(path: Path) -> bool:
    """qSlicerSceneWriter: .mrb; .mrml, with the data in `Data` beside it; or a new folder with everything."""
    if path.suffix == ".mrb":
        return bool(slicer.mrmlScene.WriteToMRB(str(path), None))
    if path.suffix != ".mrml":
        return _save_bundle(path)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / path.stem
        if not _save_bundle(bundle):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(next(bundle.glob("*.mrml")), path)
        if (bundle / "Data").is_dir():
            shutil.copytree(bundle / "Data", path.parent / "Data", dirs_exist_ok=True)
    return True


class qSlicerCoreIOManager(QtCore.QObject):
    """Files to nodes and back."""

    @invokable("QString")
    def fileType(self, path: str) -> str:
        return file_type(path)

    @invokable("QVariant")
    def fileWriterFileType(self, node: Any) -> str:
        return node.GetClassName()

    @invokable("QString", "QVariant", "vtkCollection*", "vtkMRMLMessageCollection*", optional=2)
    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any = None, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return load_scene(Path(path), bool(properties.get("clear", False)))
        if kind not in _READERS or not Path(path).exists():
            return False
        node = _READERS[kind](path, properties)
        if node is None:
            return False
        if loaded is not None:
            loaded.AddItem(node)
        return True

    @invokable("QString", "QVariant", "vtkMRMLMessageCollection*", optional=1)
    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        path = Path(properties["fileName"])
        if kind == "SceneFile":
            return save_scene(path)
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node is None:
            return False
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(path))
        return bool(node.GetStorageNode().WriteData(node))

    @invokable("QString")
    def registeredFileReaderCount(self, kind: str) -> int:
        return int(kind in _READERS)
