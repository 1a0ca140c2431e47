"""Models that are adapted to a few scans: judged on scans left out, repeated, resumed, and used by batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from command_helpers import run_process
from production_helpers import make, records_of, result, write_cases
from support import smooth_image

from DRDMLib.cli import build_parser
from DRDMLib.errors import ModelError, SettingError
from DRDMLib.models.catalogue import digest_of
from DRDMLib.models.metadata import ModelMetadata, read_header
from DRDMLib.models.model import Model, load_model_file, save_model
from DRDMLib.networks import build_network
from DRDMLib.production import adapted
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE
from DRDMLib.production.regenerate import regenerate
from DRDMLib.training import TrainingConfig
from DRDMLib.training.adaptation import LEVELS, STATE, Source, adapt, adapted_metadata, share_undone

OPTIONS = {"width": 8, "depth": 1, "whole": True, "coarse": True, "places": True}
CONFIG = TrainingConfig(steps=12, batch=2, learning_rate=3e-3, ema=0.9, field_pool=4)


def source_of(ndim: int = 2, noise: float = 0.3) -> Source:
    """A tiny model; with noise its predictions are wrong, without it predicts no deformation at all."""
    torch.manual_seed(0)
    network = build_network("compact", ndim, 80, OPTIONS)
    torch.nn.init.normal_(network.out.weight, std=noise)
    metadata = ModelMetadata(
        "tiny", "compact", ndim, 16, options=OPTIONS, amplitude=2.0, noise_grids=[16, 8], control_size=16,
        velocity_scale=1e-4, image_padding="border", licence="CC0-1.0", anatomy="blobs",
    )  # fmt: skip
    return Source(Model(network, metadata, torch.device("cpu")), "sha256:0")


def write_model(path: Path, source: Source) -> Path:
    save_model(path, source.model.network, source.model.metadata)
    return path


def subjects_of(count: int, ndim: int = 2) -> list[torch.Tensor]:
    images = [sitk.GetArrayFromImage(smooth_image((16,) * ndim, pixel=sitk.sitkFloat32, seed=s)) for s in range(count)]
    scaled = [(a - a.min()) / (a.max() - a.min()) * 255 for a in images]
    return [torch.tensor(a).to(torch.uint8)[None, None] for a in scaled]


def write_scans(folder: Path, count: int, ndim: int = 3) -> Path:
    (folder / "images").mkdir(parents=True)
    for seed in range(count):
        sitk.WriteImage(smooth_image((20, 18, 16)[:ndim], seed=seed), str(folder / "images" / f"s{seed}.nii.gz"))
    return folder


def run_adapt(source, subjects, folder, config=CONFIG, **more):
    metadata = adapted_metadata(source.model.metadata, "mine", len(subjects))
    return adapt(source, subjects, metadata, config, folder, device="cpu", **more)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model_file(path, "cpu").network.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_share_undone(ndim):
    """A network that predicts nothing undoes nothing; one that predicts noise makes it worse."""
    images = subjects_of(2, ndim)
    nothing, noisy = source_of(ndim, noise=0.0).model, source_of(ndim).model
    device = torch.device("cpu")
    shares = share_undone(nothing.network, torch.cat(images), nothing.metadata, device)
    assert shares.shape == (2, len(LEVELS)) and float(shares.abs().max()) < 1e-6
    worse = share_undone(noisy.network, torch.cat(images), noisy.metadata, device)
    assert float(worse.max()) < 0
    assert torch.equal(worse, share_undone(noisy.network, torch.cat(images), noisy.metadata, device))


@pytest.mark.parametrize("count", [3, 6, 20])
def test_a_model_that_was_improved_is_kept(count, tmp_path):
    """Its metadata say where it comes from and how it was judged; nothing else is left in the folder."""
    source, steps = source_of(), []
    made = run_adapt(source, subjects_of(count), tmp_path, on_step=lambda *values: steps.append(values[:2]))
    assert made.helped and "helped" in made.sentence() and "'tiny'" in made.sentence()
    header = read_header(made.path)
    assert (header.name, header.licence, header.anatomy) == ("mine", "CC0-1.0", "")
    assert "tiny" in header.training_data
    summary = header.training["adaptation"]
    assert summary == made.summary
    trainings = {3: 4, 6: 5, 20: 1}[count]
    assert (summary["source"], summary["source_digest"]) == ("tiny", "sha256:0")
    assert (summary["subjects"], summary["steps"], summary["trainings"]) == (count, 12, trainings)
    assert min(a - b for a, b in zip(summary["after"], summary["before"], strict=True)) > 0
    assert not same(weights(made.path), source.model.network.state_dict())
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", STATE}
    shares = [share for _, share in steps]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1


def test_the_source_is_kept_when_adapting_made_it_worse(tmp_path):
    source = source_of(noise=0.0)
    config = TrainingConfig(steps=10, batch=1, learning_rate=0.5, ema=0.0, field_pool=2, clip=0.0)
    made = run_adapt(source, subjects_of(3), tmp_path, config)
    assert not made.helped and "copy of 'tiny'" in made.sentence()
    assert made.summary["kept"] == "source"
    assert same(weights(made.path), source.model.network.state_dict())
    assert read_header(made.path).training["adaptation"]["kept"] == "source"


def test_steps_repeat_a_run_that_had_minutes(tmp_path):
    """The steps of the first run are in its metadata; with them the weights are equal to the bit."""
    source, subjects = source_of(), subjects_of(3)
    config = TrainingConfig(minutes=1e-3, batch=2, learning_rate=3e-3, field_pool=4)
    first = run_adapt(source, subjects, tmp_path / "a", config)
    steps = first.summary["steps"]
    second = run_adapt(source, subjects, tmp_path / "b", TrainingConfig(**(vars(config) | {"steps": steps})))
    assert steps >= 10 and second.summary == first.summary
    assert same(weights(first.path), weights(second.path))


@pytest.mark.parametrize("count", [4, 20])
def test_a_resumed_run_gives_the_same_model(count, tmp_path):
    """It is interrupted in each of its trainings, and resumed once more when it is complete."""
    source, subjects = source_of(), subjects_of(count)
    straight = run_adapt(source, subjects, tmp_path / "straight")

    def stop(step, share, figures):
        raise KeyboardInterrupt

    for _ in range(straight.summary["trainings"]):
        with pytest.raises(KeyboardInterrupt):
            run_adapt(source, subjects, tmp_path / "cut", resume=True, on_step=stop)
        assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = run_adapt(source, subjects, tmp_path / "cut", resume=True)
    assert resumed.summary == straight.summary
    assert same(weights(straight.path), weights(resumed.path))
    before = resumed.path.read_bytes()
    assert run_adapt(source, subjects, tmp_path / "cut", resume=True).summary == straight.summary
    assert resumed.path.read_bytes() == before


def test_what_cannot_be_adapted_is_refused(tmp_path):
    with pytest.raises(SettingError, match="at least 3 subjects"):
        run_adapt(source_of(), subjects_of(2), tmp_path / "few")
    assert not (tmp_path / "few").exists()
    step = source_of()
    step.model.metadata.options["whole"] = False
    try:
        with pytest.raises(SettingError, match="single small steps"):
            run_adapt(step, subjects_of(3), tmp_path / "step")
    finally:
        step.model.metadata.options["whole"] = True
    run_adapt(source_of(), subjects_of(3), tmp_path / "run")
    for source, subjects, config in (
        (Source(source_of().model, "sha256:1"), subjects_of(3), CONFIG),
        (source_of(), subjects_of(4), CONFIG),
        (source_of(), subjects_of(3), TrainingConfig(**(vars(CONFIG) | {"steps": 13}))),
    ):
        with pytest.raises(SettingError, match="made with other"):
            run_adapt(source, subjects, tmp_path / "run", config, resume=True)


def test_the_command_adapts_and_repeats(tmp_path):
    """In a separate process, and again in this one with the steps of the first run."""
    model = write_model(tmp_path / "tiny.safetensors", source_of())
    scans = write_scans(tmp_path / "data", 3, ndim=2)
    given = ["train", scans, "--from", model, "--device", "cpu", "--batch", "1", "--name", "mine"]
    first, second = ([*map(str, [*given, "-o", tmp_path / name])] for name in ("a", "b"))
    done = run_process(*first, "--steps", "10", "--progress", "json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert any("on scans left out it undoes" in e.get("text", "") for e in events)
    assert max(e["done"] for e in events if e.get("task") == "train") <= 1
    summary = read_header(tmp_path / "a" / "model.safetensors").training["adaptation"]
    assert run_process(*second, "--steps", summary["steps"]).returncode == 0
    files = [tmp_path / name / "model.safetensors" for name in ("a", "b")]
    assert same(*map(weights, files))
    assert read_header(files[1]).training["adaptation"] == summary


@pytest.mark.parametrize("command", [AUGMENT, SYNTHESIZE])
def test_a_batch_adapts_first(command, tmp_path, monkeypatch):
    """It is stopped while it adapts, resumed, and resumed again when it is complete; a record makes a sample again."""
    model = write_model(tmp_path / "tiny.safetensors", source_of(3))
    scans, out = write_cases(tmp_path / "data", names="abc"), tmp_path / "out"
    config, adapting = adapted.adaptation_config, adapted.adapt
    short = {"batch": 1, "steps": 10, "field_pool": 2, "learning_rate": 3e-3}
    monkeypatch.setattr(adapted, "adaptation_config", lambda *a, **b: dataclasses.replace(config(*a, **b), **short))

    def stop(*values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(adapted, "adapt", lambda *a, **b: adapting(*a, **(b | {"on_step": stop})))
        make(scans, out, model, command, adapt=0.01)
    assert {path.name for path in out.iterdir()} == {"adapted"}
    with pytest.raises(SettingError, match="--resume"):
        make(scans, out, model, command, adapt=0.01)
    run, reporter = make(scans, out, model, command, adapt=0.01, resume=True)
    assert run.complete and any("on scans left out" in text for text in reporter.messages)
    entry = json.loads((out / "run.json").read_text(encoding="utf-8"))["model"]
    assert (entry["name"], entry["file"]) == ("tiny-adapted", "adapted/model.safetensors")
    assert entry["digest"] == digest_of(out / "adapted" / "model.safetensors", "sha256")
    assert entry["adaptation"]["source_digest"] == digest_of(model, "sha256")
    records = records_of(out)
    assert all(record["model"] == entry for record in records.values())
    name = next(name for name, record in records.items() if record["levels"])
    assert regenerate(out / "records" / f"{name}.json", tmp_path / "again").differences == []

    whole = result(out)
    (out / "records" / f"{name}.json").unlink()
    monkeypatch.setattr(adapted, "adapt", stop)
    make(scans, out, model, command, adapt=0.01, resume=True)
    assert result(out) == whole
    (out / "adapted" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        make(scans, out, model, command, adapt=0.01, resume=True)


def test_a_batch_keeps_the_model_that_adapting_made_worse(tmp_path, monkeypatch):
    model = write_model(tmp_path / "tiny.safetensors", source_of(3, noise=0.0))
    config = adapted.adaptation_config
    worse = {"batch": 1, "steps": 10, "field_pool": 2, "learning_rate": 0.5, "ema": 0.0, "clip": 0.0}
    monkeypatch.setattr(adapted, "adaptation_config", lambda *a, **b: dataclasses.replace(config(*a, **b), **worse))
    scans, out = write_cases(tmp_path / "data", names="abc"), tmp_path / "out"
    _, reporter = make(scans, out, model, adapt=0.01)
    assert any("copy of 'tiny'" in text for text in reporter.messages)
    entry = json.loads((out / "run.json").read_text(encoding="utf-8"))["model"]
    assert entry["digest"] == digest_of(model, "sha256") and entry["adaptation"]["kept"] == "source"


def test_the_option_adapt():
    parser = build_parser()
    for command in ("augment", "synthesize"):
        given = [command, "scans", "-o", "out"]
        assert parser.parse_args(given).adapt is None
        assert parser.parse_args([*given, "--adapt"]).adapt == 5
        assert parser.parse_args([*given, "--adapt", "2.5"]).adapt == 2.5


def test_one_sentence_for_wrong_input(drdm, tmp_path):
    model = write_model(tmp_path / "tiny.safetensors", source_of(3))
    scans = write_scans(tmp_path / "volumes", 3)
    slices = write_scans(tmp_path / "slices", 3, ndim=2)
    started = tmp_path / "started"
    started.mkdir()
    (started / STATE).write_text("{", encoding="utf-8")
    (started / "model.safetensors").write_bytes(b"of that run")
    for words, *arguments in (
        ("3 dimensions", scans, "--from", model, "--ndim", 2),
        ("--width is for new models", scans, "--from", model, "--width", 8),
        ("--published is for new models", scans, "--from", model, "--published"),
        ("None of the 3 cases can be used", slices, "--from", model),
        ("at least 3 subjects", scans, "--from", model, "--subject", "s"),
        ("There is no model 'nothing'", scans, "--from", "nothing"),
        ("is damaged", scans, "--from", model, "-o", started, "--resume"),
        ("add --from", scans, "-o", started, "--resume"),
        ("already contains a run", scans, "--from", model, "-o", started),
    ):
        made = drdm("train", "-o", tmp_path / "new", *arguments, "--steps", 10, "--device", "cpu")
        assert made.status == 2 and words in made.err and "Traceback" not in made.err, made.err
        assert not (tmp_path / "new").exists()
