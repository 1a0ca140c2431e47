"""Records, reports and ``run.json`` that were edited, cut off or made by older versions."""

import json

import pytest
import torch
from production_helpers import make, write_cases

from DRDMLib.errors import SettingError
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE
from DRDMLib.production.work import Work
from DRDMLib.training.field_sampler import MicroBatchSampler

RECORD = "a_t40_000.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_path):
    """A finished run of augment and its data."""
    root = tmp_path_factory.mktemp("odd é")
    data = write_cases(root / "data", ("a", "b"), size=(14, 13, 12))
    make(data, root / "out", tiny_model_path, AUGMENT, levels=((40,),))
    return root


def changed(path, edit):
    """Edit a JSON file; returns a function that restores it."""
    before = path.read_bytes()
    value = json.loads(before)
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return lambda: path.write_bytes(before)


EDITS = {
    "sizes": lambda record: record.update(sizes=[]),
    "relative": lambda record: record["source"].update(relative=[]),
    "relative path": lambda record: record["source"].update(relative={"image": 5}),
    "levels of the item": lambda record: record["item"].update(levels=5),
    "level": lambda record: record["item"].update(level="high"),
    "no image": lambda record: record["files"].pop("image"),
    "no source": lambda record: record["source"]["files"].pop("image"),
    "no label": lambda record: record["source"]["files"].pop("label"),
    "command": lambda record: record.update(command="synthesize"),
    "no metrics": lambda record: record["item"].pop("metrics"),
    "bones": lambda record: record.update(bones=3),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("command", ["regenerate", "verify", "resume"])
def test_edited_records_give_one_sentence(run, tmp_path, drdm, tiny_models, command, edit):
    folder = run / "out"
    path = folder / "records" / RECORD
    restore = changed(path, edit)
    try:
        if command == "regenerate":
            ended = drdm("regenerate", path, "-o", tmp_path / "again", "--model", tiny_models[3])
        elif command == "verify":
            ended = drdm("verify", folder)
            assert ended.status == 2 and RECORD in ended.err
        else:
            make(run / "data", folder, tiny_models[3], AUGMENT, levels=((40,),), resume=True)
            ended = drdm("verify", folder)
            assert ended.status == 0, ended.err
        assert "Traceback" not in ended.err, ended.err
    finally:
        if command != "resume":
            restore()


@pytest.mark.parametrize("key", ["label_values", "labels", "source_description", "parts", "levels"])
def test_edited_configurations_give_one_sentence(run, drdm, tiny_models, key):
    path = run / "out" / "run.json"

    def edit(value):
        if key == "levels":
            value["settings"]["levels"] = [[]]
        else:
            del value[key]

    restore = changed(path, edit)
    try:
        for words in (
            ["verify", run / "out"],
            ["augment", run / "data", "-o", run / "out", "--resume", "--levels", 40],
        ):
            ended = drdm(*words, *(["--model", tiny_models[3]] if words[0] == "augment" else []))
            assert "Traceback" not in ended.err, ended.err
    finally:
        restore()


def test_deep_nesting_gives_one_sentence(run, drdm):
    path = run / "out" / "report.json"
    before = path.read_bytes()
    path.write_text("[" * 200_000, encoding="utf-8")
    try:
        ended = drdm("verify", run / "out")
        assert ended.status == 2 and "Traceback" not in ended.err and "report.json" in ended.err
    finally:
        path.write_bytes(before)


def test_an_empty_configuration_is_all_that_is_damaged(run, drdm):
    path = run / "out" / "run.json"
    before = path.read_bytes()
    path.write_bytes(b"")
    try:
        ended = drdm("verify", run / "out")
        assert ended.status == 2 and "run.json" in ended.err and "report.json" not in ended.err
    finally:
        path.write_bytes(before)


def test_a_run_without_a_report_is_not_finished(tmp_path, tiny_models, drdm):
    data = write_cases(tmp_path / "data", ("a", "b", "c"), size=(14, 13, 12))
    make(data, tmp_path / "out", tiny_models[3], AUGMENT, levels=((40,),))
    (tmp_path / "out" / "report.json").unlink()
    (tmp_path / "out" / "records" / RECORD).unlink()
    ended = drdm("verify", tmp_path / "out")
    assert ended.status == 2 and "is not finished" in ended.err and len(ended.err.splitlines()) == 1


def test_records_of_versions_that_wrote_fewer_files(run, tmp_path, drdm, tiny_models):
    path = run / "out" / "records" / RECORD

    def edit(record):
        for kind in ("thumbnail", "layers"):
            del record["files"][kind], record["digests"][kind]

    restore = changed(path, edit)
    try:
        ended = drdm("regenerate", path, "-o", tmp_path / "again", "--model", tiny_models[3])
        assert ended.status == 0 and "2 files" in ended.err, ended.err
        assert not (tmp_path / "again" / "quality" / "a_t40_000_layers.png").exists()
    finally:
        restore()


def test_reports_say_what_records_say(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a",), size=(14, 13, 12))
    make(data, tmp_path / "out", tiny_models[3], SYNTHESIZE, levels=(("strong", 5),))
    (item,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["items"]
    assert 0 <= item["from_outside"] < 1 and item["levels"][1] == 5


def test_stopping_while_finished_samples_are_checked_keeps_the_report(run, tiny_models, monkeypatch):
    path = run / "out" / "report.json"
    before = path.read_bytes()

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Work, "_finished_samples", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(run / "data", run / "out", tiny_models[3], AUGMENT, levels=((40,),), resume=True)
    assert path.read_bytes() == before


def test_checkpoints_of_older_versions_give_one_sentence():
    sampler = MicroBatchSampler.__new__(MicroBatchSampler)
    with pytest.raises(SettingError, match="older version"):
        sampler.load_state({"generator": torch.Generator().get_state(), "bank": [], "draws": 0})


def test_jobs_run_no_file_of_the_working_folder(tmp_path, tiny_models, drdm, monkeypatch):
    """The processes of the jobs are started anew from here; test_working_folder.py starts other commands there."""
    data = write_cases(tmp_path / "data", ("a", "b"), size=(14, 13, 12))
    trap = tmp_path / "DRDMLib"
    trap.mkdir()
    (trap / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    words = ["augment", data, "-o", tmp_path / "out", "--model", tiny_models[3], "--levels", 4, "--jobs", 2]
    ended = drdm(*words, "--steps", 1)
    assert ended.status == 0, ended.err
    assert not (tmp_path / "ran").exists()
    assert "2 originals and 2 new versions are in" in ended.err
