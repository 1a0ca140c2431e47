"""Warp, composition and repeated composition, compared with their definitions."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from DRDMLib.diffusion.fields import compose, resize_field, self_compose, warp
from DRDMLib.diffusion.forward import ForwardProcess, composition_counts, random_ddf
from DRDMLib.invertibility.metrics import roughness


def looped(dvf: torch.Tensor, times: int) -> torch.Tensor:
    """Compose a field with itself ``times`` times, one by one."""
    result = torch.zeros_like(dvf)
    for _ in range(times):
        result = compose(result, dvf)
    return result


@pytest.mark.parametrize("shape", [(9, 12), (7, 9, 12)])
def test_warp_reads_where_the_field_points_on_each_axis(shape):
    """Channel k is a shift along axis k by its value times the side; SciPy is the reference."""
    d = len(shape)
    generator = np.random.default_rng(0)
    image = generator.random(shape).astype(np.float32)
    shift = np.array([1.0, -2.0, 1.5][:d])
    ddf = np.stack([np.full(shape, s / n, np.float32) for s, n in zip(shift, shape, strict=True)])
    ours = warp(torch.tensor(image)[None, None], torch.tensor(ddf)[None])[0, 0].numpy()
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    expected = ndimage.map_coordinates(
        image, [g + s for g, s in zip(grid, shift, strict=True)], order=1, mode="nearest"
    )
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("ndim", [2, 3])
def test_composition_is_one_warp_after_the_other(ndim):
    generator = torch.Generator().manual_seed(1)
    first, then = (random_ddf(32, ndim, 32, generator, amplitude=2.0) for _ in range(2))
    image = resize_field(torch.randn(1, ndim, *[6] * ndim, generator=generator), (32,) * ndim)[:, :1]
    inner = (..., *[slice(6, -6)] * ndim)

    def mean_difference(a, b):
        return float((a - b)[inner].abs().mean() / image.abs().mean())

    twice = warp(warp(image, first), then)
    assert mean_difference(twice, warp(image, compose(first, then))) < 0.03
    assert mean_difference(twice, warp(image, compose(then, first))) > 0.1


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("times", "tolerance"), [(1, 1e-6), (2, 1e-6), (5, 1e-3), (37, 0.03), (102, 0.08)])
def test_squaring_agrees_with_the_loop(ndim, times, tolerance):
    """Compare them in the part of the control grid that becomes the image.

    Every linear interpolation smooths a little. The loop interpolates n times, squaring 2 log2 n times, so their
    difference grows slowly with n.
    """
    dvf = ForwardProcess(64, ndim).dvf(1, torch.Generator().manual_seed(times))
    loop, squared = looped(dvf, times), self_compose(dvf, times)
    inner = (..., *[slice(16, -16)] * ndim)
    assert (loop - squared)[inner].norm(dim=1).mean() <= tolerance * loop[inner].norm(dim=1).mean()
    assert abs(loop[inner].norm(dim=1).mean() / squared[inner].norm(dim=1).mean() - 1) <= tolerance
    assert (self_compose(dvf, times + max(1, times // 5)) - loop)[inner].norm(dim=1).mean() > (
        2 * tolerance * loop[inner].norm(dim=1).mean()
    )


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=5), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_batch_of_counts_equals_single_counts(counts, seed):
    dvf = ForwardProcess(64, 2, control_size=32).dvf(len(counts), torch.Generator().manual_seed(seed))
    together = self_compose(dvf, torch.tensor(counts))
    for i, n in enumerate(counts):
        assert torch.equal(together[i : i + 1], self_compose(dvf[i : i + 1], n))


def test_composition_counts_are_those_of_the_paper():
    whole, step = composition_counts(torch.tensor([0, 1, 16, 48, 79]))
    assert whole.tolist() == [1, 1, 24, 102, 195]
    assert step.tolist() == [0, 1, 5, 10, 13]


@pytest.mark.parametrize(("ndim", "size"), [(2, 256), (3, 64)])
def test_noise_has_the_published_strength(ndim, size):
    """The variance of the DVF is close to the sum of the variances of its noise grids."""
    draws = torch.cat([ForwardProcess(64, ndim).dvf(4, torch.Generator().manual_seed(s)) for s in range(6)])
    # Linear interpolation keeps between (2/3)^d and all of each scale's variance, and all of the finest scale's.
    variances = [(4e-5 * 64 / s) ** 2 for s in (64, 32, 16, 8)]
    measured = float(draws.var())
    assert (0.5**ndim) * sum(variances) < measured < sum(variances)
    ddf = random_ddf(size, ndim, 48, torch.Generator().manual_seed(0))
    gain = random_ddf(size, ndim, 48, torch.Generator().manual_seed(0), amplitude=1.0)
    assert torch.allclose(ddf, gain * size / 64, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("ndim", [2, 3])
def test_coarse_noise_gives_smoother_fields_of_similar_size(ndim):
    """Almost all of the displacement comes from the coarsest noise; quadratic B-splines have no kinks."""

    def drawn(noise_grids):
        seeds = range(6 if ndim == 2 else 3)
        fields = [random_ddf(32, ndim, 32, torch.Generator().manual_seed(s), noise_grids=noise_grids) for s in seeds]
        return torch.cat(fields)

    published, coarse, coarsest = drawn(None), drawn([16, 8]), drawn([8])
    assert 0.6 < float(coarsest.norm(dim=1).mean() / published.norm(dim=1).mean()) < 1.1
    assert roughness(coarsest).mean() < 0.7 * roughness(coarse).mean()
    assert roughness(coarse).mean() < 0.6 * roughness(published).mean()
    assert drawn([16, 8, 4]).norm(dim=1).mean() > 1.5 * coarse.norm(dim=1).mean()
    # Linear interpolation would bend only at its nodes, by as much as it changes from node to node.
    small = ForwardProcess(64, ndim, noise_grids=[8]).dvf(4, torch.Generator().manual_seed(0))
    assert small.diff(n=2, dim=2).abs().max() < 0.4 * small.diff(dim=2).abs().max()


def test_deformations_grow_with_the_level_and_end_with_their_step():
    means = [
        random_ddf(48, 3, t, torch.Generator().manual_seed(3), amplitude=2.0).norm(dim=1).mean() for t in (8, 32, 79)
    ]
    assert means[0] < means[1] < means[2]
    whole, step = ForwardProcess(64, 2, amplitude=2.0).step(48, torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(whole.flatten(), step.flatten(), dim=0)
    assert cosine > 0.7
    assert 0.05 < step.norm() / whole.norm() < 0.2


def test_equal_seeds_give_equal_fields():
    a, b = (random_ddf(48, 3, 48, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, random_ddf(48, 3, 48, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("shape", [(4, 4, 4), (24, 24, 24), (1, 5, 8)])
def test_fields_are_doubled_as_pytorch_does(shape):
    field = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    twice = tuple(2 * side for side in shape)
    expected = torch.nn.functional.interpolate(field, size=twice, mode="trilinear", align_corners=False)
    with torch.inference_mode():
        doubled = resize_field(field, twice)
        assert doubled.is_contiguous() and torch.allclose(doubled, expected, rtol=0, atol=1e-6)
        if platform.machine() in ("x86_64", "AMD64") and "AVX" in torch.backends.cpu.get_cpu_capability():
            assert torch.equal(doubled, expected)
