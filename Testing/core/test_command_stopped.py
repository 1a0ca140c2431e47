"""The ``drdm`` command is stopped: by signals, by the end of its input, or killed."""

import gzip
import json
import signal
import subprocess
import sys
import time

import pytest
from command_helpers import PREPARED, array_of, command, environment, names_in, report_of, scene, start_process, write

from DRDMLib.models.model import load_model_file, read_metadata


@pytest.fixture
def start():
    """Start drdm as a process that the test then stops."""
    running = []

    def run(*arguments):
        running.append(start_process(*arguments))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def wait_for(process, event):
    """Read the JSON lines of a process until the first ``event``."""
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    pytest.fail(process.communicate()[1])


def check_files_are_complete(folder):
    for path in folder.glob("*.nii.gz"):
        if not path.name.startswith("."):
            gzip.decompress(path.read_bytes())
            array_of(path)
    report = report_of(folder)
    assert report["items"]
    for item in report["items"]:
        for kind in ("image", "ddf"):
            assert (folder / item[kind]).is_file()


posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@posix
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_stopping_leaves_complete_files_only(start, tmp_path, tiny_models, how):
    scan, out = write(scene((64, 64, 24)), tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", tiny_models[2], "--level", 4, "--count", 5000, "--progress", "json"]
    process = start("deform", scan, "-o", out, *options)
    wait_for(process, "item")
    process.send_signal(getattr(signal, how))
    output, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1 and "stopped" in err.lower(), err
    error, end = map(json.loads, output.splitlines()[-2:])
    assert (error["event"], end) == ("error", {"event": "end", "status": 130})
    assert not [name for name in names_in(out) if name.startswith(".")]
    check_files_are_complete(out)


def test_the_end_of_standard_input_stops_a_run(tmp_path, tiny_models):
    """Through a launcher that passes on no signal, and when the program that started the run has died."""
    scan, out = write(scene((64, 64, 24)), tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", tiny_models[2], "--level", 4, "--count", 5000, "--progress", "json"]
    process = start_process("deform", scan, "-o", out, *options, stdin=True, DRDM_END_OF_INPUT="stop")
    wait_for(process, "item")
    output, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in err.lower()
    assert json.loads(output.splitlines()[-1]) == {"event": "end", "status": 130}
    check_files_are_complete(out)


@posix
def test_a_run_that_does_not_stop_is_killed_with_its_group():
    code = """
import subprocess, sys, time
from DRDMLib.cli import standard_input
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
try:
    standard_input.watch_standard_input(grace_seconds=0.1)
except KeyboardInterrupt:
    pass
while True:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        pass
"""
    process = subprocess.run(
        command(code=code),
        input="",
        capture_output=True,
        encoding="utf-8",
        env=environment() | {"DRDM_END_OF_INPUT": "stop"},
        start_new_session=True,
        timeout=60,
    )
    # Its child, which has the same pipes, has ended too; otherwise run() would wait for it.
    assert process.returncode == -signal.SIGKILL, process.stderr


@posix
def test_killing_leaves_no_incomplete_file_with_a_final_name(start, tmp_path, tiny_models):
    scan = write(scene((96, 96, 48)), tmp_path / "scan.nii.gz")
    for delay in (0.05, 0.4):
        out = tmp_path / f"out{delay}"
        options = ["--model", tiny_models[2], "--level", 2, "--steps", 1, "--count", 5000, "--progress", "json"]
        process = start("deform", scan, "-o", out, *options)
        wait_for(process, "item")
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        check_files_are_complete(out)


@posix
def test_training_can_be_stopped_and_resumed(succeed, tmp_path, no_pictures):
    for k in range(3):
        write(scene((20, 20 + k)), tmp_path / "data" / "images" / f"{k}.nii.gz")
    run = tmp_path / "run"
    options = ["--ndim", 2, "--size", 16, "--width", 8, "--hold-out", 3, "--batch", 1]
    words = ["train", tmp_path / "data", "-o", run, *options]
    process = start_process("", *words, "--minutes", 30, "--progress", "json", code=PREPARED)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["task"] == "train":
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert len(err.splitlines()) == 1, err
    assert not [name for name in names_in(run) if name.startswith(".")]
    assert load_model_file(run / "model.safetensors", "cpu").ndim == 2
    done = read_metadata(run / "model.safetensors").training["steps_done"]
    assert done >= 10

    succeed(*words, "--iterations", done + 2, "--resume")
    assert read_metadata(run / "model.safetensors").training["steps_done"] == done + 2
