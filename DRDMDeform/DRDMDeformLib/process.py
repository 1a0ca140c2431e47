"""A drdm command as a process of its own, so that the application stays responsive and can stop it at any time.

A pipe is read by a thread and emptied by whoever calls ``poll`` in the main thread: a Qt timer in the panel, a waiting
loop in a script. ``slicer.util.launchConsoleProcess`` (Slicer 5.11) works the same way; Slicer 5.10 has only its
blocking form.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol


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
