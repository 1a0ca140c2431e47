"""One long run of ``drdm``: its progress, its results, its end."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

# How long a process that was asked to stop may take before it is stopped for good.
STOP_TIMEOUT_SECONDS = 20.0


class JobState(enum.Enum):
    """How far a job has come."""

    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Progress:
    """Where a running job stands.

    Attributes:
        task: what is being done: "read", "deform", "augment", "synthesize", "train", "download".
        share: 0 to 1.
        secondsLeft: estimate, if there is one yet.
        figures: numbers of the task, such as the loss of a training.
    """

    task: str
    share: float
    secondsLeft: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


class Job:
    """Runs one drdm command and tells how it goes. Call ``poll`` now and then, or ``wait``.

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
        self.items: list[dict[str, Any]] = []
        self.onProgress: Callable[[Progress], None] = lambda progress: None
        self.onItem: Callable[[dict[str, Any]], None] = lambda item: None
        self.onWarning: Callable[[str], None] = lambda text: None
        self._finishedCallbacks: list[Callable[[Job], None]] = []
        self._killTime = 0.0

    def onFinished(self, call: Callable[[Job], None]) -> None:
        """Call ``call(job)`` at the end, after those that were named before."""
        self._finishedCallbacks.append(call)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.state in (JobState.RUNNING, JobState.STOPPING)

    def start(self) -> None:
        """Start the process."""
        self.state = JobState.RUNNING
        try:
            self.process.start([*self.arguments, "--progress", "json"])
        except OSError as error:
            self._finish(JobState.FAILED, f"Python could not be started ({error.strerror or error}); restart Slicer.")

    def poll(self) -> JobState:
        """Read what the process has said since the last time, in the main thread."""
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
        elif status == 0:
            self._finish(JobState.DONE, self.messages[-1] if self.messages else "")
        elif self.state is JobState.STOPPING:
            self._finish(JobState.CANCELLED, "")
        else:
            self._finish(JobState.FAILED, self.text or self._failureMessage(status))
        return self.state

    def wait(self, idle: Callable[[], None] | None = None) -> JobState:
        """Until the end; ``idle`` is called in between."""
        while self.running:
            self.poll()
            if idle is not None:
                idle()
            time.sleep(0.02)
        return self.state

    def stop(self) -> None:
        """Ask the process to finish tidily (a training saves its state); it is killed if it takes too long."""
        if self.state is JobState.RUNNING:
            self.state = JobState.STOPPING
            self._killTime = time.monotonic() + STOP_TIMEOUT_SECONDS
            self.process.terminate()

    def cancel(self) -> None:
        """Stop at once; whatever it had not finished is thrown away."""
        if self.running:
            self.process.kill()
            self._finish(JobState.CANCELLED, "")

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
        elif kind == "item":
            self.items.append(event)
            self.onItem(event)
        elif kind == "message":
            self.messages.append(event["text"])
        elif kind == "warning":
            self.onWarning(event["text"])
        elif kind == "error":
            self.text = event["text"]

    def _failureMessage(self, status: int) -> str:
        last = [line for line in self.process.errors.splitlines() if line.strip()]
        if any("No module named 'torch'" in line for line in last):
            return "PyTorch is not installed yet; press the button in the section Setup."
        said = f": {last[-1]}" if last else ""
        return f"The computation ended unexpectedly (status {status}){said}"

    def _finish(self, state: JobState, text: str) -> None:
        self.state, self.text = state, text
        for call in self._finishedCallbacks:
            call(self)


class ProcessProtocol(Protocol):
    """What a job needs of the process that runs its command."""

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments."""

    def poll(self) -> tuple[list[str], int | None]:
        """New lines of standard output, and the exit status once it has ended and all was read."""

    def terminate(self) -> None:
        """Ask it to stop."""

    def kill(self) -> None:
        """Stop it at once."""

    @property
    def errors(self) -> str:
        """What it wrote to standard error so far."""


def pythonExecutable() -> str:
    """The Python to run ``drdm`` with: PythonSlicer inside Slicer (it is on the PATH there), else this one."""
    return shutil.which("PythonSlicer") or sys.executable


def libraryFolder() -> Path:
    """The folder that holds DRDMLib."""
    import DRDMLib

    return Path(DRDMLib.__file__).resolve().parents[1]


class DrdmProcess:
    """``python -m DRDMLib`` with the same packages as this process."""

    def __init__(self, module: str = "DRDMLib") -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._errors: list[bytes] = []
        self._readers: list[threading.Thread] = []

    def start(self, arguments: list[str]) -> None:
        """Run ``drdm`` with these arguments.

        Raises:
            OSError: there is no Python to run it with.
        """
        environment = dict(os.environ)
        path = [str(libraryFolder()), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        environment["PYTHONIOENCODING"] = "utf-8"
        environment["PYTHONUNBUFFERED"] = "1"
        hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        self._process = subprocess.Popen(
            [pythonExecutable(), "-m", self._module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            creationflags=hidden,
        )
        pipes: Any = ((self._process.stdout, self._lines.put), (self._process.stderr, self._errors.append))
        for stream, put in pipes:
            reader = threading.Thread(target=_forward, args=(stream, put), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> tuple[list[str], int | None]:
        """New lines of standard output, and the exit status once it has ended and all was read."""
        # The state is asked for first: what is read after the end is all there is.
        ended = not any(reader.is_alive() for reader in self._readers)
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait().decode("utf-8", "replace").rstrip("\r\n"))
        return lines, self._process.poll() if ended and self._process is not None else None

    def terminate(self) -> None:
        """Ask it to stop; on Windows, where a console program cannot be asked, stop it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Stop it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    @property
    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return b"".join(self._errors).decode("utf-8", "replace")


def _forward(stream: IO[bytes], put: Callable[[bytes], None]) -> None:
    for line in stream:
        put(line)
    stream.close()
