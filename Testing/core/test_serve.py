"""``drdm serve``: one process that runs many commands, with the same results as one process for each."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading

import pytest
import SimpleITK as sitk
from command_helpers import boxes, run_process, scene, start_process, write

from DRDMLib.models import catalogue

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


class Served:
    """A process of ``drdm serve`` with what it has answered."""

    def __init__(self, *options, code=None, **variables):
        arguments = options if code else ("serve", *options)
        self.process = start_process(*arguments, code=code, stdin=True, **variables)
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def send(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def ask(self, number, *arguments, **more):
        self.send(json.dumps({"id": number, "arguments": [str(one) for one in arguments], **more}))

    def until(self, kind, number):
        """The events up to the first one of a kind that belongs to a request; all belong to it."""
        events = []
        while not events or events[-1]["event"] != kind:
            event = self._lines.get(timeout=300)
            assert event is not None, "the process has ended"
            assert event["id"] == number, event
            events.append(event)
        return events

    def close(self):
        """Close standard input, and return the exit status and standard error."""
        self.process.stdin.close()
        status = self.process.wait()
        return status


@pytest.fixture
def serve():
    """Start servers; those that are left are killed."""
    started = []

    def start(*options, **variables):
        started.append(Served(*options, **variables))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()


def contents(folder):
    """The files of a folder, without the times that reports and records have."""

    def timeless(value):
        if isinstance(value, dict):
            kept = {key: one for key, one in value.items() if key not in ("seconds", "created", "command_line")}
            return {key: timeless(one) for key, one in kept.items()}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith((".png", ".html", ".lock", ".jsonl")):
            data = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = timeless(json.loads(data)) if path.suffix == ".json" else data
    return found


def dataset(folder):
    image = scene((20, 18, 16))
    write(image, folder / "images" / "s.nii.gz")
    write(boxes(image), folder / "labels" / "s.nii.gz")
    return folder


def test_the_same_files_as_by_separate_processes(serve, tmp_path, tiny_models):
    image = scene()
    scan, label = write(image, tmp_path / "scan ä.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")
    scans = dataset(tmp_path / "scans")
    quick = ["--model", tiny_models[3], "--steps", "2", "--seed", "3"]
    commands = {
        "deform": ["deform", scan, "--label", label, "--level", "8", "--count", "2", "--no-picture", *quick],
        "again": ["deform", scan, "--level", "12", "--only-field", *quick],
        "augment": ["augment", scans, "--levels", "8", "--copies", "1", "--no-quality", *quick],
        "pairs": ["synthesize", scans, "--levels", "16:8", "--copies", "1", "--no-quality", *quick],
    }
    (tmp_path / "cold").mkdir()
    (tmp_path / "served").mkdir()
    server = serve()
    # All are sent at once; they are answered one after the other.
    for number, (name, arguments) in enumerate(commands.items()):
        server.ask(number, *arguments, "-o", name, folder=str(tmp_path / "served"))
    for number, (name, arguments) in enumerate(commands.items()):
        events = server.until("end", number)
        assert events[-1] == {"event": "end", "id": number, "status": 0}, events
        cold = run_process(*arguments, "-o", tmp_path / "cold" / name, "--progress", "json")
        assert cold.returncode == 0, cold.stderr
        # How often threads report their progress is not the same in every run.
        theirs = [json.loads(line)["event"] for line in cold.stdout.splitlines()]
        assert sorted({event["event"] for event in events}) == sorted(set(theirs))
        assert [event["text"] for event in events if event["event"] == "warning"] == [
            json.loads(line)["text"] for line in cold.stdout.splitlines() if '"warning"' in line
        ]
        made = contents(tmp_path / "served" / name)
        assert len(made) > 1 and made == contents(tmp_path / "cold" / name)
    assert server.close() == 0


def test_errors_end_neither_the_server_nor_other_requests(serve, tmp_path, scan, tiny_models):
    server = serve()
    for line in ("{", "[1]", '{"arguments": ["fit"]}', '{"id": {}, "arguments": []}'):
        server.send(line)
        error, _end = server.until("end", None)
        assert error["event"] == "error" and "not a request" in error["text"]
    wrong = {
        "one": (["deform", tmp_path / "none.nii", "-o", tmp_path / "out"], "There is no image"),
        "two": (["deform", "--levl", "3"], "required"),
        "three": (["train", scan, "-o", tmp_path / "out"], "not 'train'"),
        "four": (["serve"], "not 'serve'"),
        "five": (["fit", "--help"], "help"),
    }
    for number, (arguments, says) in wrong.items():
        server.ask(number, *arguments)
        events = server.until("end", number)
        assert [event["event"] for event in events] == ["error", "end"] and events[-1]["status"] == 2
        assert says in events[0]["text"] and "\n" not in events[0]["text"]
    server.send('{"id": 7, "arguments": "fit"}')
    assert server.until("end", 7)[-1]["status"] == 2
    server.ask(8, "fit", scan, folder=str(tmp_path / "nowhere"))
    assert "folder" in server.until("end", 8)[0]["text"]
    server.ask(9, "fit", scan, "--model", tiny_models[3])
    events = server.until("end", 9)
    assert [event["event"] for event in events] == ["item", "end"] and events[-1]["status"] == 0
    assert server.close() == 0


NOISY = """
import os, sys
from DRDMLib import cli
import DRDMLib.cli.fit as commands
def fit(options, reporter):
    print("from Python")
    os.write(1, b"from a library\\n")
    print(os.getpid(), file=sys.stderr, flush=True)
    reporter.item(rest=sys.stdin.read())
    if options.scans == ["bad"]:
        1 / 0
