"""Run a command as several processes on this computer, each of which does a share of the work."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DRDMError
from ..runtime.reporter import Reporter
from .standard_input import VARIABLE

# Seconds that a process gets to clean up before it is killed.
_GRACE = 90.0


@dataclass
class _Job:
    """A process, what it has reported so far, and a file with its other output."""

    process: subprocess.Popen[str]
    log: IO[str]
    done: float = 0.0
    total: float = 0.0
    error: str = ""
    status: int | None = None


def run_in_jobs(command_line: Sequence[str], count: int, reporter: Reporter) -> None:
    """Run a command in several processes, and report their progress as that of one.

    Any number of processes makes the same files. When one fails, the others finish their shares. Summaries are left to
    the caller, who can see the shares of all.

    Args:
        command_line: arguments of ``drdm``; ``--jobs`` and ``--progress`` in it are overridden.
        count: number of processes.

    Raises:
        DRDMError: a process failed; the message is that of the first one.
        KeyboardInterrupt: the user stops the run, or a process was stopped.
        RuntimeError: there was an error in DRDM itself, or a process crashed.
    """
    jobs: list[_Job] = []
    lock = threading.Lock()
    with contextlib.ExitStack() as files:
        try:
            for number in range(1, count + 1):
                log = files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
                jobs.append(_Job(_started(command_line, number, count, log), log))
            readers = [threading.Thread(target=_read, args=(job, jobs, reporter, lock), daemon=True) for job in jobs]
            for reader in readers:
                reader.start()
            for reader in readers:
                # In short waits, so that Ctrl-C gets through on Windows, too.
                while reader.is_alive():
                    reader.join(0.2)
        finally:
            _end(jobs)
        for job in jobs:
            if job.status == 2:
                raise DRDMError(job.error)
            if job.status not in (0, 130):
                job.log.seek(0)
                raise RuntimeError(f"A process ended with status {job.status}:\n{job.log.read()}")
    if any(job.status == 130 for job in jobs):
        raise KeyboardInterrupt


def _started(command_line: Sequence[str], number: int, count: int, log: IO[str]) -> subprocess.Popen[str]:
    # As a script, so that no file in the working folder is taken for a library.
    package = Path(__file__).resolve().parents[1]
    share = ["--jobs", "1", "--share", f"{number}/{count}", "--progress", "json"]
    command = [sys.executable, str(package / "start.py"), package.name, *command_line, *share]
    environment = dict(
        os.environ,
        OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // count)),
        LOCAL_RANK=str(number - 1),
        PYTHONIOENCODING="utf-8",
        PYTHONPATH=os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")])),
    )
    environment[VARIABLE] = "stop"
    # A group of its own: Ctrl-C on a terminal reaches only this process, which stops the others.
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    return subprocess.Popen(command, env=environment, encoding="utf-8", **pipes, **group)


def _read(job: _Job, jobs: list[_Job], reporter: Reporter, lock: threading.Lock) -> None:
    """Pass on what a process reports, until it ends."""
    assert job.process.stdout is not None
    for line in job.process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        with lock:
            _note(event, job, jobs, reporter)
    job.process.wait()
    if job.status is None:
        job.status = job.process.returncode or 1


def _note(event: dict[str, Any], job: _Job, jobs: list[_Job], reporter: Reporter) -> None:
    kind = event.pop("event", "")
    if kind == "progress":
        job.done, job.total = event["done"], event["total"]
        reporter.progress(event["task"], sum(one.done for one in jobs), sum(one.total for one in jobs))
    elif kind == "item":
        reporter.item(**event)
    elif kind == "warning":
        reporter.warning(event["text"], event.get("about", ""))
    elif kind == "error":
        job.error = event["text"]
    elif kind == "end":
        job.status = event["status"]


def _end(jobs: list[_Job]) -> None:
    """Ask the processes that still run to stop, and wait for them."""
    for job in jobs:
        with contextlib.suppress(OSError):
            assert job.process.stdin is not None
            job.process.stdin.close()
    for job in jobs:
        try:
            job.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
