import numpy as np
import pytest
import SimpleITK as sitk
from DRDMDeformLib.mrml import (
    LossCurve,
    SceneError,
    addVariants,
    createTransform,
    fitWarnings,
    imageFromVolume,
    jacobianVolume,
    showDeformation,
    volumeFromImage,
)
from scenes import constant_field, field_from, image_of, parent_of, placed_volume, smooth_field
from support import smooth_image
from test_mrml_transforms import save_and_load


def deformation(scene, geometry="plain", largest=6.0):
    image = image_of(geometry)
    volume = placed_volume(scene, image)
    return volume, addVariants(scene, volume, [smooth_field(image, largest)], [{"level": 1, "seed": 2}])[0]


def test_a_deformation_is_shown_by_its_own_display_node(scene):
    volume, transform = deformation(scene)
    showDeformation(transform, None)
    assert transform.GetDisplayNode() is None
    modes = set()
    for mode in ("grid", "glyph", "contour"):
        showDeformation(transform, mode)
        display = transform.GetDisplayNode()
        modes.add(display.GetVisualizationMode())
        assert display.GetVisibility() and display.GetVisibility2D() and display.GetVisibility3D()
        assert display.GetRegionNode() is volume
    assert len(modes) == 3 and transform.GetNumberOfDisplayNodes() == 1
    # The volume is 44 mm long, so cells have a few millimeters; arrows go up to the largest displacement.
    assert 2 < display.GetGridSpacingMm() < 4
    assert 6 <= display.GetGlyphDisplayRangeMaxMm() < 7
    showDeformation(transform, None)
    assert not display.GetVisibility()
    with pytest.raises(SceneError, match="'wireframe'"):
        showDeformation(transform, "wireframe")


def linear_field(image, stretch):
    """x -> x + (stretch - 1) (x - c) along the first axis: determinant ``stretch`` everywhere."""
    field = constant_field(image, (0.0, 0.0, 0.0))
    vectors = sitk.GetArrayFromImage(field)
    x = np.arange(6) * field.GetSpacing()[0]
    vectors[..., 0] = (stretch - 1) * (x - x.mean())
    return field_from(vectors, list(field.GetSpacing()), list(field.GetOrigin()))


@pytest.mark.parametrize(("stretch", "blue_over_red"), [(0.7, 1), (1.4, -1)])
def test_the_jacobian_of_a_stretch_is_the_stretch(scene, stretch, blue_over_red):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    transform = createTransform(scene, linear_field(image, stretch), "stretch")
    node = jacobianVolume(scene, transform, volume)
    values = sitk.GetArrayFromImage(imageFromVolume(node))
    assert np.allclose(values, stretch, atol=1e-4)
    red, _, blue = color_of(node, stretch)
    assert np.sign(blue - red) == blue_over_red


def color_of(node, value):
    """The color in which Slicer shows a value."""
    display = node.GetDisplayNode()
    table = display.GetColorNode().GetLookupTable()
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    place = min(max((value - low) / (high - low), 0), 1)
    return table.GetTableValue(round(place * (table.GetNumberOfTableValues() - 1)))[:3]


def test_the_jacobian_covers_the_volume_and_is_no_finer_than_the_field(scene):
    volume, transform = deformation(scene, "oblique")
    node = jacobianVolume(scene, transform, volume)
    world, jacobian = imageFromVolume(volume), imageFromVolume(node)
    corner = world.TransformIndexToPhysicalPoint((0, 0, 0))
    far = world.TransformIndexToPhysicalPoint(tuple(n - 1 for n in world.GetSize()))
    for point in (corner, far):
        index = jacobian.TransformPhysicalPointToContinuousIndex(point)
        assert all(-0.01 <= i <= n - 0.99 for i, n in zip(index, jacobian.GetSize(), strict=True))
    assert jacobian.GetNumberOfPixels() < world.GetNumberOfPixels()
    assert min(jacobian.GetSpacing()) > min(world.GetSpacing())


def reference_determinant(field):
    """Determinant by SimpleITK. Its filter ignores directions, so the vectors are rotated to the axes first."""
    axes = np.asarray(field.GetDirection()).reshape(3, 3)
    straight = field_from(sitk.GetArrayFromImage(field) @ axes, list(field.GetSpacing()), [0.0, 0.0, 0.0])
    out = sitk.DisplacementFieldJacobianDeterminant(straight)
    out.CopyInformation(field)
    return out


def test_the_jacobian_is_that_of_simpleitk(scene):
    volume, transform = deformation(scene, "oblique")
    node = jacobianVolume(scene, transform, volume)
    field = smooth_field(image_of("oblique"), 6.0)
    reference = reference_determinant(field)
    got = imageFromVolume(node)
    start = [round(i) for i in field.TransformPhysicalPointToContinuousIndex(got.GetOrigin())]
    want = sitk.GetArrayFromImage(sitk.RegionOfInterest(reference, got.GetSize(), start))
    assert np.allclose(sitk.GetArrayFromImage(got), want, atol=1e-3)


def test_colors_are_symmetric_about_one_and_folds_have_their_own(scene):
    volume, transform = deformation(scene, largest=25.0)
    node = jacobianVolume(scene, transform, volume)
    assert sitk.GetArrayFromImage(imageFromVolume(node)).min() < 0
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin() + display.GetWindowLevelMax()) / 2 == pytest.approx(1)
    assert min(color_of(node, 1.0)) > 0.9
    assert color_of(node, -0.5) == (1, 0, 1) == color_of(node, 0.0)
    assert color_of(node, 0.1) != (1, 0, 1)
    another = jacobianVolume(scene, transform, volume)
    assert another.GetDisplayNode().GetColorNode() is display.GetColorNode()


