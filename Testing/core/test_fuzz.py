"""Damaged files are read or refused in one sentence, and crash nothing. ``fuzzers.py`` can run for longer."""

import json
import random

import pytest
import torch
from fuzzers import (
    BANK,
    DATASET,
    DESCRIBED,
    MODELS,
    OBJECTS,
    ODD_VALUES,
    RECORD,
    RUN,
    bad,
    damaged_banks,
    damaged_descriptions,
    damaged_images,
    damaged_json,
    damaged_models,
    damaged_objects,
    damaged_weights,
    deep,
    outcomes,
    written_objects,
    written_samples,
)

from DRDMLib.errors import DRDMError, OutputError
from DRDMLib.io import schema
from DRDMLib.io.nnunet import declared_labels, group_channels, read_description
from DRDMLib.loaders import FieldBank, PairDataset, bank_making
from DRDMLib.models.fit import Fit
from DRDMLib.models.model import load_model_file
from DRDMLib.networks import RecResACNet
from DRDMLib.production import records
from DRDMLib.production.run_folder import read_run


def handled(paths, *more):
    found = dict(zip(paths, outcomes(paths, *more), strict=True))
    assert bad(found) == {}
    return list(found.values())


def test_images(tmp_path):
    found = handled(list(damaged_images(tmp_path / "damaged", written_samples(tmp_path / "samples"), 1, 150)))
    assert found.count("refused") > 30 and found.count("read") > 30


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


def test_weights(tmp_path, published):
    found = handled(list(damaged_weights(tmp_path, published, 1, 60)), MODELS)
    assert found.count("refused") > 30


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


@pytest.mark.parametrize("key", ["mask", "displacement_voxels", "fixed_label"])
@pytest.mark.parametrize("value", [5, None, ["a.nii.gz"], {}])
def test_all_files_of_a_pair_are_names(tmp_path, key, value):
    write(tmp_path / "dataset.json", DATASET)
    assert len(PairDataset(tmp_path)) == 1
    pairs = [DATASET["training_paired_images"][0] | {key: value}]
    write(tmp_path / "dataset.json", DATASET | {"training_paired_images": pairs})
    with pytest.raises(OutputError, match="no finished dataset"):
        PairDataset(tmp_path)


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

    data, path = {"fields": torch.zeros(384, dtype=torch.uint8)}, tmp_path / "a.safetensors"
    save_file(data, path, {"drdm": json.dumps(BANK)})
    assert FieldBank(tmp_path).field("a", 0).vectors.shape == (3, 4, 4, 4)
    for value in damaged(BANK, 4, 300):
        save_file(data, path, {"drdm": json.dumps(value)})
        try:
            FieldBank(tmp_path).field("a", 0)
        except DRDMError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("value", [1, 2.5, True, None, [], "x", "-1", 10**400])
@pytest.mark.parametrize("key", ["model", "levels", "copies", "pose"])
def test_what_a_bank_says_of_itself(tmp_path, key, value):
    """A bank that is made again reads what it has written."""
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    texts = [json.dumps(BANK | {key: value}), "[]", "{", deep(), "null"]
    for text in texts:
        save_file({"fields": torch.zeros(384, dtype=torch.uint8)}, path, {"drdm": text})
        try:
            assert bank_making._model_in(path) is None and text == texts[0]
            assert bank_making._exists(path, {key: value})
        except OutputError as error:
            assert "damaged" in str(error)


def test_the_longer_run_covers_all_kinds(tmp_path):
    """A few of each in processes, as ``fuzzers.py`` runs them."""
    for made, code in (
        (damaged_descriptions(tmp_path / "json", 6, 20), DESCRIBED),
        (damaged_banks(tmp_path / "banks", 6, 10), DESCRIBED),
        (damaged_objects(tmp_path / "objects", written_objects(tmp_path / "samples"), 6, 20), OBJECTS),
    ):
        assert len(set(handled(list(made), code))) == 2


def test_checks():
    assert schema.whole(0, 5)(5) and not schema.whole(0, 5)(6) and not schema.whole()(True) and not schema.whole()(1.0)
    assert schema.number(0, 1)(1) and not schema.number()(float("nan")) and not schema.number()(10**400)
    assert schema.one_of(1)(1) and not schema.one_of(1)(True)
    assert (
        schema.wrong_key([], {"a": schema.truth}) == "a" and schema.wrong_key({"a": True}, {"a": schema.truth}) is None
    )
    assert schema.whole_text("-12") and not schema.whole_text("1" * 19) and not schema.whole_text("²")
