"""Locks on file systems that have none, as some network shares and containers; with real processes."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from command_helpers import start_process

from DRDMLib.errors import OutputError, SettingError
from DRDMLib.io import files, locks
from DRDMLib.production.run_folder import is_active, locked_folder
from DRDMLib.runtime.processes import is_running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks on all file systems")
FAILURES = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]
# Holds the lock of a folder until its standard input ends.
HOLDER = """
import errno, fcntl, sys
from pathlib import Path
from DRDMLib.production.run_folder import locked_folder
number = int(sys.argv[2])
def failing(*_):
    raise OSError(number, "no locks")
if number:
    fcntl.flock = failing
with locked_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that locks the folder; ends with the test."""
    started = []

    def start(number=0):
        process = start_process(tmp_path / "out", number, code=HOLDER, stdin=True)
        started.append(process)
        assert process.stdout.readline() == "locked\n", process.communicate()[1]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_locks(monkeypatch):
    def fail(number):
        def failing(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", failing)

    return fail


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
def test_two_processes_without_locks(tmp_path, holder, no_locks, number):
    process, folder = holder(number), tmp_path / "out"
    no_locks(number)
    assert is_active(folder)
    with (
        pytest.raises(SettingError, match=rf"Another run .*\(process {process.pid} on .* since 2\d\d\d-"),
        locked_folder(folder),
    ):
        pass
    process.communicate(timeout=60)
    with locked_folder(folder):
        assert sorted(p.name for p in folder.glob("*.owner"))
    assert not list(folder.iterdir())


def test_the_lock_of_a_killed_process_is_broken(tmp_path, holder, no_locks):
    process, folder = holder(errno.ENOLCK), tmp_path / "out"
    process.kill()
    process.communicate()
    left = {path.name for path in folder.iterdir()}
    assert ".drdm-1-of-1.owner" in left
    no_locks(errno.ENOLCK)
    with locked_folder(folder):
        assert is_active(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"process": 1}])
def test_the_lock_of_another_computer_or_a_running_process_is_kept(tmp_path, holder, no_locks, other):
    process, folder = holder(errno.ENOLCK), tmp_path / "out"
    process.kill()
    process.communicate()
    path = folder / ".drdm-1-of-1.owner"
    values = json.loads(path.read_text()) | {"started": ""} | other
    path.write_text(json.dumps(values))
    no_locks(errno.ENOLCK)
    for _ in range(2):
        named = f"{values['process']} on {values['host'].split()[0]}"
        with pytest.raises(SettingError, match=named), locked_folder(folder):
            pass
    assert json.loads(path.read_text()) == values


def test_the_number_of_a_killed_process_that_is_used_again(tmp_path, no_locks):
    owner = replace(locks.Owner.this(alone=True), started="12345")
    assert owner.has_ended == sys.platform.startswith("linux")
    assert not locks.Owner.this(alone=True).has_ended


def test_a_process_with_locks_and_one_without(tmp_path, holder, no_locks):
    """As where one computer has mounted the share with locks and another one without."""
    folder = tmp_path / "out"
    holder(errno.ENOSYS)
    with pytest.raises(SettingError, match="Another run"), locked_folder(folder):
        pass
    no_locks(errno.ENOSYS)
    with pytest.raises(SettingError, match="Another run"), locked_folder(folder):
        pass


def test_the_owner_of_a_real_lock_is_named_too(tmp_path, holder):
    process = holder()
    with pytest.raises(SettingError, match=rf"process {process.pid} on "), locked_folder(tmp_path / "out"):
        pass
    process.kill()
    process.communicate()
    with locked_folder(tmp_path / "out"):
        pass


def test_the_lock_of_an_earlier_version(tmp_path, holder, no_locks):
    """Its record has the name, the start and the container in one text."""
    process, folder = holder(errno.ENOLCK), tmp_path / "out"
    path = folder / ".drdm-1-of-1.owner"
    values = json.loads(path.read_text())
    assert " " not in values["host"]
    parts = " ".join(part for part in (values["host"], values["boot"], values["container"]) if part)
    old = {key: values[key] for key in ("process", "started", "since", "alone")} | {"host": parts}
    path.write_text(json.dumps(old))
    owner = locks.Owner.read(path)
    assert owner is not None and (owner.host, owner.boot, owner.container, owner.machine) == (
        *(values[key] for key in ("host", "boot", "container")),
        "",
    )
    no_locks(errno.ENOLCK)
    with pytest.raises(SettingError, match=f"process {process.pid} on {values['host']} since"), locked_folder(folder):
        pass
    process.kill()
    process.communicate()
    with locked_folder(folder):
        pass


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        ({}, True),
        ({"machine": ""}, False),
        ({"machine": "other"}, False),
        ({"host": "other"}, False),
        ({"boot": ""}, False),
        ({"container": "pid:[4026532000]"}, False),
    ],
)
def test_the_lock_of_a_process_before_the_computer_was_started_again(monkeypatch, changes, ended):
    """Its number is that of a process that runs now."""
    here = {"host": "a", "boot": "2", "container": "pid:[4026531836]", "machine": "m"}
    monkeypatch.setattr(locks, "_place", lambda: here)
    owner = locks.Owner(**(here | {"boot": "1"} | changes), process=os.getpid())
    assert owner.has_ended == ended


def test_running_processes():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_running(os.getpid()) and is_running(1) and not is_running(ended.pid) and is_running(10**30)


@pytest.mark.parametrize("known", [True, False])
def test_macos_syncs_to_the_disk_itself(tmp_path, monkeypatch, known):
    """There, fsync does not wait for the disk, and network shares do not know the other call."""
    calls = []

    def control(descriptor, number):
        calls.append(number)
        if not known:
            raise OSError(errno.ENOTTY, "unknown")

    monkeypatch.setattr(files, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=control))
    monkeypatch.setattr(files.sys, "platform", "darwin")
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: calls.append("fsync"))
    files.write_text(tmp_path / "a.txt", "text")
    assert calls[: 1 if known else 2] == [51, "fsync"][: 1 if known else 2]
    assert known == ("fsync" not in calls) and (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1, "process": "x"}', '{"host": "a", "process": -1}'])
def test_owners_that_cannot_be_understood(tmp_path, no_locks, text):
    path = tmp_path / ".drdm-1-of-1.owner"
    path.write_text(text)
    assert locks.Owner.read(path) is None
    no_locks(errno.ENOSYS)
    with pytest.raises(SettingError, match="Another run"), locked_folder(tmp_path):
        pass
    os.utime(path, (0, 0))
    with locked_folder(tmp_path):
        pass


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for name in (".drdm.lock", ".drdm-1-of-1.owner"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "thesis.txt")
        if name.endswith("lock"):
            with pytest.raises(OutputError, match="cannot be written"), locked_folder(folder):
                pass
        else:
            with locked_folder(folder):
                pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
