import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import (
    SceneError,
    addVariants,
    apply,
    applyVariants,
    browserOf,
    enablePreview,
    fieldFromTransform,
    imageFromVolume,
    isDeformation,
    labelFromSegmentation,
    parentWithoutPreview,
    records,
    removeNode,
    removeVariant,
    restoreSequences,
    selectVariant,
    transformOf,
    variantTransforms,
)
from scenes import (
    add_points,
    add_segmentation,
    everything,
    image_of,
    inner_points,
    linear_node,
    parent_of,
    placed_volume,
    points_of,
    smooth_field,
    two_structures,
)
from test_mrml_transforms import save_and_load

RECORDS = [
    {"seed": 3, "level": 48, "model": "hippocampus-mr-3d", "metrics": {"max_mm": 4.5, "folded_fraction": 0.0}},
    {"seed": 4, "level": 48, "model": "hippocampus-mr-3d", "metrics": {"max_mm": 3.5, "folded_fraction": 0.001}},
    {"seed": 5, "level": 20, "model": "hippocampus-mr-3d", "metrics": {"max_mm": 1.5, "folded_fraction": 0.0}},
]


def fields_of(image, count=3):
    # The fields have different grids.
    return [smooth_field(image, 3.0 + n, seed=n, nodes=16 + n) for n in range(count)]


def array_of(transform):
    return sitk.GetArrayFromImage(fieldFromTransform(transform))


def test_variants_as_nodes_have_names_records_and_lie_beside_the_volume(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = fields_of(image)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    branch = hierarchy.CreateItem(hierarchy.GetSceneItemID(), volume)
    made = addVariants(scene, volume, fields, RECORDS)
    assert [n.GetName() for n in made] == [
        "scan deformation 1 (level 48, seed 3)",
        "scan deformation 2 (level 48, seed 4)",
        "scan deformation 3 (level 20, seed 5)",
    ]
    folder = hierarchy.GetItemParent(branch)
    assert all(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n)) == folder for n in made)
    # The Transform column of the module Data.
    slicer.vtkSlicerSubjectHierarchyModuleLogic.TransformBranch(hierarchy, branch, made[0], False)
    assert volume.GetParentTransformNode() is made[0]
    assert all(node.GetParentTransformNode() is None for node in made)
    made[1].SetAndObserveTransformNodeID(made[0].GetID())
    volume.SetAndObserveTransformNodeID(made[1].GetID())
    with pytest.raises(SceneError, match="itself under"):
        apply(made[1], [volume])
    made[1].SetAndObserveTransformNodeID(None)
    for node, field, record in zip(made, fields, RECORDS, strict=True):
        assert np.allclose(array_of(node), sitk.GetArrayFromImage(field), atol=1e-5)
        assert {**record, "number": records(node)[0]["number"]} == records(node)[0]
        assert isDeformation(node)
    assert variantTransforms(scene, volume) == made
    assert variantTransforms(scene, placed_volume(scene, image, name="other")) == []
    more = addVariants(scene, volume, fields[:1], RECORDS[:1])
    assert more[0].GetName() == "scan deformation 4 (level 48, seed 3)"