def test_the_colors_survive_saving(scene, make_scene, tmp_path):
    volume, transform = deformation(scene)
    name = jacobianVolume(scene, transform, volume).GetName()
    loaded = save_and_load(scene, make_scene(), tmp_path, True)
    again = loaded.GetFirstNodeByName(name)
    assert color_of(again, 0.0) == pytest.approx((1, 0, 1), abs=0.01)
    assert min(color_of(again, 1.0)) > 0.9
    scan, moved = (loaded.GetFirstNodeByName(n.GetName()) for n in (volume, transform))
    third = jacobianVolume(loaded, moved, scan)
    assert third.GetDisplayNode().GetColorNode() is again.GetDisplayNode().GetColorNode()


@pytest.mark.parametrize("kind", ["rigid", "grid"])
def test_the_jacobian_is_in_world_space(scene, kind):
    image = image_of("plain")
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    field = smooth_field(imageFromVolume(volume), 6.0)
    transform = createTransform(scene, field, "deformation", parent.node)
    node = jacobianVolume(scene, transform, volume)
    assert node.GetParentTransformNode() is None
    got = imageFromVolume(node)
    reference = sitk.Resample(reference_determinant(field), got, sitk.Transform(), sitk.sitkLinear, 1.0)
    miss = np.abs(sitk.GetArrayFromImage(got) - sitk.GetArrayFromImage(reference))
    # Under a grid the field is resampled, and its piecewise constant determinant jumps at other positions.
    assert np.percentile(miss, 99 if kind == "rigid" else 90) < 0.1


def test_a_loss_curve_grows_and_is_used_again(scene):
    curve = LossCurve(scene, "Training of liver")
    nodes = scene.GetNumberOfNodes()
    for step in range(5):
        curve.append(step, 1 / (step + 1))
    table = curve.tableNodes["loss"].GetTable()
    assert [table.GetValue(4, c).ToDouble() for c in range(2)] == [4, pytest.approx(0.2)]
    assert curve.chartNode.GetNumberOfPlotSeriesNodes() == 1
    curve.append(5, 0.1, validation=0.3)
    assert curve.chartNode.GetNumberOfPlotSeriesNodes() == 2
    assert curve.tableNodes["validation"].GetTable().GetNumberOfRows() == 1
    other = LossCurve(scene, "Training of liver 2")
    assert other.chartNode is not curve.chartNode
    again = LossCurve(scene, "Training of liver")
    assert again.chartNode is curve.chartNode and scene.GetNumberOfNodes() == 2 * nodes - (nodes - 5)
    assert again.tableNodes["loss"].GetTable().GetNumberOfRows() == 0
    assert again.chartNode.GetNumberOfPlotSeriesNodes() == 1
    again.remove()
    other.remove()
    assert scene.GetNumberOfNodes() == nodes - 5
    again.remove()


def test_a_loss_curve_is_found_in_a_loaded_scene(scene, make_scene, tmp_path):
    LossCurve(scene, "Training").append(1, 2.0, 3.0)
    loaded = save_and_load(scene, make_scene(), tmp_path, True)
    count = loaded.GetNumberOfNodes()
    LossCurve(loaded, "Training").append(7, 1.0)
    assert loaded.GetNumberOfNodes() == count


def test_a_model_that_does_not_fit_is_reported(scene):
    head = volumeFromImage(scene, smooth_image((50, 60, 50), (4.0, 4.0, 4.0)), "head")
    crop = volumeFromImage(scene, smooth_image((40, 50, 40)), "crop")
    one = volumeFromImage(scene, smooth_image((60, 50, 1), (4.0, 4.0, 8.0)), "slice")
    hippocampus = {"name": "hippocampus-mr-3d", "ndim": 3, "anatomy": "hippocampus", "modality": "MR"}
    hippocampus["extent_mm"] = (25.0, 90.0)
    brain = {"name": "brain-t1-3d", "ndim": 3, "extent_mm": (130.0, 350.0)}
    heart = {"name": "cardiac-mr-2d", "ndim": 2, "extent_mm": (100.0, 450.0)}
    assert fitWarnings(crop, hippocampus) == fitWarnings(head, brain) == fitWarnings(one, heart) == []
    assert fitWarnings(head, {"name": "general-3d", "ndim": 3}) == fitWarnings(crop, {"name": "mine", "ndim": 3}) == []
    (sentence,) = fitWarnings(head, hippocampus)
    assert "'head' is 240 mm long" in sentence and "25 to 90 mm" in sentence and "(hippocampus MR)" in sentence
    (sentence,) = fitWarnings(crop, brain)
    assert "'crop' is 50 mm long" in sentence and "choose another model" in sentence
    assert "single slice" in fitWarnings(one, {"name": "general-3d", "ndim": 3})[0]
    assert "slices" in fitWarnings(head, heart)[0]
    assert fitWarnings(crop, {"name": "mine", "ndim": 3, "extent_mm": [100, 200]})
    assert fitWarnings(crop, {**brain, "extent_mm": [10, 200]}) == []
    with pytest.raises(SceneError, match="no volume"):
        fitWarnings(None, brain)
