"""Poses of a population: a known spread is found again, kept in records, and drawn from within its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import run_process
from production_helpers import make, records_of, report_of, write_cases
from scipy.linalg import expm, logm
from support import rotation, smooth_image

from DRDMLib import deform
from DRDMLib.cli.batch import common_settings
from DRDMLib.cli.parser import build_parser
from DRDMLib.diffusion.poses import DRAWN, PoseSpread, spread_of
from DRDMLib.errors import ModelError, SettingError
from DRDMLib.io.resources import resource
from DRDMLib.loaders.bank_making import make_bank
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.population import poses_of
from DRDMLib.poses import estimate_poses, pose_on_grid
from DRDMLib.production.regenerate import regenerate
from DRDMLib.spatial.model_grid import model_grid

SIZE = (30, 34, 26)


def person(log, shift, seed, size=SIZE, spacing=None, direction=None):
    """An image of the same blobs for everybody, moved by an affine map about the center; with noise of its own."""
    random, d = np.random.default_rng(0), len(size)
    spacing = spacing or (1.0,) * d
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(d, -1)
    if direction is not None:
        points = direction @ points
    places = expm(log) @ points + np.asarray(shift)[:, None]
    values = np.random.default_rng(seed).normal(0, 15, places.shape[1])
    for _ in range(14):
        center, width = (random.random(d) - 0.5) * 0.8 * 30, 2 + 3 * random.random()
        distance = np.square(places - center[:, None]).sum(0)
        values += random.uniform(-300, 600) * np.exp(-distance / (2 * width**2))
    array = values.reshape(size).transpose().astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


def people(count, d, seed=5, **how):
    """Images of people, and the numbers of their maps (count, d*d + d), shifts as fractions of the longest side."""
    random = np.random.default_rng(seed)
    maps = [(random.normal(0, 0.1, (d, d)), random.normal(0, 1.0, d)) for _ in range(count)]
    size = how.pop("size", SIZE[:d])
    images = [person(log, shift, number, size, **how) for number, (log, shift) in enumerate(maps)]
    return images, np.asarray([np.concatenate([log.ravel(), shift / max(size)]) for log, shift in maps])


def deviations(spread):
    return np.sqrt(np.diag(spread.matrix))


@pytest.mark.parametrize("d", [2, 3])
def test_a_known_spread_is_found(d):
    images, known = people(16, d)
    spread = estimate_poses(images)
    assert spread.scans == 16 and spread.ndim == d
    assert np.abs(deviations(spread) / known.std(axis=0, ddof=1) - 1).max() < 0.25
    if d == 2:
        # The same to the bit, whatever is computed beside it.
        assert estimate_poses(iter(images)) == spread


def test_stored_axes_do_not_matter():
    # To the bit: also that an estimate in 3D is reproducible.
    images, _ = people(10, 3)
    flipped = [sitk.PermuteAxes(sitk.Flip(image, (True, False, True)), (2, 0, 1)) for image in images]
    assert estimate_poses(flipped) == estimate_poses(images)


def test_thick_slices_tell_nothing_across():
    # Pixels are so small that they are joined first, to nearly the distance of the slices.
    images, _ = people(12, 3, size=(160, 160, 6), spacing=(0.2, 0.2, 1.0))
    spread = estimate_poses(images)
    found = deviations(spread)
    assert (found[[2, 5, 6, 7, 8, 11]] == 0).all() and (found[[0, 1, 3, 4]] > 0.03).all()
    assert spread.figures()["size_percent"] > 3


def test_too_few_scans_have_no_spread():
    assert estimate_poses(people(9, 2)[0]) is None
    assert estimate_poses([]) is None


def spread_3d():
    random = np.random.default_rng(1)
    logs = random.normal(0, 0.1, (40, 3, 3))
    logs[:, 0, 1] += random.normal(0, 0.1, 40)
    return spread_of(np.concatenate([logs.reshape(40, 9), random.normal(0, 0.03, (40, 3))], axis=1))


def test_draws_follow_the_spread_and_none_is_wild():
    spread, generator = spread_3d(), torch.Generator().manual_seed(0)
    drawn = [spread.draw(generator) for _ in range(600)]
    again = spread.draw(torch.Generator().manual_seed(0))
    assert torch.equal(again[0], drawn[0][0]) and torch.equal(again[1], drawn[0][1])
    values = np.asarray([np.concatenate([np.real(logm(m.double().numpy())).ravel(), s.numpy()]) for m, s in drawn])
    # Leaving out the farthest 5 % makes the deviations slightly smaller.
    assert np.abs(values.std(axis=0) / deviations(spread) / math.sqrt(DRAWN) - 0.96).max() < 0.1
    distance = np.einsum("ni,ij,nj->n", values, np.linalg.inv(spread.matrix), values)
    assert distance.max() < 21.1 * DRAWN


def test_the_words_are_those_of_the_motions():
    random = np.random.default_rng(2)
    angles, sizes = random.normal(0, 0.1, 200), random.normal(0, 0.08, 200)
    maps = np.stack([sizes, -angles, angles, sizes, 0 * sizes, 0 * sizes], axis=1)
    figures = spread_of(maps).figures()
    assert figures["turn_degrees"] == pytest.approx(np.degrees(angles.std()), rel=0.02)
    assert figures["size_percent"] == pytest.approx(100 * sizes.std(), rel=0.02)
    assert figures["stretch_percent"] < 0.1 and figures["shift_percent"] < 0.1
    assert spread_3d().words().endswith("(from 40 scans)")


def test_errors_of_measurement_do_not_count():
    random = np.random.default_rng(3)
    true = random.normal(0, 0.05, (300, 6))
    first, second = (true + random.normal(0, 0.1, (300, 6)) for _ in range(2))
    assert np.abs(deviations(spread_of(first, second)) / 0.05 - 1).max() < 0.3
    assert (deviations(spread_of(first)) > 0.1).all()


def test_plain_values_and_damaged_ones():
    spread = spread_3d()
    values = spread.to_dict()
    assert PoseSpread.from_dict(values) == spread
    # Records of before do not say how much is drawn.
    old = PoseSpread.from_dict({key: values[key] for key in ("covariance", "scans")})
    assert old == replace(spread, drawn=0.5) and "drawn" not in old.to_dict()
    assert PoseSpread.from_dict(old.to_dict()) == old
    with pytest.raises(SettingError):
        PoseSpread.from_dict({**values, "drawn": 99})
    wild = {**values, "covariance": [[0.5 * (i == j) for j in range(i + 1)] for i in range(12)]}
    for wrong in ({}, {**values, "covariance": values["covariance"][:5]}, {"covariance": "x", "scans": 1}, wild):
        with pytest.raises(SettingError):
            PoseSpread.from_dict(wrong)
    negative = {**values, "covariance": [[-0.01 * (i == j) for j in range(i + 1)] for i in range(12)]}
    metadata = {"name": "m", "architecture": "compact", "ndim": 3, "size": 24}
    assert poses_of(ModelMetadata.from_dict(metadata)) is None
    assert poses_of(ModelMetadata.from_dict(metadata | {"poses": values})) == spread
    with pytest.raises(ModelError):
        poses_of(ModelMetadata.from_dict(metadata | {"poses": negative}))


@pytest.mark.parametrize("axes", ["kji", "ijk"])
@pytest.mark.parametrize("geometry", ["isotropic", "stretch"])
def test_a_spread_is_carried_onto_the_models_axes(axes, geometry):
    # Only the second patient axis is stretched, and only along the third anything is shifted.
    variances = np.zeros(12)
    variances[[4, 11]] = 0.1**2, 0.03**2
    spread = PoseSpread.of(np.diag(variances))
    image = person(np.zeros((3, 3)), np.zeros(3), 0, (20, 24, 28), (1.0, 1.0, 2.0), rotation(90, 0, 0))
    metadata = ModelMetadata("m", "compact", 3, 24, axes=axes, geometry=geometry)
    carried = pose_on_grid(spread, model_grid(image, metadata), image)
    found = np.sqrt(np.diag(carried.matrix)).round(6)
    order = [0, 1, 2] if axes == "ijk" else [2, 1, 0]
    assert np.argwhere(found[:9].reshape(3, 3)).tolist() == [[order.index(1)] * 2]
    assert found[:9].max() == pytest.approx(0.1)
    assert found[9:].nonzero()[0].tolist() == [order.index(2)]
    # A fraction of the longest side becomes one of the grid's side along that axis.
    side = 56 if geometry == "isotropic" else 24
    assert found[9:].max() == pytest.approx(0.03 * 56 / side, abs=1e-5)


def test_a_posed_version_moves_as_drawn(tiny_model):
    image = person(np.zeros((3, 3)), np.zeros(3), 0)
    spread = spread_3d()
    made = deform(image, tiny_model, level=0, seed=3, steps=1, pose=spread)
    assert made.pose == spread and made.metrics.certified_invertible
    assert made.metrics.max_mm > 1
    assert deform(image, tiny_model, level=0, seed=3, steps=1, pose="auto").pose == 0
    with pytest.raises(SettingError):
        deform(image, tiny_model, pose="some")


def write_people(folder, count):
    write_cases(folder, [f"p{number:02d}" for number in range(count)], size=(18, 18, 16))
    return folder


def test_a_run_keeps_the_poses_of_its_scans(tmp_path, tiny_models):
    """Resumed, verified and made again, a run draws from the same spread, though its scans would give another one."""
    scans = write_people(tmp_path / "scans", 10)
    how = {"pose": "auto", "levels": ((12,),), "quality": False}
    run, reporter = make(scans, tmp_path / "run", tiny_models[3], **how)
    spread = run.plan.settings.deformation.pose
    assert isinstance(spread, PoseSpread) and spread.scans == 10
    sentence = f"Poses of these scans: {spread.words()}. Versions differ {math.sqrt(DRAWN):.1f} times as much."
    for said in (reporter.messages, report_of(tmp_path / "run")["notes"]):
        assert any(text.startswith(sentence) for text in said)
    settings = report_of(tmp_path / "run")["settings"]
    assert settings["pose"] == "auto" and settings["poses"] == spread.to_dict()
    assert {item["pose"] for item in report_of(tmp_path / "run")["items"]} == {"auto"}
    record = records_of(tmp_path / "run")["p03_t12_000"]
    assert record["pose"] == spread.to_dict()
    # Lost samples are made again with the same poses, also after a scan has been lost.
    (tmp_path / "run" / "records" / "p03_t12_000.json").unlink()
    (scans / "images" / "p09.nii.gz").write_bytes((scans / "images" / "p08.nii.gz").read_bytes())
    make(scans, tmp_path / "run", tiny_models[3], resume=True, **how)
    assert records_of(tmp_path / "run")["p03_t12_000"]["digests"] == record["digests"]
    made = regenerate(tmp_path / "run" / "records" / "p03_t12_000.json", tmp_path / "again", model=str(tiny_models[3]))
    assert not made.differences and "image" in made.compared


def test_a_run_of_few_scans_has_no_poses_and_a_run_with_an_amount_keeps_it(tmp_path, tiny_models):
    scans = write_people(tmp_path / "scans", 2)
    how = {"levels": ((12,),), "quality": False}
    run, reporter = make(scans, tmp_path / "auto", tiny_models[3], pose="auto", **how)
    assert run.plan.settings.deformation.pose == "auto" and any("Fewer than 10" in text for text in reporter.messages)
    records = records_of(tmp_path / "auto")
    assert records["p00_t12_000"]["pose"] == 0
    make(scans, tmp_path / "old", tiny_models[3], pose=0.0, **how)
    files = records_of(tmp_path / "old")["p00_t12_000"]["digests"]
    assert files == records["p00_t12_000"]["digests"]
    for folder, pose in (("old", "auto"), ("auto", 0.5)):
        with pytest.raises(SettingError, match="other pose"):
            make(scans, tmp_path / folder, tiny_models[3], pose=pose, resume=True, **how)


def test_a_bank_with_an_amount_keeps_it(tmp_path, tiny_models):
    scans = write_people(tmp_path / "scans", 2) / "images"
    how = {"model": str(tiny_models[3]), "levels": (12,), "copies": 1, "steps": 1, "device": "cpu"}
    make_bank(scans, tmp_path / "bank", pose=0.5, **how)
    with pytest.raises(SettingError, match="other pose"):
        make_bank(scans, tmp_path / "bank", pose="auto", **how)


def test_every_shipped_model_knows_how_people_differ():
    """Those for scans of any kind, less than hearts do and more than heads."""
    shipped = [path.name.removesuffix(".safetensors") for path in resource("Models").glob("*.safetensors")]
    known = {name: poses_of(load_model(name, "cpu").metadata) for name in shipped}
    assert len(known) > 5 and all(isinstance(spread, PoseSpread) for spread in known.values())
    turns = {name: spread.figures()["turn_degrees"] for name, spread in known.items()}
    assert turns["brain-t1-3d"] < turns["general-3d"] == turns["general-2d"] < turns["cardiac-mr-2d"]


def asked_for(*words):
    """The settings of a run that a command line asks for."""
    options = build_parser().parse_args([words[0], "scans", "-o", "out", *words[1:]])
    return common_settings(options)["deformation"]


def test_training_sets_have_the_poses_of_people_unless_something_else_is_asked():
    assert asked_for("augment").pose == "auto"
    assert asked_for("augment", "--pose", "0").pose == 0 and asked_for("augment", "--pose", "1.5").pose == 1.5
    assert asked_for("synthesize").pose == 0 and asked_for("synthesize", "--pose", "auto").pose == "auto"
    # A pose moves the whole scan, and is not for those who change a part of it.
    for region in (("--around", "all"), ("--region", *"000999"), ("--keep", "2")):
        assert asked_for("augment", *region).pose == 0
        assert asked_for("augment", *region, "--pose", "auto").pose == "auto"


@pytest.mark.parametrize("chosen", [True, False])
def test_ct_has_no_poses_unless_they_are_chosen(chosen, tmp_path, tiny_models):
    """A pose scales bone."""
    for kind in ("images", "labels"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (16, 18, 18)], indexing="ij")
    body = sum(axis**2 for axis in axes) < 0.7
    bone = sum(axis**2 for axis in axes) < 0.1
    values = np.where(bone, 800, np.where(body, 40, -1000)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "scans" / "images" / "p0.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(bone.astype(np.uint8)), str(tmp_path / "scans" / "labels" / "p0.nii.gz"))
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--levels", "12", *(["--pose", "auto"] if chosen else [])]
    done = run_process("augment", tmp_path / "scans", "-o", tmp_path / "out", *how, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert ("These scans are CT" in done.stderr) != chosen
    assert report_of(tmp_path / "out")["settings"]["pose"] == ("auto" if chosen else 0)


def test_a_strong_pose_of_a_stack_needs_no_repair(tiny_models):
    """Where the field fell to zero too soon, it folded outside of the scan, and repair spoiled the pose inside."""
    stack = smooth_image((48, 40, 6), (1.5, 1.5, 8.0))
    inner = np.argwhere(np.ones(stack.GetSize()[::-1]))[:, ::-1]
    points = inner * stack.GetSpacing() + stack.GetOrigin()
    for seed in range(16):
        made = deform(stack, tiny_models[2], 0, seed, pose=2.0)
        assert made.repaired.rounds == 0 and made.certified
        moved = sitk.GetArrayFromImage(made.ddf).reshape(-1, 3)
        affine = np.c_[points, np.ones(len(points))]
        assert np.abs(affine @ np.linalg.lstsq(affine, moved, rcond=None)[0] - moved).max() < 0.5
