"""Warping of images and labels, slab by slab, and the Jacobian determinant."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import run_process
from scipy import ndimage
from support import rotation, smooth_image

from DRDMLib.invertibility.metrics import measure_ddf
from DRDMLib.io.images import fit_label
from DRDMLib.spatial import resampling
from DRDMLib.spatial.jacobian import jacobian_determinant
from DRDMLib.spatial.resampling import warp_image, warp_label


def squeeze(image: sitk.Image, factor: float) -> sitk.AffineTransform:
    """A transform that samples ``factor`` times further from the center: everything becomes smaller."""
    transform = sitk.AffineTransform(image.GetDimension())
    transform.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    transform.SetMatrix((np.eye(image.GetDimension()) * factor).ravel().tolist())
    return transform


def label_image(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    label = sitk.GetImageFromArray(array.astype(np.uint8))
    label.CopyInformation(like)
    return label


@pytest.mark.parametrize("factor", [1.2, 1.7, 2.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_thin_sheet_does_not_disappear(factor, axis):
    image = smooth_image((40, 42, 44), (1.0, 0.8, 1.5), rotation(10, 20, 5))
    array = np.zeros((44, 42, 40), np.uint8)
    np.moveaxis(array, axis, 0)[array.shape[axis] // 2 + 3] = 5
    array[4:7, 4:7, 4:7] = 9
    label = label_image(array, image)
    transform = squeeze(image, factor)
    warped = sitk.GetArrayFromImage(warp_label(label, image, transform))
    assert set(np.unique(warped)) <= {0, 5, 9}
    sheet = warped == 5
    # Away from the sheet's edges, each line across it passes within a voxel of it.
    projection = ndimage.maximum_filter(sheet, 3).any(axis=axis)
    middle = tuple(slice(n // 2 - 6, n // 2 + 6) for n in projection.shape)
    assert projection[middle].all()
    # The sheet did not become thicker.
    assert sheet.sum(axis=axis)[middle].mean() < 1.5


def test_single_voxels_are_kept_and_move_to_the_right_position():
    image = smooth_image((40, 40, 40))
    array = np.zeros((40, 40, 40), np.uint8)
    positions = [(10, 11, 12), (21, 25, 17), (30, 9, 28), (13, 31, 22)]
    for value, position in enumerate(positions, start=1):
        array[position] = value
    transform = squeeze(image, 1.6)
    warped = sitk.GetArrayFromImage(warp_label(label_image(array, image), image, transform))
    for value, position in enumerate(positions, start=1):
        found = np.argwhere(warped == value)
        assert len(found) >= 1
        expected = 19.5 + (np.asarray(position) - 19.5) / 1.6
        assert np.abs(found - expected).max() < 1.1


def test_a_thick_label_is_changed_only_at_its_border():
    """Away from the border of a structure the warped label is that of the nearest voxel."""
    image = smooth_image((40, 40, 40))
    label = sitk.BinaryThreshold(image, 150, 10000, 3, 0)
    label = sitk.BinaryMorphologicalOpening(label, [3] * 3, sitk.sitkBall, 0.0, 3.0)
    transform = squeeze(image, 1.15)
    ours = sitk.GetArrayFromImage(warp_label(label, image, transform))
    plain = sitk.GetArrayFromImage(sitk.Resample(label, image, transform, sitk.sitkNearestNeighbor))
    inside = sitk.GetArrayFromImage(sitk.Resample(image * 0 + 1, image, transform, sitk.sitkNearestNeighbor)) > 0
    border = ndimage.maximum_filter(plain, 3) != ndimage.minimum_filter(plain, 3)
    assert (ours != plain)[inside & ~border].mean() < 2e-4
    assert (ours != plain)[inside & border].mean() < 0.1


@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkFloat64])
def test_slabs_leave_no_seams(pixel, monkeypatch):
    image = smooth_image((30, 28, 26), (1.0, 1.2, 0.9), rotation(10, 0, 30), pixel=pixel)
    transform = squeeze(image, 1.1)
    whole = sitk.GetArrayFromImage(warp_image(image, image, transform))
    monkeypatch.setattr(resampling, "_SLAB_VOXELS", 3000)
    monkeypatch.setattr(resampling.slabs, "__defaults__", (3000,))
    assert len(list(resampling.slabs(image.GetSize()))) > 5
    parts = warp_image(image, image, transform)
    assert parts.GetPixelID() == image.GetPixelID()
    tolerance = 0 if np.issubdtype(whole.dtype, np.integer) else 1e-3
    assert np.allclose(whole, sitk.GetArrayFromImage(parts), rtol=0, atol=tolerance)


def test_a_label_on_another_grid_is_resampled_to_the_image():
    image = smooth_image((40, 40, 40))
    coarse = sitk.Resample(
        sitk.BinaryThreshold(image, 150, 10000, 7, 0),
        [20, 20, 20],
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        (-16.5, 24.0, 41.5),
        (2.0, 2.0, 2.0),
    )
    fitted = fit_label(coarse, image)
    assert fitted.GetSize() == image.GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(fitted))) <= {0, 7}


def test_jacobian_agrees_with_simpleitk():
    image = smooth_image((30, 34, 28), (1, 1.5, 2))
    noise = np.random.default_rng(0).normal(size=(6, 6, 6, 3)) * 4
    coarse = sitk.GetImageFromArray(noise, isVector=True)
    coarse.SetSpacing((10, 10, 12))
    coarse.SetOrigin(image.GetOrigin())
    field = sitk.Resample(coarse, image, sitk.Transform(), sitk.sitkLinear)
    ours = jacobian_determinant(sitk.GetArrayFromImage(field), image.GetSpacing(), np.eye(3))
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    inner = (slice(1, -1),) * 3
    assert np.abs(ours - theirs)[inner].max() < 1e-6
    metrics = measure_ddf(sitk.Cast(field, sitk.sitkVectorFloat32))
    length = np.linalg.norm(sitk.GetArrayFromImage(field), axis=-1)
    assert metrics.max_mm == pytest.approx(length.max(), rel=1e-5)
    assert metrics.mean_mm == pytest.approx(length.mean(), rel=1e-5)
    assert metrics.mean_percent == pytest.approx(100 * length.mean() / 56, rel=1e-5)
    assert metrics.folded_fraction == pytest.approx((ours <= 0).mean(), abs=1e-4)


@pytest.mark.parametrize("direction", [np.eye(3), rotation(30, -20, 70)])
def test_jacobian_of_a_linear_map(direction):
    """The map x -> A x has the determinant of A everywhere, for any direction of the grid."""
    matrix = np.array([[0.2, 0.1, 0.0], [-0.3, 0.1, 0.05], [0.0, 0.2, -0.4]])
    image = smooth_image((9, 10, 11), (1.0, 2.0, 0.5), direction)
    points = sitk.GetArrayFromImage(
        sitk.PhysicalPointSource(
            sitk.sitkVectorFloat64, *[image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()]
        )
    )
    determinant = jacobian_determinant(points @ matrix.T, image.GetSpacing(), direction)
    assert np.allclose(determinant, np.linalg.det(np.eye(3) + matrix))


_THREADS = """
import sys
import threading

