import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import (
    SceneError,
    imageDimension,
    imageFromVolume,
    labelFromSegmentation,
    labelMapFromImage,
    segmentations,
    volumeFromImage,
)
from scenes import (
    GEOMETRIES,
    add_model,
    add_segmentation,
    ball,
    dice,
    image_of,
    label_image,
    linear_node,
    parent_of,
    placed_volume,
    segmentation_state,
    two_structures,
)
from support import rotation, smooth_image


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_voxels_and_position_are_kept_in_the_scene_and_back(scene, geometry):
    image = image_of(geometry)
    back = imageFromVolume(volumeFromImage(scene, image, "scan"))
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (5, 2, 9), tuple(n - 1 for n in image.GetSize())):
        assert np.allclose(back.TransformIndexToPhysicalPoint(index), image.TransformIndexToPhysicalPoint(index))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_slicer_sees_the_voxels_in_ras(scene, geometry):
    image = image_of(geometry)
    node = volumeFromImage(scene, image, "scan")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    index = (7, 3, 11)
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    assert np.allclose(matrix.MultiplyPoint((*index, 1))[:3], (-x, -y, z))
    assert node.GetImageData().GetScalarComponentAsDouble(*index, 0) == pytest.approx(image[index])


@pytest.mark.parametrize("kind", ["rigid", "scaled"])
@pytest.mark.parametrize("geometry", ["plain", "oblique", "anisotropic", "mirrored"])
def test_under_a_linear_parent_the_voxels_are_kept_and_the_position_changes(scene, kind, geometry):
    image = image_of(geometry)
    node = placed_volume(scene, image, parent_of(scene, kind, image).node)
    world = imageFromVolume(node)
    assert np.array_equal(sitk.GetArrayFromImage(world), sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (7, 3, 11)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        where = [0.0, 0.0, 0.0]
        node.TransformPointToWorld((-x, -y, z), where)
        assert np.allclose(np.multiply(world.TransformIndexToPhysicalPoint(index), (-1, -1, 1)), where, atol=1e-6)


@pytest.mark.parametrize("kind", ["sheared", "grid"])
@pytest.mark.parametrize("geometry", ["plain", "oblique", "anisotropic"])
def test_under_a_nonlinear_parent_the_volume_is_resampled_in_world_space(scene, kind, geometry):
    image = image_of(geometry)
    parent = parent_of(scene, kind, image)
    node = placed_volume(scene, image, parent.node)
    world = imageFromVolume(node)
    want = sitk.Resample(image, world, parent.from_world, sitk.sitkLinear, np.nan)
    got, wanted = sitk.GetArrayFromImage(world), sitk.GetArrayFromImage(want)
    inside = np.isfinite(wanted)
    # The grid covers the whole volume with about the same spacing.
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    low, high = np.asarray(bounds[::2]), np.asarray(bounds[1::2])
    ends = [
        world.TransformContinuousIndexToPhysicalPoint(
            [(n - 0.5) * b - 0.5 * (1 - b) for n, b in zip(world.GetSize(), c, strict=True)]
        )
        for c in np.ndindex(2, 2, 2)
    ]
    corners = np.asarray(ends) * (-1, -1, 1)
    step = max(world.GetSpacing())
    assert (corners.min(axis=0) <= low + step).all() and (corners.max(axis=0) >= high - step).all()
    assert 0.5 < np.prod(world.GetSpacing()) / np.prod(image.GetSpacing()) < 2.0
    assert inside.mean() > 0.3
    assert np.abs(got - wanted)[inside].max() < 1e-3 * np.ptp(wanted[inside])


def test_a_label_map_keeps_its_values_when_it_is_resampled(scene):
    image = image_of("plain")
    node = labelMapFromImage(scene, two_structures(image), "labels")
    node.SetAndObserveTransformNodeID(parent_of(scene, "sheared", image).node.GetID())
    assert set(np.unique(sitk.GetArrayFromImage(imageFromVolume(node)))) == {0, 1, 2}


def test_a_single_slice_stays_one_voxel_thick(scene):
    image = smooth_image((40, 30, 1), (1.0, 1.0, 5.0), rotation(0, 30, 0))
    node = volumeFromImage(scene, image, "slice")
    assert imageFromVolume(node).GetSize() == (40, 30, 1)
    assert imageDimension(node) == (2, pytest.approx((40.0, 30.0, 5.0)))
    node.SetAndObserveTransformNodeID(parent_of(scene, "sheared", image).node.GetID())
    bent = imageFromVolume(node)
    assert bent.GetSize()[2] == 1
    assert np.ptp(sitk.GetArrayFromImage(bent)) > 0.5 * np.ptp(sitk.GetArrayFromImage(image))
    assert imageDimension(volumeFromImage(scene, image_of("plain"), "volume"))[0] == 3


def test_a_2d_image_becomes_a_slice(scene):
    image = smooth_image((40, 30))
    back = imageFromVolume(volumeFromImage(scene, image, "slice"))
    assert np.array_equal(sitk.GetArrayFromImage(back)[0], sitk.GetArrayFromImage(image))


def test_unusable_nodes_are_reported_in_one_sentence(scene):
    with pytest.raises(SceneError, match="no volume"):
        imageFromVolume(None)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty one")
    with pytest.raises(SceneError, match="'empty one' has no image data"):
        imageFromVolume(empty)
    color = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    pixels = vtk.vtkImageData()
    pixels.SetDimensions(4, 4, 4)
    pixels.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    color.SetAndObserveImageData(pixels)
    with pytest.raises(SceneError, match="'photo' has 3 values per voxel"):
        imageFromVolume(color)
    with pytest.raises(SceneError, match="not a volume"):
        imageFromVolume(add_model(scene, np.zeros(3), 5.0))
    gone = volumeFromImage(scene, image_of("plain"), "gone")
    scene.RemoveNode(gone)
    with pytest.raises(SceneError, match="'gone' has been deleted"):
        imageFromVolume(gone)


@pytest.mark.parametrize("kind", ["none", "rigid", "sheared", "grid"])
def test_segments_that_share_a_label_map_are_converted_to_the_grid_of_the_volume(scene, kind):
    image = image_of("oblique")
    label = two_structures(image)
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    segmentation = add_segmentation(scene, label, parent.node)
    before = segmentation_state(segmentation)
    found, segments, overlapping = labelFromSegmentation(segmentation, volume)
    assert segments == {1: ("id_1", "structure 1"), 2: ("id_2", "structure 2")}
    assert overlapping == []
    assert segmentation_state(segmentation) == before
    world = imageFromVolume(volume)
    assert found.GetSize() == world.GetSize() and np.allclose(found.GetOrigin(), world.GetOrigin())
    want = sitk.Resample(label, world, parent.from_world, sitk.sitkNearestNeighbor, 0)
    differing = sitk.GetArrayFromImage(found) != sitk.GetArrayFromImage(want)
    # If the grids differ, ties between nearest voxels can be resolved differently.
    assert np.count_nonzero(differing) <= (0 if kind in ("none", "rigid") else 20)


def test_a_segmentation_under_another_parent_is_converted_in_world_space(scene):
    image = image_of("plain")
    label = two_structures(image)
    volume = placed_volume(scene, image, parent_of(scene, "rigid", image).node)
    # The segmentation has the same position in the world, but no parent.
    segmentation = add_segmentation(scene, label, volume.GetParentTransformNode())
    segmentation.HardenTransform()
    assert segmentation.GetParentTransformNode() is None
    found = labelFromSegmentation(segmentation, volume).image
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(label))