commands.fit = fit
sys.exit(cli.main(["serve"]))
"""


def test_nothing_else_is_written_between_the_events(serve):
    process = start_process(code=NOISY, stdin=True)
    process.stdin.write('{"id": 1, "arguments": ["fit", "bad"]}\n{"id": 2, "arguments": ["fit", "good"]}\n')
    output, errors = process.communicate(timeout=300)
    events = [json.loads(line) for line in output.splitlines()]
    assert [(one["event"], one["id"]) for one in events] == [
        ("item", 1),
        ("error", 1),
        ("end", 1),
        ("item", 2),
        ("end", 2),
    ]
    # A command cannot read the requests.
    assert events[0]["rest"] == "" and [one["status"] for one in events if "status" in one] == [1, 0]
    first, second = errors.split("drdm serve: end of request 1\n")
    assert "ZeroDivisionError" in first and "from a library" in first and "from Python" in first
    assert second.endswith("drdm serve: end of request 2\n") and "ZeroDivisionError" not in second
    # One process, whose imports are those of the first request.
    assert first.split("\n", 1)[0].isdigit() or str(process.pid) in first
    assert str(process.pid) in first and str(process.pid) in second


# The figures of a version take until a file appears beside its folder.
SLOW_FIGURES = """
import sys, time
from pathlib import Path
from DRDMLib import cli, output
compute = output.report_entry
def slow(deformation, files, folder):
    while not Path(f"{folder}.go").exists():
        time.sleep(0.005)
    return compute(deformation, files, folder)
