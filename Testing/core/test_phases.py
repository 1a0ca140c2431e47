"""Versions and pairs that move as the same person does from one scan to another."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import run_process
from production_helpers import RecordingReporter, records_of, settings_for
from test_toward import person

from DRDMLib.errors import SettingError
from DRDMLib.loaders import make_bank
from DRDMLib.production.plan import AUGMENT, PHASES, SYNTHESIZE
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.toward import find_way

NAMES = ("a_rest", "a_beat", "b_rest", "b_beat")
SUBJECT = "^[ab]"


def beat(number, size=(28, 26, 24)):
    """Draw one of two people at rest, or when the organ is small and lies elsewhere."""
    organ = (0.6, 0.55, 0.5) if number % 2 == 0 else (0.45, 0.4, 0.4)
    at = (0.0, 0.0, 0.0) if number % 2 == 0 else (0.0, 0.12, 0.0)
    return person(tuple(r + 0.05 * (number // 2) for r in organ), at, size=size, spacing=3.0)


@pytest.fixture
def hearts(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        image, label = beat(number)
        sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(tmp_path / "data" / "images" / f"{name}.nii.gz"))
        sitk.WriteImage(label, str(tmp_path / "data" / "labels" / f"{name}.nii.gz"))
    return tmp_path / "data"


def run(command, data, folder, model, levels, **more):
    reporter = RecordingReporter()
    request = RunRequest(data, folder, model=str(model), device="cpu", subject_pattern=SUBJECT)
    produce(request, settings_for(command, levels=levels, toward=PHASES, **more), reporter)
    return reporter


def centers(*labels):
    return [np.argwhere(sitk.GetArrayFromImage(one) > 0).mean(axis=0) for one in labels]


def test_motion_in_place_keeps_the_shift_between_two_scans():
    (image, label), (other, expected) = beat(0, (44, 40, 36)), beat(1, (44, 40, 36))
    rest, there = centers(label, expected)
    shifts = {}
    for in_place in (True, False):
        way = find_way(image, other, in_place=in_place)
        moved = sitk.Resample(label, sitk.DisplacementFieldTransform(sitk.Image(way.field)), sitk.sitkNearestNeighbor)
        shifts[in_place] = (centers(moved)[0] - rest)[1]
    assert (there - rest)[1] > 2
    assert shifts[True] > 0.8 * (there - rest)[1] and shifts[False] < 0.5 * (there - rest)[1]


def test_versions_move_between_the_scans_of_a_subject(hearts, tmp_path, tiny_models):
    run(AUGMENT, hearts, tmp_path / "out", tiny_models[3], ((12,),), copies=2)
    partners = {"a_rest": "a_beat", "a_beat": "a_rest", "b_rest": "b_beat", "b_beat": "b_rest"}
    made = [record for record in records_of(tmp_path / "out").values() if record["levels"]]
    assert len(made) == 8
    for record in made:
        assert record["toward"]["case"] == partners[record["case"]] and record["toward"]["in_place"]
    again = tmp_path / "out" / "records" / "b_beat_t12_001.json"
    assert not regenerate(again, tmp_path / "again", model=str(tiny_models[3])).differences


def test_the_fixed_image_of_a_pair_moves_as_the_subject_does(hearts, tmp_path, tiny_models):
    # Nothing but the motion: level 0 has no deformation of its own.
    run(SYNTHESIZE, hearts, tmp_path / "out", tiny_models[3], ((0, 0),))
    record = next(one for one in records_of(tmp_path / "out").values() if one["case"] == "a_rest")
    assert record["toward"]["case"] == "a_beat" and record["item"]["toward"] > 0
    labels = [sitk.ReadImage(str(tmp_path / "out" / record["files"][kind])) for kind in ("moving_label", "label")]
    volumes = [int((sitk.GetArrayFromImage(one) > 0).sum()) for one in labels]
    target = [int((sitk.GetArrayFromImage(beat(number)[1]) > 0).sum()) for number in (0, 1)]
    assert volumes[0] == target[0] and target[1] < volumes[1] < volumes[0]
    path = tmp_path / "out" / "records" / f"{record['name']}.json"
    assert not regenerate(path, tmp_path / "again", model=str(tiny_models[3])).differences


def test_a_bank_of_motion(hearts, tmp_path, tiny_models):
    how = {"model": str(tiny_models[3]), "levels": (0,), "copies": 1, "steps": 1, "border": "open", "device": "cpu"}
    bank = make_bank(hearts, tmp_path / "bank", toward=PHASES, subject_pattern=SUBJECT, **how)
    assert bank.names == sorted(NAMES)
    # Between the two phases the organ moves by 0.12 of half the side, and its faces by as much as it shrinks.
    farthest = float(bank.field("a_rest", 0).vectors.norm(dim=0).max())
    assert 1 < farthest < 15
    with pytest.raises(SettingError, match="other toward"):
        make_bank(hearts, tmp_path / "bank", toward="others", subject_pattern=SUBJECT, **how)


def test_subjects_with_one_scan_do_not_move(hearts, tmp_path, tiny_models):
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--device", "cpu", "--toward", "phases"]
    failed = run_process("synthesize", hearts, "-o", tmp_path / "out", "--levels", "0:0", *how)
    assert failed.returncode == 2 and "--subject" in failed.stderr
    with pytest.raises(SettingError, match="several scans"):
        make_bank(hearts, tmp_path / "bank", toward=PHASES, model=str(tiny_models[3]), device="cpu")
    done = run_process("synthesize", hearts, "-o", tmp_path / "out", "--levels", "0:0", *how, "--subject", SUBJECT)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["items"]) == 4
