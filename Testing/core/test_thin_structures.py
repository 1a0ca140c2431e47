"""The parts of :mod:`DRDMLib.spatial.thin_structures` agree with slow programs that say what they mean."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from support import rotation

from DRDMLib.spatial import thin_structures
from DRDMLib.spatial.coordinates import to_index, to_points
from DRDMLib.spatial.point_map import PointMap


def turned(d):
    return rotation(*((20, -15, 30) if d == 3 else (0, 0, 25)))[:d, :d]


def field(shape, seed, *, oblique):
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 2, (*shape, len(shape)))
    image = sitk.GetImageFromArray(ndimage.gaussian_filter(values, [1.0] * len(shape) + [0]) * 4, isVector=True)
    image.SetSpacing([1.5, 2.0, 2.5][: len(shape)])
    image.SetOrigin([-3.0, 7.0, 1.0][: len(shape)])
    if oblique:
        image.SetDirection(turned(len(shape)).ravel().tolist())
    return image


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("shape", [(9, 12, 10), (14, 11)])
def test_points_move_as_in_itk_and_as_in_scipy_to_the_bit(shape, oblique):
    image, d = field(shape, 1, oblique=oblique), len(shape)
    transform = sitk.DisplacementFieldTransform(sitk.Image(image))
    size = np.asarray(image.GetSize())
    index = np.random.default_rng(2).uniform(-1.5, size + 0.5, (5000, d))
    index[:200] = np.rint(index[:200])
    points = to_points(index, image)
    moved = PointMap(transform)(np.ascontiguousarray(points.T)).T
    # Where half a voxel past the outermost nodes ends, rounding decides.
    clear = (np.abs(index + 0.5) > 1e-9).all(axis=1) & (np.abs(index - size + 0.5) > 1e-9).all(axis=1)
    itk = np.array([transform.TransformPoint(point) for point in points.tolist()])
    assert np.abs(moved - itk)[clear].max() < 1e-9 and np.abs(moved - points).max() > 1
    at = to_index(points, image)[:, ::-1]
    inside = ((at >= -0.5) & (at < np.asarray(shape) - 0.5)).all(axis=1)
    vectors = sitk.GetArrayFromImage(image)
    parts = [ndimage.map_coordinates(vectors[..., k], at.T, order=1, mode="nearest") for k in range(d)]
    expected = points + np.where(inside, parts, 0.0).T
    # The product with a matrix may be rounded in another way for another number of points.
    assert np.array_equal(moved, expected) if not oblique else np.abs(moved - expected)[clear].max() < 1e-9


@pytest.mark.parametrize("oblique", [False, True])
def test_the_inverse_does_not_depend_on_how_many_points_are_given(oblique):
    image = field((9, 12, 10), 3, oblique=oblique)
    point_map = PointMap(sitk.DisplacementFieldTransform(sitk.Image(image)))
    points = np.ascontiguousarray(to_points(np.random.default_rng(4).uniform(-2, 12, (120, 3)), image).T)
    found, good = point_map.inverse(points, 0.3)
    # Found positions are improved once more, which in so rough a field can go too far.
    assert good.mean() > 0.5 and (np.linalg.norm(point_map(found) - points, axis=0)[good] < 0.3).mean() > 0.9
    for few in (1, 7, 50):
        parts = [point_map.inverse(points[:, k : k + few], 0.3) for k in range(0, 120, few)]
        again = np.concatenate([part[0] for part in parts], axis=1)
        assert np.abs(again - found).max() < 1e-9 if oblique else np.array_equal(again, found)
        assert np.array_equal(np.concatenate([part[1] for part in parts]), good)


def test_other_transforms_are_mapped_point_by_point():
    transform = sitk.TranslationTransform(3, (1.0, -2.0, 3.0))
    points = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(PointMap(transform)(points), points + [[1.0], [-2.0], [3.0]])
    found, good = PointMap(transform).inverse(points, 1e-3)
    assert good.all() and np.abs(found - points + [[1.0], [-2.0], [3.0]]).max() < 1e-2


def layers(shape, kind, seed=0):
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 1.5)
    if kind == "layers":
        return (np.floor(smooth * 40).astype(int) % 4).astype(np.uint8)
    if kind == "specks":
        return (generator.random(shape) > 0.9).astype(np.int16) * generator.integers(1, 4, shape).astype(np.int16)
    return (smooth > 0).astype(np.uint8)


@pytest.mark.parametrize("kind", ["layers", "specks", "thick"])
@pytest.mark.parametrize("shape", [(12, 13, 11), (1, 9, 8), (20, 17), (7,)])
@pytest.mark.parametrize("chunk", [2**20, 200])
def test_thin_voxels_have_no_inner_voxel_beside_them(monkeypatch, kind, shape, chunk):
    monkeypatch.setattr(thin_structures, "_CHUNK", chunk)
    label = layers(shape, kind)
    steps = list(itertools.product((-1, 0, 1), repeat=len(shape)))

    def near(voxel):
        for step in steps:
            place = tuple(a + b for a, b in zip(voxel, step, strict=True))
            if all(0 <= a < n for a, n in zip(place, shape, strict=True)):
                yield place, sum(map(abs, step))

    inner = np.zeros(shape, bool)
    for voxel in np.ndindex(shape):
        inner[voxel] = label[voxel] != 0 and all(label[p] == label[voxel] for p, axes in near(voxel) if axes == 1)
    expected = [
        voxel
        for voxel in np.ndindex(shape)
        if label[voxel] and not any(inner[p] and label[p] == label[voxel] for p, _ in near(voxel))
    ]
    assert [tuple(voxel) for voxel in thin_structures._thin_voxels(label).tolist()] == expected


@pytest.mark.parametrize("length", [2, 3, 5])
def test_paths_within_a_window(length):
    warped = layers((16, 17, 15), "layers", 5)
    generator = np.random.default_rng(length)
    voxels = np.argwhere(warped == 2)
    ends = voxels[generator.integers(0, len(voxels), (4000, 2))]
    ends = ends[np.abs(ends[:, 0] - ends[:, 1]).max(axis=1) == length][:60]
    half = (length + 1) // 2 + 1
    found = thin_structures._connected(warped, ends, np.full(len(ends), 2, np.uint8), length)
    for (one, other), joined in zip(ends, found, strict=True):
        low = (one + other) // 2 - half
        window = tuple(slice(max(a, 0), a + 2 * half + 1) for a in low)
        parts, _ = ndimage.label(warped[window] == 2, np.ones((3, 3, 3)))
        place = [tuple(end - np.maximum(low, 0)) for end in (one, other)]
        assert joined == (parts[place[0]] == parts[place[1]])
    assert (found.any() and not found.all()) or length == 2


@pytest.mark.parametrize("oblique", [False, True])
def test_the_result_does_not_depend_on_how_many_voxels_are_looked_at_together(monkeypatch, oblique):
    label = sitk.GetImageFromArray(layers((15, 18, 16), "layers", 7))
    if oblique:
        label.SetDirection(turned(3).ravel().tolist())
    source = sitk.GetArrayFromImage(label)
    move = field((9, 10, 9), 8, oblique=oblique)
    move.SetSpacing([2.0] * 3)
    transform = sitk.DisplacementFieldTransform(sitk.Image(move))
    nearest = sitk.GetArrayFromImage(sitk.Resample(label, label, transform, sitk.sitkNearestNeighbor))
    made = []
    for few, chunk in ((2**14, 2**14), (300, 200), (1000, 2000)):
        monkeypatch.setattr(thin_structures, "_FEW", few)
        monkeypatch.setattr(thin_structures, "CHUNK", chunk)
        warped = nearest.copy()
        thin_structures.restore_thin(source, label, warped, label, transform)
        made.append(warped)
    assert (made[0] != nearest).any()
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