def test_variants_as_a_sequence_can_be_browsed(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = fields_of(image)
    proxy, browser = addVariants(scene, volume, fields, RECORDS, asSequence=True)
    assert scene.GetNumberOfNodesByClass("vtkMRMLGridTransformNode") == 1
    assert browser.GetNumberOfItems() == 3 and browserOf(proxy) is browser
    assert [r["seed"] for r in records(browser)] == [3, 4, 5]
    assert variantTransforms(scene, volume) == [proxy]
    points = add_points(scene, inner_points(image))
    enablePreview(proxy, [volume, points])
    seen = []
    for index in (0, 2, 1):
        selectVariant(browser, index)
        assert np.allclose(array_of(proxy), sitk.GetArrayFromImage(fields[index]), atol=1e-5)
        assert records(proxy)[0]["seed"] == RECORDS[index]["seed"]
        assert volume.GetParentTransformNode() is proxy
        assert proxy.GetName() == "scan deformation"
        seen.append(points_of(points))
    assert np.abs(seen[0] - seen[1]).max() > 0.5 and np.abs(seen[1] - seen[2]).max() > 0.5
    with pytest.raises(SceneError, match="no variant 4"):
        selectVariant(browser, 3)
    # Hardening applies the shown variant only.
    selectVariant(browser, 2)
    copy = apply(proxy, [volume])[0]
    alone = addVariants(scene, volume, [fields[2]], [RECORDS[2]])[0]
    assert np.array_equal(
        sitk.GetArrayFromImage(imageFromVolume(copy)),
        sitk.GetArrayFromImage(imageFromVolume(apply(alone, [volume])[0])),
    )


@pytest.mark.parametrize("as_sequence", [False, True])
@pytest.mark.parametrize("bundle", [False, True], ids=["mrml", "mrb"])
def test_variants_survive_saving(scene, make_scene, tmp_path, bundle, as_sequence):
    folder = tmp_path / "Ordner mit Zwischenraum ß"
    folder.mkdir()
    image = image_of("oblique")
    volume = placed_volume(scene, image, parent_of(scene, "rigid", image).node)
    fields = fields_of(imageFromVolume(volume))
    made = addVariants(scene, volume, fields, RECORDS, asSequence=as_sequence)
    first = made[0]
    enablePreview(first, [volume])
    loaded = save_and_load(scene, make_scene(), folder, bundle)
    scan = loaded.GetFirstNodeByName("scan")
    found = variantTransforms(loaded, scan)
    assert scan.GetParentTransformNode() is found[0]
    assert parentWithoutPreview(scan).GetName() == "linear"
    if not as_sequence:
        assert [n.GetName() for n in found] == [n.GetName() for n in made]
        for node, field, record in zip(found, fields, RECORDS, strict=True):
            assert np.allclose(array_of(node), sitk.GetArrayFromImage(field), atol=1e-4)
            assert record.items() <= records(node)[0].items()
        return
    browser = browserOf(found[0])
    assert [r["metrics"] for r in records(browser)] == [r["metrics"] for r in RECORDS]
    for index in (2, 0, 1):
        selectVariant(browser, index)
        assert np.allclose(array_of(found[0]), sitk.GetArrayFromImage(fields[index]), atol=1e-4)
        assert found[0].GetTransformFromParent().GetInterpolationModeAsString() == "Linear"
        assert records(found[0])[0]["seed"] == RECORDS[index]["seed"]


def loaded_sequence(scene, make_scene, folder):
    """A sequence of variants on the same grid, which Slicer saves as one file: the volume, the browser, the fields."""
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = [smooth_field(image, 3.0 + n, seed=n) for n in range(3)]
    proxy, _browser = addVariants(scene, volume, fields, RECORDS, asSequence=True)
    enablePreview(proxy, [volume])
    loaded = save_and_load(scene, make_scene(), folder, bundle=True)
    scan = loaded.GetFirstNodeByName("scan")
    browser = browserOf(scan.GetParentTransformNode())
    assert browser.GetMasterSequenceNode().GetNthDataNode(0).GetClassName() == "vtkMRMLTransformNode"
    return scan, browser, fields


@pytest.mark.parametrize("browsed", [False, True])
def test_variants_on_one_grid_can_be_browsed_and_removed_after_loading(scene, make_scene, tmp_path, browsed):
    scan, browser, fields = loaded_sequence(scene, make_scene, tmp_path)
    loaded = scan.GetScene()
    if browsed:
        # As the tool bar of sequences does in Slicer: it shows a general transform of its own.
        slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)
        assert not browser.GetProxyNode(browser.GetMasterSequenceNode()).IsA("vtkMRMLGridTransformNode")
    restoreSequences(loaded)
    for index in (2, 0, 1):
        selectVariant(browser, index)
        shown = scan.GetParentTransformNode()
        assert shown is transformOf(browser)
        assert np.allclose(array_of(shown), sitk.GetArrayFromImage(fields[index]), atol=1e-4)
        assert records(shown)[0]["seed"] == RECORDS[index]["seed"]
    assert loaded.GetNumberOfNodesByClass("vtkMRMLTransformNode") == 1
    removeVariant(browser, 1)
    assert [r["seed"] for r in records(browser)] == [3, 5]
    assert scan.GetParentTransformNode() is transformOf(browser)


def test_variants_are_restored_when_their_transform_was_deleted(scene, make_scene, tmp_path):
    scan, browser, fields = loaded_sequence(scene, make_scene, tmp_path)
    loaded = scan.GetScene()
    removeNode(scan.GetParentTransformNode())
    selectVariant(browser, 2)
    assert variantTransforms(loaded, scan) == [transformOf(browser)]
    assert np.allclose(array_of(transformOf(browser)), sitk.GetArrayFromImage(fields[2]), atol=1e-4)


