"""Runs that are killed, run out of disk space, or are shared by processes: they end with the same files."""

import os
import subprocess
import sys

import pytest
from command_helpers import environment, run_process, scene, write
from production_helpers import LEVELS, make, records_of, report_of, result, settings_for, write_cases
from warm_processes import AVAILABLE, START, write_launcher

from DRDMLib.errors import OutputError, SettingError
from DRDMLib.io.datasets import Case
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, make_plan
from DRDMLib.runtime.distributed import ProcessInfo, current_process

# The process kills itself at its N-th change in the folder: open for writing, rename, remove, or make a folder.
KILLED = """
import os, signal, sys
folder, left = sys.argv.pop(1), int(sys.argv.pop(1))
def watch(event, arguments):
    global left
    opened = event == "open" and arguments[1] not in ("r", "rb")
    if (opened or event in ("os.rename", "os.mkdir", "os.remove")) and str(arguments[0]).startswith(folder):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
from DRDMLib import cli
sys.addaudithook(watch)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("name", "levels", "kills"), [("augment", "8", (1, 3, 25, 40)), ("synthesize", "8:4", (7, 31))]
)
def test_a_run_killed_several_times_ends_with_the_same_files(name, levels, kills, tmp_path, tiny_models):
    data = write_cases(tmp_path / "Daten ä", size=(18, 16, 14))
    whole, broken = tmp_path / "whole" / "set", tmp_path / "broken" / "set"
    options = ["--levels", levels, "--steps", "1", "--max-folded", "1", "--model", tiny_models[3], "--device", "cpu"]
    assert run_process(name, data, "-o", whole, *options).returncode == 0
    for changes in kills:
        killed = run_process(broken, changes, name, data, "-o", broken, *options, "--resume", code=KILLED)
        assert killed.returncode != 0 and "error in DRDM" not in killed.stderr, killed.stderr
        for path in broken.rglob("*.nii.gz"):
            # Files with a final name are complete.
            assert path.name.startswith(".") or path.read_bytes() == (whole / path.relative_to(broken)).read_bytes()
    ended = run_process(name, data, "-o", broken, *options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert result(broken) == result(whole)
    assert not [p.name for p in broken.rglob(".*")]


@pytest.mark.parametrize("command_name", [AUGMENT, SYNTHESIZE])
def test_any_number_of_processes_makes_the_same_files(command_name, tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a", "b", "c"), size=(18, 16, 14))
    (data / "images" / "c.nii.gz").write_text("no image")
    how = {"levels": LEVELS[command_name][:1], "copies": 2}
    make(data, tmp_path / "1" / "set", tiny_models[3], command_name, **how)
    for world in (2, 5) if command_name == AUGMENT else (3,):
        folder = tmp_path / str(world) / "set"
        complete = []
        # The last process first, because the order does not matter.
        for rank in reversed(range(world)):
            run, _ = make(data, folder, tiny_models[3], command_name, process=ProcessInfo(rank, world), **how)
            complete.append(run.complete)
        assert complete == [False] * (world - 1) + [True]
        assert result(folder) == result(tmp_path / "1" / "set")


@pytest.mark.parametrize("start", ["quick", pytest.param("new", marks=pytest.mark.long)])
def test_torchrun_shares_the_work(tmp_path, tiny_models, start):
    """Two processes of torchrun write to one folder at the same time, without the option --share.

    Torchrun starts them anew, as the documentation says, or, more quickly, by the imitation of PythonSlicer, which
    passes on all that torchrun gives them.
    """
    data = write_cases(tmp_path / "data", size=(18, 16, 14))
    options = ["--levels", "40", "12", "--steps", "1", "--max-folded", "1"]
    options += ["--model", tiny_models[3], "--device", "cpu"]
    together = tmp_path / "together" / "set"
    (tmp_path / "launcher").mkdir()
    quick = write_launcher(tmp_path / "launcher") if start == "quick" and AVAILABLE else {}
    program = ["--no-python", tmp_path / "launcher" / "PythonSlicer", START, "DRDMLib"] if quick else ["-m", "DRDMLib"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [str(word) for word in (*torchrun, *program, "augment", data, "-o", together, *options)],
        capture_output=True,
        encoding="utf-8",
        env=environment() | quick,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert run_process("augment", data, "-o", tmp_path / "alone" / "set", *options).returncode == 0
    assert result(together) == result(tmp_path / "alone" / "set")
    assert sorted(p.name for p in (together / "logs").iterdir()) == ["001-of-002.jsonl", "002-of-002.jsonl"]


def test_shares_have_equal_costs_and_contain_all_tasks():
    cases = [Case(f"case{k}", None) for k in range(30)]
    plan = make_plan(settings_for(AUGMENT, levels=((79,), (5,)), copies=2, steps=None), cases)
    shares = [plan.share(ProcessInfo(rank, 8)) for rank in range(8)]
    assert sorted(task.number for share in shares for task in share) == [task.number for task in plan.tasks]
    costs = [sum(level + 1 for task in share for level in task.levels) for share in shares]
    assert max(costs) < 1.15 * min(costs)
    fewer = make_plan(settings_for(AUGMENT, levels=((79,), (5,)), copies=2, steps=None), cases[7:8])
    assert {t.name: plan.seed(t, 0) for t in plan.samples if t.case == 7} == {
        t.name: fewer.seed(t, 0) for t in fewer.samples
    }
    assert len({plan.seed(task, attempt) for task in plan.samples for attempt in (0, 1)}) == 2 * len(plan.samples)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"},
            ProcessInfo(3, 4, 1, 2),
        ),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, ProcessInfo(5, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, ProcessInfo()),
        ({}, ProcessInfo()),
    ],
)
def test_the_process_is_read_from_the_environment(variables, expected, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert current_process() == expected
    assert current_process((2, 3)) == ProcessInfo(1, 3, int(variables.get("LOCAL_RANK", 0)))


def test_an_invalid_environment_is_reported(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SettingError, match="process 2 of 2"):
        current_process()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(SettingError, match="whole numbers"):
        current_process()


def test_a_folder_in_use_is_refused(tmp_path, tiny_models):
    """While a run is active, the same share and shares of another number of processes are refused."""
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    refused = []

    from production_helpers import RecordingReporter

    from DRDMLib.production.run import RunRequest, produce

    class Intruder(RecordingReporter):
        def item(self, **values):
            for process in (ProcessInfo(), ProcessInfo(0, 2)):
                with pytest.raises(SettingError, match="Another run is writing") as raised:
                    make(data, folder, tiny_models[3], process=process, resume=True)
                refused.append(str(raised.value))

    request = RunRequest(data, folder, model=str(tiny_models[3]), device="cpu")
    produce(request, settings_for(AUGMENT), Intruder())
    assert len(refused) == 8
    assert report_of(folder)["failures"] == []


# The other image lies on another grid, so that its label is resampled before the digests are compared.
@pytest.mark.filterwarnings("ignore::DRDMLib.errors.FallbackWarning")
def test_a_changed_source_is_refused(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    (folder / "records" / "a_t40_000.json").unlink()
    kept = (data / "images" / "a.nii.gz").read_bytes()
    write(scene((18, 16, 15)), data / "images" / "a.nii.gz")
    run, _ = make(data, folder, tiny_models[3], resume=True)
    assert len(run.failures()) == 1 and "changed since the run began" in run.failures()[0]
    (data / "images" / "a.nii.gz").write_bytes(kept)
    # A failed case is tried again.
    run, _ = make(data, folder, tiny_models[3], resume=True)
    assert not run.failures() and result(folder) == before


def test_missing_files_are_made_again(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    (folder / "labelsTr" / "a_t40_000.nii.gz").unlink()
    (folder / "records" / "b_t12_000.json").write_text('{"name": "b_t12', encoding="utf-8")
    (folder / "dataset.json").unlink()
    _, reporter = make(data, folder, tiny_models[3], resume=True)
    assert sorted(item["name"] for item in reporter.items) == ["a_t40_000", "b_t12_000"]
    assert result(folder) == before


def test_another_configuration_is_refused(tmp_path, tiny_models, tiny_model_2d_path):
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    others = [{"seed": 1}, {"steps": 2}, {"levels": ((40,),)}, {"quality": False}, {"command": SYNTHESIZE}]
    for change in others:
        with pytest.raises(SettingError, match="made with other"):
            make(data, folder, tiny_models[3], **change, resume=True)
    with pytest.raises(SettingError, match="already contains a run"):
        make(data, folder, tiny_models[3])
    write_cases(data, ("c",), size=(18, 16, 14))
    with pytest.raises(SettingError, match="cases"):
        make(data, folder, tiny_models[3], resume=True)
    with pytest.raises(SettingError, match="cases"):
        # Several processes join a run without --resume, but only one with the same settings.
        make(data, folder, tiny_models[3], process=ProcessInfo(0, 2))
    assert result(folder) == before and not list(folder.glob(".drdm*"))


# Limits the size of files, as if the disk were full.
FULL_DISK = """
import resource, signal, sys
from DRDMLib import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_run_is_resumed_after_a_full_disk(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", size=(18, 16, 14))
    folder = tmp_path / "broken" / "set"
    options = ["--levels", "40:20", "--steps", "1", "--max-folded", "1", "--model", tiny_models[3], "--device", "cpu"]
    arguments = ["synthesize", data, "-o", folder, *options]
    full = run_process(20000, *arguments, code=FULL_DISK)
    assert full.returncode == 2 and "disk is full" in full.stderr and len(full.stderr.splitlines()) == 1
    assert not list(folder.rglob("*.partial"))
    assert all(record["status"] == "done" for record in records_of(folder).values())
    assert run_process(*arguments, "--resume").returncode == 0
    arguments[3] = tmp_path / "whole" / "set"
    assert run_process(*arguments).returncode == 0
    assert result(folder) == result(tmp_path / "whole" / "set")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a folder that cannot be written to")
def test_a_folder_that_becomes_read_only(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    (folder / "records" / "a_t40_000.json").unlink()
    (folder / "records").chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            make(data, folder, tiny_models[3], resume=True)
    finally:
        (folder / "records").chmod(0o700)
    make(data, folder, tiny_models[3], resume=True)


def test_a_folder_in_the_place_of_a_record(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", size=(18, 16, 14)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    path = folder / "records" / "a_t40_000.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        make(data, folder, tiny_models[3], resume=True)
    path.rmdir()
    make(data, folder, tiny_models[3], resume=True)
    assert result(folder) == before
