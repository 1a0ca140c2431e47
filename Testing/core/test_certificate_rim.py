"""The proof covers a saved field up to half a voxel outside of the outermost voxels' centers, as ITK applies it."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk

from DRDMLib.errors import DRDMError
from DRDMLib.invertibility.certificate import certify_on_grid, certify_saved, failing_cells
from DRDMLib.invertibility.repair import repair
from DRDMLib.spatial.field_grid import FadingGrid, FieldGrid, continued, positions
from DRDMLib.spatial.resampling import field_on_grid


def twist(degrees: float, nodes: int = 161, spacing: float = 0.5) -> sitk.Image:
    """A plane that is turned within 14 mm of its middle and less and less farther out; it keeps all areas."""
    axis = (np.arange(nodes) - nodes // 2) * spacing
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius = np.hypot(x, y)
    part = np.clip((38 - radius) / 24, 0, 1)
    angle = np.radians(degrees) * part**2 * (3 - 2 * part)
    vectors = np.stack([np.cos(angle) * x - np.sin(angle) * y - x, np.sin(angle) * x + np.cos(angle) * y - y], axis=-1)
    vectors[[0, -1]] = 0
    vectors[:, [0, -1]] = 0
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.SetSpacing((spacing, spacing))
    field.SetOrigin((axis[0], axis[0]))
    return field


def middle(count: int, spacing: float) -> sitk.Image:
    image = sitk.Image((count, count), sitk.sitkUInt8)
    image.SetSpacing((spacing, spacing))
    image.SetOrigin((-(count - 1) / 2 * spacing,) * 2)
    return image


def saved(field: sitk.Image, image: sitk.Image) -> sitk.Image:
    vectors = sitk.GetImageFromArray(
        field_on_grid(field, image, 0, image.GetSize()[1]).astype(np.float64), isVector=True
    )
    vectors.CopyInformation(image)
    return vectors


def least_in_rim(ddf: sitk.Image) -> float:
    """The least determinant that ITK's transform has in the outermost half voxels, by differences."""
    transform = sitk.DisplacementFieldTransform(sitk.Image(ddf))
    n, spacing, origin = ddf.GetSize()[0], ddf.GetSpacing()[0], ddf.GetOrigin()[0]
    h, found = 1e-4, []
    for along in np.linspace(0.01, n - 1.01, 60):
        for index in ((-0.25, along), (n - 0.75, along), (along, -0.25), (along, n - 0.75)):
            at = origin + np.array(index) * spacing
            columns = [
                np.subtract(transform.TransformPoint((at + e).tolist()), transform.TransformPoint((at - e).tolist()))
                for e in (np.array([h, 0]), np.array([0, h]))
            ]
            found.append(np.linalg.det(np.stack(columns, axis=1) / (2 * h)))
    return float(min(found))


@pytest.mark.parametrize("image", [middle(21, 0.5), middle(11, 1.0), middle(23, 0.37)], ids=["nodes", "coarse", "fine"])
def test_a_fold_in_the_rim_alone_is_found(image):
    gentle, strong = twist(60), twist(115)
    assert not len(failing_cells(FieldGrid.of(strong))), "the field itself does not fold"
    assert least_in_rim(saved(gentle, image)) > 0.3 and certify_on_grid(gentle, image).certified
    assert least_in_rim(saved(strong, image)) < -0.3
    found = certify_on_grid(strong, image)
    assert not found.certified and "image's grid" in found.reason
    assert not certify_saved(saved(strong, image)).certified


def test_repair_reaches_the_rim():
    image = middle(21, 0.5)
    field = FieldGrid.of(twist(95))
    field = dataclasses.replace(field, vectors=np.array(field.vectors))
    assert least_in_rim(saved(field.image(), image)) < 0
    try:
        repair(field, image)
    except DRDMError:
        pytest.skip("this field cannot be repaired, which is said")
    assert certify_on_grid(field.image(), image).certified
    assert least_in_rim(saved(field.image(), image)) > 0


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5), (9, 1), (6, 7, 1)])
def test_continued_grids_have_the_values_of_the_border(shape):
    generator = np.random.default_rng(3)
    d = len(shape)
    vectors = generator.normal(size=(*shape, d)) * 0.1
    field = sitk.GetImageFromArray(vectors, isVector=True)
    if field.GetDimension() != d:
        pytest.skip("an image of one slice")
    grid = FieldGrid.of(field)
    fading = FadingGrid(grid, 5.0)
    whole = fading.block(tuple(slice(0, len(n)) for n in fading.nodes))
    own = grid.block(tuple(slice(0, n) for n in shape))
    inner = (slice(None), *[slice(13, 13 + n) for n in shape])
    assert np.array_equal(whole[inner], own)
    with_rim = (slice(None), *[slice(12, 14 + n) for n in shape])
    assert np.array_equal(whole[with_rim], np.pad(own, [(0, 0)] + [(1, 1)] * d, mode="edge"))
    assert np.allclose(np.diff(fading.nodes[0])[11:13], [5 / 12, 0.5]) and np.allclose(whole[:, 0], 0)
    bordered = np.zeros((*[n + 8 for n in shape], d))
    bordered[tuple(slice(4, 4 + n) for n in shape)] = vectors
    big = FieldGrid.of(sitk.GetImageFromArray(bordered, isVector=True))
    image = sitk.Image(list(shape[::-1]), sitk.sitkUInt8)
    image.SetOrigin([4.0] * d)
    inside = positions(big, image)
    for gap in (4.0, 1.0):
        samples = continued(big, inside, gap)
        values = samples.block(tuple(slice(0, len(n)) for n in samples.nodes))
        assert np.allclose(values[(slice(None), *samples.inner)], own)
        assert all((np.diff(n) > 0).all() for n in samples.nodes)
        for axis in range(d):
            for end in (0, -1):
                assert not np.take(values, end, axis=1 + axis).any()
