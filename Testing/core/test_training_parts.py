"""Losses, random fields and augmentation: the parts of Algorithm 1."""

from __future__ import annotations

import itertools

import pytest
import torch
from synthetic_shapes import draw_labels, draw_shapes
from training_helpers import images_of, metadata

from DRDMLib.diffusion.affine import random_rotations
from DRDMLib.diffusion.fields import warp
from DRDMLib.diffusion.forward import Diffusion, random_ddf, strength
from DRDMLib.invertibility.metrics import folded_fraction
from DRDMLib.networks import build_network
from DRDMLib.training import TrainingConfig
from DRDMLib.training.augmentation import augment_images
from DRDMLib.training.field_sampler import FieldSampler, apply_symmetries, apply_symmetry
from DRDMLib.training.losses import Angle, EnergyDistance, RecoveryLoss, Regularity, RelativeDistance, Residual


@pytest.mark.parametrize("ndim", [2, 3])
def test_losses_are_the_published_formulas(ndim):
    """Compare with the formulas written out voxel by voxel."""
    generator = torch.Generator().manual_seed(0)
    p, s = (torch.randn(1, ndim, *[3] * ndim, generator=generator) * 0.01 for _ in range(2))
    flat_p, flat_s = p[0].flatten(1).T.tolist(), s[0].flatten(1).T.tolist()
    relative, cosine = [], []
    for a, b in zip(flat_p, flat_s, strict=True):
        error = sum((100 * x + 100 * y) ** 2 for x, y in zip(a, b, strict=True))
        relative.append(error / (sum((100 * y) ** 2 for y in b) + 1e-3))
        dot = sum(1e5 * x * 1e5 * y for x, y in zip(a, b, strict=True))
        norms = sum((1e5 * x) ** 2 for x in a) * sum((1e5 * y) ** 2 for y in b)
        cosine.append(dot / (norms + 1e-4) ** 0.5)
    assert float(RelativeDistance()(p, s)) == pytest.approx(sum(relative) / len(relative), rel=1e-4)
    assert float(Angle()(p, s)) == pytest.approx(sum(cosine) / len(cosine), rel=1e-3, abs=1e-5)


def test_regularity_penalizes_roughness_and_negative_determinants():
    grid = torch.linspace(0, 1, 8)
    flat = torch.zeros(1, 2, 8, 8)
    assert float(Regularity()(flat)) == 0
    shear = torch.stack([grid[None].expand(8, 8), grid[None].expand(8, 8)])[None] * 1e-4
    assert float(Regularity()(shear)) == 0  # below the threshold
    swap = torch.stack([grid[None].expand(8, 8), grid[:, None].expand(8, 8)])[None]
    # Forward differences [[0, 1/7], [1/7, 0]]: determinant -1/49.
    expected = (1 / 7 - 1e-4) / 2 + 2 / 49
    assert float(Regularity()(swap)) == pytest.approx(expected, rel=1e-4)


def test_the_exact_inverse_is_the_best_prediction():
    """With p = warp(prediction, psi), the inverse of psi gives p = -psi, so distance 0 and cosine -1."""
    step = random_ddf(32, 2, 12, torch.Generator().manual_seed(0), amplitude=2.0) * 0.2
    inverse = torch.zeros_like(step)
    for _ in range(30):
        inverse = -warp(step, inverse)
    loss = RecoveryLoss()
    best, wrong, nothing = loss(inverse, step), loss(step, step), loss(torch.zeros_like(step), step)
    assert float(best.distance) < 0.01
    assert float(best.angle) < -0.99
    assert float(best.total) < float(nothing.total) < float(wrong.total)
    assert float(EnergyDistance()(-step, step)) == 0


