"""The real scene with the real logics, wired as Slicer does at start.

Imitates `qSlicerCoreApplication::setMRMLScene` and `qSlicerCoreApplicationPrivate::init` (Base/QTCore), the creation
of module logics in `qSlicerAbstractCoreModule::logic`, `vtkSlicerApplicationLogic`'s use in `qSlicerApplication`,
and `qMRMLLayoutManager` as far as it makes the nodes of the views. Everything here is VTK and MRML; no Qt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk

from .subjecthierarchy import SubjectHierarchy

# Slicer's module names and the logic behind them.
LOGICS = {
    "Annotations": "vtkSlicerAnnotationModuleLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Colors": "vtkSlicerColorLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "ViewControllers": "vtkSlicerViewControllersLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}
_SLICES = (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal"))


@dataclass
class SceneParts:
    """What `slicer.app` hands out."""

    scene: Any
    app_logic: Any
    layout_logic: Any
    subject_hierarchy: SubjectHierarchy
    logics: dict[str, Any] = field(default_factory=dict)
    slice_logics: dict[str, Any] = field(default_factory=dict)
    data_io: tuple[Any, ...] = ()  # nobody else keeps them alive


def _share_directory() -> str:
    try:
        from trame_slicer.resources import resources_path
    except ImportError:
        return ""
    return Path(resources_path()).as_posix()


def make_scene(temporary: Path) -> SceneParts:
    """A fresh scene as after the start of Slicer: its singletons, colour tables, views' nodes, empty hierarchy."""
    output = vtk.vtkOutputWindow()
    output.SetDisplayModeToAlwaysStdErr()
    vtk.vtkOutputWindow.SetInstance(output)
    scene = slicer.vtkMRMLScene()
    scene.SetRootDirectory(str(temporary))
    app_logic = slicer.vtkSlicerApplicationLogic()
    app_logic.SetHomeDirectory(str(temporary.parent))
    app_logic.SetShareDirectory("share")
    (temporary.parent / "share" / "ColorFiles").mkdir(parents=True)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    app_logic.SetMRMLScene(scene)
    app_logic.SetTemporaryPath(str(temporary))
    remote, data_io = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    cache = temporary.parent / "cache"
    cache.mkdir()
    remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    data_io.SetMRMLApplicationLogic(app_logic)
    data_io.SetAndObserveDataIOManager(remote.GetDataIOManager())
    app_logic.SetMRMLSceneDataIO(scene, remote, data_io)
    slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(app_logic)
    slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(app_logic)
    parts = SceneParts(scene, app_logic, None, SubjectHierarchy(scene), data_io=(remote, data_io))
    share = _share_directory()
    for name, class_name in LOGICS.items():
        logic_class = getattr(slicer, class_name, None)
        if logic_class is None:
            continue
        logic = logic_class()
        if share and hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(f"{share}/terminologies" if name == "Terminologies" else share)
        logic.SetMRMLApplicationLogic(app_logic)
        logic.SetMRMLScene(scene)
        app_logic.SetModuleLogic(name, logic)
        parts.logics[name] = logic
    app_logic.SetColorLogic(parts.logics["Colors"])  # as qSlicerColorsModule::setup does
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    _make_views(parts)
    return parts


def _make_views(parts: SceneParts) -> None:
    scene, slices, views = parts.scene, vtk.vtkCollection(), vtk.vtkCollection()
    for name, orientation in _SLICES:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(parts.app_logic)
        logic.SetMRMLScene(scene)
        node = logic.AddSliceNode(name)
        node.SetOrientation(orientation)
        node.SetMappedInLayout(1)
        logic.GetSliceCompositeNode()
        slices.AddItem(logic)
        parts.slice_logics[name] = logic
    view = slicer.vtkMRMLViewNode()
    view.SetName("View1")
    view.SetSingletonTag("1")
    view.SetLayoutName("1")
    scene.AddNode(view)
    parts.app_logic.SetSliceLogics(slices)
    parts.app_logic.SetViewLogics(views)
    parts.layout_logic = slicer.vtkMRMLLayoutLogic()
    parts.layout_logic.SetMRMLScene(scene)
    layout = parts.layout_logic.GetLayoutNode()
    if layout is not None:
        layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
