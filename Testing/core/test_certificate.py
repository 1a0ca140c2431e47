"""The certificate: certified fields never fold, folded fields are refused, and repair makes fields certified."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree
from support import rotation, smooth_image

from DRDMLib.deforming import deform
from DRDMLib.diffusion.fields import STEP_BOUND, compose, invertible_step, lipschitz_bound
from DRDMLib.errors import DRDMError
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility import device_bounds
from DRDMLib.invertibility.certificate import (
    bernstein_bound,
    bernstein_coefficients,
    certify_on_grid,
    certify_saved,
    corner_values,
    failing_cells,
)
from DRDMLib.invertibility.device_bounds import DeviceBounds
from DRDMLib.invertibility.inverse import Mapping
from DRDMLib.invertibility.metrics import digital_diffeomorphism, measure_ddf
from DRDMLib.invertibility.repair import MARGIN, repair
from DRDMLib.io.images import read_image
from DRDMLib.io.resources import resource
from DRDMLib.models.catalogue import load_model
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.field_grid import STORED, FieldGrid, SampledGrid, extended, positions
from DRDMLib.spatial.jacobian import jacobian_determinant
from DRDMLib.spatial.model_grid import needs_refinement, physical_field


def field_of(
    values: np.ndarray, spacing: tuple[float, ...] | None = None, direction: np.ndarray | None = None
) -> FieldGrid:
    """Convert values (*S, d) along the array's axes, in millimeters, to a field in space."""
    d = values.shape[-1]
    direction = np.eye(d) if direction is None else direction
    return FieldGrid(
        np.ascontiguousarray(values[..., ::-1] @ direction.T), spacing or (1.0,) * d, direction, np.arange(d) * 7.0
    )


def smooth_values(shape: tuple[int, ...], seed: int, width: float, steepest: float) -> np.ndarray:
    """Random smooth values, zero at the border; ``steepest`` is the largest one-sided difference."""
    generator = np.random.default_rng(seed)
    d = len(shape)
    values = np.stack([ndimage.gaussian_filter(generator.normal(size=shape), width) for _ in range(d)], axis=-1)
    for axis, n in enumerate(shape):
        fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / 3)
        values *= fade.reshape([-1 if a == axis else 1 for a in range(d + 1)])
    return values * (steepest / max(np.abs(np.diff(values, axis=a)).max() for a in range(d)))