def test_segments_are_converted_in_the_given_order_and_later_ones_overwrite(scene):
    image = image_of("plain")
    first, second = ball(image, (0.4, 0.5, 0.5)), ball(image, (0.6, 0.5, 0.5))
    segmentation = add_segmentation(scene, label_image(image, first))
    other = add_segmentation(scene, label_image(image, second * 2))
    segmentation.GetSegmentation().CopySegmentFromSegmentation(other.GetSegmentation(), "id_2")
    volume = placed_volume(scene, image)
    found = labelFromSegmentation(segmentation, volume)
    array = sitk.GetArrayFromImage(found.image)
    assert found.overlapping == ["structure 1"]
    assert np.array_equal(array == 2, second)
    assert np.array_equal(array == 1, first & ~second)
    turned = labelFromSegmentation(segmentation, volume, ["id_2", "id_1"])
    assert turned.segments[1][0] == "id_2" and turned.overlapping == ["structure 2"]
    assert np.array_equal(sitk.GetArrayFromImage(turned.image) == 2, first)
    only = labelFromSegmentation(segmentation, volume, ["id_2"])
    assert np.array_equal(sitk.GetArrayFromImage(only.image) == 1, second) and only.overlapping == []


@pytest.mark.parametrize("kind", ["none", "sheared"])
def test_closed_surfaces_are_converted_in_a_copy(scene, kind):
    image = image_of("oblique")
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    label = two_structures(image)
    segmentation = add_segmentation(scene, label, parent.node)
    segmentation.GetSegmentation().CreateRepresentation("Closed surface")
    segmentation.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segmentation.GetSegmentation().RemoveRepresentation("Binary labelmap")
    before = segmentation_state(segmentation)
    assert before[1] == ["Closed surface"]
    found = labelFromSegmentation(segmentation, volume)
    assert segmentation_state(segmentation) == before
    want = sitk.GetArrayFromImage(sitk.Resample(label, found.image, parent.from_world, sitk.sitkNearestNeighbor, 0))
    for value in (1, 2):
        assert dice(sitk.GetArrayFromImage(found.image) == value, want == value) > 0.93


