"""A process that stays, ``drdm serve``: short commands need not import PyTorch each time.

It is started when it is first needed, and ends by itself after some idle minutes: only the end of a process gives all
of its memory back to the system, that of a GPU and of PyTorch itself included. It also ends with the application, as
every job does, and is started again after a crash, and after a change of PyTorch's installation or of the environment
variables.

It runs one command at a time. A job that starts meanwhile gets a process of its own, as a long one does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from DRDMLib.runtime.probe import site_folders, torch_leftovers
from DRDMLib.runtime.reporter import END_OF_REQUEST

from .job import DrdmProcess, pythonExecutable

IDLE_MINUTES = 5
# The panel waits this long for the end of a canceled command; then the worker is killed.
CANCEL_SECONDS = 0.5
_END_OF_REQUEST = END_OF_REQUEST.encode()


class Worker:
    """The process, and which command it runs.

    Attributes:
        process: the running or last process; ``None`` before the first one.
    """

    def __init__(self) -> None:
        self.process: DrdmProcess | None = None
        self._startedWith: Any = None
        self._user: WorkerProcess | None = None
        self._numbers = itertools.count(1)

    @property
    def busy(self) -> bool:
        """Whether it runs a command."""
        return self._user is not None

    def send(self, user: WorkerProcess, arguments: list[str]) -> tuple[DrdmProcess, int]:
        """Have the process run a command; start it if there is none, or none that is up to date.

        Returns:
            The process, and the number of the request.

        Raises:
            OSError: Python cannot be started.
        """
        number = next(self._numbers)
        request = json.dumps({"id": number, "arguments": arguments, "folder": str(Path.cwd())})
        state = _state()
        if self.process is None or self._startedWith != state or self.process.ended:
            self._restart(state)
        assert self.process is not None
        try:
            self.process.send(request)
        except OSError:
            # It has just ended.
            self._restart(state)
            self.process.send(request)
        self._user = user
        return self.process, number

    def release(self, user: WorkerProcess) -> None:
        """Note that the command of ``user`` has ended."""
        if self._user is user:
            self._user = None

    def end(self) -> None:
        """End the process; a command that still runs is killed."""
        if self.process is None:
            return
        if self.busy:
            self.process.kill()
        else:
            self.process.terminate()
        self.process, self._user = None, None

    def kill(self) -> None:
        """Kill the process, for example because its files are to be replaced."""
        if self.process is not None:
            self.process.kill()
        self.process, self._user = None, None

    def _restart(self, state: Any) -> None:
        self.end()
        process = DrdmProcess()
        process.start(["serve", "--idle-minutes", str(IDLE_MINUTES)])
        self.process, self._startedWith = process, state


def _state() -> Any:
    """What the process must be restarted for: another PyTorch, other environment variables."""
    found = []
    for path in torch_leftovers(site_folders()):
        with contextlib.suppress(OSError):
            found.append((str(path), path.stat().st_mtime_ns))
    return pythonExecutable(), found, dict(os.environ)


sharedWorker = Worker()


class WorkerProcess:
    """The process of a job (see ``ProcessProtocol``): the worker, or one of its own while the worker is busy."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker or sharedWorker
        self._process: DrdmProcess | None = None
        self._arguments: list[str] = []
        # None: the process runs only this command.
        self._number: int | None = None
        self._firstError = 0
        self._status: int | None = None
        self._begun = False
        self._stopping = False
        self._result: int | None = None

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments.

        Raises:
            OSError: Python cannot be started.
        """
        self._arguments = arguments
        if self._worker.busy:
            self._process = DrdmProcess()
            self._process.start(arguments)
        else:
            self._process, self._number = self._worker.send(self, arguments)
            self._firstError = len(self._process.errorLines)

    def poll(self) -> tuple[list[str], int | None]:
        """Return new events, and the exit status once the command or the process has ended and all is read."""
        if self._process is None or self._result is not None:
            return [], self._result
        lines, self._result = self._poll(self._process)
        return lines, self._result

    def _poll(self, process: DrdmProcess) -> tuple[list[str], int | None]:
        lines, ended = process.poll()
        if self._number is None:
            return lines, ended
        own = [line for line in lines if self._isOwn(line)]
        if self._status is not None and (ended is not None or self._hasAllErrors()):
            self._worker.release(self)
            return own, self._status
        if ended is None:
            return own, None
        self._worker.release(self)
        if ended == 0 and not self._begun and not self._stopping:
            # It has ended because it was idle, before it read the request.
            self.start(self._arguments)
            return [], None
        return own, ended

    def _isOwn(self, line: str) -> bool:
        """Whether an event belongs to this command; those of a canceled one may still arrive."""
        try:
            event = json.loads(line)
            own = bool(event["id"] == self._number)
        except (ValueError, KeyError, TypeError):
            return False
        self._begun = self._begun or own
        if own and event.get("event") == "end":
            self._status = int(event["status"])
        return own

    def _hasAllErrors(self) -> bool:
        """Whether all of standard error has arrived; it is read by another thread than the events."""
        assert self._process is not None
        last = _END_OF_REQUEST + str(self._number).encode()
        return any(line.strip() == last for line in self._process.errorLines[self._firstError :])

    def terminate(self) -> None:
        """Ask the command to stop."""
        if self._process is None:
            return
        self._stopping = True
        if self._number is None:
            self._process.terminate()
            return
        with contextlib.suppress(OSError):
            self._process.send(json.dumps({"cancel": self._number}))

    def kill(self) -> None:
        """End the command at once; the worker stays if the command cleans up in time."""
        if self._process is None or self._result is not None:
            return
        if self._number is None:
            self._process.kill()
            return
        self.terminate()
        latest = time.monotonic() + CANCEL_SECONDS
        while self.poll()[1] is None:
            if time.monotonic() > latest:
                self._process.kill()
                self._worker.release(self)
                return
            time.sleep(0.005)

    @property
    def errors(self) -> str:
        """Standard error of the command so far."""
        lines = [] if self._process is None else self._process.errorLines[self._firstError :]
        return b"".join(line for line in lines if not line.startswith(_END_OF_REQUEST)).decode("utf-8", "replace")
