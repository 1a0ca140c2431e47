"""Run a ``drdm`` command in a separate process, with its progress and results.

The application stays responsive and can stop the process at any time. Threads read the pipes of the process; ``poll``
collects the lines in the main thread, called by a Qt timer in the panel or by a waiting loop in a script.
``slicer.util.launchConsoleProcess`` (Slicer 5.11) works the same way; Slicer 5.10 only has its blocking form.

Closing the standard input of the process asks it to stop. This also happens when the application crashes, and it works
through PythonSlicer, a launcher that passes on neither signals nor how its child ended; the process itself reports its
end as the event "end".
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.runtime.programs import python_program
from DRDMLib.runtime.waiting import wait_passively

from .process_group import ProcessGroup

# A process that was asked to stop is killed after this time.
STOP_TIMEOUT_SECONDS = 45.0
# Exit statuses of ``drdm``.
INTERNAL_ERROR, INTERRUPTED = 1, 130


class JobState(enum.Enum):
    """State of a job."""

    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass
class Progress:
    """Progress of a running job.

    Attributes:
        task: the current task: "read", "deform", "augment", "synthesize", "train", "download".
        share: 0 to 1.
        secondsLeft: estimated remaining time; ``None`` if not yet known.
        figures: further numbers of the task, such as the loss of a training.
    """

    task: str
    share: float
    secondsLeft: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


class Job:
    """One ``drdm`` command in a separate process. Call ``poll`` regularly, or ``wait``.

    Attributes:
        arguments: the command and its options.
        state: state of the job.
        text: the error message of a failed job, or the last message of a finished one.
        messages: all messages of the command.
        warnings: all its warnings.
        items: the results so far.
        log: file with the output of a job that ended unexpectedly; ``None`` otherwise.
        onProgress, onVersion, onItem, onWarning: called by ``poll`` for each such event of the command; onWarning with
            the sentence, and with what it is about (:mod:`DRDMLib.runtime.reporter`) or an empty text.

    Usage example:
    >>> job = Job(["models", "fetch", "published-cardiac-2d"])
    >>> job.onProgress = lambda progress: print(f"{100 * progress.share:.0f} %")
    >>> job.start()
    >>> job.wait()
    """

    def __init__(self, arguments: Sequence[object], process: ProcessProtocol | None = None) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.process = process or DrdmProcess()
        self.state = JobState.READY
        self.text = ""
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.items: list[dict[str, Any]] = []
        self.log: Path | None = None
        self._endStatus: int | None = None
        self.onProgress: Callable[[Progress], None] = lambda progress: None
        self.onVersion: Callable[[dict[str, Any]], None] = lambda version: None
        self.onItem: Callable[[dict[str, Any]], None] = lambda item: None
        self.onWarning: Callable[[str, str], None] | None = None
        self._finishedCallbacks: list[Callable[[Job], None]] = []
        self._killTime = 0.0

    def onFinished(self, call: Callable[[Job], None]) -> None:
        """Call ``call(job)`` when the job has ended, after the functions added before."""
        self._finishedCallbacks.append(call)

    @property
    def running(self) -> bool:
        """Whether the job has been started and has not ended."""
        return self.state in (JobState.RUNNING, JobState.STOPPING)

    def start(self) -> None:
        """Start the process."""
        self.state = JobState.RUNNING
        try:
            self.process.start([*self.arguments, "--progress", "json"])
        except OSError as error:
            reason = error.strerror or error
            self._finish(
                JobState.FAILED, _("Python could not be started ({reason}); restart Slicer.").format(reason=reason)
            )

    def poll(self) -> JobState:
        """Read the events of the process since the last call; call this in the main thread."""
        if not self.running:
            return self.state
        lines, status = self.process.poll()
        for line in lines:
            self._read(line)
            if not self.running:
                return self.state
        if status is None:
            if self.state is JobState.STOPPING and time.monotonic() > self._killTime:
                self.process.kill()
        else:
            self._end(status)
        return self.state

    def _end(self, status: int) -> None:
        """Finish, given the exit status of the process; what the command itself reports is more reliable."""
        end = self._endStatus
        if (status if end is None else end) == 0:
            self._finish(JobState.DONE, self.messages[-1] if self.messages else "")
        elif self.state is JobState.STOPPING and end in (None, INTERRUPTED):
            self._finish(JobState.CANCELED, "")
        elif self.text and end != INTERNAL_ERROR:
            self._finish(JobState.FAILED, self.text)
        else:
            self.log = self._writeLog(status)
            self._finish(JobState.FAILED, self._failureMessage(status))

    def wait(self, idle: Callable[[], None] | None = None) -> JobState:
        """Wait until the job has ended; ``idle`` is called meanwhile."""
        while self.running:
            self.poll()
            if idle is not None:
                idle()
            time.sleep(0.02)
        return self.state

    def stop(self) -> None:
        """Ask the process to stop (a training saves its state first); it is killed if it takes too long."""
        if self.state is JobState.RUNNING:
            self.state = JobState.STOPPING
            self._killTime = time.monotonic() + STOP_TIMEOUT_SECONDS
            self.process.terminate()

    def cancel(self) -> None:
        """Kill the process; unfinished results are lost."""
        if self.running:
            self.process.kill()
            self._finish(JobState.CANCELED, "")

    def _read(self, line: str) -> None:
        try:
            event = json.loads(line)
            kind = event.pop("event")
        except (ValueError, KeyError, AttributeError, TypeError):
            return
        if kind == "progress":
            done, total = event.pop("done"), event.pop("total")
            progress = Progress(
                event.pop("task"), done / total if total else 0.0, event.pop("seconds_left", None), event
            )
            self.onProgress(progress)
        elif kind == "version":
            self.onVersion(event)
        elif kind == "item":
            self.items.append(event)
            self.onItem(event)
        elif kind == "message":
            self.messages.append(event["text"])
        elif kind == "warning":
            self.warnings.append(event["text"])
            if self.onWarning is not None:
                self.onWarning(event["text"], event.get("about", ""))
        elif kind == "error":
            self.text = event["text"]
        elif kind == "end":
            self._endStatus = int(event["status"])

    def _failureMessage(self, status: int) -> str:
        lines = [line for line in self.process.errors.splitlines() if line.strip()]
        if self._endStatus is None:
            # Nothing could be reported: a crash, or the system has killed the process.
            return _(
                "The computation was ended by the system or crashed (exit status {status}); if the memory may have "
                "been full, close other programs and try again."
            ).format(status=status)
        # The last line is the command's own message, without the reason.
        reason = next((line for line in reversed(lines) if not line.startswith("drdm:")), self.text)
        return _("The computation ended unexpectedly: {reason}").format(reason=reason)

    def _writeLog(self, status: int) -> Path | None:
        """Write a file with the command and its standard error, tracebacks included."""
        try:
            file, name = tempfile.mkstemp(prefix="drdm-", suffix=".log")
            with os.fdopen(file, "w", encoding="utf-8") as log:
                log.write(f"drdm {' '.join(self.arguments)}\n\n{self.process.errors}\nExit status {status}\n")
        except OSError:
            return None
        return Path(name)

    def _finish(self, state: JobState, text: str) -> None:
        self.state, self.text = state, text
        for call in self._finishedCallbacks:
            call(self)


def runToEnd(job: Job) -> Job:
    """Run a job and process the application's events meanwhile.

    Raises:
        DRDMError: it failed.
    """
    job.start()
    app = getattr(slicer, "app", None)
    job.wait(app.processEvents if app is not None else None)
    if job.state is JobState.FAILED:
        raise DRDMError(job.text)
    return job


class ProcessProtocol(Protocol):
    """The process that runs the command of a job; tests use their own.

    Attributes:
        nearlyDone: set once the rest of the command takes little time, so that a command that follows may wait for it.
    """

    nearlyDone: bool

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments."""

    def poll(self) -> tuple[list[str], int | None]:
        """Return new lines of standard output, and the exit status once the process has ended and all is read."""

    def terminate(self) -> None:
        """Ask the process to stop."""

    def kill(self) -> None:
        """Kill the process."""

    @property
    def errors(self) -> str:
        """Standard error so far."""


