import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import (
    SceneError,
    apply,
    createTransform,
    enablePreview,
    imageFromVolume,
    labelFromSegmentation,
    labelMapFromImage,
)
from scenes import (
    GEOMETRIES,
    add_model,
    add_points,
    add_segmentation,
    dice,
    displacement,
    everything,
    image_of,
    inner_points,
    linear_node,
    matrix_of,
    mesh_points,
    parent_of,
    placed_volume,
    points_of,
    segmentation_state,
    smooth_field,
    two_structures,
)

from DRDMLib.spatial.resampling import warp_image, warp_label

LARGEST = 6.0


class Patient:
    """A volume with one node of each kind that can be deformed with it, and a deformation."""

    def __init__(self, scene, geometry="oblique", kind="none", **options):
        self.image = image_of(geometry, **options)
        self.label = two_structures(self.image)
        self.parent = parent_of(scene, kind, self.image).node
        self.volume = placed_volume(scene, self.image, self.parent)
        self.labels = labelMapFromImage(scene, self.label, "labels")
        if self.parent is not None:
            self.labels.SetAndObserveTransformNodeID(self.parent.GetID())
        self.segmentation = add_segmentation(scene, self.label, self.parent)
        self.model = add_model(scene, inner_points(self.image, 1)[0], 8.0, self.parent)
        self.points = add_points(scene, inner_points(self.image), self.parent)
        self.world = imageFromVolume(self.volume)
        self.field = smooth_field(self.world, LARGEST)
        self.transform = createTransform(scene, self.field, "deformation", self.parent)

    @property
    def nodes(self):
        return [self.volume, self.labels, self.segmentation, self.model, self.points]


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("original_grid", [True, False])
@pytest.mark.parametrize("kind", ["none", "rigid", "grid"])
def test_copies_leave_the_originals_bit_identical(scene, kind, original_grid, preview):
    patient = Patient(scene, kind=kind, size=(26, 24, 22))
    before = everything(scene)
    if preview:
        enablePreview(patient.transform, patient.nodes)
    made = apply(patient.transform, patient.nodes, copies=True, originalGrid=original_grid)
    after = everything(scene)
    assert {key: after[key] for key in before} == before
    assert [type(n) for n in made] == [type(n) for n in patient.nodes]
    assert [n.GetName() for n in made] == [f"{n.GetName()} deformed" for n in patient.nodes]
    wanted = patient.parent if original_grid else None
    assert all(n.GetParentTransformNode() is wanted for n in made)
    assert not set(made) & set(patient.nodes)