def test_a_sequence_has_one_transform_when_slicer_updates_its_browser(scene):
    # As the module Sequences does, at each change of a browser.
    logic = slicer.vtkSlicerSequencesLogic()
    observed = []

    def update(browser, _event):
        logic.UpdateProxyNodesFromSequences(browser)

    def added(_scene, _event, node):
        if node.IsA("vtkMRMLSequenceBrowserNode"):
            observed.append((node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, update)))

    added.CallDataType = vtk.VTK_OBJECT
    tag = scene.AddObserver(scene.NodeAddedEvent, added)
    image = image_of("plain")
    volume = placed_volume(scene, image)
    proxy, browser = addVariants(scene, volume, fields_of(image), RECORDS, asSequence=True)
    assert observed
    assert scene.GetNumberOfNodesByClass("vtkMRMLTransformNode") == 1
    assert transformOf(browser) is proxy
    scene.RemoveObserver(tag)
    for node, number in observed:
        node.RemoveObserver(number)


def test_a_previewed_volume_keeps_its_parent_without_preview(scene):
    image = image_of("plain")
    above = linear_node(scene, np.eye(4), "patient to scanner")
    volume = placed_volume(scene, image, above)
    first = addVariants(scene, volume, fields_of(image, 1), RECORDS[:1])[0]
    enablePreview(first, [volume])
    assert parentWithoutPreview(volume) is above
    # The original is read also during a preview, so that a second deformation does not depend on the first.
    assert np.array_equal(sitk.GetArrayFromImage(imageFromVolume(volume)), sitk.GetArrayFromImage(image))
    label = two_structures(image)
    segmentation = add_segmentation(scene, label, above)
    enablePreview(first, [segmentation])
    found = labelFromSegmentation(segmentation, volume).image
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(label))
    second = addVariants(scene, volume, fields_of(image, 1), RECORDS[1:2])[0]
    assert second.GetParentTransformNode() is above
    assert parentWithoutPreview(placed_volume(scene, image)) is None


def test_other_transforms_have_no_records(scene):
    linear = linear_node(scene, np.eye(4))
    assert not isDeformation(linear) and not isDeformation(None)
    with pytest.raises(SceneError, match="'linear' is not a deformation"):
        records(linear)


@pytest.mark.parametrize("as_sequence", [False, True])
def test_an_error_leaves_the_scene_unchanged(scene, as_sequence):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    before = everything(scene)
    with pytest.raises(SceneError, match="2 deformations but 3 records"):
        addVariants(scene, volume, fields_of(image, 2), RECORDS, as_sequence)
    with pytest.raises(SceneError, match="as many values per voxel"):
        addVariants(scene, volume, [*fields_of(image, 1), image], RECORDS[:2], as_sequence)
    with pytest.raises(TypeError):
        addVariants(scene, volume, fields_of(image, 2), [RECORDS[0], {"level": object()}], as_sequence)
    assert everything(scene) == before
    scene.RemoveNode(volume)
    with pytest.raises(SceneError, match="'scan' has been deleted"):
        addVariants(scene, volume, fields_of(image), RECORDS, as_sequence)


