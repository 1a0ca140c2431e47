"""``--jobs``: several processes on one computer make the same files, and stop together."""

from __future__ import annotations

import signal
import sys
import time

import pytest
import SimpleITK as sitk
from command_helpers import start_process
from support import smooth_image
from warm_processes import write_launcher


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans ä"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(3):
        image = smooth_image((20, 18, 16), (2.0, 2.0, 2.5), seed=number)
        sitk.WriteImage(image, str(folder / "images" / f"s{number}.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 150, sitk.sitkUInt8), str(folder / "labels" / f"s{number}.nii.gz"))
    return folder


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def arguments(scans, out, model, *more):
    return ["augment", scans, "-o", out, "--model", model, "--levels", "8", "16", "--steps", "1", *more]


@pytest.fixture
def quick_start(tmp_path, monkeypatch):
    """Have this process start others as PythonSlicer does in the module's tests."""
    (tmp_path / "launcher").mkdir()
    for name, value in write_launcher(tmp_path / "launcher").items():
        monkeypatch.setenv(name, value)
    if sys.platform != "win32":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "launcher" / "PythonSlicer"))


def test_several_processes_make_the_same_files(scans, tmp_path, drdm, tiny_models, quick_start):
    one = drdm(*arguments(scans, tmp_path / "one", tiny_models[3]))
    assert one.status == 0, one.err
    two = drdm(*arguments(scans, tmp_path / "two", tiny_models[3], "--jobs", "2"))
    assert two.status == 0, two.err
    made = files(tmp_path / "one")
    assert len(made) == 18 and files(tmp_path / "two") == made
    assert "new versions are in" in two.err
    again = drdm(*arguments(scans, tmp_path / "two", tiny_models[3], "--jobs", "2"))
    assert again.status == 2 and "--resume" in again.err


def test_errors_are_those_of_the_processes(scans, tmp_path, drdm, tiny_models):
    refused = drdm(*arguments(scans, tmp_path / "out", tiny_models[3], "--jobs", "2", "--share", "1/2"))
    assert refused.status == 2 and "leave out --share" in refused.err
    failed = drdm(*arguments(scans, tmp_path / "out", tiny_models[2], "--jobs", "2", "--plane", "axial", "--pose", "7"))
    assert failed.status == 2 and "Pose 7" in failed.err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process")
def test_stopping_ends_all_processes(scans, tmp_path, tiny_models):
    command = arguments(scans, tmp_path / "out", tiny_models[3], "--copies", "400", "--jobs", "2")
    process = start_process(*command, OMP_NUM_THREADS="1")
    records = tmp_path / "out" / "records"
    end = time.monotonic() + 300
    try:
        while not (records.is_dir() and len(list(records.iterdir())) > 3) and time.monotonic() < end:
            time.sleep(0.1)
        # Not SIGINT, which a shell that starts the tests in the background lets its children ignore.
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=200)[1]
    finally:
        process.kill()
    assert process.returncode == 130, errors
    made = len(list(records.iterdir()))
    time.sleep(1.5)
    assert len(list(records.iterdir())) == made < 2400
