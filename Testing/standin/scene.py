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
from trame_slicer.resources import resources_path

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
    """What `slicer.app` hands out, and what nobody else keeps alive."""

    scene: Any
    app_logic: Any
    kept: tuple[Any, ...]
    logics: dict[str, Any] = field(default_factory=dict)


def make_scene(temporary: Path) -> SceneParts:
    """Make a scene as after the start of Slicer: its singletons, color tables, views' nodes, empty hierarchy."""
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
    parts = SceneParts(scene, app_logic, (SubjectHierarchy(scene), remote, data_io))
    share = Path(resources_path()).as_posix()
    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        if hasattr(logic, "SetModuleShareDirectory"):
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
    scene, slices = parts.scene, vtk.vtkCollection()
    for name, orientation in _SLICES:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(parts.app_logic)
        logic.SetMRMLScene(scene)
        node = logic.AddSliceNode(name)
        node.SetOrientation(orientation)
        node.SetMappedInLayout(1)
        logic.GetSliceCompositeNode()
        slices.AddItem(logic)
    view = slicer.vtkMRMLViewNode()
    view.SetName("View1")
    view.SetSingletonTag("1")
    view.SetLayoutName("1")
    scene.AddNode(view)
    parts.app_logic.SetSliceLogics(slices)
    parts.app_logic.SetViewLogics(vtk.vtkCollection())
    layout = slicer.vtkMRMLLayoutLogic()
    layout.SetMRMLScene(scene)
    layout.GetLayoutNode().SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
    parts.kept += (layout,)
