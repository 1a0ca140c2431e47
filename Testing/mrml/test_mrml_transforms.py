import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import (
    SceneError,
    apply,
    createTransform,
    disablePreview,
    enablePreview,
    fieldFromTransform,
    imageFromVolume,
    labelFromSegmentation,
    volumeFromImage,
)
from DRDMDeformLib.mrml.grids import transformPoints
from scenes import (
    GEOMETRIES,
    add_model,
    add_points,
    add_segmentation,
    ball,
    constant_field,
    dice,
    displacement,
    field_from,
    first_layer,
    image_of,
    inner_points,
    interior,
    label_image,
    linear_node,
    parent_of,
    placed_volume,
    points_of,
    smooth_field,
    two_structures,
)
from support import rotation, smooth_image

from DRDMLib.deforming import deform
from DRDMLib.output import write_ddf, write_field
from DRDMLib.spatial.resampling import warp_image, warp_label

LARGEST = 6.0


def hardened_by_slicer(scene, node, transform):
    """A copy of a node, hardened by Slicer itself."""
    clone = type(node)()
    scene.AddNode(clone)
    clone.CopyContent(node)
    clone.SetAndObserveTransformNodeID(transform.GetID())
    assert clone.HardenTransform()
    return clone


def voxel_of(image, value):
    return np.argwhere(sitk.GetArrayFromImage(image) == value).mean(axis=0)[::-1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_displacement_along_one_axis_has_the_right_direction(scene, axis):
    """The field points from the new image to the original, so +6 mm along an LPS axis move the image by -6 mm."""
    size = (41, 41, 41)
    array = np.zeros(size[::-1], np.uint8)
    array[18:23, 18:23, 18:23] = 200
    image = sitk.GetImageFromArray(array)
    image.SetOrigin((-17.0, 23.5, 41.0))
    volume = volumeFromImage(scene, image, "box")
    center_ras = np.asarray(image.TransformIndexToPhysicalPoint((20, 20, 20))) * (-1, -1, 1)
    points = add_points(scene, center_ras[None])
    vector = [0.0, 0.0, 0.0]
    vector[axis] = 6.0
    transform = createTransform(scene, constant_field(image, tuple(vector)), "shift")
    enablePreview(transform, [volume, points])
    moved = np.zeros(3)
    moved[axis] = -6.0
    assert np.allclose(points_of(points)[0], center_ras + moved * (-1, -1, 1), atol=1e-3)
    world = imageFromVolume(hardened_by_slicer(scene, volume, transform))
    found = world.TransformContinuousIndexToPhysicalPoint(voxel_of(world, 200).tolist())
    assert np.allclose(found, np.asarray(image.TransformIndexToPhysicalPoint((20, 20, 20))) + moved, atol=0.3)
    copy = apply(transform, [volume])[0]
    inside = imageFromVolume(copy)
    assert np.allclose(voxel_of(inside, 200), 20 + moved, atol=0.3)


@pytest.mark.parametrize("kind", ["none", "rigid", "scaled", "sheared", "grid"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_volume_hardened_by_slicer_equals_the_warp(scene, geometry, kind):
    image = image_of(geometry)
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    field = smooth_field(imageFromVolume(volume), LARGEST)
    transform = createTransform(scene, field, "deformation", parent.node)
    assert transform.GetParentTransformNode() is parent.node
    world = imageFromVolume(hardened_by_slicer(scene, volume, transform))
    # At w the volume must show what the original has at D(w).
    whole = sitk.CompositeTransform([parent.from_world, displacement(field)])
    want = sitk.GetArrayFromImage(sitk.Resample(image, world, whole, sitk.sitkLinear, 0.0))
    inside = interior(image, world, whole)
    got = sitk.GetArrayFromImage(world)
    difference = np.abs(got - want)[inside] / np.ptp(sitk.GetArrayFromImage(image))
    assert np.count_nonzero(inside) > 5000
    # Check that the deformation is not negligible: without it the values differ much more.
    still = sitk.GetArrayFromImage(sitk.Resample(image, world, parent.from_world, sitk.sitkLinear, 0.0))
    assert np.abs(still - want)[inside].max() > 0.1 * np.ptp(want)
    assert difference.max() < 0.01


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_volume_hardened_by_slicer_equals_the_warp_of_drdmlib(scene, geometry):
    image = image_of(geometry)
    field = smooth_field(image, LARGEST)
    transform = createTransform(scene, field, "deformation")
    world = imageFromVolume(hardened_by_slicer(scene, volumeFromImage(scene, image, "scan"), transform))
    want = sitk.GetArrayFromImage(warp_image(image, world, displacement(field)))
    inside = interior(image, world, displacement(field))
    difference = np.abs(sitk.GetArrayFromImage(world) - want)[inside]
    assert difference.max() < 0.01 * np.ptp(sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("kind", ["none", "rigid", "scaled", "grid"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_segmentation_hardened_by_slicer_agrees_with_the_warped_label(scene, geometry, kind):
    image = image_of(geometry)
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    world_image = imageFromVolume(volume)
    # The structure is large, so that single voxels have little influence on the Dice.
    label = label_image(image, ball(image, radius=0.36))
    segmentation = add_segmentation(scene, label, parent.node)
    field = smooth_field(world_image, LARGEST)
    transform = createTransform(scene, field, "deformation", parent.node)
    enablePreview(transform, [segmentation])
    hardened = apply(transform, [segmentation], originalGrid=False)[0]
    assert hardened.GetParentTransformNode() is None
    got = sitk.GetArrayFromImage(labelFromSegmentation(hardened, volume).image) == 1
    if kind == "grid":
        whole = sitk.CompositeTransform([parent.from_world, displacement(field)])
        own = first_layer(hardened)
        want = sitk.GetArrayFromImage(sitk.Resample(label, own, whole, sitk.sitkNearestNeighbor, 0)) == 1
        assert dice(sitk.GetArrayFromImage(own) == 1, want) >= 0.99
        expected = sitk.GetArrayFromImage(sitk.Resample(label, world_image, whole, sitk.sitkNearestNeighbor, 0))
        volumes = [np.prod(own.GetSpacing()) * want.sum(), np.prod(world_image.GetSpacing()) * expected.sum()]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.05)
        return
    world_label = sitk.GetImageFromArray(sitk.GetArrayFromImage(label))
    world_label.CopyInformation(world_image)
    want = sitk.GetArrayFromImage(warp_label(world_label, world_image, displacement(field))) == 1
    assert dice(want, sitk.GetArrayFromImage(label) == 1) < 0.97
    assert dice(got, want) >= 0.99


@pytest.mark.parametrize("kind", ["none", "rigid", "sheared", "grid"])
def test_markups_and_their_inverse_return_to_a_tenth_of_a_millimeter(scene, kind):
    image = image_of("oblique")
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    field = smooth_field(imageFromVolume(volume), LARGEST)
    transform = createTransform(scene, field, "deformation", parent.node)
    points = add_points(scene, inner_points(image), parent.node)
    before = points_of(points)
    enablePreview(transform, [points])
    moved = points_of(points)
    assert np.linalg.norm(moved - before, axis=1).max() > 0.3 * LARGEST
    # SimpleITK's field points from the new position to the original one.
    back = [displacement(field).TransformPoint((-x, -y, z)) for x, y, z in moved.tolist()]
    assert np.linalg.norm(np.asarray(back) * (-1, -1, 1) - before, axis=1).max() < 0.1
    hardened = apply(transform, [points], originalGrid=False)[0]
    assert np.allclose(points_of(hardened), moved, atol=1e-3)
    transform.Inverse()
    hardened.SetAndObserveTransformNodeID(transform.GetID())
    if parent.node is None:
        assert np.linalg.norm(points_of(hardened) - before, axis=1).max() < 0.1


@pytest.mark.parametrize("kind", ["none", "rigid", "scaled"])
def test_the_field_of_a_transform_is_the_original_field(scene, kind):
    image = image_of("oblique")
    parent = parent_of(scene, kind, image)
    field = smooth_field(imageFromVolume(placed_volume(scene, image, parent.node)), LARGEST)
    back = fieldFromTransform(createTransform(scene, field, "deformation", parent.node))
    assert np.allclose(back.GetOrigin(), field.GetOrigin()) and np.allclose(back.GetSpacing(), field.GetSpacing())
    assert np.allclose(back.GetDirection(), field.GetDirection())
    assert np.allclose(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(field), atol=1e-5)


@pytest.mark.parametrize("kind", ["sheared", "grid"])
def test_the_field_of_a_sampled_transform_agrees_in_world_space(scene, kind):
    image = image_of("oblique")
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    world = imageFromVolume(volume)
    field = smooth_field(world, LARGEST)
    back = displacement(fieldFromTransform(createTransform(scene, field, "deformation", parent.node)))
    miss = [
        np.subtract(back.TransformPoint(p), displacement(field).TransformPoint(p))
        for p in (inner_points(world, 200, 0.9) * (-1, -1, 1)).tolist()
    ]
    assert np.linalg.norm(miss, axis=1).max() < 0.15


def test_under_a_parent_the_local_field_differs(scene):
    image = image_of("plain")
    node = linear_node(scene, np.diag([1, 1, 1, 1]) + np.array([[0, 0, 0, 30.0]] + [[0] * 4] * 3))
    field = smooth_field(imageFromVolume(placed_volume(scene, image, node)), LARGEST)
    transform = createTransform(scene, field, "deformation", node)
    local = fieldFromTransform(transform, world=False)
    # 30 mm in RAS are -30 mm in LPS; the space under the parent does not have this shift.
    assert np.allclose(np.subtract(local.GetOrigin(), field.GetOrigin()), (30, 0, 0))


def test_a_2d_field_deforms_its_slice_within_its_plane(scene):
    flat = smooth_image((40, 30), (1.5, 1.5), pixel=sitk.sitkFloat32)
    field = smooth_field(flat, 4.0)
    assert field.GetDimension() == 2
    transform = createTransform(scene, field, "flat")
    volume = volumeFromImage(scene, flat, "slice")
    got = sitk.GetArrayFromImage(imageFromVolume(apply(transform, [volume])[0]))[0]
    want = sitk.GetArrayFromImage(sitk.Resample(flat, flat, displacement(field), sitk.sitkLinear, 0.0))
    inside = interior(flat, flat, displacement(field))
    assert np.abs(got - want)[inside].max() < 1e-3 * np.ptp(want)
    vectors = sitk.GetArrayFromImage(fieldFromTransform(transform))
    assert np.all(vectors[..., 2] == 0) and np.all(vectors[[0, -1]] == 0) and np.abs(vectors[2]).max() > 1


def test_an_image_that_is_not_a_field_is_refused(scene):
    with pytest.raises(SceneError, match="as many values per voxel"):
        createTransform(scene, image_of("plain"), "not a field")
    gone = linear_node(scene, np.eye(4), "gone")
    scene.RemoveNode(gone)
    with pytest.raises(SceneError, match="'gone' has been deleted"):
        createTransform(scene, constant_field(image_of("plain"), (1, 0, 0)), "t", gone)
    assert scene.GetNumberOfNodesByClass("vtkMRMLGridTransformNode") == 0


def test_only_deformations_have_a_field(scene):
    with pytest.raises(SceneError, match="'linear' is not a deformation"):
        fieldFromTransform(linear_node(scene, np.eye(4)))
    transform = createTransform(scene, constant_field(image_of("plain"), (1, 0, 0)), "turned")
    transform.Inverse()
    with pytest.raises(SceneError, match="'turned' is inverted"):
        fieldFromTransform(transform)


@pytest.mark.parametrize("kind", ["none", "rigid", "grid"])
def test_preview_on_and_off(scene, kind):
    image = image_of("plain")
    parent = parent_of(scene, kind, image)
    volume = placed_volume(scene, image, parent.node)
    nodes = [
        volume,
        add_segmentation(scene, two_structures(image), parent.node),
        add_model(scene, inner_points(image)[0], 6.0, parent.node),
        add_points(scene, inner_points(image), parent.node),
    ]
    transform = createTransform(scene, smooth_field(imageFromVolume(volume), LARGEST), "deformation", parent.node)
    enablePreview(transform, nodes)
    assert all(n.GetParentTransformNode() is transform for n in nodes)
    enablePreview(transform, nodes)
    disablePreview(transform, nodes)
    assert all(n.GetParentTransformNode() is parent.node for n in nodes)
    disablePreview(transform, nodes)
    assert all(n.GetParentTransformNode() is parent.node for n in nodes)


def test_preview_takes_all_nodes_or_none(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    elsewhere = add_points(scene, inner_points(image), linear_node(scene, np.eye(4), "atlas space"))
    transform = createTransform(scene, smooth_field(image, LARGEST), "deformation")
    with pytest.raises(SceneError, match="'landmarks' is under the transform 'atlas space'"):
        enablePreview(transform, [volume, elsewhere])
    assert volume.GetParentTransformNode() is None
    with pytest.raises(SceneError, match="'atlas space'"):
        disablePreview(transform, [elsewhere])
    camera = scene.AddNewNodeByClass("vtkMRMLCameraNode", "camera")
    with pytest.raises(SceneError, match="'camera' can"):
        enablePreview(transform, [volume, camera])
    with pytest.raises(SceneError, match="'deformation' cannot be deformed"):
        enablePreview(transform, [transform])
    scene.RemoveNode(volume)
    with pytest.raises(SceneError, match="'scan' has been deleted"):
        enablePreview(transform, [volume])
    scene.RemoveNode(transform)
    with pytest.raises(SceneError, match="'deformation' has been deleted"):
        enablePreview(transform, [elsewhere])


@pytest.mark.parametrize("parent", ["none", "rigid"])
@pytest.mark.parametrize("bundle", [False, True], ids=["mrml", "mrb"])
def test_a_saved_scene_has_the_same_field(scene, make_scene, tmp_path, bundle, parent):
    folder = tmp_path / "Größe und Ärger 患者"
    folder.mkdir()
    image = image_of("oblique")
    above = parent_of(scene, parent, image).node
    volume = placed_volume(scene, image, above)
    points = add_points(scene, inner_points(image), above)
    transform = createTransform(scene, smooth_field(imageFromVolume(volume), LARGEST), "Verformung ä", above)
    enablePreview(transform, [volume, points])
    moved = points_of(points)
    loaded = save_and_load(scene, make_scene(), folder, bundle)
    again = loaded.GetFirstNodeByName("Verformung ä")
    field, before = fieldFromTransform(again), fieldFromTransform(transform)
    assert np.allclose(sitk.GetArrayFromImage(field), sitk.GetArrayFromImage(before), atol=1e-5)
    assert np.allclose(field.GetOrigin(), before.GetOrigin(), atol=1e-4)
    assert np.allclose(field.GetDirection(), before.GetDirection(), atol=1e-6)
    scan, landmarks = loaded.GetFirstNodeByName("scan"), loaded.GetFirstNodeByName("landmarks")
    assert scan.GetParentTransformNode() is again
    # Slicer loads it with cubic interpolation; the bridge sets it to linear again.
    enablePreview(again, [scan, landmarks])
    assert np.abs(points_of(landmarks) - moved).max() < 1e-3
    disablePreview(again, [scan, landmarks])
    assert (scan.GetParentTransformNode() is None) == (above is None)
    assert np.array_equal(
        sitk.GetArrayFromImage(imageFromVolume(apply(again, [scan])[0])),
        sitk.GetArrayFromImage(imageFromVolume(apply(transform, [volume])[0])),
    )


def save_and_load(scene, other, folder, bundle):
    if bundle:
        path = folder / "Szene ü.mrb"
        assert scene.WriteToMRB(str(path))
        assert other.ReadFromMRB(str(path))
        return other
    for n in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(n)
        if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene() and not node.IsA("vtkMRMLColorNode"):
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            storage.SetFileName(str(folder / f"{node.GetID()}.{storage.GetDefaultWriteFileExtension()}"))
            assert storage.WriteData(node)
    path = folder / "Szene ü.mrml"
    scene.SetRootDirectory(str(folder))
    scene.SetURL(str(path))
    assert scene.Commit(str(path))
    other.SetURL(str(path))
    assert other.Connect()
    return other


def test_nothing_moves_outside_the_field(scene):
    image = image_of("plain")
    transform = createTransform(scene, smooth_field(image, LARGEST), "deformation")
    far = add_points(scene, np.array([[500.0, 0, 0], [0, -800, 20], [10, 10, 900]]))
    before = points_of(far)
    enablePreview(transform, [far])
    assert np.allclose(points_of(far), before)


def test_the_coarse_file_of_deform_is_the_same_map_as_the_full_one(scene, tiny_model_path, tmp_path):
    image = image_of("oblique")
    made = deform(image, str(tiny_model_path), 30, seed=2, steps=1, device="cpu")
    files = [write_field(tmp_path / "coarse.nii.gz", made), write_ddf(tmp_path / "full.nii.gz", made)]
    coarse, full = (createTransform(scene, sitk.ReadImage(str(path)), path.name) for path in files)
    index = np.argwhere(np.ones(image.GetSize()))[::7]
    centers = np.array([image.TransformIndexToPhysicalPoint(one) for one in index.tolist()]) * [-1, -1, 1]
    moved, same = (transformPoints(node.GetTransformFromParent(), centers) for node in (coarse, full))
    assert np.abs(moved - centers).max() > 1 and np.abs(moved - same).max() < 1e-3
    # The coarse grid ends where nothing moves any more; beyond it nothing moves either.
    field = sitk.ReadImage(str(files[0]))
    ends = np.array([-2.0, *np.array(field.GetSize()) + 1.0])
    outside = np.array([field.TransformContinuousIndexToPhysicalPoint([e] * 3) for e in ends]) * [-1, -1, 1]
    assert np.abs(transformPoints(coarse.GetTransformFromParent(), outside) - outside).max() == 0


def test_a_fine_parent_grid_is_sampled_accurately(scene):
    """If the parent is finer than the field, the sampled grid has to be finer than the field too."""
    image = image_of("plain")
    parent = createTransform(scene, smooth_field(image, 3.0, seed=5, nodes=40), "fine parent")
    volume = placed_volume(scene, image, parent)
    field = smooth_field(imageFromVolume(volume), LARGEST, nodes=10)
    transform = createTransform(scene, field, "deformation", parent)
    data = transform.GetTransformFromParent().GetDisplacementGrid()
    assert data.GetNumberOfPoints() > 10**3
    points = add_points(scene, inner_points(image), parent)
    before = points_of(points)
    enablePreview(transform, [points])
    back = [displacement(field).TransformPoint((-x, -y, z)) for x, y, z in points_of(points).tolist()]
    assert np.linalg.norm(np.asarray(back) * (-1, -1, 1) - before, axis=1).max() < 0.1


def test_a_field_on_an_oblique_grid_needs_no_resampling(scene):
    direction = rotation(30, 10, -20)
    field = field_from(np.random.default_rng(0).normal(size=(5, 6, 7, 3)), [3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    field.SetDirection(direction.ravel().tolist())
    transform = createTransform(scene, field, "oblique")
    index = (4, 2, 3)
    x, y, z = field.TransformIndexToPhysicalPoint(index)
    out = transform.GetTransformFromParent().TransformPoint((-x, -y, z))
    assert np.allclose(np.subtract(out, (-x, -y, z)) * (-1, -1, 1), field[index], atol=1e-5)
    assert isinstance(transform, slicer.vtkMRMLGridTransformNode)
    assert transform.GetTransformFromParent().GetDisplacementGrid().GetScalarType() == vtk.VTK_FLOAT


@pytest.mark.parametrize("kind", ["none", "rigid", "grid"])
def test_a_posed_scan_is_shown_whole(scene, kind, tiny_model):
    """Also what a strong pose moves out of the grid of the field, and all that was in the scan."""
    image = smooth_image((30, 26, 28), spacing=(1.5, 1.0, 1.2), direction=rotation(10, 20, -30))
    result = deform(image, tiny_model, level=30, seed=4, steps=2, pose=2.0)
    node = createTransform(scene, result.field, "posed", parent_of(scene, kind, image).node)
    corners = np.asarray(np.meshgrid(*[[-0.5, n - 0.5] for n in image.GetSize()])).reshape(3, -1).T
    inside = np.random.default_rng(0).uniform(-0.5, np.asarray(image.GetSize()) - 0.5, (200, 3))
    shown = np.asarray([image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in np.r_[corners, inside]])
    places = result.inverse_points(shown)
    index = np.asarray([result.field.TransformPhysicalPointToContinuousIndex(p) for p in places.tolist()])
    assert ((index < 0) | (index > np.asarray(result.field.GetSize()) - 1)).any(), "the pose is not strong enough"
    field = fieldFromTransform(node)
    found = np.asarray([displacement(field).TransformPoint(p) for p in places.tolist()])
    assert np.abs(found - shown).max() < 0.1