import numpy as np
import SimpleITK as sitk

from DRDMLib.spatial.resampling import warp_image, warp_label

array = np.zeros((52, 56), np.uint8)
array[10:30, 10:30], array[35:37, 5:50] = 1, 3
label = sitk.GetImageFromArray(array)
image = sitk.Cast(label, sitk.sitkFloat32)
wrong = []


def work(seed):
    field = sitk.GetImageFromArray(np.random.default_rng(seed).normal(0, 1, (52, 56, 2)), isVector=True)
    transform = sitk.DisplacementFieldTransform(field)
    once = sitk.GetArrayFromImage(warp_label(sitk.Image(label), image, transform))
    values = sitk.GetArrayFromImage(warp_image(sitk.Image(image), image, transform))
    for _ in range(int(sys.argv[1])):
        again = sitk.GetArrayFromImage(warp_label(label, image, transform))
        wrong.append(not np.array_equal(again, once))
        again = sitk.GetArrayFromImage(warp_image(image, image, transform))
        wrong.append(not np.array_equal(again, values))


threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(wrong), sum(wrong))
"""


@pytest.mark.parametrize("rounds", [25, pytest.param(150, marks=pytest.mark.long)])
def test_threads_may_share_an_image(rounds):
    # In a separate process, which could crash if SimpleITK freed memory in use by another thread.
    done = run_process(rounds, code=_THREADS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(12 * rounds), "0"]


def wavy_field(like: sitk.Image, seed: int, largest: float) -> sitk.DisplacementFieldTransform:
    """A smooth invertible field of waves along each axis; its slopes are up to ``largest`` for each component."""
    generator = np.random.default_rng(seed)
    d, axes = like.GetDimension(), np.meshgrid(*[np.arange(n) for n in like.GetSize()[::-1]], indexing="ij")
    field = np.zeros((*axes[0].shape, d))
    for component in range(d):
        for axis in axes:
            period = generator.uniform(10, 20)
            slope = largest / d * generator.choice([-1, 1])
            field[..., component] += (
                slope * period / (2 * np.pi) * np.sin(2 * np.pi * axis / period + generator.uniform(0, 6))
            )
    image = sitk.GetImageFromArray(field, isVector=True)
    image.CopyInformation(like)
    return sitk.DisplacementFieldTransform(image)


def pieces(array: np.ndarray, value: int) -> int:
    return int(ndimage.label(array == value, np.ones((3,) * array.ndim))[1])


@pytest.mark.parametrize("seed", range(6))
def test_thin_structures_stay_in_one_piece(seed):
    image = smooth_image((44, 46, 48))
    array = np.zeros((48, 46, 44), np.uint8)
    t = np.linspace(0, 1, 600)
    array[tuple(np.rint(c).astype(int) for c in (10 + 28 * t, 22 + 11 * np.sin(6 * t), 10 + 25 * t))] = 1
    array[12:36, 36, 14] = 2
    array[10:16, 8:14, 30:36], array[15:38, 11, 33] = 3, 3
    array[22:24, 10:36, 36] = 4
    ring = np.linspace(0, 2 * np.pi, 300)
    array[38, np.rint(22 + 8 * np.cos(ring)).astype(int), np.rint(14 + 6 * np.sin(ring)).astype(int)] = 5
    label = label_image(array, image)
    transform = wavy_field(image, seed, 0.95)
    warped = sitk.GetArrayFromImage(warp_label(label, image, transform))
    plain = sitk.GetArrayFromImage(sitk.Resample(label, image, transform, sitk.sitkNearestNeighbor))
    assert [pieces(array, value) for value in range(1, 6)] == [1] * 5
    assert [pieces(warped, value) for value in range(1, 6)] == [1] * 5
    assert max(pieces(plain, value) for value in range(1, 6)) > 1
    # Few voxels are added, and all are near the structure.
    assert (warped != plain).sum() < 0.5 * (array > 0).sum()
    for value in range(1, 6):
        assert not ((warped == value) & ~ndimage.maximum_filter(plain == value, 9)).any()


def test_a_thin_line_in_2d_stays_in_one_piece():
    image = smooth_image((64, 60))
    array = np.zeros((60, 64), np.uint8)
    t = np.linspace(0, 1, 400)
    array[np.rint(10 + 40 * t).astype(int), np.rint(32 + 16 * np.sin(7 * t)).astype(int)] = 2
    for seed in range(4):
        warped = sitk.GetArrayFromImage(warp_label(label_image(array, image), image, wavy_field(image, seed, 0.95)))
        assert pieces(warped, 2) == 1


def test_a_thin_structure_that_leaves_the_image():
    image = smooth_image((30, 30, 30))
    array = np.zeros((30, 30, 30), np.uint8)
    array[:, 0, 0], array[29, :, 14], array[14, 29, 29] = 1, 2, 3
    transform = sitk.TranslationTransform(3, (5.0, -3.5, 4.2))
    warped = sitk.GetArrayFromImage(warp_label(label_image(array, image), image, transform))
    assert set(np.unique(warped)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("pixel", [sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkFloat64])
def test_a_field_of_zeros_changes_no_bit(pixel, monkeypatch):
    monkeypatch.setattr(resampling.slabs, "__defaults__", (3000,))
    image = smooth_image((22, 20, 18), (0.7, 1.3, 2.1), rotation(11, -7, 33), (-100.3, 57.1, 12.9), pixel)
    field = sitk.Image([8, 8, 8], sitk.sitkVectorFloat64, 3)
    field.SetOrigin(image.GetOrigin())
    transform = sitk.DisplacementFieldTransform(field)
    warped = warp_image(image, image, transform)
    assert np.array_equal(sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(image))
    assert warped.GetPixelID() == image.GetPixelID() and warped.GetOrigin() == image.GetOrigin()
    array = np.random.default_rng(0).integers(0, 4, (18, 20, 22))
    label = label_image(array, image)
    assert np.array_equal(sitk.GetArrayFromImage(warp_label(label, image, transform)), array)
    # On another grid an image is resampled as usual.
    assert warp_image(image, image[2:12, 3:13, 4:14], transform).GetSize() == (10, 10, 10)
