"""One process at a time writes into the folder of a run, and PyTorch is checked before a command runs."""

import json
import os
import subprocess

import pytest
from command_helpers import boxes, command, environment, scene, snapshot, write

from DRDMLib.errors import OutputError, SettingError
from DRDMLib.production.run_folder import locked_folder


@pytest.fixture
def scan(tmp_path):
    return write(scene((24, 22)), tmp_path / "scan.nii.gz")


def assert_busy(outcome):
    assert outcome.status == 2
    assert "Another run is writing into" in outcome.err and len(outcome.err.splitlines()) == 1


def test_two_deformations_into_one_folder(drdm, scan, tmp_path, tiny_models):
    words = ["deform", scan, "-o", tmp_path / "out", "--level", 4, "--model", tiny_models[2]]
    with locked_folder(tmp_path / "out"):
        before = snapshot(tmp_path)
        assert_busy(drdm(*words))
        (tmp_path / "out" / "scan_000_image.nii.gz").write_bytes(b"of the other run")
        assert_busy(drdm(*words))
        (tmp_path / "out" / "scan_000_image.nii.gz").unlink()
        assert snapshot(tmp_path) == before
    assert drdm(*words).status == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_two_trainings_into_one_folder(drdm, tmp_path):
    for name in "abc":
        write(scene((24, 22)), tmp_path / "data" / "images" / f"{name}.nii.gz")
    run = tmp_path / "run"
    words = ["train", tmp_path / "data", "-o", run, "--ndim", 2, "--size", 16, "--width", 8, "--hold-out", 2]
    with locked_folder(run):
        assert_busy(drdm(*words, "--iterations", 1))
        assert_busy(drdm(*words, "--iterations", 1, "--resume"))
    assert drdm(*words, "--iterations", 1).status == 0
    with locked_folder(run, new=False):
        assert_busy(drdm(*words, "--iterations", 2, "--resume"))
    assert drdm(*words, "--iterations", 2, "--resume").status == 0
    assert not list(run.glob(".drdm*"))


def test_a_sample_is_not_regenerated_into_the_folder_of_another_run(drdm, tmp_path, tiny_models):
    image = scene((24, 22))
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    write(boxes(image), tmp_path / "data" / "labels" / "a.nii.gz")
    words = ["--levels", 3, "--model", tiny_models[2]]
    assert drdm("augment", tmp_path / "data", "-o", tmp_path / "set", *words).status == 0
    record = next((tmp_path / "set" / "records").glob("a_*.json"))
    again = ["regenerate", record, "-o", tmp_path / "again", "--model", tiny_models[2]]
    with locked_folder(tmp_path / "again"):
        assert_busy(drdm(*again))
    assert drdm(*again).status == 0
    assert not list((tmp_path / "again").glob(".drdm*"))


def test_a_folder_with_other_files_is_not_locked(tmp_path):
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"), locked_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_locks_of_a_killed_process_do_not_matter(tmp_path):
    for name in (".drdm.lock", ".drdm-1-of-1.lock"):
        (tmp_path / name).write_bytes(b"")
    with locked_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_failed_run_removes_its_locks_only(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), locked_folder(folder):
        (folder / "kept.txt").write_text("a result")
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]
    with locked_folder(folder, new=False):
        before = snapshot(folder)
        with pytest.raises(SettingError, match="Another run"), locked_folder(folder, new=False):
            pass
        assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("raise OSError('[WinError 127] Error loading c10.dll')", "cannot be imported (OSError: [WinError 127]"),
        ("__version__ = '1.8.1'", "cannot be imported (ModuleNotFoundError: No module named 'torch.nn')"),
        ("import absent_part_of_torch", "No module named 'absent_part_of_torch'"),
        (None, "PyTorch is not installed"),
    ],
    ids=["damaged", "replaced in part", "incomplete", "missing"],
)
@pytest.mark.parametrize("words", [["deform", "scan.nii.gz", "-o", "out"], ["models", "--progress", "json"]])
def test_a_broken_pytorch_is_an_error_of_the_installation(tmp_path, content, says, words):
    code = None
    if content is None:
        # As if there were no package of this name.
        code = (
            "import importlib.util, sys; find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
            "from DRDMLib.cli import main; sys.exit(main(sys.argv[1:]))"
        )
    else:
        write_text(tmp_path / "torch" / "__init__.py", content)
    paths = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    ended = subprocess.run(
        command(*words, code=code),
        capture_output=True,
        encoding="utf-8",
        env=environment() | {"PYTHONPATH": paths},
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert says in ended.stderr and "PyTorch" in ended.stderr and "install it" in ended.stderr
    if "json" in words:
        *_, error, end = map(json.loads, ended.stdout.splitlines())
        assert error["event"] == "error" and says in error["text"]
        assert end == {"event": "end", "status": 2}


def write_text(path, text):
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