@pytest.mark.parametrize("kind", ["none", "rigid", "scaled"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_in_the_original_grid_the_result_is_that_of_drdmlib(scene, geometry, kind):
    patient = Patient(scene, geometry, kind)
    volume, labels, segmentation, *_ = apply(patient.transform, patient.nodes)
    transform = displacement(patient.field)
    want = warp_image(patient.world, patient.world, transform)
    got = imageFromVolume(volume)
    scale = np.ptp(sitk.GetArrayFromImage(want))
    assert np.allclose(sitk.GetArrayFromImage(got), sitk.GetArrayFromImage(want), atol=1e-4 * scale)
    assert matrix_of(volume) == matrix_of(patient.volume)
    world_label = sitk.GetImageFromArray(sitk.GetArrayFromImage(patient.label))
    world_label.CopyInformation(patient.world)
    warped = sitk.GetArrayFromImage(warp_label(world_label, patient.world, transform))
    moved = labelFromSegmentation(segmentation, patient.volume)
    for array in (sitk.GetArrayFromImage(imageFromVolume(labels)), sitk.GetArrayFromImage(moved.image)):
        assert np.count_nonzero(array != warped) <= 2
        assert min(dice(array == value, warped == value) for value in (1, 2)) > 0.999
    assert dice(warped == 2, sitk.GetArrayFromImage(patient.label) == 2) < 0.95


@pytest.mark.parametrize("original_grid", [True, False])
def test_all_nodes_are_deformed_like_the_volume(scene, original_grid):
    patient = Patient(scene, kind="rigid")
    _, _, segmentation, model, points = apply(patient.transform, patient.nodes, originalGrid=original_grid)
    enablePreview(patient.transform, patient.nodes)
    previewed = points_of(patient.points)
    assert np.abs(points_of(points) - previewed).max() < 1e-3
    assert np.linalg.norm(previewed - points_of(patient.points, world=False), axis=1).max() > 1
    vertices = []
    for vertex in mesh_points(patient.model):
        out = [0.0, 0.0, 0.0]
        patient.model.TransformPointToWorld(vertex.tolist(), out)
        vertices.append(out)
    reached = []
    for vertex in mesh_points(model):
        out = [0.0, 0.0, 0.0]
        model.TransformPointToWorld(vertex.tolist(), out)
        reached.append(out)
    assert np.abs(np.subtract(reached, vertices)).max() < 1e-2
    assert labelFromSegmentation(segmentation, patient.volume).segments[2] == ("id_2", "structure 2")


def test_segments_keep_ids_names_colors_terminology_and_their_shared_label_map(scene):
    patient = Patient(scene)
    patient.segmentation.GetSegmentation().CreateRepresentation("Closed surface")
    display = patient.segmentation.GetDisplayNode()
    display.SetSegmentOpacity3D("id_2", 0.25)
    display.SetSegmentVisibility("id_1", False)
    copy = apply(patient.transform, [patient.segmentation])[0]
    segmentation = copy.GetSegmentation()
    first, second = (segmentation.GetSegment(f"id_{n}") for n in (1, 2))
    assert first.GetRepresentation("Binary labelmap") is second.GetRepresentation("Binary labelmap")
    assert [s.GetName() for s in (first, second)] == ["structure 1", "structure 2"]
    assert second.GetColor() == (0.4, 0.9, 0.3)
    tag = vtk.reference("")
    assert second.GetTag("TerminologyEntry", tag) and str(tag) == "category~2"
    shown = copy.GetDisplayNode()
    assert shown is not display
    assert shown.GetSegmentOpacity3D("id_2") == 0.25 and not shown.GetSegmentVisibility("id_1")
    names = []
    segmentation.GetContainedRepresentationNames(names)
    assert sorted(names) == ["Binary labelmap", "Closed surface"]

    def surface(node):
        return node.GetSegmentation().GetSegment("id_2").GetRepresentation("Closed surface").GetBounds()

    assert np.abs(np.subtract(surface(copy), surface(patient.segmentation))).max() > 0.5


@pytest.mark.parametrize("kind", ["none", "rigid", "grid"])
@pytest.mark.parametrize("original_grid", [True, False])
def test_a_closed_surface_is_deformed_and_not_made_anew_from_the_voxels(scene, kind, original_grid):
    patient = Patient(scene, kind=kind)
    patient.segmentation.GetSegmentation().CreateRepresentation("Closed surface")
    copy = apply(patient.transform, [patient.segmentation], originalGrid=original_grid)[0]

    def points(node, name="id_2"):
        surface = node.GetSegmentation().GetSegment(name).GetRepresentation("Closed surface")
        return vtk.util.numpy_support.vtk_to_numpy(surface.GetPoints().GetData())

    # To the world, through the deformation and its parents.
    transform, moved = vtk.vtkGeneralTransform(), points(copy).astype(float)
    patient.transform.GetTransformToWorld(transform)
    wanted = np.array([transform.TransformPoint(point) for point in points(patient.segmentation)])
    if original_grid and copy.GetParentTransformNode() is not None:
        copy.GetParentTransformNode().GetTransformToWorld(transform)
        moved = np.array([transform.TransformPoint(point) for point in moved])
    assert np.abs(moved - wanted).max() < 1e-2
    # The voxels have moved with it.
    label = sitk.GetArrayFromImage(labelFromSegmentation(copy, patient.volume).image) == 2
    copy.GetSegmentation().SetSourceRepresentationName("Closed surface")
    copy.GetSegmentation().RemoveRepresentation("Binary labelmap")
    from_surface = sitk.GetArrayFromImage(labelFromSegmentation(copy, patient.volume).image) == 2
    assert dice(label, from_surface) > 0.85


def test_a_segmentation_of_surfaces_keeps_its_representation(scene):
    patient = Patient(scene, kind="rigid")
    segmentation = patient.segmentation.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    segmentation.RemoveRepresentation("Binary labelmap")
    for original_grid in (True, False):
        copy = apply(patient.transform, [patient.segmentation], originalGrid=original_grid)[0]
        assert copy.GetSegmentation().GetSourceRepresentationName() == "Closed surface"
        got = sitk.GetArrayFromImage(labelFromSegmentation(copy, patient.volume).image)
        world_label = sitk.GetImageFromArray(sitk.GetArrayFromImage(patient.label))
        world_label.CopyInformation(patient.world)
        want = sitk.GetArrayFromImage(warp_label(world_label, patient.world, displacement(patient.field)))
        assert dice(got == 1, want == 1) > 0.93


def test_an_oblique_segmentation_is_not_cropped_when_hardened(scene):
    patient = Patient(scene, "oblique")
    hardened = apply(patient.transform, [patient.segmentation], originalGrid=False)[0]
    found = sitk.GetArrayFromImage(labelFromSegmentation(hardened, patient.volume).image)
    want = sitk.GetArrayFromImage(warp_label(patient.label, patient.image, displacement(patient.field)))
    assert min(dice(found == value, want == value) for value in (1, 2)) > 0.99


@pytest.mark.parametrize("original_grid", [True, False])
@pytest.mark.parametrize("kind", ["none", "rigid", "sheared"])
def test_hardening_nodes_gives_the_same_as_copies(scene, kind, original_grid):
    patient = Patient(scene, kind=kind)
    copies = apply(patient.transform, patient.nodes, copies=True, originalGrid=original_grid)
    count = scene.GetNumberOfNodes()
    enablePreview(patient.transform, patient.nodes)
    display = patient.segmentation.GetDisplayNode()
    display.SetSegmentOpacity3D("id_2", 0.25)
    done = apply(patient.transform, patient.nodes, copies=False, originalGrid=original_grid)
    assert done == patient.nodes
    assert scene.GetNumberOfNodes() == count
    assert display.GetSegmentOpacity3D("id_2") == 0.25
    state = everything(scene)
    for node, copy in zip(done, copies, strict=True):
        # Everything except the names.
        assert state[node.GetID()][1:] == state[copy.GetID()][1:]
        assert not node.GetName().endswith("deformed")


def test_names_folders_and_display_of_the_copies(scene):
    patient = Patient(scene)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Patient 7")
    hierarchy.CreateItem(folder, patient.volume)
    display = patient.volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(321, 123)
    first, second = (apply(patient.transform, [patient.volume])[0] for _ in range(2))
    assert first.GetName() == "scan deformed" and second.GetName() not in ("scan deformed", "scan")
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(first)) == folder
    assert first.GetDisplayNode() is not display
    assert (first.GetDisplayNode().GetWindow(), first.GetDisplayNode().GetLevel()) == (321, 123)
    assert first.GetStorageNode() is None


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("original_grid", [True, False])
def test_a_node_that_cannot_be_deformed_leaves_the_scene_unchanged(scene, copies, original_grid):
    patient = Patient(scene)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    color = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    pixels = vtk.vtkImageData()
    pixels.SetDimensions(4, 4, 4)
    pixels.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    color.SetAndObserveImageData(pixels)
    elsewhere = add_points(scene, inner_points(patient.image), linear_node(scene, np.eye(4), "atlas"), "others")
    enablePreview(patient.transform, patient.nodes)
    for bad, sentence in ((empty, "'empty' has no image data"), (color, "3 values per voxel"), (elsewhere, "'atlas'")):
        before = everything(scene)
        with pytest.raises(SceneError, match=sentence):
            apply(patient.transform, [*patient.nodes, bad], copies, original_grid)
        assert everything(scene) == before
    scene.RemoveNode(elsewhere)
    before = everything(scene)
    with pytest.raises(SceneError, match="'others' has been deleted"):
        apply(patient.transform, [*patient.nodes, elsewhere], copies, original_grid)
    assert everything(scene) == before


@pytest.mark.parametrize("copies", [True, False])
def test_an_error_while_hardening_leaves_the_scene_unchanged(scene, copies, monkeypatch):
    patient = Patient(scene)
    second = placed_volume(scene, patient.image, name="second")
    enablePreview(patient.transform, [patient.volume, second])
    before = everything(scene)
    calls = []

    def fails_later(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no more memory")
        return warp_image(*arguments)

    monkeypatch.setattr("DRDMLib.spatial.resampling.warp_image", fails_later)
    with pytest.raises(MemoryError):
        apply(patient.transform, [patient.volume, second], copies)
    assert len(calls) == 2
    assert everything(scene) == before


def test_an_error_while_copies_are_added_removes_them(scene, monkeypatch):
    patient = Patient(scene)
    before = everything(scene)
    calls = []

    def fails_later(node, copy):
        calls.append(copy)
        if len(calls) == 3:
            raise RuntimeError("subject hierarchy is gone")

    monkeypatch.setattr("DRDMDeformLib.mrml.hardening.placeBeside", fails_later)
    with pytest.raises(RuntimeError):
        apply(patient.transform, patient.nodes)
    assert len(calls) == 3
    assert everything(scene) == before


def test_a_deleted_transform_is_reported(scene):
    patient = Patient(scene)
    scene.RemoveNode(patient.transform)
    with pytest.raises(SceneError, match="'deformation' has been deleted"):
        apply(patient.transform, patient.nodes)
    with pytest.raises(SceneError, match="no transform"):
        apply(None, patient.nodes)


def test_a_sheared_volume_is_only_refused_in_the_original_grid(scene):
    patient = Patient(scene, "plain")
    matrix = vtk.vtkMatrix4x4()
    patient.volume.GetIJKToRASMatrix(matrix)
    matrix.SetElement(0, 1, 0.3)
    patient.volume.SetIJKToRASMatrix(matrix)
    with pytest.raises(SceneError, match="not at right angles"):
        apply(patient.transform, [patient.volume])
    assert apply(patient.transform, [patient.volume], originalGrid=False)


def test_a_single_slice_is_deformed_in_its_grid(scene):
    image = image_of("plain")[:, :, 17:18]
    volume = placed_volume(scene, image)
    field = smooth_field(image_of("plain"), LARGEST)
    vectors = sitk.GetArrayFromImage(field)
    vectors[..., 2] = 0
    flat = sitk.GetImageFromArray(vectors, isVector=True)
    flat.CopyInformation(field)
    got = imageFromVolume(apply(createTransform(scene, flat, "flat"), [volume])[0])
    assert got.GetSize() == image.GetSize()
    want = sitk.GetArrayFromImage(warp_image(image, image, displacement(flat)))
    assert np.allclose(sitk.GetArrayFromImage(got), want, atol=1e-3 * np.ptp(want))
    assert not np.allclose(want, sitk.GetArrayFromImage(image))


def test_a_cropped_label_map_is_deformed_like_the_whole_one(scene):
    """A label map cropped to its structure, as Slicer stores it, is deformed like the whole one."""
    patient = Patient(scene)
    array = sitk.GetArrayFromImage(patient.label)
    box = [slice(int(v.min()), int(v.max()) + 1) for v in np.nonzero(array)]
    cropped = patient.label[box[2], box[1], box[0]]
    tight = add_segmentation(scene, cropped, name="tight")
    converter = slicer.vtkSegmentationConverter
    name = converter.GetReferenceImageGeometryParameterName()
    whole = patient.segmentation.GetSegmentation().GetConversionParameter(name)
    tight.GetSegmentation().SetConversionParameter(name, whole)
    results = [
        sitk.GetArrayFromImage(labelFromSegmentation(node, patient.volume).image)
        for node in apply(patient.transform, [patient.segmentation, tight])
    ]
    assert np.array_equal(*results)
    state = segmentation_state(tight)
    assert state[0] == "Binary labelmap"
