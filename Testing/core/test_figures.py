"""The metrics of a field on the grid of an image are those that are computed voxel by voxel, in less time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from support import rotation

from DRDMLib.invertibility import certificate, device_bounds, metrics, sample_bounds
from DRDMLib.invertibility.determinant_bounds import least_determinants
from DRDMLib.invertibility.device_bounds import DeviceBounds
from DRDMLib.invertibility.metrics import FieldMetrics, measure_ddf, measure_on_grid
from DRDMLib.invertibility.sample_bounds import all_above, all_strict, least_between_samples
from DRDMLib.spatial import borders
from DRDMLib.spatial.borders import Face, inside_mask, invented_fraction, outside_fraction
from DRDMLib.spatial.coordinates import direction_matrix, index_to_physical
from DRDMLib.spatial.field_grid import STORED, FieldGrid, SampledGrid, continued, positions
from DRDMLib.spatial.field_samples import FieldSamples, boxes
from DRDMLib.spatial.jacobian import central_determinants, jacobian_determinant
from DRDMLib.spatial.model_grid import image_extent
from DRDMLib.spatial.resampling import field_on_grid

OBLIQUE = rotation(0.3, -0.2, 0.5)
TURNED = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])


def image_of(size, spacing, direction=None, origin=None) -> sitk.Image:
    image = sitk.Image(list(size), sitk.sitkUInt8)
    image.SetSpacing(list(spacing))
    image.SetDirection((np.eye(len(size)) if direction is None else direction).ravel().tolist())
    image.SetOrigin([0.0] * len(size) if origin is None else list(origin))
    return image


def field_around(image: sitk.Image, nodes, strength: float, seed: int, turned=None, part: float = 1.0) -> sitk.Image:
    """A random field, zero on its border, whose grid extends past the image, or covers ``part`` of each side of it.

    Args:
        strength: millimeters.
        turned: permutes and flips the axes of the field relative to those of the image.
    """
    d = image.GetDimension()
    generator = np.random.default_rng(seed)
    values = np.stack([ndimage.gaussian_filter(generator.normal(size=nodes[::-1]), 1.2) for _ in range(d)], axis=-1)
    for axis, n in enumerate(values.shape[:-1]):
        fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / 2)
        values *= fade.reshape([-1 if a == axis else 1 for a in range(d + 1)])
    values *= strength / np.abs(values).max()
    field = sitk.GetImageFromArray(values, isVector=True)
    direction = direction_matrix(image) @ (np.eye(d) if turned is None else turned)
    extent = np.abs(np.linalg.inv(direction) @ (index_to_physical(image) @ np.asarray(image.GetSize(), float)))
    spacing = extent * (1.3 if part == 1 else part) / (np.asarray(nodes) - 1)
    middle = np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    field.SetSpacing(spacing.tolist())
    field.SetDirection(direction.ravel().tolist())
    field.SetOrigin((middle - direction @ (spacing * (np.asarray(nodes) - 1) / 2)).tolist())
    return field


def voxel_by_voxel(vectors: np.ndarray, reference: sitk.Image) -> FieldMetrics:
    """The metrics without any bounds."""
    direction, spacing = direction_matrix(reference), reference.GetSpacing()
    determinants = jacobian_determinant(vectors, spacing, direction)
    length = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    side = float(image_extent(reference).max())
    d, bad, volume, cells = len(direction), 0, 0.0, 1
    if min(vectors.shape[:-1]) > 1:
        field = FieldGrid(vectors, spacing[::-1], direction, np.zeros(d))
        whole = field.block(tuple(slice(0, n) for n in vectors.shape[:-1]))
        in_voxels = (whole / np.reshape(spacing[::-1], (-1, *[1] * d))).astype(np.float32)
        dets = torch.stack(metrics._simplex_determinants(torch.from_numpy(in_voxels)))
        cells, bad = dets[0].numel(), int((dets <= 0).any(dim=0).sum())
        volume = -float(dets.clamp(max=0).sum()) / 2 / math.factorial(d)
    return FieldMetrics(
        float(length.mean()),
        float(length.max()),
        float(100 * length.mean() / side),
        float(100 * length.max() / side),
        float((determinants <= 0).mean()),
        float(determinants.min()),
        None,
        volume / cells,
        bad / cells,
    )


def numbers(figures: FieldMetrics) -> dict[str, float]:
    """All metrics but the certificate."""
    return {key: value for key, value in figures.to_dict().items() if key != "certified_invertible"}


GRIDS = {
    "as fine as the field": ((30, 28, 26), (1.0, 1.2, 0.9), np.eye(3), (30, 28, 26)),
    "finer": ((70, 44, 40), (1.0, 1.2, 0.9), np.eye(3), (14, 12, 13)),
    "much finer": ((90, 40, 36), (0.5, 0.6, 0.9), np.eye(3), (9, 8, 8)),
    "coarser": ((9, 8, 10), (3.0, 3.0, 3.0), np.eye(3), (20, 22, 18)),
    "oblique": ((40, 50, 36), (1.0, 1.2, 0.9), OBLIQUE, (14, 12, 13)),
    "flipped": ((40, 50, 36), (1.0, 1.2, 0.9), OBLIQUE @ np.diag([-1.0, 1, 1]), (14, 12, 13)),
    "a single slice": ((40, 50, 1), (1.0, 1.2, 0.9), OBLIQUE, (14, 12, 5)),
    "two slices": ((40, 50, 2), (1.0, 1.2, 4.0), np.eye(3), (14, 12, 5)),
    "2D": ((90, 70), (0.7, 0.9), np.diag([1.0, -1.0]), (20, 16)),
    "2D, coarser": ((12, 11), (2.0, 2.0), np.eye(2), (40, 32)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("strength", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("few", [0, 1000])
def test_metrics_are_those_of_every_voxel(name, strength, few, monkeypatch):
    """A gentle field, a strong one, and one that folds; with bounds of all determinants, and without where possible."""
    monkeypatch.setattr(metrics, "_FEW_SAMPLES", few)
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction, np.arange(len(size)) * 11.0)
    side = min(n * s for n, s in zip(size, spacing, strict=True) if n > 2)
    for number, turned in enumerate([None, TURNED] if len(size) == 3 and min(size) > 2 else [None]):
        field = field_around(image, nodes, strength * side, number, turned)
        samples = FieldSamples.of(field, image)
        assert samples is not None
        # The positions of voxels can differ by a rounding error of double precision.
        vectors = np.ascontiguousarray(np.moveaxis(samples.box(tuple(slice(0, n) for n in size[::-1])), 0, -1))
        np.testing.assert_allclose(vectors, field_on_grid(field, image, 0, size[-1]), rtol=1e-7, atol=1e-9)
        for where in boxes(size[::-1]):
            np.testing.assert_array_equal(np.moveaxis(samples.box(where), 0, -1), vectors[where])
        found, expected = numbers(measure_on_grid(field, image)), numbers(voxel_by_voxel(vectors, image))
        exact = ("folded_fraction", "nondiffeomorphic_cells", "min_jacobian")
        assert [found[key] for key in exact] == [expected[key] for key in exact]
        if min(size) > 2 and name != "much finer" and strength != 0.1:
            assert (found["nondiffeomorphic_cells"] > 0) == (strength == 0.3)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
        saved = sitk.GetImageFromArray(vectors, isVector=True)
        saved.CopyInformation(image)
        assert numbers(measure_ddf(saved)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["finer", "oblique", "2D"])
def test_bounds_decide_most_of_a_gentle_field(name):
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction)
    field = field_around(image, nodes, 0.02 * min(size), 1)
    samples = FieldSamples.of(field, image)
    least = least_determinants(samples, direction)
    assert (least.central > 0).mean() > 0.9 and (least.strict > 0).mean() > 0.9


@pytest.mark.parametrize("name", ["finer", "much finer", "oblique", "2D"])
def test_bounds_are_below_the_determinants(name):
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction)
    for seed in range(3):
        field = field_around(image, nodes, 0.2 * min(size), seed)
        samples = FieldSamples.of(field, image)
        least = least_determinants(samples, direction)
        vectors = field_on_grid(field, image, 0, size[-1])
        found = jacobian_determinant(vectors, spacing, direction)
        assert (least.central[np.ix_(*least.cells)] < found).all()
        whole = FieldGrid(vectors, spacing[::-1], direction, np.zeros(len(size)))
        values = whole.block(tuple(slice(0, n) for n in size[::-1])) / np.reshape(spacing[::-1], (-1, *[1] * len(size)))
        dets = metrics._simplex_determinants(torch.from_numpy(values.astype(np.float32)))
        # Those of the tetrahedra in the middle are twice as large.
        strict = torch.stack([det / 2 if number > 7 else det for number, det in enumerate(dets)]).amin(dim=0).numpy()
        assert (least.strict[np.ix_(*[c[:-1] for c in least.cells])] < strict).all()


@pytest.mark.parametrize("name", ["as fine as the field", "finer", "coarser", "flipped", "two slices", "2D"])
def test_bounds_decide_the_criterion_only_where_it_is_met(name, monkeypatch):
    monkeypatch.setattr(sample_bounds, "_NODES", 1)
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction)
    side = min(n * s for n, s in zip(size, spacing, strict=True) if n > 2)
    decided = []
    for seed, strength in enumerate((0.005, 0.02, 0.05, 0.1, 0.2, 0.4)):
        field = FieldGrid.of(field_around(image, nodes, strength * side, seed), STORED)
        decided.append(all_strict(SampledGrid(field, positions(field, image))))
        if decided[-1]:
            vectors = field_on_grid(field.image(), image, 0, size[-1])
            assert voxel_by_voxel(vectors, image).nondiffeomorphic_cells == 0
    assert decided[0] and not decided[-1]


def test_a_grid_that_is_not_parallel_or_not_covered():
    image = image_of((30, 26, 24), (1.0, 1.2, 0.9))
    turned = field_around(image_of((30, 26, 24), (1.0, 1.2, 0.9), OBLIQUE), (12, 13, 11), 3.0, 0)
    assert FieldSamples.of(turned, image) is None
    small = field_around(image, (12, 13, 11), 2.0, 1, part=0.4)
    assert FieldSamples.of(small, image) is not None
    moving = sitk.GetImageFromArray(sitk.GetArrayFromImage(small) + 1, isVector=True)
    moving.CopyInformation(small)
    assert FieldSamples.of(moving, image) is None
    for field in (turned, small, moving):
        vectors = field_on_grid(field, image, 0, 24)
        found, expected = measure_on_grid(field, image), voxel_by_voxel(vectors, image)
        assert numbers(found) == pytest.approx(numbers(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, OBLIQUE @ np.diag([1.0, -1, -1])])
def test_central_determinants_of_boxes_are_the_same_to_the_bit(direction):
    vectors = np.random.default_rng(0).normal(size=(9, 12, 7, 3)).astype(np.float32)
    whole = jacobian_determinant(vectors, (0.7, 1.1, 3.0), direction)
    planar = np.moveaxis(vectors, -1, 0)
    for box in [(slice(0, 9), slice(3, 8), slice(5, 7)), (slice(2, 3), slice(0, 12), slice(0, 1))]:
        around, inner = metrics._with_neighbors(box, vectors.shape[:-1])
        found = central_determinants(planar[(slice(None), *around)], inner, (0.7, 1.1, 3.0), direction)
        np.testing.assert_array_equal(found, whole[box])


@pytest.mark.parametrize("name", GRIDS)
def test_voxels_read_from_outside_are_those_of_every_voxel(name, monkeypatch):
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction, np.arange(len(size)) * 11.0)
    d = len(size)
    faces = []
    for axis, end in ((0, -0.5), (0, size[0] - 0.5), (1, -0.5), (d - 1, size[-1] - 0.5)):
        index = [(n - 1) / 2 for n in size]
        index[axis] = end
        faces.append(Face(image.TransformContinuousIndexToPhysicalPoint(index), tuple(direction[:, axis].tolist())))
    side = min(n * s for n, s in zip(size, spacing, strict=True) if n > 2)
    for seed, strength in enumerate((0.002, 0.05, 0.3)):
        field = field_around(image, nodes, strength * side, seed)
        found = [outside_fraction(field, image), invented_fraction(field, image, faces), inside_mask(field, image)]
        with monkeypatch.context() as patched:
            patched.setattr(borders.FieldSamples, "of", lambda *_: None)
            slow = [outside_fraction(field, image), invented_fraction(field, image, faces), inside_mask(field, image)]
        assert found[:2] == slow[:2]
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found[2]), sitk.GetArrayFromImage(slow[2]))
        assert found[0] == 0 if strength < 0.01 else found[0] > 0 or strength < 0.1


@pytest.mark.parametrize("name", ["finer", "coarser", "oblique", "a single slice", "2D"])
@pytest.mark.parametrize("part", [1.0, 0.6])
def test_bounds_leave_out_no_cell_that_fails(name, part, monkeypatch):
    """Continued beyond the image, as it is applied, or in an image that extends past the field."""
    monkeypatch.setattr(certificate, "_FEW_BLOCKS", 0)
    monkeypatch.setattr(certificate, "_BOUNDS", [(together, 0) for together in (4, 2, 1)])
    monkeypatch.setattr(device_bounds, "LEAST_NODES", 0)
    # Several layers, whatever the size.
    monkeypatch.setattr(sample_bounds, "_NODES", 1)
    size, spacing, direction, nodes = GRIDS[name]
    image = image_of(size, spacing, direction)
    side = min(n * s for n, s in zip(size, spacing, strict=True) if n > 2)
    decided, failed, at_once = 0, 0, 0
    for seed, strength in enumerate((0.002, 0.03, 0.3)):
        field = FieldGrid.of(field_around(image, nodes, strength * side, seed, part=part), STORED)
        inside = positions(field, image)
        for gap in certificate.GAPS:
            grid = continued(field, inside, gap)
            cells = certificate.failing_cells(grid, 0.05)
            np.testing.assert_array_equal(certificate.failing_cells(grid, 0.05, bounded=True), cells)
            least = least_between_samples(grid)
            bounds = DeviceBounds(field, torch.device("cpu"))
            np.testing.assert_array_equal(bounds._least(grid).least, least.least)
            np.testing.assert_array_equal(certificate.failing_cells(grid, 0.05, on_device=bounds), cells)
            every = np.stack(np.meshgrid(*[np.arange(len(n) - 1) for n in grid.nodes], indexing="ij"), axis=-1)
            every = np.random.default_rng(seed).choice(every.reshape(-1, every.shape[-1]), 4000)
            values = grid.block(tuple(slice(0, len(n)) for n in grid.nodes))
            steps = np.stack([np.diff(n)[c] for n, c in zip(grid.nodes, every.T, strict=True)], axis=1)
            found = certificate.bernstein_bound(certificate.corner_values(values, every), steps)
            bounds, *looser = (
                one.least[tuple(g[c] for g, c in zip(one.groups, every.T, strict=True))]
                for one in (least, least_between_samples(grid, 2), least_between_samples(grid, 4))
            )
            assert (bounds < found).all()
            assert all((one <= bounds + 1e-5).all() for one in looser)
            if all_above(grid, 0.05):
                assert not len(cells) and not len(certificate.failing_cells(field, 0.05))
                at_once += 1
            decided, failed = decided + np.count_nonzero(bounds > 0.05), failed + len(cells)
    assert decided and failed and 0 < at_once < 6
