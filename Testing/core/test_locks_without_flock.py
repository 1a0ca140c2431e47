"""Locks on file systems that have none, as some network shares and containers; with real processes."""

import errno
import json
import os
import subprocess
import sys

import pytest
from command_helpers import environment

from DRDMLib.errors import OutputError, SettingError
from DRDMLib.io import locks
from DRDMLib.production.run_folder import is_active, locked_folder

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
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "out"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            encoding="utf-8",
        )
        started.append(process)
        assert process.stdout.readline() == "locked\n", process.stderr.read()
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
    process.communicate("", timeout=60)
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
    owner = locks.Owner(locks._host(), os.getpid(), "12345")
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
