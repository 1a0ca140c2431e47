"""Names that are paths: nothing is written outside of the output folder."""

import json
import os

import pytest
from command_helpers import boxes, scene, snapshot, write
from production_helpers import make, write_cases

from DRDMLib.cli import main
from DRDMLib.errors import OutputError
from DRDMLib.io.datasets import read_dataset
from DRDMLib.io.files import LONGEST_NAME, atomic_write, file_name, file_names, require_no_links_out
from DRDMLib.loaders.bank import case_name
from DRDMLib.production.plan import SYNTHESIZE
from DRDMLib.production.regenerate import regenerate


@pytest.mark.parametrize(
    ("name", "made"),
    [
        *((name, name) for name in ("case_001", "P1-day 1", "Fälle", "1.2.840", "-5", "console")),
        ("P1/T1", "P1-T1"),
        ("../../escaped", "escaped"),
        ("C:\\scans\\a", "C-scans-a"),
        ("..", "case"),
        ("", "case"),
        (".hidden. ", "hidden"),
        ("CON", "_CON"),
        ("nul.t1", "_nul.t1"),
        ("a\0b\nc", "a-b-c"),
        ("a\u202eb", "a-b"),
        ("\udcff", "case"),
        ("a\u0308", "ä"),
    ],
)
def test_names_of_files(name, made):
    assert file_name(name) == made
    assert file_name(made) == made


def test_long_names_are_shortened_and_stay_different():
    names = ["ä" * 250 + end for end in "ab"]
    made = [file_name(name) for name in names]
    assert made[0] != made[1] and all(len(name.encode()) <= LONGEST_NAME for name in made)


def test_names_are_unique_on_every_system():
    assert file_names(["a", "A", "a-2", "P1/T1", "P1-T1", "a"]) == ["a", "A-3", "a-2", "P1-T1-2", "P1-T1", "a-4"]


def test_changed_names_are_said(tmp_path):
    lines = ("image,name", "a.nii,../../x", "b.nii,x", "c.nii,X", "d.nii,P1/T1")
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    found = read_dataset(tmp_path / "t.csv")
    assert [case.name for case in found.cases] == ["x-2", "x", "X-3", "P1-T1"]
    assert any("'../../x' is called 'x-2'" in text and "2 more" in text for text in found.notes)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_that_is_no_text_is_left_out(tmp_path):
    write(scene((12, 11, 10)), tmp_path / "images" / "a.nii.gz")
    os.link(tmp_path / "images" / "a.nii.gz", os.fsencode(tmp_path / "images") + b"/\xff.nii.gz")
    found = read_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["a"] and "not valid text" in found.notes[-1]


def test_links_out_of_a_folder(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (folder / "inside").mkdir(parents=True)
    try:
        (folder / "within").symlink_to(folder / "inside")
    except OSError:
        pytest.skip("links are not allowed here")
    require_no_links_out(folder)
    (outside / "precious").write_text("years of work", encoding="utf-8")
    (folder / ".x.partial").symlink_to(outside / "precious")
    with pytest.raises(OutputError, match="is a link"):
        require_no_links_out(folder)
    with atomic_write(folder / "x") as partial:
        partial.write_text("new", encoding="utf-8")
    assert (outside / "precious").read_text(encoding="utf-8") == "years of work"
    assert (folder / "x").read_text(encoding="utf-8") == "new"
    (folder / "inside" / "imagesTr").symlink_to(outside)
    with pytest.raises(OutputError, match="imagesTr"):
        require_no_links_out(folder)


@pytest.mark.slow
def test_a_resumed_run_follows_no_link(tmp_path, tiny_models):
    data, folder, outside = write_cases(tmp_path / "d", ("a",), (14, 13, 12)), tmp_path / "out", tmp_path / "outside"
    make(data, folder, tiny_models[3], SYNTHESIZE, quality=False)
    (folder / "records").rename(outside)
    (folder / "records").symlink_to(outside)
    before = snapshot(outside)
    with pytest.raises(OutputError, match="is a link"):
        make(data, folder, tiny_models[3], SYNTHESIZE, quality=False, resume=True)
    assert snapshot(outside) == before


@pytest.mark.slow
def test_a_record_writes_only_into_its_folder(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "d", ("a",), (14, 13, 12)), tmp_path / "out"
    make(data, folder, tiny_models[3], SYNTHESIZE, quality=False)
    (path,) = (folder / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"name": "../../../escaped"}), encoding="utf-8")
    deep = tmp_path / "x" / "y" / "z"
    made = regenerate(path, deep, model=str(tiny_models[3]))
    assert not made.differences
    assert all(p.is_relative_to(deep) for p in (tmp_path / "x").rglob("*") if p.is_file())
    path.write_text(json.dumps({key: record[key] for key in ("name", "status")}), encoding="utf-8")
    with pytest.raises(OutputError, match="no valid"):
        regenerate(path, tmp_path / "w", model=str(tiny_models[3]))
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_table_of_paths_as_names(tmp_path, tiny_models, capsys):
    image = scene((14, 13, 12))
    write(image, tmp_path / "a.nii.gz")
    write(boxes(image), tmp_path / "b.nii.gz")
    names = ("../../escaped", "P1/T1", "CON", "x" * 300, "p1-t1")
    rows = [f"a.nii.gz,b.nii.gz,{name}" for name in names]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,name", *rows]), encoding="utf-8")
    folder = tmp_path / "out" / "set"
    arguments = ["augment", tmp_path / "t.csv", "-o", folder, "--levels", 8, "--steps", 1, "--no-quality"]
    assert main([*map(str, arguments), "--model", str(tiny_models[3])]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["set"]
    assert len(list((folder / "imagesTr").iterdir())) == 2 * len(names)
    assert "'../../escaped' is called 'escaped'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_very_long_name_of_an_image(tmp_path, tiny_models):
    image = write(scene((14, 13, 12)), tmp_path / f"{'x' * 240}.nii.gz")
    arguments = ["deform", image, "-o", tmp_path / "out", "--level", 8, "--steps", 1, "--model", tiny_models[3]]
    assert main([*map(str, arguments)]) == 0
    assert len(list((tmp_path / "out").glob("xxx*_000_image.nii.gz"))) == 1


def test_names_of_cases_in_a_bank():
    """Four digits are the number of a channel, unless the bank has a case of that name."""
    assert case_name("x/word_0001.nii.gz") == "word"
    assert case_name("x/word_0001.nii.gz", ["word_0001"]) == "word_0001"
    assert case_name("x/a\u0308.nii") == "ä"
