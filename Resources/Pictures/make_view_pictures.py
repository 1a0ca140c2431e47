"""Draw Slicer's slice and 3D views before and after a deformation, off-screen.

Usage: python Resources/Pictures/make_view_pictures.py

Needs slicer-core, slicer-layer-dm, trame-slicer and Matplotlib, but neither a display nor a GPU. The pictures show the
shipped phantom, deformed by a shipped model through the bridge of the Slicer module.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from trame_slicer.core import SlicerApp
from trame_slicer.views import SliceView, ThreeDView
from trame_slicer.views.render_scheduler import NoScheduleRendering
from vtk.util.numpy_support import vtk_to_numpy

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "DRDMDeform")]

from DRDMDeformLib.mrml import (  # noqa: E402
    addVariants,
    disablePreview,
    enablePreview,
    jacobianVolume,
    labelMapFromImage,
    removeNode,
    showDeformation,
    volumeFromImage,
)

from DRDMLib import deform, read_image, read_label  # noqa: E402
from DRDMLib.io.resources import resource  # noqa: E402
from DRDMLib.pictures import require_matplotlib  # noqa: E402

LEVEL, SEED = 64, 0
BACKGROUND = "#101418"
NAMES = {"head": (0.98, 0.79, 0.16), "body and tail": (0.25, 0.76, 0.98)}


def picture(view: Any) -> np.ndarray:
    """The picture of a view, (height, width, 3), 0 to 255."""
    view.render()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(view.render_window())
    grabber.SetInputBufferTypeToRGB()
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1].copy()


def slice_view(app: SlicerApp, volume: Any, orientation: str, size: int = 560) -> SliceView:
    """Create a slice view of the middle of a volume."""
    view = SliceView(
        scene=app.scene, app_logic=app.app_logic, name=orientation, scheduled_render_strategy=NoScheduleRendering()
    )
    view.render_window().SetSize(size, size)
    view.interactor().UpdateSize(size, size)
    view.set_orientation(orientation)
    view.set_background_volume_id(volume.GetID())
    view.fit_view_to_content()
    return view


def threed_view(app: SlicerApp, size: int = 560) -> ThreeDView:
    """Create a 3D view without the box and axis labels."""
    view = ThreeDView(
        scene=app.scene, app_logic=app.app_logic, name="3D", scheduled_render_strategy=NoScheduleRendering()
    )
    view.render_window().SetSize(size, size)
    view.interactor().UpdateSize(size, size)
    node = view.get_view_node()
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    node.SetBackgroundColor(0.063, 0.078, 0.094)
    node.SetBackgroundColor2(0.13, 0.16, 0.2)
    return view


def add_sample(scene: Any) -> tuple[Any, Any, sitk.Image]:
    """Add the phantom and the segmentation of its structures."""
    image = read_image(resource("Sample", "sample.nii.gz"))
    label = read_label(resource("Sample", "sample_label.nii.gz"), image)
    volume = volumeFromImage(scene, image, "phantom")
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(20, 200)
    volume.GetDisplayNode().SetInterpolate(True)
    labels = labelMapFromImage(scene, label, "labels")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "hippocampus")
    segmentation.CreateDefaultDisplayNodes()
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, segmentation)
    removeNode(labels)
    for n, (name, color) in enumerate(NAMES.items()):
        segment = segmentation.GetSegmentation().GetNthSegment(n)
        segment.SetName(name)
        segment.SetColor(*color)
    segmentation.CreateClosedSurfaceRepresentation()
    display = segmentation.GetDisplayNode()
    display.SetPreferredDisplayRepresentationName2D("Closed surface")
    display.SetVisibility2DFill(False)
    display.SetSliceIntersectionThickness(3)
    return volume, segmentation, image


def save(path: Path, rows: list[list[tuple[str, np.ndarray]]]) -> None:
    """Save rows of pictures with their titles."""
    plt = require_matplotlib()
    width, height = 3.3 * len(rows[0]), 3.55 * len(rows)
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(width, height), layout="constrained", facecolor=BACKGROUND, squeeze=False
    )
    for row, drawn in zip(rows, axes, strict=True):
        for (title, pixels), axis in zip(row, drawn, strict=True):
            axis.imshow(pixels)
            axis.set_title(title, color="#e8edf2", fontsize=10)
            axis.set_axis_off()
    figure.savefig(path, dpi=100, facecolor=BACKGROUND)
    plt.close(figure)


def main() -> None:
    """Draw view_slices.png and view_3d.png."""
    app = SlicerApp()
    scene = app.scene
    volume, segmentation, image = add_sample(scene)
    result = deform(image, "hippocampus-mr-3d", level=LEVEL, seed=SEED, device="cpu")
    record = {"level": LEVEL, "seed": SEED, "metrics": result.metrics.to_dict()}
    transform = addVariants(scene, volume, [result.field], [record])[0]
    nodes = [volume, segmentation]
    views = [slice_view(app, volume, orientation) for orientation in ("Sagittal", "Axial")]
    solid = threed_view(app)

    rows: list[list[tuple[str, np.ndarray]]] = [[] for _ in views]
    for row, view in zip(rows, views, strict=True):
        row.append(("original", picture(view)))
    enablePreview(transform, nodes)
    for row, view in zip(rows, views, strict=True):
        row.append((f"level {LEVEL}, seed {SEED}", picture(view)))
    showDeformation(transform, "grid")
    for row, view in zip(rows, views, strict=True):
        row.append(("with the grid", picture(view)))
    showDeformation(transform, None)
    jacobian = jacobianVolume(scene, transform, volume)
    for row, view in zip(rows, views, strict=True):
        view.set_foreground_volume_id(jacobian.GetID())
        view.set_foreground_opacity(0.55)
        row.append(("Jacobian: blue grew, red shrank", picture(view)))
        view.set_foreground_volume_id(None)
    save(HERE / "view_slices.png", rows)

    disablePreview(transform, nodes)
    views[1].set_visible_in_3d(True)
    views[1].set_slice_value(views[1].get_slice_range()[0] + 8)
    solid.reset_camera()
    camera = solid.get_camera_node()
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    focus = np.multiply(middle, (-1, -1, 1)) + (0, 0, -4)
    camera.SetFocalPoint(*focus)
    camera.SetPosition(*(focus + np.array([-88.0, 52.0, 66.0])))
    camera.SetViewUp(0, 0, 1)
    camera.ResetClippingRange()
    row = [("original", picture(solid))]
    enablePreview(transform, nodes)
    row.append((f"level {LEVEL}, seed {SEED}", picture(solid)))
    showDeformation(transform, "grid")
    transform.GetDisplayNode().SetGridSpacingMm(9)
    row.append(("with the grid", picture(solid)))
    save(HERE / "view_3d.png", [row])


if __name__ == "__main__":
    main()
