"""Test cases for registration programs in the scene: transform nodes of every kind, judged by SimpleITK; error maps."""

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from DRDMDeformLib import mrml
from DRDMDeformLib.mrml import SceneError, volumeFromImage
from DRDMDeformLib.mrml.challenges import NOT_COUNTED
from scenes import displacement, inner_points, linear_node, smooth_field
from support import rotation, smooth_image

FLIP = np.asarray([-1.0, -1.0, 1.0])


def images() -> tuple[sitk.Image, sitk.Image]:
    """A fixed and a moving image with grids of their own."""
    fixed = smooth_image((30, 26, 22), (2.0, 1.5, 2.5), rotation(10, -20, 30))
    moving = smooth_image((28, 28, 24), (2.0, 2.0, 2.2), rotation(0, 5, 20), seed=4)
    moving.SetOrigin((np.asarray(fixed.GetOrigin()) + (3.0, -4.0, 2.0)).tolist())
    return fixed, moving


def itk_transform(kind: str, fixed: sitk.Image) -> sitk.Transform:
    """A transform from points of the fixed to points of the moving image, LPS."""
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((rotation(6, -8, 10) * 1.05).ravel().tolist())
    affine.SetTranslation((4.0, -3.0, 6.0))
    if kind == "linear":
        return affine
    if kind == "bspline":
        splines = sitk.BSplineTransformInitializer(fixed, [4, 5, 3])
        random = np.random.default_rng(2)
        splines.SetParameters((4.0 * random.standard_normal(len(splines.GetParameters()))).tolist())
        return splines
    # Slicer loads grids with cubic interpolation, which agrees with the linear one of ITK where they are fine.
    fine = sitk.TransformToDisplacementField(
        displacement(smooth_field(fixed, 5.0)),
        sitk.sitkVectorFloat64,
        [4 * n for n in fixed.GetSize()],
        fixed.GetOrigin(),
        [s / 4 for s in fixed.GetSpacing()],
        fixed.GetDirection(),
    )
    field = displacement(fine)
    return field if kind == "grid" else sitk.CompositeTransform([affine, field])


def node_of(scene, transform: sitk.Transform, folder, kind: str):
    """Load a transform into the scene as Slicer does."""
    path = folder / f"{kind}.h5"
    sitk.WriteTransform(transform, str(path))
    classes = {"linear": "Linear", "bspline": "BSpline", "grid": "Grid", "composite": ""}
    node = scene.AddNewNodeByClass(f"vtkMRML{classes[kind]}TransformNode", kind)
    storage = slicer.vtkMRMLTransformStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


def as_transform(result) -> sitk.Transform:
    return result if isinstance(result, sitk.Transform) else sitk.DisplacementFieldTransform(sitk.Image(result))


@pytest.mark.parametrize("kind", ["linear", "bspline", "grid", "composite"])
def test_results_map_points_of_the_fixed_image_as_itk_does(scene, tmp_path, kind):
    fixed, moving = images()
    wanted = itk_transform(kind, fixed)
    found = as_transform(mrml.resultOf(node_of(scene, wanted, tmp_path, kind), (fixed, moving)))
    points = inner_points(fixed, count=200, share=0.9) * FLIP
    there = np.asarray([found.TransformPoint(p) for p in points.tolist()])
    assert np.abs(there - [wanted.TransformPoint(p) for p in points.tolist()]).max() < 0.01
    assert np.linalg.norm(there - points, axis=1).mean() > 1


def test_a_volume_under_the_transform_shows_what_the_result_says(scene, tmp_path):
    """Slicer shows the moving on the fixed image with a transform whose map from parent is that of ITK."""
    fixed, moving = images()
    node = node_of(scene, itk_transform("composite", fixed), tmp_path, "composite")
    result = as_transform(mrml.resultOf(node, (fixed, moving)))
    volume = volumeFromImage(scene, moving, "moving")
    volume.SetAndObserveTransformNodeID(node.GetID())
    assert volume.HardenTransform()
    shown = mrml.imageFromVolume(volume)
    wanted = sitk.Resample(moving, shown, result, sitk.sitkLinear, 0.0)
    # The result is known around the images; the hardened volume may be larger.
    inside = sitk.GetArrayFromImage(sitk.Resample(sitk.Image(fixed) * 0 + 1, shown)) > 0.999
    inside &= sitk.GetArrayFromImage(sitk.Resample(sitk.Image(moving) * 0 + 1, shown, result)) > 0.999
    difference = np.abs(sitk.GetArrayFromImage(shown) - sitk.GetArrayFromImage(wanted))[inside]
    assert inside.sum() > 2000 and difference.max() < 0.02 * np.ptp(sitk.GetArrayFromImage(moving))


