"""Labels are as smooth after the warp as the anatomy, and nothing thin is lost; judged by shapes given as formulas."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import rotation, smooth_image
from test_resampling import label_image, pieces, wavy_field

from DRDMLib.diffusion.forward import ForwardProcess
from DRDMLib.spatial import label_vote
from DRDMLib.spatial.coordinates import to_index, to_points
from DRDMLib.spatial.label_vote import count_votes, warp_by_vote
from DRDMLib.spatial.resampling import warp_label

Formula = Callable[[np.ndarray], np.ndarray]


def ball(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - 20.3, axis=1) < 9.4


def sheet(points: np.ndarray) -> np.ndarray:
    waves = 3 * np.sin(points[:, 0] / 5) + 2 * np.cos(points[:, 1] / 4)
    return np.abs(points[:, 2] - 20 - waves) < 1.2


def tube(points: np.ndarray) -> np.ndarray:
    return np.hypot(points[:, 0] - 20 - 4 * np.sin(points[:, 2] / 6), points[:, 1] - 21) < 1.5


def disc(points: np.ndarray) -> np.ndarray:
    return np.hypot(*(points - (31.2, 28.6)).T) < 15.3


def every_index(image: sitk.Image) -> np.ndarray:
    axes = [np.arange(n) for n in image.GetSize()]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).T.reshape(image.GetDimension(), -1).T.astype(float)


def drawn(formula: Formula, image: sitk.Image, transform: sitk.Transform | None = None) -> np.ndarray:
    """The shape on the grid of an image; with a transform, its exact image."""
    index = every_index(image)
    if transform is not None:
        points = [transform.TransformPoint(p) for p in to_points(index, image).tolist()]
        index = to_index(np.asarray(points), image)
    return formula(index).reshape(image.GetSize()[::-1])


@pytest.mark.parametrize(("formula", "better"), [(ball, 0.45), (sheet, 0.8), (tube, 0.7), (disc, 0.6)])
def test_warped_labels_are_nearer_to_the_truth_than_the_nearest_voxel(formula, better):
    size = (60, 58) if formula is disc else (40, 42, 41)
    image = smooth_image(size, (1.0, 0.8, 1.5)[: len(size)], None if formula is disc else rotation(10, 20, 5))
    wrong = np.zeros(2)
    for seed in range(3):
        transform = wavy_field(image, seed, 0.6)
        label, truth = label_image(drawn(formula, image), image), drawn(formula, image, transform)
        plain = sitk.Resample(label, image, transform, sitk.sitkNearestNeighbor)
        for number, warped in enumerate((warp_label(label, image, transform), plain)):
            wrong[number] += np.count_nonzero(sitk.GetArrayFromImage(warped) != truth)
    assert wrong[0] < better * wrong[1]


@pytest.mark.parametrize("fields", [10, pytest.param(50, marks=pytest.mark.long)])
def test_tubes_stay_in_one_piece_in_many_fields(fields):
    """One, two and three voxels thick, in random fields of level 48 without recovery."""
    image = smooth_image((32, 32, 32))
    array = np.zeros((32, 32, 32), np.uint8)
    t = np.linspace(0, 1, 400)
    array[tuple(np.rint(c).astype(int) for c in (7 + 17 * t, 14 + 5 * np.sin(6 * t), 9 + 10 * t))] = 1
    array[9:23, 24, 23:25] = 2
    middle = every_index(image) - (11, 16, 23)
    bent = np.hypot(middle[:, 0] - 3 * np.sin(middle[:, 1] / 5), middle[:, 2]) < 1.5
    array[(bent & (np.abs(middle[:, 1]) < 8)).reshape(array.shape)] = 3
    assert [pieces(array, value) for value in (1, 2, 3)] == [1, 1, 1]
    label, process = label_image(array, image), ForwardProcess(32, 3, amplitude=2.0).invertible()
    for seed in range(fields):
        ddf = process.ddf(48, torch.Generator().manual_seed(seed))[0].numpy()
        field = sitk.GetImageFromArray(32 * np.moveaxis(ddf, 0, -1)[..., ::-1].astype(float), isVector=True)
        field.CopyInformation(image)
        warped = sitk.GetArrayFromImage(warp_label(label, image, sitk.DisplacementFieldTransform(field)))
        assert set(np.unique(warped)) == {0, 1, 2, 3}
        assert [pieces(warped, value) for value in (1, 2, 3)] == [1, 1, 1], seed


def test_thick_slices_are_interpolated():
    """Half a slice farther on, a cone has the mean of the radii in the two slices."""
    image = smooth_image((60, 60, 8), (1.0, 1.0, 10.0))
    z, y, x = np.ogrid[:8, :60, :60]
    array = (np.hypot(y - 29.5, x - 29.5) < 6 + 2.4 * z).astype(np.uint8)
    transform = sitk.TranslationTransform(3, (0.0, 0.0, 5.0))
    warped = sitk.GetArrayFromImage(warp_label(label_image(array, image), image, transform))
    for k in range(1, 6):
        assert np.sqrt(warped[k].sum() / np.pi) == pytest.approx(6 + 2.4 * (k + 0.5), abs=0.25)


def test_a_structure_that_does_not_move_keeps_its_voxels():
    """The transform is not zero everywhere, so the voxels do vote; smooth surfaces are not changed by it."""
    image = smooth_image((42, 42, 42))
    field = sitk.Image([42, 42, 42], sitk.sitkVectorFloat64, 3)
    field.CopyInformation(image)
    field[41, 41, 41] = (0.5, 0.0, 0.0)
    for formula in (ball, sheet, tube):
        array = drawn(formula, image)
        warped = warp_label(label_image(array, image), image, sitk.DisplacementFieldTransform(sitk.Image(field)))
        assert np.count_nonzero(sitk.GetArrayFromImage(warped) != array) < 0.01 * array.sum()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.float32])
def test_only_labels_that_are_there_appear(kind):
    """Three sectors without background meet in a line; their numbers may be large."""
    image = smooth_image((30, 31, 32))
    _, y, x = np.meshgrid(*[np.arange(n) for n in (32, 31, 30)], indexing="ij")
    names = {np.int64: (2**53 - 1, 2**53 - 2, -(2**53)), np.uint32: (576073732, 1, 2**32 - 1)}.get(kind, (7, 100, 3))
    array = np.asarray(names, kind)[((np.arctan2(y - 15.2, x - 14.7) + np.pi) * 3 / 6.3).astype(int)]
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    warped = sitk.GetArrayFromImage(warp_label(label, image, wavy_field(image, 1, 0.8)))
    assert warped.dtype == array.dtype and set(np.unique(warped).tolist()) == set(np.asarray(names, kind).tolist())
    assert all(pieces(warped, value) == 1 for value in np.unique(warped))


def test_blocks_leave_no_seams(monkeypatch):
    image = smooth_image((33, 30, 28), (1.0, 1.2, 2.5), rotation(10, 0, 30))
    array = np.random.default_rng(0).integers(0, 5, (7, 6, 7)).repeat(4, 0).repeat(5, 1).repeat(5, 2)[:, :, :33]
    label, transform = label_image(array, image), wavy_field(image, 0, 0.8)
    whole = sitk.GetArrayFromImage(warp_label(label, image, transform))
    monkeypatch.setattr(label_vote, "_BLOCK", 1000)
    monkeypatch.setattr(label_vote, "_CHUNK", 100)
    assert np.array_equal(whole, sitk.GetArrayFromImage(warp_label(label, image, transform)))
    part = sitk.RegionOfInterest(image, [20, 18, 9], [7, 4, 11])
    alone = warp_by_vote(array.astype(np.uint8), label, part, transform)
    assert np.array_equal(alone, warp_by_vote(array.astype(np.uint8), label, image, transform)[11:20, 4:22, 7:27])


def test_memory_does_not_grow_with_the_number_of_labels():
    image = smooth_image((96, 96, 96))
    transform = wavy_field(image, 0, 0.6)
    blocks = np.indices((96, 96, 96)) // 16
    many = (blocks[0] * 36 + blocks[1] * 6 + blocks[2] + 1).astype(np.uint8)
    peaks = []
    for array in (many % 2, many):
        tracemalloc.start()
        warp_by_vote(array, label_image(array, image), image, transform)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 3 * many.nbytes + 2**24


def test_thin_and_sharp_voxels_have_more_votes():
    array = np.zeros((20, 20, 20), np.uint8)
    array[4, 4, 4] = array[10, 2:18, 10] = 1
    array[15] = 2
    votes = count_votes(array) / 32
    speck, line, plane, inner = votes[4, 4, 4], votes[10, 9, 10], votes[15, 8, 8], votes[1, 1, 1]
    assert speck > line > plane > 1.5 > votes[14, 8, 8] > inner == 1