def test_unusable_segmentations_are_reported(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    with pytest.raises(SceneError, match="no segmentation"):
        labelFromSegmentation(None, volume)
    with pytest.raises(SceneError, match="not a segmentation"):
        labelFromSegmentation(volume, volume)
    with pytest.raises(SceneError, match="no segments"):
        labelFromSegmentation(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "none"), volume)
    segmentation = add_segmentation(scene, two_structures(image))
    with pytest.raises(SceneError, match="no segment 'liver'"):
        labelFromSegmentation(segmentation, volume, ["liver"])
    away = np.eye(4)
    away[0, 3] = 500
    segmentation.SetAndObserveTransformNodeID(linear_node(scene, away).GetID())
    with pytest.raises(SceneError, match="no voxel inside the volume 'scan'"):
        labelFromSegmentation(segmentation, volume)


def test_names_are_made_unique(scene):
    image = image_of("plain")
    names = [volumeFromImage(scene, image, "scan").GetName() for _ in range(2)]
    assert len(set(names)) == 2
    assert isinstance(labelMapFromImage(scene, two_structures(image), "l"), slicer.vtkMRMLLabelMapVolumeNode)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", ["none", "rigid", "grid"])
def test_a_label_on_the_grid_of_its_volume_is_copied_not_resampled(scene, monkeypatch, geometry, kind):
    """The copy is what resampling gives; a label on another grid is resampled."""
    image = image_of(geometry)
    parent = parent_of(scene, kind, image).node
    volume = placed_volume(scene, image, parent)
    copied = []
    copy = segmentations.copiedVoxels

    def watched(*arguments):
        copied.append(copy(*arguments))
        return copied[-1]

    label = two_structures(image)
    half = sitk.Image(label)
    half.SetOrigin(label.TransformContinuousIndexToPhysicalPoint([0.5, 0.0, 0.0]))
    # Whole, cropped, and larger than the volume at one side.
    for number, one in enumerate((label, label[3:30, 5:33, 2:12], sitk.ConstantPad(label, [4, 0, 1], [0, 2, 0]), half)):
        node = add_segmentation(scene, one, parent)
        monkeypatch.setattr(segmentations, "copiedVoxels", watched)
        found = labelFromSegmentation(node, volume)
        monkeypatch.setattr(segmentations, "copiedVoxels", lambda *_: None)
        resampled = labelFromSegmentation(node, volume)
        assert np.array_equal(sitk.GetArrayFromImage(found.image), sitk.GetArrayFromImage(resampled.image))
        assert found[1:] == resampled[1:]
        assert (copied[-1] is not None) == (kind != "grid" and number < 3)
