"""A process that stays, ``drdm serve``: short commands need not import PyTorch each time.

It is started when it is first needed, and ends by itself after some idle minutes: only the end of a process gives all
of its memory back to the system, that of a GPU and of PyTorch itself included. It also ends with the application, as
every job does, and is started again after a crash, and after a change of PyTorch's installation or of the environment
variables.

It runs one command at a time. A job that starts meanwhile gets a process of its own, as a long one does; unless the
running job is nearly done, then it waits for that one.
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
    """The process, and which commands it runs or has to run.

    Attributes:
        process: the running or last process; ``None`` before the first one.
    """

    def __init__(self) -> None:
        self.process: DrdmProcess | None = None
        self._startedWith: Any = None
        # The commands that have not ended, in their order, and their unread events by the number of the request.
        self._users: list[WorkerProcess] = []
        self._events: dict[int, list[str]] = {}
        self._numbers = itertools.count(1)

    @property
    def busy(self) -> bool:
        """Whether it runs a command that is not nearly done."""
        return any(not user.nearlyDone for user in self._users)

    @property
    def available(self) -> bool:
        """Whether a command that is sent now is run soon; not if the process would have to be replaced first."""
        if self.busy:
            return False
        process = self.process
        return not self._users or process is None or process.ended or self._startedWith == _state()

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
        self._users.append(user)
        self._events[number] = []
        return self.process, number

    def poll(self, process: DrdmProcess, number: int) -> tuple[list[str], int | None]:
        """Return the new events of a request, and the exit status of its process once that has ended."""
        lines, ended = process.poll()
        for line in lines:
            # Those of a canceled request may still arrive.
            events = self._events.get(_numberOf(line))
            if events is not None:
                events.append(line)
        own, self._events[number] = self._events.get(number, []), []
        return own, ended

    def isShared(self, user: WorkerProcess) -> bool:
        """Whether other commands are before or after that of ``user``."""
        return user in self._users and len(self._users) > 1

    def release(self, user: WorkerProcess, number: int) -> None:
        """Note that a command of ``user`` has ended."""
        self._users = [one for one in self._users if one is not user]
        self._events.pop(number, None)

    def end(self) -> None:
        """End the process; a command that still runs is killed."""
        process, users = self.process, self._users
        self.process, self._users = None, []
        if process is None:
            return
        if users:
            process.kill()
        else:
            process.terminate()

    def kill(self) -> None:
        """Kill the process, for example because its files are to be replaced."""
        if self.process is not None:
            self.process.kill()
        self.process, self._users = None, []

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


def _numberOf(line: str) -> int:
    """The number of the request that an event belongs to; 0 for none."""
    try:
        return int(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return 0


sharedWorker = Worker()


class WorkerProcess:
    """The process of a job (see ``ProcessProtocol``): the worker, or one of its own while the worker is busy.

    Attributes:
        nearlyDone: whether a command that follows may wait for this one.
    """

    nearlyDone = False

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker or sharedWorker
        self._process: DrdmProcess | None = None
        self._arguments: list[str] = []
        # None: the process runs only this command.
        self._number: int | None = None
        self._firstError = 0
        self._status: int | None = None
        self._begun = False
        # Whether it waits for another command; the end of the process is not its fault then.
        self._waits = False
        self._stopping = False
        self._result: int | None = None

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments.

        Raises:
            OSError: Python cannot be started.
        """
        self._arguments = arguments
        if not self._worker.available:
            self._process = DrdmProcess()
            self._process.start(arguments)
        else:
            self._process, self._number = self._worker.send(self, arguments)
            self._waits = self._worker.isShared(self)
            self._firstError = len(self._process.errorLines)

    def poll(self) -> tuple[list[str], int | None]:
        """Return new events, and the exit status once the command or the process has ended and all is read."""
        if self._process is None or self._result is not None:
            return [], self._result
        lines, self._result = self._poll(self._process)
        return lines, self._result

    def _poll(self, process: DrdmProcess) -> tuple[list[str], int | None]:
        if self._number is None:
            return process.poll()
        lines, ended = self._worker.poll(process, self._number)
        for line in lines:
            self._begun = True
            event = json.loads(line)
            if event.get("event") == "end":
                self._status = int(event["status"])
        if self._status is not None and (ended is not None or self._hasAllErrors()):
            self._worker.release(self, self._number)
            return lines, self._status
        if ended is None:
            return lines, None
        self._worker.release(self, self._number)
        if not self._begun and not self._stopping and (ended == 0 or self._waits):
            # It has ended before it read the request: it was idle, or the command before has crashed.
            self._number = None
            self.start(self._arguments)
            return [], None
        return lines, ended

    def _hasAllErrors(self) -> bool:
        """Whether all of standard error has arrived; it is read by another thread than the events."""
        assert self._process is not None
        last = self._lastError
        return any(line.strip() == last for line in self._process.errorLines[self._firstError :])

    @property
    def _lastError(self) -> bytes:
        return _END_OF_REQUEST + str(self._number).encode()

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
        if self.nearlyDone or (self._worker.isShared(self) and not self._begun):
            # It need not be waited for: nothing is left to clean up, or it has not begun.
            self._worker.release(self, self._number)
            return
        latest = time.monotonic() + CANCEL_SECONDS
        while self.poll()[1] is None:
            if time.monotonic() > latest:
                self._process.kill()
                self._worker.release(self, self._number)
                return
            time.sleep(0.005)

    @property
    def errors(self) -> str:
        """Standard error of the command so far."""
        own: list[bytes] = []
        for line in [] if self._process is None else self._process.errorLines[self._firstError :]:
            if line.strip() == self._lastError:
                break
            # What is before the end of another command belongs to that one.
            if line.startswith(_END_OF_REQUEST):
                own = []
            else:
                own.append(line)
        return b"".join(own).decode("utf-8", "replace")