def within_cells(corners: np.ndarray, spacing: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute displacement (K, d) and determinant (K,) at points ``at`` (K, d, each in 0..1) in cells."""
    d = at.shape[1]
    value, slope = np.zeros((len(at), d)), np.zeros((len(at), d, d))
    for bits in itertools.product((0, 1), repeat=d):
        factors = np.where(bits, at, 1 - at)
        corner = corners[(slice(None), *bits)]
        value += factors.prod(axis=1)[:, None] * corner
        for a in range(d):
            weight = np.delete(factors, a, axis=1).prod(axis=1) * (1 if bits[a] else -1) / spacing[:, a]
            slope[:, :, a] += weight[:, None] * corner
    return value, np.linalg.det(slope + np.eye(d))


def least_sampled(field: FieldGrid, seed: int, count: int = 50_000) -> float:
    """Smallest determinant at random points of random cells, mostly at their faces, edges and corners."""
    generator = np.random.default_rng(seed)
    values = field.block(tuple(slice(0, n) for n in field.vectors.shape[:-1]))
    cells = generator.integers(0, np.array(values.shape[1:]) - 1, (count, len(values)))
    at = np.clip(generator.uniform(-0.5, 1.5, cells.shape), 0, 1)
    spacing = np.broadcast_to(field.spacing, cells.shape)
    return float(within_cells(corner_values(values, cells), spacing, at)[1].min())


SHAPES = st.one_of(
    st.tuples(st.integers(7, 40), st.integers(7, 40)),
    st.tuples(st.integers(7, 36), st.integers(7, 16), st.integers(7, 16)),
)
ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)


@st.composite
def fields(draw: st.DrawFn) -> FieldGrid:
    shape = draw(SHAPES)
    values = smooth_values(shape, draw(st.integers(0, 10**6)), draw(st.floats(0.4, 2.5)), draw(st.floats(0.2, 2.0)))
    spacing = tuple(draw(st.sampled_from([0.1, 0.7, 1.0, 3.0, 12.0])) for _ in shape)
    values = values * spacing
    direction = rotation(*draw(ANGLES))
    if len(shape) == 2:
        angle = np.radians(draw(st.floats(-180, 180)))
        direction = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return field_of(values, spacing, direction)


@pytest.mark.parametrize("d", [2, 3])
def test_bernstein_coefficients_give_the_determinant(d):
    generator = np.random.default_rng(d)
    corners = generator.normal(size=(300, *[2] * d, d))
    spacing, at = generator.uniform(0.3, 3, (300, d)), generator.random((300, d))
    c = bernstein_coefficients(corners, spacing)
    for axis in range(d):
        x = at[:, axis]
        basis = np.stack([1 - x, x] if d == 2 else [(1 - x) ** 2, 2 * x * (1 - x), x**2], axis=1)
        c = np.einsum("na,na...->n...", basis, c)
    expected = within_cells(corners, spacing, at)[1]
    assert np.abs(c - expected).max() < 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("d", [2, 3])
def test_bound_is_a_tight_lower_bound(d):
    generator = np.random.default_rng(d)
    corners = generator.normal(size=(200, *[2] * d, d)) * 0.15
    spacing = np.ones((200, d))
    bound = bernstein_bound(corners, spacing)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * d, indexing="ij"), -1).reshape(-1, d)
    sampled = np.min([within_cells(corners, spacing, np.broadcast_to(p, (200, d)))[1] for p in grid], axis=0)
    assert (bound <= sampled + 1e-12).all()
    assert (sampled - bound).max() < (1e-12 if d == 2 else 0.2)


@given(field=fields(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_certified_fields_do_not_fold(field, seed):
    least = least_sampled(field, seed, 40_000)
    failing = failing_cells(field)
    if len(failing) == 0:
        assert least > 0
    # The test is not too strict: cells far from folding pass.
    if steepness_of(field) < 0.3:
        assert len(failing) == 0


def steepness_of(field: FieldGrid) -> float:
    values = field.block(tuple(slice(0, n) for n in field.vectors.shape[:-1]))
    return sum(np.abs(np.diff(values, axis=1 + a)).max() / s for a, s in enumerate(field.spacing))


@given(field=fields(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_certified_fields_are_injective(field, seed):
    """Take pairs of points that end close to each other, and invert the map from the start of the other point."""
    if len(failing_cells(field, 0.05)):
        return
    generator = np.random.default_rng(seed)
    values = field.block(tuple(slice(0, n) for n in field.vectors.shape[:-1]))
    cells = generator.integers(0, np.array(values.shape[1:]) - 1, (3000, len(values)))
    at = generator.random(cells.shape)
    start = (cells + at) * field.spacing
    end = start + within_cells(corner_values(values, cells), np.broadcast_to(field.spacing, cells.shape), at)[0]
    other = cKDTree(end / field.spacing).query(end / field.spacing, k=2)[1][:, 1]
    found = Mapping(field).inverse(torch.from_numpy(end), torch.from_numpy(start[other])).numpy()
    assert (np.abs(found - start) / field.spacing).max() < 0.1


@given(shape=SHAPES, seed=st.integers(0, 10**6), beyond=st.floats(1.02, 4), spacing=st.sampled_from([0.2, 1.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_folded_fields_are_refused(shape, seed, beyond, spacing):
    """Push one node past its neighbor, anywhere in a valid field."""
    generator = np.random.default_rng(seed)
    values = smooth_values(shape, seed, 2.0, 0.15)
    node = tuple(int(generator.integers(1, n - 1)) for n in shape)
    axis = int(generator.integers(len(shape)))
    ahead = tuple(i + (a == axis) for a, i in enumerate(node))
    values[node] = values[ahead]
    values[node][axis] += beyond
    field = field_of(values * spacing, (spacing,) * len(shape))
    cells = failing_cells(field)
    assert len(cells)
    assert (np.abs(cells - node).max(axis=1) <= 1).any()


@given(field=fields(), margin=st.sampled_from([0.0, 0.01, 0.2]))
@settings(max_examples=40, deadline=None)
def test_tiles_and_bounds_find_the_cells_that_the_coefficients_find(field, margin):
    """Every cell on its own is the slow form of the test."""
    shape = field.vectors.shape[:-1]
    values = field.block(tuple(slice(0, n) for n in shape))
    cells = np.stack(np.unravel_index(np.arange(np.prod([n - 1 for n in shape])), [n - 1 for n in shape]), axis=1)
    bound = bernstein_bound(corner_values(values, cells), np.broadcast_to(field.spacing, cells.shape))
    failing = np.zeros([n - 1 for n in shape], bool)
    failing[tuple(failing_cells(field, margin).T)] = True
    clear = np.abs(bound - margin) > 1e-9
    np.testing.assert_array_equal(failing.reshape(-1)[clear], (bound <= margin)[clear])
    # As on a GPU: the bounds of all cells at once are below what they bound, and leave out no cell that fails.
    bounds = DeviceBounds(field, torch.device("cpu"))
    whole = SampledGrid(field, tuple(np.arange(float(n)) for n in shape), field.rounding)
    assert (bounds._least(whole).least.ravel() < bound).all()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_bounds, "LEAST_NODES", 0)
        np.testing.assert_array_equal(failing_cells(field, margin, on_device=bounds), failing_cells(field, margin))


@given(field=fields(), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_relative_displacements_are_as_exact_as_they_say(field, seed):
    generator = np.random.default_rng(seed)
    shape = field.vectors.shape[:-1]
    at = tuple(np.sort(generator.uniform(-2, n + 1, generator.integers(2, 50))) for n in shape)
    for grid in (field, SampledGrid(field, at)):
        where = tuple(slice(int(generator.integers(0, len(n) - 1)), len(n)) for n in grid.nodes)
        values, farthest = grid.relative(where)
        expected = grid.block(where)
        assert values.dtype == np.float32 and np.abs(expected).max() <= farthest * (1 + 1e-6)
        first = (slice(None), *[slice(1)] * len(shape))
        apart = (values.astype(np.float64) - values[first]) - (expected - expected[first])
        assert np.abs(apart).max() <= 2.0**-22 * farthest


@pytest.mark.parametrize("d", [2, 3])
def test_criterion_finds_folds_that_central_differences_miss(d):
    """A single displaced node: central differences give a determinant of 1 there."""
    values = np.zeros((9,) * d + (d,))
    values[(4,) * d] = 1.5
    field = field_of(values)
    central = jacobian_determinant(field.vectors, (1.0,) * d, np.eye(d))
    assert central[(4,) * d] == pytest.approx(1)
    strict = digital_diffeomorphism(field)
    assert strict.bad > 0 and strict.volume > 0
    assert len(failing_cells(field))
    assert digital_diffeomorphism(field_of(values * 0.1)) == (8**d, 0, 0.0)


def test_non_diffeomorphic_volume_is_the_volume_of_flipped_tetrahedra():
    values = smooth_values((8, 9, 7), 3, 0.6, 2.0)
    field = field_of(values, (2.0, 1.0, 0.5))
    points = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip((8, 9, 7), (2, 1, 0.5), strict=True)], indexing="ij"), -1
    )
    moved = points + values
    total, bad = 0.0, 0
    for cell in np.ndindex(7, 8, 6):
        signed = []
        for shape in (points, moved):
            p = {b: shape[tuple(np.add(cell, b))] for b in itertools.product((0, 1), repeat=3)}
            tetrahedra = [
                [p[b], *[p[tuple(x ^ (k == j) for k, x in enumerate(b))] for j in range(3)]]
                for b in itertools.product((0, 1), repeat=3)
            ]
            tetrahedra += [[p[b] for b in p if sum(b) % 2 == parity] for parity in (0, 1)]
            signed.append([np.linalg.det(np.subtract(t[1:], t[0])) / 6 for t in tetrahedra])
        volumes = np.array(signed[1]) * np.sign(signed[0])
        total -= volumes[volumes < 0].sum() / 2
        bad += bool((volumes <= 0).any())
    strict = digital_diffeomorphism(field)
    assert strict.bad == bad > 10
    assert strict.volume == pytest.approx(total, rel=1e-4)


def rolled_up(turns: float) -> sitk.Image:
    """A strip bent around a circle: no cell folds, but after one turn it overlaps itself."""
    x, y = np.meshgrid(np.arange(240.0), np.arange(7.0))
    angle, radius = 2 * np.pi * turns * x / 239, 239 / (2 * np.pi * turns) - y
    moved = np.stack([radius * np.sin(angle) - x, 7 - radius * np.cos(angle) - y], axis=-1)
    return sitk.GetImageFromArray(moved, isVector=True)


def test_a_field_without_folds_that_overlaps_itself_is_not_certified():
    strip = rolled_up(1.3)
    assert len(failing_cells(FieldGrid.of(strip))) == 0
    assert measure_ddf(strip).folded_fraction == 0
    refused = certify_saved(strip)
    assert not refused.certified and "border" in refused.reason
    assert measure_ddf(strip).certified_invertible is False
    assert certify_saved(rolled_up(0.02)).certified


@pytest.mark.parametrize("d", [2, 3])
def test_saved_fields_are_certified_unless_broken(d):
    values = smooth_values((16,) * d, 1, 2.0, 0.4)
    assert certify_saved(field_of(values).image()).certified
    assert certify_saved(field_of(values + 5).image()).certified
    for broken in (values * 8, np.where(values == values.max(), np.nan, values)):
        assert not certify_saved(field_of(broken).image()).certified


def test_volumes_of_one_slice():
    values = np.zeros((1, 12, 14, 3))
    values[0, ..., 1:] = smooth_values((12, 14), 0, 2.0, 0.4)
    assert certify_saved(field_of(values).image()).certified
    assert not certify_saved(field_of(values * 8).image()).certified


def test_a_field_with_a_jump_at_its_border_is_not_certified():
    image = smooth_image((10, 10, 10))
    values = np.full((30, 30, 30, 3), 2.0)
    values[15:, :, 0] = 1.5
    field = field_of(values)
    torn = dataclasses.replace(field, origin=np.asarray(image.GetOrigin()) - 10).image()
    assert not certify_on_grid(torn, image).certified
    # A shift of everything is no jump, unless the image reaches past the field.
    field.vectors[...] = 2.0
    shifted = dataclasses.replace(field, origin=np.asarray(image.GetOrigin()) - 10)
    assert certify_on_grid(shifted.image(), image).certified
    beyond = dataclasses.replace(field, origin=np.asarray(image.GetOrigin()) + 5)
    assert not certify_on_grid(beyond.image(), image).certified


# ------------------------------------------------------------------------------------------------ repair


@given(shape=SHAPES, seed=st.integers(0, 10**6), steepest=st.floats(0.5, 4), spacing=st.sampled_from([0.2, 1.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_repair_reaches_the_certificate(shape, seed, steepest, spacing):
    values = smooth_values(shape, seed, 1.5, steepest) * spacing
    field = field_of(values, (spacing,) * len(shape))
    middle = sitk.Image([n // 2 for n in shape[::-1]], sitk.sitkUInt8)
    middle.SetSpacing([spacing * 0.83] * len(shape))
    middle.SetOrigin((field.origin + 2.3 * spacing).tolist())
    before = field.vectors.copy()
    report = repair(field, middle)
    assert certify_on_grid(field.image(), middle).certified
    assert least_sampled(field, seed, 20_000) > MARGIN
    ddf = sitk.Resample(field.image(), middle, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32)
    assert least_sampled(FieldGrid.of(ddf), seed, 20_000) > 0
    change = np.linalg.norm(field.vectors - before, axis=-1)
    assert report.mean_mm == pytest.approx(change.mean(), rel=1e-3, abs=1e-5)
    assert report.max_mm == pytest.approx(change.max(), rel=1e-3, abs=1e-5)
    if report.rounds == 0:
        assert np.array_equal(before, field.vectors)
    assert field.border_is_zero()


@pytest.mark.parametrize("d", [2, 3])
def test_repair_is_local(d):
    values = smooth_values((30,) * d, 0, 2.0, 0.2)
    values[(8,) * d] += 1.6
    field = field_of(values.copy())
    image = sitk.Image([20] * d, sitk.sitkUInt8)
    image.SetOrigin((field.origin + 5).tolist())
    report = repair(field, image)
    assert 0 < report.rounds < 20
    change = np.linalg.norm(field.vectors - field_of(values).vectors, axis=-1)
    far = np.abs(np.argwhere(change > 0) - 8).max()
    assert far <= 9
    assert report.max_mm < 1.6 * d**0.5


def test_a_field_with_nan_cannot_be_repaired():
    values = np.zeros((12, 12, 12, 3))
    values[6, 6, 6] = np.nan
    image = sitk.Image([6, 6, 6], sitk.sitkUInt8)
    image.SetOrigin((field_of(values).origin + 3).tolist())
    with pytest.raises(DRDMError, match="lower level"):
        repair(field_of(values), image)


# ------------------------------------------------------------------------------------------------ deformation


@pytest.mark.parametrize("d", [2, 3])
def test_steps_are_made_invertible(d):
    generator = torch.Generator().manual_seed(0)
    gentle = torch.randn(1, d, *[16] * d, generator=generator) * 0.1 / 16
    gentle *= 0.9 * STEP_BOUND / float(lipschitz_bound(gentle).max())
    assert invertible_step(gentle) is gentle
    steep = torch.randn(2, d, *[16] * d, generator=generator) * 0.5
    eased = lipschitz_bound(invertible_step(steep))
    assert (eased > 0.3 * STEP_BOUND).all() and (eased <= STEP_BOUND * 1.001).all()
    # The result of each field does not depend on the rest of the batch.
    mixed = invertible_step(torch.cat([gentle, steep]))
    assert torch.equal(mixed[:1], gentle) and torch.equal(mixed[1:2], invertible_step(steep[:1]))
    voxels = (steep[:1] * 16)[0].movedim(0, -1).double().numpy()
    mapped = (invertible_step(steep)[:1] * 16)[0].movedim(0, -1).double().numpy()
    assert len(failing_cells(field_of(voxels))) and not len(failing_cells(field_of(mapped)))
    # The composition of two invertible steps does not fold.
    twice = compose(invertible_step(steep), invertible_step(steep))
    assert not len(failing_cells(field_of((twice[:1] * 16)[0].movedim(0, -1).double().numpy())))


IMAGES = {
    "isotropic": smooth_image((30, 28, 26)),
    "oblique": smooth_image((30, 34, 16), (0.7, 1.2, 2.5), rotation(20, -35, 50)),
    "fine": smooth_image((52, 58, 46), (0.4, 0.4, 0.5)),
    "slab": smooth_image((44, 40, 4), (1.0, 1.0, 5.0)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_deformations_are_certified(kind, tiny_model):
    image = IMAGES[kind]
    result = deform(image, tiny_model, level=79, seed=3, steps=3)
    assert result.metrics.certified_invertible
    assert certify_on_grid(result.field, image).certified
    assert least_sampled(FieldGrid.of(result.field), 0) > 0
    assert least_sampled(FieldGrid.of(result.ddf), 0) > 0
    # The strict criterion also counts two tetrahedra that linear interpolation does not use. The strongest field of an
    # untrained network, 40 % of the side, may flip a few of them.
    assert result.metrics.nondiffeomorphic_fraction < 0.001
    # The saved field alone, without the field that it was sampled from, does not fold either. Whether this proves
    # invertibility depends on its border.
    reason = certify_saved(result.ddf).reason
    assert reason in ("", "the field does not fold, but its border moves too much for a proof")
    figures = measure_ddf(result.ddf).to_dict()
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize("size", [(48, 40, 12), (40, 40, 1), (40, 40)])
def test_stacks_and_slices_are_certified(size, tiny_model_2d):
    image = smooth_image(size, (1.0, 1.0, 4.0)[: len(size)])
    result = deform(image, tiny_model_2d, level=79, seed=1, steps=3)
    assert result.metrics.certified_invertible
    assert certify_on_grid(result.field, image).certified
    assert least_sampled(FieldGrid.of(result.field), 0) > 0


@pytest.fixture(scope="module")
def shipped():
    return load_model("hippocampus-mr-3d", "cpu"), read_image(resource("Sample", "sample.nii.gz"))


@pytest.mark.parametrize(("level", "seed"), [(8, 0), (48, 1), (64, 2), (79, 3)])
def test_shipped_model_is_certified_and_keeps_its_strength(level, seed, shipped):
    model, image = shipped
    grid, tensor = prepare(image, model)
    made = generate(tensor, model, DeformationSettings(level), (seed,))
    field = physical_field(made.recovered, grid, refine=needs_refinement(image, grid))
    before = field.vectors.copy()
    report = repair(field, image)
    assert certify_on_grid(field.image(), image).certified
    saved = sitk.Resample(field.image(), image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32)
    figures = measure_ddf(saved)
    assert figures.certified_invertible and figures.nondiffeomorphic_fraction == 0
    assert least_sampled(field, seed) > 0
    lengths = [np.linalg.norm(v, axis=-1) for v in (before, field.vectors)]
    assert lengths[1].mean() > 0.95 * lengths[0].mean()
    assert report.mean_mm < 0.01 * lengths[0].mean()
    if level >= 64:
        side = max(n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
        inside = positions(field, image)
        samples = extended(field, inside, 1)
        values = samples.block(tuple(slice(0, len(n)) for n in samples.nodes))
        assert np.linalg.norm(values, axis=0).max() > 0.1 * side


def test_published_model_is_certified(shared):
    from DRDMLib.models.model import load_model_file

    model = load_model_file(shared / "reference" / "cmr_recresacnet.pth", "cpu")
    image = smooth_image((200, 160), (1.5, 1.5))
    result = deform(image, model, level=64, seed=0, steps=12)
    assert result.metrics.certified_invertible
    assert result.metrics.nondiffeomorphic_fraction == 0
    assert least_sampled(FieldGrid.of(result.field), 0) > 0
    assert result.metrics.max_percent > 10


def test_rounding_of_the_file_is_taken_into_account():
    """A determinant that is positive by less than the rounding of 32 bits is not certified."""
    values = np.zeros((12, 12, 2))
    values[:, 6:, 1] = -(1 - 1e-7)
    values += 300
    exact = field_of(values)
    stored = dataclasses.replace(exact, rounding=STORED)
    assert len(failing_cells(stored, 0.0))
    assert not len(failing_cells(dataclasses.replace(field_of(values * 0), rounding=STORED)))
