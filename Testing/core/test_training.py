"""Algorithm 1: losses, random fields, augmentation, and training runs that are interrupted and resumed."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from command_helpers import run_process
from support import smooth_image
from synthetic_shapes import draw_labels, draw_shapes

from DRDMLib.cli import build_parser, main
from DRDMLib.cli.train import config_from, design_from
from DRDMLib.deformation import deform, generate, prepare
from DRDMLib.diffusion.affine import random_rotations
from DRDMLib.diffusion.fields import warp
from DRDMLib.diffusion.forward import Diffusion, random_ddf, strength
from DRDMLib.diffusion.recovery import recover
from DRDMLib.errors import SettingError
from DRDMLib.invertibility.metrics import folded_fraction, roughness
from DRDMLib.models.model import Model, ModelMetadata, load_model_file
from DRDMLib.networks import build_network
from DRDMLib.settings import DeformationSettings
from DRDMLib.training import TrainingConfig, train
from DRDMLib.training.augmentation import augment_images
from DRDMLib.training.data import load_training_images, split
from DRDMLib.training.field_sampler import FieldSampler, apply_symmetries, apply_symmetry
from DRDMLib.training.losses import Angle, EnergyDistance, RecoveryLoss, Regularity, RelativeDistance, Residual
from DRDMLib.training.trainer import Trainer


def metadata(ndim=3, size=16, **more) -> ModelMetadata:
    # In 3D, drawing fields on the published control grid would take most of the time.
    more = ({"control_size": 32} if ndim == 3 else {}) | more
    return ModelMetadata("t", "compact", ndim, size, options={"width": 8}, amplitude=2.0, **more)


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the pictures of trainings out; they take seconds."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def images_of(ndim=3, size=16, count=4) -> torch.Tensor:
    """Make images of blobs, uint8, (count, 1, *S)."""
    made = [smooth_image((size,) * ndim, pixel=sitk.sitkFloat32, seed=s) for s in range(count)]
    arrays = torch.stack([torch.tensor(sitk.GetArrayFromImage(i)) for i in made])[:, None]
    low, high = arrays.amin(), arrays.amax()
    return ((arrays - low) / (high - low) * 255).to(torch.uint8)


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


def test_half_precision_is_for_the_network_only():
    """Fields and sampling positions need more digits."""
    config = TrainingConfig(batch=2, field_pool=2, half_precision=True)
    trainer = Trainer(metadata(2, 16), config, torch.device("cpu"))
    convolution = next(m for m in trainer.network.modules() if isinstance(m, torch.nn.Conv2d))
    seen = []
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    terms = trainer.advance(torch.randint(0, 255, (2, 1, 16, 16), dtype=torch.uint8))
    assert seen == [torch.bfloat16] and terms.total.dtype == torch.float32
    assert trainer.samplers[0].fields.fields.ddf.dtype == torch.float32


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


@pytest.mark.parametrize("ndim", [2, 3])
def test_resumed_training_gives_the_weights_of_uninterrupted_training(ndim, tmp_path):
    images, held_out = images_of(ndim), images_of(ndim, count=1)
    config = TrainingConfig(steps=4, batch=2, ema=0.9, field_pool=4, warmup=2)
    whole = train(images, held_out, metadata(ndim), config, tmp_path / "whole", device="cpu")

    def stop(step, share, figures):
        raise KeyboardInterrupt

    # The run has 20 steps; it is stopped after 10 and then resumed to the end.
    longer = dataclasses.replace(config, steps=20)
    straight = train(images, held_out, metadata(ndim), longer, tmp_path / "straight", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(images, held_out, metadata(ndim), longer, tmp_path / "cut", device="cpu", on_step=stop)
    resumed = train(images, held_out, metadata(ndim), longer, tmp_path / "cut", device="cpu", resume=True)
    a, b = (load_model_file(p, "cpu") for p in (straight, resumed))
    for name, weight in a.network.state_dict().items():
        assert torch.equal(weight, b.network.state_dict()[name]), name
    short = load_model_file(whole, "cpu")
    assert any(not torch.equal(w, short.network.state_dict()[n]) for n, w in a.network.state_dict().items())
    assert b.metadata.training["steps_done"] == 20
    rows = list(csv.DictReader((tmp_path / "cut" / "log.csv").open(encoding="utf-8")))
    assert [int(r["step"]) for r in rows] == [10, 20]
    assert list((tmp_path / "cut" / "tensorboard").iterdir())


def test_resuming_another_network_is_refused(tmp_path):
    config = TrainingConfig(steps=1, batch=1)
    train(images_of(), images_of(count=1), metadata(), config, tmp_path, device="cpu")
    with pytest.raises(SettingError, match="size"):
        train(images_of(size=24), images_of(count=1), metadata(size=24), config, tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize("whole", [False, True])
def test_a_short_training_makes_fields_smoother(tmp_path, whole):
    """On held-out images, also with a few large recovery steps."""
    images = images_of(2, 32, count=12)
    model = dataclasses.replace(metadata(2, 32), options={"width": 8, "whole": whole})
    config = TrainingConfig(steps=150, batch=8, learning_rate=2e-3, ema=0.9, field_pool=64, rotation=30, warmup=10)
    path = train(images[:10], images[10:], model, config, tmp_path, device="cpu")
    (row,) = csv.DictReader((tmp_path / "log.csv").open(encoding="utf-8"))
    assert float(row["distance"]) < 1 if whole else float(row["angle"]) < -0.02
    trained = load_model_file(path, "cpu")
    held_out = images[10:].float() / 255
    start = torch.cat([random_ddf(32, 2, 64, torch.Generator().manual_seed(s), amplitude=2.0) for s in (0, 1)])
    result = recover(trained, held_out, start, level=64)
    assert bool((roughness(recover(trained, held_out, start, level=64, steps=8)) < roughness(start)).all())
    assert bool((roughness(result) < roughness(start)).all())
    assert bool((folded_fraction(result) <= folded_fraction(start)).all())


def write_dataset(folder: Path, sizes) -> None:
    (folder / "images").mkdir(parents=True)
    for number, size in enumerate(sizes):
        sitk.WriteImage(smooth_image(size, seed=number), str(folder / "images" / f"case {number}.nii.gz"))


def test_2d_training_takes_the_slices_of_volumes(tmp_path):
    from DRDMLib.io.datasets import find_cases

    write_dataset(tmp_path / "d", [(30, 28, 6), (24, 24, 4)])
    cases = find_cases(tmp_path / "d")
    slices = load_training_images(cases, metadata(2, 16))
    assert slices.shape[1:] == (1, 16, 16)
    assert 6 <= len(slices) <= 10
    kept, left_out = split(cases * 5, 5)
    assert (len(kept), len(left_out)) == (8, 2)


def test_the_command_trains_and_resumes_and_its_model_deforms(tmp_path, monkeypatch):
    """Train, resume and use the model, in a folder with spaces and non-ASCII letters."""
    data, run = tmp_path / "Köpfe und Herzen", tmp_path / "ein Lauf"
    write_dataset(data, [(20, 22, 18), (24, 20, 20), (19, 21, 23)])
    arguments = ["train", str(data), "-o", str(run), "--size", "16", "--width", "8", "--batch", "1"]
    arguments += ["--progress", "json"]
    done = run_process(*arguments, "--iterations", "10", "--describe", "anatomy=blobs")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"read", "train"} <= {e["task"] for e in events if e["event"] == "progress"}
    assert (run / "preview.png").stat().st_size > 1000
    # The picture was drawn once, and that of a deformation has tests of its own.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*arguments, "--iterations", "20"]) == 2  # nothing is overwritten
    assert main([*arguments, "--iterations", "20", "--resume"]) == 0
    model = load_model_file(run / "model.safetensors", "cpu")
    assert model.metadata.anatomy == "blobs"
    assert model.metadata.training["steps_done"] == 20
    image = next((data / "images").iterdir())
    use = ["--model", str(run / "model.safetensors"), "--no-picture"]
    assert main(["deform", str(image), "-o", str(tmp_path / "out"), *use]) == 0


@pytest.mark.parametrize("axes", ["kji", "ijk"])
def test_the_preview_is_upright(axes, monkeypatch, tmp_path):
    """Whatever the order of the model's axes: front up, the patient's right on the left."""
    pictures = pytest.importorskip("DRDMLib.pictures")
    pytest.importorskip("matplotlib")
    image = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    corner = image[0, 0] if axes == "kji" else image[0, 0].permute(2, 1, 0)
    corner[:, :8, :8] = 255
    shown = []
    figure = pictures._figure

    def spied(*arguments):
        made, grid = figure(*arguments)
        shown.append(grid)
        return made, grid

    monkeypatch.setattr(pictures, "_figure", spied)
    monkeypatch.setattr(pictures, "PREVIEW_LEVELS", (0,))
    network = build_network("compact", 3, 80, {"width": 8})
    model = Model(network, metadata(axes=axes), torch.device("cpu"))
    assert pictures.training_picture(model, image, tmp_path / "preview.png").is_file()
    original = shown[0][0, 0].images[0].get_array()
    assert original[150, 150, 0] > 240
    assert max(original[-150, 150, 0], original[150, -150, 0], original[-150, -150, 0]) < 15


def test_published_settings():
    options = build_parser().parse_args(["train", "d", "-o", "r", "--published", "--size", "128"])
    model, config = design_from(options, Path("r")).metadata(), config_from(options, "cpu", 1)
    assert (model.architecture, model.amplitude) == ("recresacnet", None)
    assert (config.learning_rate, config.loss, config.rotation, config.field_pool) == (1e-4, "published", 180.0, 0)


def test_default_batch_size():
    """It depends on the device, is a multiple of the number of processes, and is kept by a resumed run."""

    def settings(*more, **arguments):
        options = build_parser().parse_args(["train", "d", "-o", "r", *more])
        config = config_from(options, **({"device": "cpu", "processes": 1} | arguments))
        return config.batch, config.learning_rate

    assert settings() == (4, 6e-4)
    assert settings(device="cuda") == (32, 8e-4)
    assert settings("--published", device="cuda") == (4, 1e-4)
    assert settings(processes=3) == (6, 6e-4)
    earlier = {"batch": 12, "learning_rate": 3e-4, "portions": 1}
    assert settings(device="cuda", earlier=earlier) == (12, 3e-4)
    assert settings("--batch", "2", "--learning-rate", "0.001", device="cuda", earlier=earlier) == (2, 1e-3)


def test_a_resumed_run_keeps_its_batch(tmp_path, no_pictures):
    write_dataset(tmp_path / "data", [(20, 22, 18)])
    given = ["train", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--size", "16", "--width", "8"]
    given += ["--device", "cpu", "--progress", "none"]
    assert main([*given, "--iterations", "2", "--batch", "3"]) == 0
    assert main([*given, "--iterations", "4", "--resume"]) == 0
    trained = load_model_file(tmp_path / "run" / "model.safetensors", "cpu").metadata.training
    assert (trained["batch"], trained["steps_done"]) == (3, 4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_published_network_trains(ndim, tmp_path):
    model = ModelMetadata("p", "recresacnet", ndim, 16)
    config = TrainingConfig(steps=2, batch=1)
    path = train(images_of(ndim), images_of(ndim, count=1), model, config, tmp_path, device="cpu")
    assert load_model_file(path, "cpu").ndim == ndim


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_training_on_a_gpu_uses_mixed_precision(tmp_path):
    config = TrainingConfig(steps=4, batch=2)
    path = train(images_of(), images_of(count=1), metadata(), config, tmp_path, device="cuda")
    assert load_model_file(path, "cuda").metadata.training["device"].startswith("cuda")


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_default_model_has_coarse_fields_and_deforms_crops(ndim, tmp_path, no_pictures):
    """The file has the command's default settings; its fields are smoother and stronger than published ones."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    images = [smooth_image((24, 20, 16)[:ndim], seed=s) for s in range(3)]
    for k, image in enumerate(images):
        sitk.WriteImage(image, str(folder / f"{k}.nii.gz"))
    run = tmp_path / "run"
    given = [str(tmp_path / "data"), "-o", str(run), "--ndim", str(ndim), "--size", "16", "--width", "8"]
    given += ["--batch", "2", "--iterations", "3"]
    assert main(["train", *given]) == 0
    model = load_model_file(run / "model.safetensors", "cpu")
    described = model.metadata
    assert described.noise_grids == [16, 8, 4] and described.image_padding == "border"
    assert described.options["coarse"] and described.options["places"]
    _, seen = prepare(images[0], model)
    assert float((seen == 0).float().mean()) < 0.1
    fields = [
        generate(seen, m, DeformationSettings(60, steps=3), (1,)).random for m in (model, _with_published_fields(model))
    ]
    (smooth, rough), (far, near) = ([float(f(u)) for u in fields] for f in (roughness, lambda u: u.norm(dim=1).mean()))
    assert smooth / far < 0.5 * rough / near and far > near
    made = deform(images[0], model, level=60, seed=1, steps=3)
    assert made.certified


def _with_published_fields(model):
    described = dataclasses.replace(model.metadata, noise_grids=None, control_size=64, velocity_scale=4e-5)
    return Model(model.network, described, model.device)
