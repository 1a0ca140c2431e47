"""A preview that follows the slider: blends of fields, shown by a transform that is not saved."""

import numpy as np
import pytest
import SimpleITK as sitk
from DRDMDeformLib.mrml import (
    LivePreview,
    SceneError,
    addVariants,
    applyVariants,
    createTransform,
    enablePreview,
    fieldFromTransform,
    imageFromVolume,
    isDeformation,
    isLivePreview,
    parentWithoutPreview,
)
from DRDMDeformLib.mrml.grids import transformPoints
from DRDMDeformLib.mrml.transforms import transformFromWorld
from scenes import image_of, inner_points, linear_node, placed_volume, smooth_field

RECORD = {"seed": 3, "level": 48, "model": "hippocampus-mr-3d", "metrics": {}}


def moved(node, points):
    return transformPoints(transformFromWorld(node), points)


@pytest.fixture
def fields():
    image = image_of("plain")
    return image, smooth_field(image, 2.0, seed=1), smooth_field(image, 4.0, seed=2)


@pytest.mark.parametrize("turned", [False, True])
def test_blends_are_between_the_fields(scene, fields, turned):
    image, weak, strong = fields
    parent = (
        linear_node(scene, np.array([[0, -1, 0, 5], [1, 0, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1.0]])) if turned else None
    )
    volume = placed_volume(scene, image)
    if turned:
        volume.SetAndObserveTransformNodeID(parent.GetID())
    preview = LivePreview(scene, volume, [volume])
    assert not preview.show(30) and volume.GetParentTransformNode() is parent
    preview.ladder.add(60, strong)
    points = inner_points(image)
    still = moved(parent, points) if turned else points
    exact = createTransform(scene, strong, "exact", parent)
    assert preview.show(60)
    assert volume.GetParentTransformNode() is preview.node and preview.node.GetParentTransformNode() is parent
    assert np.allclose(moved(preview.node, points), moved(exact, points), atol=1e-3)
    far = moved(preview.node, points) - still
    # One field alone is continued in proportion, from nothing at level 0.
    preview.show(30)
    assert np.allclose(moved(preview.node, points) - still, far / 2, atol=1e-3)
    preview.ladder.add(20, weak)
    assert preview.ladder.levels == [20, 60]
    preview.show(20)
    near = moved(preview.node, points) - still
    other = createTransform(scene, weak, "other", parent)
    assert np.allclose(near, moved(other, points) - still, atol=1e-3)
    preview.show(50)
    assert np.allclose(moved(preview.node, points) - still, 0.25 * near + 0.75 * far, atol=1e-3)
    preview.show(0)
    assert np.allclose(moved(preview.node, points), still, atol=1e-3)
    preview.end()
    assert volume.GetParentTransformNode() is parent and not scene.IsNodePresent(preview.node)


def test_everything_else_refuses_it(scene, fields):
    image, weak, _strong = fields
    volume = placed_volume(scene, image)
    (variant,) = addVariants(scene, volume, [weak], [RECORD])
    enablePreview(variant, [volume])
    before = imageFromVolume(volume)
    preview = LivePreview(scene, volume, [volume])
    preview.ladder.add(40, weak)
    preview.show(40)
    node = preview.node
    assert isLivePreview(node) and isDeformation(node) and not isLivePreview(variant) and not isLivePreview(None)
    assert not node.GetSaveWithScene() and node.GetHideFromEditors() and "not proven" in node.GetName()
    assert parentWithoutPreview(volume) is None
    assert sitk.Hash(imageFromVolume(volume)) == sitk.Hash(before)
    for use in (lambda: fieldFromTransform(node), lambda: enablePreview(node, [volume])):
        with pytest.raises(SceneError, match="only a preview"):
            use()
    with pytest.raises(SceneError, match="shows a preview"):
        applyVariants(scene, volume, [volume])
    assert volume.GetParentTransformNode() is node
    preview.end()
    # It shows again what it showed before.
    assert volume.GetParentTransformNode() is variant
    # A variant that was removed meanwhile is not looked for.
    preview = LivePreview(scene, volume, [volume])
    preview.ladder.add(40, weak)
    preview.show(40)
    scene.RemoveNode(variant)
    preview.end()
    assert volume.GetParentTransformNode() is None


def test_a_parent_that_stretches_is_refused(scene, fields):
    volume = placed_volume(scene, fields[0])
    volume.SetAndObserveTransformNodeID(linear_node(scene, np.diag([1.0, 2.0, 1.0, 1.0])).GetID())
    count = scene.GetNumberOfNodes()
    with pytest.raises(SceneError, match="press Deform"):
        LivePreview(scene, volume, [volume])
    assert scene.GetNumberOfNodes() == count
