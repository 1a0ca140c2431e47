"""One bad case is left out and named, not the whole run; names, limits and reports are decided for each case."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, scene, write
from production_helpers import make, records_of, report_of, write_cases

from DRDMLib.errors import FallbackWarning, ImageError, SettingError
from DRDMLib.io.datasets import Case, read_dataset
from DRDMLib.io.files import LONGEST_NAME
from DRDMLib.io.images import read_image
from DRDMLib.loaders import make_bank
from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, RunSettings, make_plan
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run_folder import locked_folder


def flat_images(folder, *names):
    for name in names:
        write(scene((24, 22)), folder / "images" / f"{name}.nii.gz")
    return folder


def spoil(folder, *names):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "images" / f"{name}.nii.gz").write_bytes(b"no image")


# Banks and training.


def test_a_bank_leaves_a_bad_case_out(tmp_path, tiny_models):
    settings = {"model": str(tiny_models[2]), "levels": (4,), "copies": 1, "steps": 1, "device": "cpu"}
    spoil(flat_images(tmp_path / "data", "b", "c"), "a", "d")
    with pytest.warns(FallbackWarning, match="Left out") as warned:
        bank = make_bank(tmp_path / "data", tmp_path / "bank", **settings)
    assert bank.names == ["b", "c"] and len(warned) == 2
    assert [str(one.message)[:13] for one in warned] == ["Left out: 'a'", "Left out: 'd'"]
    assert sorted(p.name for p in bank.folder.iterdir()) == ["b.safetensors", "c.safetensors"]
    spoil(tmp_path / "bad", "a", "b")
    with pytest.raises(ImageError, match="None of the 2 cases can be used"):
        make_bank(tmp_path / "bad", tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_two_banks_in_one_folder(tmp_path, tiny_models):
    settings = {"model": str(tiny_models[2]), "levels": (4,), "copies": 1, "steps": 1, "device": "cpu"}
    data, folder = flat_images(tmp_path / "data", "a"), tmp_path / "bank"
    with locked_folder(folder), pytest.raises(SettingError, match="Another run is writing"):
        make_bank(data, folder, **settings)
    make_bank(data, folder, **settings)
    # A complete bank can be used by several processes.
    with locked_folder(folder, new=False):
        assert make_bank(data, folder, **settings).names == ["a"]
        with pytest.raises(SettingError, match="other levels"):
            make_bank(data, folder, **settings | {"levels": (5,)})


def test_training_leaves_a_bad_case_out(drdm, tmp_path):
    words = ["--ndim", 2, "--size", 16, "--width", 8, "--hold-out", 2, "--iterations", 1, "--device", "cpu"]
    spoil(flat_images(tmp_path / "data", "b", "c", "d"), "a")
    outcome = drdm("train", tmp_path / "data", "-o", tmp_path / "run", *words)
    assert outcome.status == 0 and outcome.err.count("Left out") == 1 and "Left out: 'a'" in outcome.err
    spoil(tmp_path / "bad", "a", "b", "c")
    outcome = drdm("train", tmp_path / "bad", "-o", tmp_path / "none", *words)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1 and "None of the 3 cases" in outcome.err
    assert not (tmp_path / "none").exists()


# Names.


def planned(*names, command=AUGMENT):
    return make_plan(RunSettings(command, ((4,),), copies=2), [Case(name, name) for name in names])


def test_a_case_that_is_called_like_a_result_gets_another_name():
    plan = planned("a_t04_001", "a", "b", "A_T04_000", "a_t04_001-2")
    assert [case.name for case in plan.cases] == ["a_t04_001-3", "a", "b", "A_T04_000-2", "a_t04_001-2"]
    names = [task.name.casefold() for task in plan.tasks]
    assert len(set(names)) == len(names) == 15
    assert len(plan.notes) == 2 and "'a_t04_001' is called 'a_t04_001-3'" in plan.notes[0] + plan.notes[1]
    assert planned("a_t04_000", "a_t48_001").notes == []
    assert planned("a_t04_000", "a", command=SYNTHESIZE).notes == []


def test_a_run_with_such_a_case(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a", "a_t40_000"), size=(14, 13, 12))
    (data / "images" / "notes.abc").write_text("x", encoding="utf-8")
    run, _ = make(data, tmp_path / "out", tiny_models[3], quality=False)
    assert not run.failures() and len(run.done) == len(run.plan.tasks)
    assert {r["case"] for r in records_of(tmp_path / "out").values()} == {"a", "a_t40_000-2"}
    report = report_of(tmp_path / "out")
    assert report["unused"] == ["images/notes.abc"] and "'a_t40_000-2'" in report["notes"][0]
    make(data, tmp_path / "out", tiny_models[3], quality=False, resume=True)


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["y" * LONGEST_NAME] * 30)])
def test_a_path_that_is_too_long(name, drdm, tmp_path, tiny_models):
    scan = write(scene((24, 22)), tmp_path / "scan.nii.gz")
    model = ["--model", tiny_models[2]]
    for words in (
        ["deform", name, "-o", tmp_path / "out", *model],
        ["deform", scan, "--label", name, "-o", tmp_path / "out", *model],
        ["deform", scan, "-o", tmp_path / name, *model],
        ["deform", scan, "-o", tmp_path / "out", "--model", name],
        ["augment", name, "-o", tmp_path / "out", *model],
        ["synthesize", scan, "-o", tmp_path / name, *model],
        ["regenerate", name, "-o", tmp_path / "out"],
        ["evaluate", name],
        ["models", "info", name],
        ["train", name, "-o", tmp_path / "out"],
    ):
        outcome = drdm(*words)
        assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, (words[0], outcome.err)
    assert not (tmp_path / "out").exists()


# Limits.


@pytest.mark.parametrize("command", [AUGMENT, SYNTHESIZE])
def test_the_ignore_label_may_leave_the_image(command, tmp_path, tiny_models):
    image = scene((30, 28))
    array = np.zeros((28, 30), np.uint8)
    array[10:18, 10:18], array[:3] = 1, 5
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    write(image, tmp_path / "data" / "imagesTr" / "a_0000.nii.gz")
    write(label, tmp_path / "data" / "labelsTr" / "a.nii.gz")
    more = {"levels": ((60,) * (1 if command == AUGMENT else 2),), "pose": 2.0, "quality": False}
    limits = Limits(folded=None, inside=1.0, max_attempts=2)
    for name, kept in (("ignore", True), ("rim", False)):
        described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1, name: 5}}
        (tmp_path / "data" / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
        if kept:
            run, _ = make(tmp_path / "data", tmp_path / name, tiny_models[2], command, limits=limits, **more)
            assert not run.failures()
        else:
            with pytest.raises(ImageError, match="label left"):
                make(tmp_path / "data", tmp_path / name, tiny_models[2], command, limits=limits, **more)


# Files.


def test_changed_voxels_of_a_detached_header_are_noticed(tmp_path, tiny_models):
    image = scene((14, 13, 12))
    for name in ("a", "b"):
        write(image, tmp_path / "data" / "images" / f"{name}.mhd")
        write(boxes(image), tmp_path / "data" / "labels" / f"{name}.nhdr")
    make(tmp_path / "data", tmp_path / "out", tiny_models[3], quality=False)
    record = tmp_path / "out" / "records" / "a_t40_000.json"
    assert not regenerate(record, tmp_path / "again", model=str(tiny_models[3])).differences
    path = tmp_path / "data" / "images" / "a.raw"
    voxels = bytearray(path.read_bytes())
    voxels[100] ^= 1
    path.write_bytes(voxels)
    with pytest.raises(ImageError, match="is not the file"):
        regenerate(record, tmp_path / "other", model=str(tiny_models[3]))
    record.unlink()
    run, _ = make(tmp_path / "data", tmp_path / "out", tiny_models[3], quality=False, resume=True)
    assert len(run.failures()) == 1 and "changed since the run began" in run.failures()[0]


def test_a_link_to_a_missing_file_is_named(tmp_path):
    """As in a dataset of DataLad whose files have not been fetched."""
    write(scene((12, 11, 10)), tmp_path / "images" / "a.nii.gz")
    try:
        (tmp_path / "images" / "b.nii.gz").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("links are not allowed here")
    found = read_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["a", "b"]
    (tmp_path / "images" / "c.mhd").symlink_to(tmp_path / "nowhere.mhd")
    assert len(read_dataset(tmp_path).cases) == 3
    with pytest.raises(ImageError, match="There is no image"):
        read_image(found.cases[1].image)


def test_an_empty_list_is_said(tmp_path):
    (tmp_path / "list.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ImageError, match="no images in the list"):
        read_dataset(tmp_path / "list.txt")


def test_unused_files_in_folders_below_are_named(tmp_path):
    image = scene((12, 11, 10))
    for name in ("a_0000", "sub/b_0000", "one/0000", "one/0001"):
        write(image, tmp_path / "nnunet" / "imagesTr" / f"{name}.nii.gz")
    write(image, tmp_path / "nnunet" / "imagesTs" / "deep" / "c_0000.nii.gz")
    found = read_dataset(tmp_path / "nnunet")
    assert [case.name for case in found.cases] == ["a"]
    assert found.unused == ["imagesTr/one (2 images)", "imagesTr/sub (1 images)", "imagesTs (1 images)"]
    write(image, tmp_path / "plain" / "p1" / "t1.mhd")
    header = tmp_path / "plain" / "p1" / "t1.mhd"
    header.write_text(header.read_text().replace("t1.raw", "t1.bin"))
    (tmp_path / "plain" / "p1" / "t1.raw").rename(tmp_path / "plain" / "p1" / "t1.bin")
    (tmp_path / "plain" / "p1" / "scan.abc").write_bytes(b"?")
    found = read_dataset(tmp_path / "plain")
    assert [case.name for case in found.cases] == ["p1-t1"] and found.unused == ["p1/scan.abc"]