def pythonExecutable() -> str:
    """The Python that runs ``drdm``: PythonSlicer inside Slicer, where it is on the PATH, otherwise this Python."""
    return python_program() or sys.executable


def libraryFolder() -> Path:
    """The folder that contains DRDMLib."""
    import DRDMLib

    return Path(DRDMLib.__file__).resolve().parents[1]


class DrdmProcess:
    """``python -m DRDMLib`` in a separate process with the same packages as this one.

    It is started by ``DRDMLib/start.py`` in that file's folder, so that no file in the application's working folder is
    taken for a library. The paths in the arguments start from that working folder nevertheless.
    """

    nearlyDone = False

    def __init__(self, module: str = "DRDMLib") -> None:
        self._module = module
        self._group: ProcessGroup | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._errors: list[bytes] = []
        self._readers: list[threading.Thread] = []

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments.

        Raises:
            OSError: Python cannot be started.
        """
        environment = dict(os.environ)
        path = [str(libraryFolder()), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        environment["PYTHONIOENCODING"] = "utf-8"
        environment["PYTHONUNBUFFERED"] = "1"
        wait_passively(environment)
        # A crash of a library is reported with the lines of Python that led to it.
        environment["PYTHONFAULTHANDLER"] = "1"
        environment["DRDM_END_OF_INPUT"] = "stop"
        environment["DRDM_FOLDER"] = str(Path.cwd())
        environment["PYTHONSAFEPATH"] = "1"
        start = libraryFolder() / "DRDMLib" / "start.py"
        command = [pythonExecutable(), str(start), self._module, *arguments]
        self._group = ProcessGroup(command, environment, folder=start.parent)
        process = self._group.process
        pipes: Any = ((process.stdout, self._lines.put), (process.stderr, self._errors.append))
        for stream, put in pipes:
            reader = threading.Thread(target=_forward, args=(stream, put), daemon=True)
            reader.start()
            self._readers.append(reader)

    def send(self, line: str) -> None:
        """Write a line to the standard input of the process.

        Raises:
            OSError: it has ended.
        """
        stream = None if self._group is None else self._group.process.stdin
        if stream is None or stream.closed:
            raise BrokenPipeError
        stream.write(f"{line}\n".encode())
        stream.flush()

    def poll(self) -> tuple[list[str], int | None]:
        """Return new lines of standard output, and the exit status once the process has ended and all is read."""
        # Check the threads before reading, so that no line is missed between the two. They end with the last process
        # that can write, which is not always the one that was started.
        ended = self._allRead
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait().decode("utf-8", "replace").rstrip("\r\n"))
        return lines, self._group.process.poll() if ended and self._group is not None else None

    @property
    def _allRead(self) -> bool:
        return not any(reader.is_alive() for reader in self._readers)

    def terminate(self) -> None:
        """Ask the process to stop: close its standard input."""
        if self._group is not None:
            self._group.closeInput()

    def kill(self) -> None:
        """Kill the process with all that it has started."""
        if self._group is not None and not (self._allRead and self._group.process.poll() is not None):
            self._group.kill()

    @property
    def ended(self) -> bool:
        """Whether the process has ended, or was never started."""
        return self._group is None or self._group.process.poll() is not None

    @property
    def errorLines(self) -> list[bytes]:
        """The lines of standard error so far."""
        return list(self._errors)

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return b"".join(self._errors).decode("utf-8", "replace")


def _forward(stream: IO[bytes], put: Callable[[bytes], None]) -> None:
    for line in stream:
        put(line)
    stream.close()
