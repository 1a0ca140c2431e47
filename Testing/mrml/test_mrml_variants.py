import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from DRDMDeformLib.mrml import (
    SceneError,
    addVariants,
    apply,
    browserOf,
    fieldFromTransform,
    follow,
    imageFromVolume,
    isDeformation,
    labelFromSegmentation,
    records,
    selectVariant,
    trueParent,
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
    # Each field has a grid of its own, as each reaches past the image by its own margin.
    return [smooth_field(image, 3.0 + n, seed=n, nodes=16 + n) for n in range(count)]


def array_of(transform):
    return sitk.GetArrayFromImage(fieldFromTransform(transform))


def test_variants_as_nodes_have_names_records_and_a_place(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = fields_of(image)
    made = addVariants(scene, volume, fields, RECORDS)
    assert [n.GetName() for n in made] == [
        "scan deformation 1 (level 48, seed 3)",
        "scan deformation 2 (level 48, seed 4)",
        "scan deformation 3 (level 20, seed 5)",
    ]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volume)
    assert item and all(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n)) == item for n in made)
    for node, field, record in zip(made, fields, RECORDS, strict=True):
        assert np.allclose(array_of(node), sitk.GetArrayFromImage(field), atol=1e-5)
        assert {**record, "number": records(node)[0]["number"]} == records(node)[0]
        assert isDeformation(node)
    assert variantTransforms(scene, volume) == made
    assert variantTransforms(scene, placed_volume(scene, image, name="other")) == []
    more = addVariants(scene, volume, fields[:1], RECORDS[:1])
    assert more[0].GetName() == "scan deformation 4 (level 48, seed 3)"


def test_variants_as_a_sequence_can_be_scrolled_through(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    fields = fields_of(image)
    proxy, browser = addVariants(scene, volume, fields, RECORDS, asSequence=True)
    assert scene.GetNumberOfNodesByClass("vtkMRMLGridTransformNode") == 1
    assert browser.GetNumberOfItems() == 3 and browserOf(proxy) is browser
    assert [r["seed"] for r in records(browser)] == [3, 4, 5]
    assert variantTransforms(scene, volume) == [proxy]
    points = add_points(scene, inner_points(image))
    follow(proxy, [volume, points])
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
    # What is scrolled to and hardened is that variant alone.
    selectVariant(browser, 2)
    copy = apply(proxy, [volume])[0]
    alone = addVariants(scene, volume, [fields[2]], [RECORDS[2]])[0]
    assert np.array_equal(
        sitk.GetArrayFromImage(imageFromVolume(copy)),
        sitk.GetArrayFromImage(imageFromVolume(apply(alone, [volume])[0])),
    )


@pytest.mark.parametrize("as_sequence", [False, True])
@pytest.mark.parametrize("bundle", [False, True], ids=["mrml", "mrb"])
def test_variants_survive_saving(scene, another_scene, tmp_path, bundle, as_sequence):
    folder = tmp_path / "Ordner mit Zwischenraum ß"
    folder.mkdir()
    image = image_of("oblique")
    volume = placed_volume(scene, image, parent_of(scene, "rigid", image).node)
    fields = fields_of(imageFromVolume(volume))
    made = addVariants(scene, volume, fields, RECORDS, asSequence=as_sequence)
    first = made[0]
    follow(first, [volume])
    loaded = save_and_load(scene, another_scene(), folder, bundle)
    scan = loaded.GetFirstNodeByName("scan")
    found = variantTransforms(loaded, scan)
    assert scan.GetParentTransformNode() is found[0]
    assert trueParent(scan).GetName() == "linear"
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


def test_a_volume_in_preview_keeps_its_true_parent(scene):
    image = image_of("plain")
    above = linear_node(scene, np.eye(4), "patient to scanner")
    volume = placed_volume(scene, image, above)
    first = addVariants(scene, volume, fields_of(image, 1), RECORDS[:1])[0]
    follow(first, [volume])
    assert trueParent(volume) is above
    # In preview it is still the original that is read, so a second deformation is not one of the first.
    assert np.array_equal(sitk.GetArrayFromImage(imageFromVolume(volume)), sitk.GetArrayFromImage(image))
    label = two_structures(image)
    segmentation = add_segmentation(scene, label, above)
    follow(first, [segmentation])
    found = labelFromSegmentation(segmentation, volume).image
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(label))
    second = addVariants(scene, volume, fields_of(image, 1), RECORDS[1:2])[0]
    assert second.GetParentTransformNode() is above
    assert trueParent(placed_volume(scene, image)) is None


def test_records_of_something_else_are_refused(scene):
    linear = linear_node(scene, np.eye(4))
    assert not isDeformation(linear) and not isDeformation(None)
    with pytest.raises(SceneError, match="'linear' is not a deformation"):
        records(linear)


@pytest.mark.parametrize("as_sequence", [False, True])
def test_a_failure_leaves_nothing_behind(scene, as_sequence):
    image = image_of("plain")
    volume = placed_volume(scene, image)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    before = everything(scene)
    with pytest.raises(SceneError, match="2 deformations came with 3 records"):
        addVariants(scene, volume, fields_of(image, 2), RECORDS, as_sequence)
    with pytest.raises(SceneError, match="as many values per voxel"):
        addVariants(scene, volume, [*fields_of(image, 1), image], RECORDS[:2], as_sequence)
    with pytest.raises(TypeError):
        addVariants(scene, volume, fields_of(image, 2), [RECORDS[0], {"level": object()}], as_sequence)
    assert everything(scene) == before
    scene.RemoveNode(volume)
    with pytest.raises(SceneError, match="'scan' has been deleted"):
        addVariants(scene, volume, fields_of(image), RECORDS, as_sequence)