output.report_entry = slow
sys.exit(cli.main(["serve"]))
"""


def fields(scan, out, model, seed=0):
    quick = ["--model", model, "--level", "8", "--steps", "1", "--seed", str(seed)]
    return ["deform", scan, "-o", out, "--only-field", "--uncompressed", *quick]


def test_later_requests_do_not_wait_for_figures(serve, tmp_path, scan, tiny_models):
    server = serve(code=SLOW_FIGURES)
    out = [tmp_path / str(number) for number in range(5)]
    for number in range(3):
        server.ask(number, *fields(scan, out[number].name, tiny_models[3], number), folder=str(tmp_path), yields=True)
        assert server.until("version", number)[-1]["certified_invertible"] is True
    # A request with a mistake, and one without figures.
    server.ask("wrong", "deform", tmp_path / "none.nii", "-o", tmp_path / "wrong", folder=str(scan.parent))
    assert server.until("end", "wrong")[-1]["status"] == 2
    server.ask("fit", "fit", scan, "--model", tiny_models[3])
    assert server.until("end", "fit")[-1]["status"] == 0
    server.send('{"cancel": 0}')
    # So many wait that the next one waits for the fourth.
    server.ask(3, *fields(scan, out[3], tiny_models[3], 3), yields=True)
    server.until("version", 3)
    server.ask(4, *fields(scan, out[4], tiny_models[3], 4), yields=True)
    (tmp_path / "4.go").touch()
    (tmp_path / "3.go").touch()
    assert [one["event"] for one in server.until("end", 3)] == ["item", "message", "end"]
    assert server.until("end", 4)[-1]["status"] == 0
    # They end in the reverse order; the one that was canceled meanwhile ends without its figures.
    (tmp_path / "1.go").touch()
    (tmp_path / "2.go").touch()
    assert [one["event"] for one in server.until("end", 2)] == ["item", "message", "end"]
    assert server.until("end", 1)[-1]["status"] == 0
    assert server.until("end", 0)[-1] == {"event": "end", "id": 0, "status": 130}
    assert not (out[0] / "report.json").exists()
    for number in range(1, 5):
        cold = tmp_path / f"cold{number}"
        assert run_process(*fields(scan, cold, tiny_models[3], number)).returncode == 0
        assert contents(out[number]) == contents(cold)
    assert server.close() == 0


def test_the_end_stops_all_that_wait(serve, tmp_path, scan, tiny_models):
    server = serve(code=SLOW_FIGURES, DRDM_END_OF_INPUT="stop")
    for number in range(2):
        server.ask(number, *fields(scan, tmp_path / str(number), tiny_models[3]), yields=True)
        server.until("version", number)
    server.process.stdin.close()
    assert server.until("end", 1)[-1]["status"] == 130
    assert server.until("end", 0)[-1]["status"] == 130
    assert server.process.wait() == 130
    for number in range(2):
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["scan_000_field.nii.gz"]


def many(scan, out, model):
    return ["deform", scan, "-o", out, "--model", model, "--level", "4", "--steps", "1", "--count", "5000"]


def check_cleaned_up(folder):
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for item in report["items"]:
        assert sitk.ReadImage(str(folder / item["image"])).GetSize()


def test_cancel_ends_one_request(serve, tmp_path, scan, tiny_models):
    server = serve()
    server.ask("long", *many(scan, tmp_path / "out", tiny_models[3]), "--no-picture")
    server.until("item", "long")
    server.ask("waits", "fit", scan)
    server.send('{"cancel": "waits"}')
    server.ask("next", "fit", scan, "--model", tiny_models[3])
    server.send('{"cancel": "never asked"}')
    server.send('{"cancel": ["no name"]}')
    server.send('{"cancel": "long"}')
    events = server.until("end", "long")
    assert events[-1]["status"] == 130 and "Stopped" in events[-2]["text"]
    check_cleaned_up(tmp_path / "out")
    assert server.until("end", "waits") == [{"event": "end", "id": "waits", "status": 130}]
    assert server.until("end", "next")[-1]["status"] == 0
    # The folder is free again.
    again = ["deform", scan, "-o", tmp_path / "other", "--model", tiny_models[3], "--level", "4", "--steps", "1"]
    server.ask("again", *again, "--no-picture")
    assert server.until("end", "again")[-1]["status"] == 0
    assert server.close() == 0


def test_the_end_of_standard_input_stops_the_request(serve, tmp_path, scan, tiny_models):
    server = serve(DRDM_END_OF_INPUT="stop")
    server.ask(1, *many(scan, tmp_path / "out", tiny_models[3]), "--no-picture")
    server.until("item", 1)
    server.ask(2, "fit", scan)
    server.process.stdin.close()
    assert server.until("end", 1)[-1]["status"] == 130
    assert server.process.wait() == 130
    check_cleaned_up(tmp_path / "out")


def test_an_idle_server_ends_with_its_input(serve):
    server = serve(DRDM_END_OF_INPUT="stop")
    assert server.close() in (0, 130)


@posix
def test_a_signal_ends_the_server(serve, tmp_path, scan, tiny_models):
    server = serve()
    server.ask(1, *many(scan, tmp_path / "out", tiny_models[3]), "--no-picture")
    server.until("item", 1)
    server.process.send_signal(signal.SIGTERM)
    assert server.until("end", 1)[-1]["status"] == 130
    assert server.process.wait() == 130
    check_cleaned_up(tmp_path / "out")


def test_it_ends_when_it_is_idle(serve, scan, tiny_models):
    server = serve("--idle-minutes", "0.01")
    server.ask(1, "fit", scan, "--model", tiny_models[3])
    assert server.until("end", 1)[-1]["status"] == 0
    assert server.process.wait() == 0


def test_files_that_change_between_requests_are_read_again(serve, tmp_path, tiny_models):
    scan = tmp_path / "scan.nrrd"
    quick = ["--model", tiny_models[3], "--level", "8", "--steps", "1", "--no-picture"]
    server = serve()
    for number, size in enumerate([(20, 18, 16), (16, 22, 18)]):
        write(scene(size), scan)
        server.ask(number, "deform", scan, "-o", tmp_path / f"out{number}", *quick)
        assert server.until("end", number)[-1]["status"] == 0
        made = sitk.ReadImage(str(tmp_path / f"out{number}" / "scan_000_image.nii.gz"))
        assert made.GetSize() == size


def test_a_model_is_kept_until_its_file_changes(tmp_path, tiny_models, monkeypatch):
    monkeypatch.setattr(catalogue, "_KEPT", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_models[3].read_bytes())
    assert catalogue.load_model(path, "cpu") is not catalogue.load_model(path, "cpu")
    catalogue.keep_models()
    kept = catalogue.load_model(path, "cpu")
    assert catalogue.load_model(path, "cpu") is kept
    path.write_bytes(tiny_models[2].read_bytes())
    assert catalogue.load_model(path, "cpu").ndim == 2
    for number in range(5):
        other = tmp_path / f"{number}.safetensors"
        other.write_bytes(tiny_models[3].read_bytes())
        catalogue.load_model(other, "cpu")
    assert len(catalogue._KEPT) == 4