def test_parents_and_inverses_of_a_result_count(scene, tmp_path):
    fixed, moving = images()
    splines = itk_transform("bspline", fixed)
    node = node_of(scene, splines, tmp_path, "bspline")
    matrix = np.eye(4)
    matrix[:3, 3] = 3.0, -2.0, 1.0
    node.SetAndObserveTransformNodeID(linear_node(scene, matrix).GetID())
    found = as_transform(mrml.resultOf(node, (fixed, moving)))
    points = inner_points(fixed, count=50, share=0.6) * FLIP
    # The parent moves what is under it by (3, -2, 1) in RAS, so the map to the moving image undoes this first.
    wanted = [splines.TransformPoint((p - np.asarray((-3.0, 2.0, 1.0))).tolist()) for p in points]
    assert np.abs([np.asarray(found.TransformPoint(p)) for p in points.tolist()] - np.asarray(wanted)).max() < 0.01

    node.SetAndObserveTransformNodeID(None)
    node.Inverse()
    back = as_transform(mrml.resultOf(node, (fixed, moving)))
    there = [splines.TransformPoint(back.TransformPoint(p)) for p in points.tolist()]
    assert np.abs(np.asarray(there) - points).max() < 0.05


def test_large_images_are_sampled_coarsely(scene, tmp_path, monkeypatch):
    for module in ("challenges", "transforms"):
        monkeypatch.setattr(f"DRDMDeformLib.mrml.{module}.MAX_POINTS", 5000)
    fixed, moving = images()
    result = mrml.resultOf(node_of(scene, itk_transform("grid", fixed), tmp_path, "grid"), (fixed, moving))
    assert np.prod(result.GetSize()) < 8000
    first = fixed.TransformPhysicalPointToContinuousIndex(result.GetOrigin())
    assert np.allclose(first, np.round(first), atol=1e-6)


def test_a_case_in_the_scene(scene, tmp_path):
    scan = volumeFromImage(scene, images()[0], "scan")
    case = mrml.addCase(scene, scan, images(), tmp_path / "truth" / "scan_000")
    assert [node.GetName() for node in case[:2]] == ["scan fixed", "scan moving"]
    assert mrml.folderOf(case.fixed) == mrml.folderOf(case.moving) == "scan registration test"
    assert mrml.caseOf(case.fixed) == case
    with pytest.raises(SceneError, match="not the fixed image"):
        mrml.caseOf(scan)
    with pytest.raises(SceneError, match="not a transform"):
        mrml.resultOf(scan, images())
    scene.RemoveNode(case.fixed)
    with pytest.raises(SceneError, match="deleted"):
        mrml.caseOf(case.fixed)


def test_error_map_and_its_legend(scene, tmp_path):
    fixed = images()[0]
    scan = volumeFromImage(scene, fixed, "scan")
    case = mrml.addCase(scene, scan, images(), tmp_path)
    random = np.random.default_rng(0)
    errors = sitk.GetImageFromArray(random.random(fixed.GetSize()[::-1]).astype(np.float32) * 9)
    counted = sitk.GetImageFromArray(random.integers(0, 4, fixed.GetSize()[::-1]).astype(np.uint8))
    for image in (errors, counted):
        image.CopyInformation(fixed)
    counted = sitk.Cast(counted, sitk.sitkUInt8)
    node = mrml.addErrorMap(scene, case.fixed, (errors, counted), 5.0, "errors")
    shown = sitk.GetArrayFromImage(mrml.imageFromVolume(node))
    counts = sitk.GetArrayFromImage(counted) == 1
    assert np.array_equal(shown[counts], sitk.GetArrayFromImage(errors)[counts])
    assert (shown[~counts] == NOT_COUNTED).all()
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax(), display.GetLowerThreshold()) == (0.0, 5.0, 0.0)
    assert display.GetApplyThreshold() and display.GetUpperThreshold() >= shown.max()
    color = [0.0] * 4
    table = display.GetColorNode()
    table.GetColor(0, color)
    assert color[2] > color[0]
    table.GetColor(table.GetNumberOfColors() - 1, color)
    assert color[0] > color[2]
    legend = mrml.showLegend(node, "Error, mm")
    assert legend.GetVisibility() and legend.GetTitleText() == "Error, mm"
    assert mrml.showLegend(node, "Error, mm") is legend
    # The next result replaces it; every second voxel may be given.
    half = errors[::2, ::2, ::2] * 2
    again = mrml.addErrorMap(scene, case.fixed, (half, counted), 8.0, "other")
    assert again is node and node.GetName() == "other"
    shown = sitk.GetArrayFromImage(mrml.imageFromVolume(node))
    kept = sitk.GetArrayFromImage(counted)[::2, ::2, ::2] == 1
    assert np.array_equal(shown >= 0, kept)


def test_the_views_move_to_a_place(scene):
    slice_node = slicer.vtkMRMLSliceNode()
    slice_node.SetName("Red")
    slice_node.SetLayoutName("Red")
    scene.AddNode(slice_node)
    mrml.challenges.showPlace(scene, (5.0, -7.0, 11.0))
    matrix = slice_node.GetSliceToRAS()
    assert matrix.GetElement(2, 3) == pytest.approx(11.0)
