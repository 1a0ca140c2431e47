"""Algorithm 1: training runs, their settings, and runs that are resumed."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from command_helpers import run_process
from support import smooth_image
from training_helpers import images_of, metadata, write_dataset

from DRDMLib.cli import build_parser, main
from DRDMLib.cli.train import config_from, design_from
from DRDMLib.deforming import deform
from DRDMLib.diffusion.forward import random_ddf
from DRDMLib.diffusion.recovery import recover
from DRDMLib.errors import SettingError
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility.metrics import folded_fraction, roughness
from DRDMLib.models.model import Model, ModelMetadata, load_model_file
from DRDMLib.networks import build_network
from DRDMLib.settings import DeformationSettings
from DRDMLib.training import TrainingConfig, train
from DRDMLib.training.data import load_training_images, split
from DRDMLib.training.trainer import Trainer


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