def in_folder(node):
    """The name of the folder of a node."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    return hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))


@pytest.mark.parametrize("kind", ["none", "rigid"])
def test_every_variant_gets_its_own_copies(scene, kind):
    image = image_of("oblique")
    parent = parent_of(scene, kind, image).node
    volume = placed_volume(scene, image, parent)
    segmentation = add_segmentation(scene, two_structures(image), parent)
    world = imageFromVolume(volume)
    fields = fields_of(world)
    proxy, browser = addVariants(scene, volume, fields[:2], RECORDS[:2], asSequence=True)
    (single,) = addVariants(scene, volume, fields[2:], RECORDS[2:])
    selectVariant(browser, 1)
    enablePreview(proxy, [volume, segmentation])
    seen = []
    made = applyVariants(scene, volume, [volume, segmentation], onProgress=lambda *where: seen.append(where))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [[n.GetName() for n in copies] for copies in made] == [
        [f"scan deformed {number}", f"structures deformed {number}"] for number in (1, 2, 3)
    ]
    assert {in_folder(n) for copies in made for n in copies} == {"scan variants"}
    # The preview of the nodes is ended, and the sequence shows the same variant as before.
    assert volume.GetParentTransformNode() is parent and segmentation.GetParentTransformNode() is parent
    assert browser.GetSelectedItemNumber() == 1
    assert np.allclose(array_of(proxy), sitk.GetArrayFromImage(fields[1]), atol=1e-5)
    # Each copy is the result of applying that variant alone, and has its record.
    for number, (volume_copy, segmentation_copy) in enumerate(made):
        transform = single
        if number < 2:
            selectVariant(browser, number)
            transform = proxy
        want, wanted_segments = apply(transform, [volume, segmentation])
        assert np.array_equal(*(sitk.GetArrayFromImage(imageFromVolume(n)) for n in (volume_copy, want)))
        labels = [labelFromSegmentation(n, volume).image for n in (segmentation_copy, wanted_segments)]
        assert np.array_equal(*(sitk.GetArrayFromImage(label) for label in labels))
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        assert segmentation_copy.GetNodeReferenceID(role) in (volume_copy.GetID(), None)
        assert f'"seed": {RECORDS[number]["seed"]}' in volume_copy.GetAttribute("DRDM.record")
    differing = [imageFromVolume(copies[0]) for copies in made]
    assert np.ptp(sitk.GetArrayFromImage(differing[0] - differing[2])) > 1


def test_twelve_variants_sort_by_their_names(scene):
    image = image_of("plain")[:12, :12, :12]
    volume = placed_volume(scene, image)
    fields = [smooth_field(image, 1.0, seed=n, nodes=8) for n in range(12)]
    addVariants(scene, volume, fields, [{"seed": n} for n in range(12)], asSequence=True)
    made = applyVariants(scene, volume, [volume])
    names = [copies[0].GetName() for copies in made]
    assert names == sorted(names) and names[0] == "scan deformed 01"
    # Applying again does not overwrite anything.
    again = applyVariants(scene, volume, [volume])
    assert in_folder(again[0][0]) != in_folder(made[0][0])
    assert not {c.GetName() for v in again for c in v} & set(names)


class Stop(Exception):
    pass


@pytest.mark.parametrize("reason", ["cancel", "markup of another parent"])
def test_an_interruption_leaves_the_scene_unchanged(scene, reason):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    segmentation = add_segmentation(scene, two_structures(image))
    proxy, browser = addVariants(scene, volume, fields_of(image), RECORDS, asSequence=True)
    selectVariant(browser, 2)
    enablePreview(proxy, [volume, segmentation])
    elsewhere = linear_node(scene, np.diag([2.0, 1, 1, 1]))
    points = add_points(scene, inner_points(image), elsewhere)
    before, hierarchy = everything(scene), slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = hierarchy.GetNumberOfItems()

    def stop(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop if reason == "cancel" else SceneError):
        applyVariants(scene, volume, [volume, segmentation] + ([] if reason == "cancel" else [points]), onProgress=stop)
    assert everything(scene) == before
    assert hierarchy.GetNumberOfItems() == items
    assert volume.GetParentTransformNode() is proxy and segmentation.GetParentTransformNode() is proxy
    assert browser.GetSelectedItemNumber() == 2


def test_no_variants_to_apply_is_reported(scene):
    volume = placed_volume(scene, image_of("plain"))
    with pytest.raises(SceneError, match="no deformation of 'scan' yet"):
        applyVariants(scene, volume, [volume])


@pytest.mark.parametrize("kind", ["none", "rigid"])
def test_removing_a_transform_ends_its_preview(scene, kind):
    image = image_of("plain")
    parent = parent_of(scene, kind, image).node
    volume = placed_volume(scene, image, parent)
    points = add_points(scene, inner_points(image), parent)
    before = everything(scene)
    first, second = addVariants(scene, volume, fields_of(image, 2), RECORDS[:2])
    enablePreview(first, [volume, points])
    removeVariant(first)
    assert volume.GetParentTransformNode() is parent and points.GetParentTransformNode() is parent
    assert variantTransforms(scene, volume) == [second]
    removeVariant(second)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    assert {k: v for k, v in everything(scene).items() if k != hierarchy.GetID()} == before


def test_a_variant_of_a_sequence_is_removed(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = fields_of(image)
    before = scene.GetNumberOfNodes()
    proxy, browser = addVariants(scene, volume, fields, RECORDS, asSequence=True)
    enablePreview(proxy, [volume])
    selectVariant(browser, 2)
    removeVariant(browser, 0)
    assert [r["seed"] for r in records(browser)] == [4, 5]
    assert browser.GetSelectedItemNumber() == 1 and records(proxy)[0]["seed"] == 5
    removeVariant(browser, 1)
    assert [r["seed"] for r in records(browser)] == [4]
    assert np.allclose(array_of(proxy), sitk.GetArrayFromImage(fields[1]), atol=1e-5)
    assert volume.GetParentTransformNode() is proxy
    with pytest.raises(SceneError, match="no variant 2"):
        removeVariant(browser, 1)
    removeVariant(browser, 0)
    assert volume.GetParentTransformNode() is None
    # The subject hierarchy is created with the first variant.
    assert scene.GetNumberOfNodes() <= before + 1
