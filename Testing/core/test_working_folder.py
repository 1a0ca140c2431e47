"""Files in the working folder are never taken for libraries or programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_helpers import REPOSITORY, environment, scene, write

from DRDMLib.runtime import programs

# Libraries that are imported at the start, later, or in another process.
NAMES = ("torch", "numpy", "scipy", "SimpleITK", "safetensors", "runpy", "platformdirs")
START = [str(REPOSITORY / "DRDMLib" / "start.py"), "DRDMLib"]


@pytest.fixture
def trapped(tmp_path):
    """A folder with a scan and with modules that leave a trace when they are imported."""
    folder = tmp_path / "data"
    write(scene((24, 22)), folder / "scan.tif")
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path)!r} + '/ran-{name}', 'w')\nraise SystemExit(99)\n")
    return folder


def traces(tmp_path):
    return sorted(path.name for path in tmp_path.glob("ran-*"))


def run(arguments, folder, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )


@pytest.mark.parametrize("safe_path", ["1", ""], ids=["PYTHONSAFEPATH", "as in Python 3.10"])
def test_a_job_of_the_panel(tmp_path, trapped, tiny_models, safe_path):
    """The panel starts jobs in this way; paths start from the application's working folder."""
    words = ["deform", "scan.tif", "-o", "out", "--model", tiny_models[2], "--level", 3, "--steps", 1]
    paths = os.pathsep.join([str(REPOSITORY), "", "."])
    more = {"DRDM_FOLDER": str(trapped), "PYTHONSAFEPATH": safe_path, "PYTHONPATH": paths}
    ended = run([*START, *words], REPOSITORY / "DRDMLib", **more)
    assert ended.returncode == 0, ended.stderr
    assert (trapped / "out" / "scan_000_image.nii.gz").is_file()
    assert traces(tmp_path) == []


@pytest.mark.parametrize("start", [START, ["-m", "DRDMLib"], ["-m", "DRDMLib.probe"]], ids=["start", "-m", "probe"])
def test_started_in_a_folder_with_such_files(tmp_path, trapped, start):
    (trapped / "runpy.py").unlink()
    words = [] if start[-1].endswith("probe") else ["models"]
    ended = run([*start, *words], trapped)
    assert ended.returncode == 0, ended.stderr
    assert traces(tmp_path) == []


def test_a_source_tree_runs_without_being_installed(tmp_path):
    """There the working folder is needed, but comes after the libraries."""
    ended = run(["-m", "DRDMLib", "models"], REPOSITORY, PYTHONPATH="")
    assert ended.returncode == 0 and "general-3d" in ended.stdout, ended.stderr


def test_programs_are_not_looked_for_in_the_working_folder(tmp_path, monkeypatch):
    names = ["nvidia-smi", "nvidia-smi.exe"]
    for folder in (tmp_path / "here", tmp_path / "path"):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "here"]))
    assert programs.find_program("nvidia-smi") is None
    monkeypatch.setenv("PATH", os.pathsep.join([".", str(tmp_path / "path")]))
    found = programs.find_program("nvidia-smi")
    assert found is not None and Path(found).parent == tmp_path / "path"


def test_only_a_python_runs_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert programs.python_program() == sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "SlicerApp-real"))
    assert programs.python_program() is None