def test_the_residual_after_the_inverse_is_zero():
    """The inverse v of u satisfies v = -u(x + v); then u followed by v is the identity."""
    whole = random_ddf(32, 2, 20, torch.Generator().manual_seed(0), amplitude=2.0)
    inverse = torch.zeros_like(whole)
    for _ in range(40):
        inverse = -warp(whole, inverse)
    loss = Residual()
    best, half, nothing = loss(inverse, whole), loss(inverse / 2, whole), loss(torch.zeros_like(whole), whole)
    assert float(best.total) < 0.1
    assert float(nothing.total) == pytest.approx(2, rel=1e-3)
    assert float(best.total) < float(half.total) < float(nothing.total)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_parts_of_a_whole_correction_are_proportional(ndim, coarse):
    """The steps from level 40 to 20 and to 39 are the expected fractions of the whole, which does not fold."""
    network = build_network("compact", ndim, 80, {"width": 8, "whole": True, "coarse": coarse, "places": coarse})
    torch.nn.init.normal_(network.out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, *[16] * ndim, generator=torch.Generator().manual_seed(1))

    def field(t, to=None):
        with torch.no_grad():
            return network(image, torch.tensor([t]), None if to is None else torch.tensor([to]))

    n = strength(torch.tensor([-1, 0, 20, 39, 40]))
    assert n[0] == 0 and n[1] == 1
    whole, part, step = field(40, -1), field(40, 20), field(40)
    for taken, share in ((part, 1 - n[2] / n[4]), (step, 1 - n[3] / n[4])):
        assert float((taken - whole * share).norm() / whole.norm()) < 0.1 * float(share)
    assert float(whole.abs().max()) > 1e-3
    assert float(folded_fraction(whole)) == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_symmetries_of_the_cube_keep_field_and_image_together(ndim):
    """A symmetry of image and field gives the same symmetry of the warped image."""
    image = torch.rand(1, 1, *[16] * ndim, generator=torch.Generator().manual_seed(0))
    field = random_ddf(16, ndim, 40, torch.Generator().manual_seed(1), amplitude=2.0)
    order, flips = [2, 0, 1] if ndim == 3 else [1, 0], [True, False, True][:ndim]

    def transformed(picture):
        moved = picture.permute(0, 1, *[o + 2 for o in order])
        return moved.flip([k + 2 for k in range(ndim) if flips[k]])

    expected = transformed(warp(image, field))
    assert torch.allclose(warp(transformed(image), apply_symmetry(field[0], order, flips)[None]), expected, atol=1e-5)


def test_the_pool_returns_matching_fields_and_is_renewed():
    source = FieldSampler(metadata(), torch.Generator().manual_seed(0), pool=6, renew=2)
    seen = []
    for _ in range(8):
        levels, fields = source.draw(3)
        assert isinstance(fields, Diffusion)
        for level, whole, step in zip(levels.tolist(), fields.ddf, fields.step, strict=True):
            match = [
                i
                for i in range(len(source.levels))
                if abs(float(source.fields.ddf[i].norm() - whole.norm())) < 1e-5 and source.levels[i] == level
            ]
            assert match
            assert any(abs(float(source.fields.step[i].norm() - step.norm())) < 1e-6 for i in match)
        seen.append(source.fields.ddf.clone())
    assert sum(not torch.equal(a, b) for a, b in zip(seen[:-1], seen[1:], strict=True)) >= 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_inverted_contrast_keeps_the_outside_dark(ndim):
    images = torch.full((16, 1, *[16] * ndim), 0.8)
    images[:, :, :8] = 0.2
    made = augment_images(
        images,
        torch.Generator().manual_seed(0),
        rotation=0,
        zoom=(1.25, 1.25),
        shift=0,
        contrast=0,
        random_contrast=True,
    )
    assert float(made[:, :, 0].abs().max()) == 0
    inverted = made[:, :, 5, 8].flatten(1).mean(1) > made[:, :, 11, 8].flatten(1).mean(1)
    assert 2 < int(inverted.sum()) < 14


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_a_shrunk_image_is_padded_with_zeros_or_its_border(padding):
    images = torch.full((4, 1, 16, 16), 0.8)
    still = {"rotation": 0, "zoom": (1.5, 1.5), "shift": 0, "contrast": 0}
    made = augment_images(images, torch.Generator().manual_seed(0), padding=padding, **still)
    assert torch.allclose(made[:, :, 8, 8], images[:, :, 8, 8])
    assert torch.allclose(made[:, :, 0], torch.full((4, 1, 16), 0.8 if padding == "border" else 0.0))


@pytest.mark.parametrize("ndim", [2, 3])
def test_synthetic_shapes_have_contrast_and_differ(ndim):
    drawn = draw_shapes(8, ndim, 32, torch.Generator().manual_seed(0))
    assert drawn.shape == (8, 1, *[32] * ndim) and drawn.dtype == torch.uint8
    again = draw_shapes(8, ndim, 32, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again) and not torch.equal(drawn[0], drawn[1])
    corners = drawn.flatten(2)[:, 0, [0, -1]].float()
    # Some images are filled, like crops of a body.
    assert 0.3 <= float((corners < 10).float().mean()) < 1
    assert bool((drawn.flatten(1).float().std(dim=1) > 10).all())


@pytest.mark.parametrize("ndim", [2, 3])
def test_label_maps_are_drawn_with_random_gray_values(ndim):
    labels = torch.zeros(1, 1, *[16] * ndim, dtype=torch.uint8)
    labels[:, :, 4:12] = 2
    labels[:, :, 8:12] = 7
    drawn = draw_labels(labels, 12, torch.Generator().manual_seed(0), inner_only=0.5, inner=4)
    assert drawn.shape == (12, 1, *[16] * ndim) and drawn.dtype == torch.uint8
    outside, inside, outer = (drawn[:, 0, row].float().flatten(1).mean(dim=1) for row in (1, 6, 10))
    assert float((outside < 30).float().mean()) > 0.5 and float(inside.std()) > 20
    # Some images lack the outer label.
    assert 1 <= int(((outer - outside).abs() < 15).sum()) < 12


