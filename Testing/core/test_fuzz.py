"""Damaged files are read or refused in one sentence, and crash nothing. ``fuzzers.py`` can run for longer."""

import json
import random
import sys

import pytest
import torch
from fuzzers import (
    MODELS,
    ODD_VALUES,
    bad,
    damaged_images,
    damaged_json,
    damaged_models,
    damaged_weights,
    deep,
    outcomes,
    written_samples,
)

from DRDMLib.errors import DRDMError, OutputError
from DRDMLib.io import schema
from DRDMLib.io.nnunet import declared_labels, group_channels, read_description
from DRDMLib.loaders import FieldBank, PairDataset
from DRDMLib.models.fit import Fit
from DRDMLib.models.model import load_model_file
from DRDMLib.networks import RecResACNet
from DRDMLib.production import records
from DRDMLib.production.run_folder import read_run

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")


def handled(paths, *more):
    found = dict(zip(paths, outcomes(paths, *more), strict=True))
    assert bad(found) == {}
    return list(found.values())


def test_images(tmp_path):
    found = handled(list(damaged_images(tmp_path / "damaged", written_samples(tmp_path / "samples"), 1, 150)))
    assert found.count("refused") > 30 and found.count("read") > 30


@unix
def test_models(tmp_path, tiny_model_2d_path):
    found = handled(list(damaged_models(tmp_path, tiny_model_2d_path, 1, 120)), MODELS)
    assert found.count("refused") > 50


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Weights of the published network, as the authors saved theirs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(RecResACNet(2, 80).state_dict(), path)
    return path


def test_published_weights_are_read_as_torch_reads_them(published):
    own = load_model_file(published, "cpu").network.state_dict()
    theirs = torch.load(published, weights_only=True)
    assert list(own) == list(theirs) and all(torch.equal(own[name], theirs[name]) for name in own)


@unix
def test_weights(tmp_path, published):
    found = handled(list(damaged_weights(tmp_path, published, 1, 60)), MODELS)
    assert found.count("refused") > 30


RECORD = {
    "name": "a_t40_000",
    "status": "done",
    "command": "augment",
    "case": "a",
    "subject": "a",
    "levels": [40],
    "copy": 0,
    "run_seed": 0,
    "seed": 5,
    "attempt": 0,
    "redrawn": [],
    "steps": None,
    "pose": 0.0,
    "plane": "auto",
    "border": "auto",
    "model": {"name": "m", "digest": "sha256:0"},
    "fit": {"model": "m", "undone": 0.4, "still": 0.01, "ndim": 3, "word": "fair"},
    "configuration": "sha256:0",
    "device": {"type": "cpu", "name": "x"},
    "software": {"drdm": "1"},
    "label_values": {"0": 0, "7": 1},
    "source": {"files": {"image": "a.nii.gz"}, "series": "", "digests": {"image": "sha256:0"}},
    "files": {"image": "imagesTr/a.nii.gz"},
    "digests": {"image": "sha256:0"},
}
RUN = {
    "settings": {"command": "augment", "levels": [40]},
    "cases": [{"name": "a", "subject": "a"}],
    "model": {"name": "m", "digest": "sha256:0"},
    "candidates": [{"name": "m", "digest": "sha256:0"}],
    "dimension": 3,
    "device": {"type": "cpu", "name": "x"},
    "software": {"drdm": "1"},
    "label_values": {"0": 0},
    "labels": {"background": 0, "organs": [1, 2]},
    "source_description": {},
    "parts": {"a": "train"},
}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "organs": [1, 2], "ignore": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "training_paired_images": [{"fixed": "a.nii.gz", "moving": "b.nii.gz", "displacement": "c.nii.gz"}],
}


def damaged(value, seed, count):
    chance = random.Random(seed)
    return [damaged_json(value, chance) for _ in range(count)]


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_records(tmp_path):
    (tmp_path / "records").mkdir()
    path = write(tmp_path / "records" / "a.json", RECORD)
    assert records.read_record(path) == RECORD
    refused = 0
    texts = [deep(), "", "[]", "{", '{"name": 1e999}', "\0", *map(json.dumps, [*damaged(RECORD, 1, 600), *ODD_VALUES])]
    for text in texts:
        path.write_text(text, encoding="utf-8")
        try:
            record = records.read_record(path)
            Fit.from_dict(record["fit"]) if "fit" in record else None
            assert all(tmp_path in (tmp_path / file).resolve().parents for file in record.get("files", {}).values())
        except OutputError:
            refused += 1
        records.completed(tmp_path, "a")
    assert refused > 300


def test_runs(tmp_path):
    path = write(tmp_path / "run.json", RUN)
    assert read_run(tmp_path) == RUN
    for text in [deep(), "", *map(json.dumps, damaged(RUN, 2, 400))]:
        path.write_text(text, encoding="utf-8")
        try:
            read_run(tmp_path)
        except OutputError as error:
            assert len(str(error).splitlines()) == 1


def test_descriptions_of_datasets(tmp_path):
    for text in [deep(), "", *map(json.dumps, damaged(DATASET, 3, 400))]:
        (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
        try:
            described = read_description(tmp_path)
            labels = declared_labels(described)
            assert all(abs(n) < 10**18 for v in labels.values() for n in (v if isinstance(v, list) else [v]))
            group_channels(["a_0000", "b_0000", "b_0001"], ["a", "b"], described)
        except DRDMError as error:
            assert len(str(error).splitlines()) == 1
        try:
            PairDataset(tmp_path)
        except DRDMError as error:
            assert len(str(error).splitlines()) == 1


def test_banks(tmp_path):
    from safetensors.torch import save_file

    how = {"type": "int16", "shape": [3, 4, 4, 4], "scale": 0.1, "axes": [None, None, None]}
    eye = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
    described = {
        "fields": [{"start": 0, "bytes": 384, "affine": eye, "how": how}],
        "geometry": {"size": [4, 4, 4], "affine": eye, "others": []},
    }
    data, path = {"fields": torch.zeros(384, dtype=torch.uint8)}, tmp_path / "a.safetensors"
    save_file(data, path, {"drdm": json.dumps(described)})
    assert FieldBank(tmp_path).field("a", 0).vectors.shape == (3, 4, 4, 4)
    for value in damaged(described, 4, 300):
        save_file(data, path, {"drdm": json.dumps(value)})
        try:
            FieldBank(tmp_path).field("a", 0)
        except DRDMError as error:
            assert len(str(error).splitlines()) == 1


def test_checks():
    assert schema.whole(0, 5)(5) and not schema.whole(0, 5)(6) and not schema.whole()(True) and not schema.whole()(1.0)
    assert schema.number(0, 1)(1) and not schema.number()(float("nan")) and not schema.number()(10**400)
    assert schema.one_of(1)(1) and not schema.one_of(1)(True)
    assert (
        schema.wrong_key([], {"a": schema.truth}) == "a" and schema.wrong_key({"a": True}, {"a": schema.truth}) is None
    )
    assert schema.whole_text("-12") and not schema.whole_text("1" * 19) and not schema.whole_text("²")