STILL = {"rotation": 0.0, "zoom": (1.0, 1.0), "shift": 0.0, "contrast": 0.0, "padding": "border"}


@pytest.mark.parametrize("ndim", [2, 3])
def test_partial_views_show_an_enlarged_box_and_repeat_its_border(ndim):
    ramp = torch.linspace(0, 1, 32).view(-1, *[1] * (ndim - 1))
    images = ramp.expand(32, 1, *[32] * ndim)
    made = augment_images(images, torch.Generator().manual_seed(0), partial_views=1.0, size=24, **STILL)
    assert made.shape == (32, 1, *[24] * ndim)
    profile = made[(slice(None), 0, slice(None)) + (12,) * (ndim - 1)]
    visible = profile[:, -1] - profile[:, 0]
    assert float(visible.min()) > 0.5 and float(visible.max()) < 1.01 and float(visible.std()) > 0.05
    steps = profile.diff(dim=1)
    assert bool((steps >= -1e-6).all()) and 0 < int((steps[:, 0] == 0).sum()) < 32


@pytest.mark.parametrize("ndim", [2, 3])
def test_half_of_the_images_are_mirrored_along_the_chosen_axis(ndim):
    images = torch.rand(1, 1, *[8] * ndim, generator=torch.Generator().manual_seed(1)).expand(32, 1, *[8] * ndim)
    made = augment_images(images, torch.Generator().manual_seed(0), mirror_axes=(1,), **STILL)
    same = (made - images).flatten(1).abs().amax(dim=1) < 1e-5
    mirrored = (made - images.flip(3)).flatten(1).abs().amax(dim=1) < 1e-5
    assert bool((same ^ mirrored).all()) and 6 < int(mirrored.sum()) < 26


@pytest.mark.parametrize("ndim", [2, 3])
def test_scanner_effects_change_gray_values(ndim):
    images = torch.linspace(0, 1, 16).expand(64, 1, *[16] * ndim)
    made = augment_images(images, torch.Generator().manual_seed(0), scanner_effects=0.5, **STILL)
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    changed = (made - images).flatten(1).abs().mean(dim=1) > 0.01
    assert 16 < int(changed.sum()) < 48
    rises = made[..., 12:].flatten(1).mean(dim=1) > made[..., :4].flatten(1).mean(dim=1)
    assert 0 < int((~rises).sum()) < 32


@pytest.mark.parametrize("ndim", [2, 3])
def test_default_augmentation_is_the_published_one(ndim):
    """Mirroring, partial views and scanner effects draw no random numbers unless they are used."""
    images = images_of(ndim).float() / 255
    made = augment_images(images, torch.Generator().manual_seed(0), rotation=20, size=16)
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(4, *shape, generator=generator)

    zooms = uniform(0.6, 1, 1, 1)
    shifts = uniform(-1, 1, ndim, 1) * (1 - zooms) + uniform(-0.25, 0.25, ndim, 1)
    affine = torch.cat([random_rotations(4, ndim, 20, generator) * zooms, shifts], dim=2)
    grid = torch.nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    factor, offset = (0.1 * torch.randn(4, *[1] * (ndim + 1), generator=generator) for _ in range(2))
    assert torch.allclose(made, moved * (1 + factor) + offset, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_symmetries_of_many_fields_are_those_of_each(ndim):
    fields = torch.rand(2, ndim, *[4] * ndim, generator=torch.Generator().manual_seed(0))
    settings = itertools.product((0, 1), itertools.permutations(range(ndim)), itertools.product((0, 1), repeat=ndim))
    chosen, orders, flips = zip(*settings, strict=True)
    made = apply_symmetries(fields, *(torch.tensor(values) for values in (chosen, orders, flips)))
    expected = [apply_symmetry(fields[i], o, f) for i, o, f in zip(chosen, orders, flips, strict=True)]
    assert torch.equal(made, torch.stack(expected))


def test_stored_names_of_settings():
    config = TrainingConfig(mirror_axes=(0,), partial_views=0.5, scanner_effects=0.25)
    stored = config.to_dict()
    assert (stored["mirror"], stored["views"], stored["scanners"]) == ((0,), 0.5, 0.25)
    assert not {"mirror_axes", "partial_views", "scanner_effects"} & set(stored)
    assert config.published().to_dict() | {"warmup": 100, "decay": True, "clip": 1.0} == TrainingConfig().to_dict()


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_rotations_are_orthogonal(ndim):
    matrices = random_rotations(50, ndim, 180, torch.Generator().manual_seed(0))
    assert torch.allclose(matrices @ matrices.mT, torch.eye(ndim).expand(50, ndim, ndim), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(50), atol=1e-5)
    still = augment_images(
        torch.full((2, 1, *[16] * ndim), 0.5), torch.Generator().manual_seed(0), rotation=0, contrast=0
    )
    assert float((still == 0.5).float().mean()) > 0.4
