"""A process with all processes that it starts, killed together.

PythonSlicer is a launcher: the real Python is its child. Killing the launcher alone leaves the child running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of the Windows API: JOBOBJECT_EXTENDED_LIMIT_INFORMATION, and the limit that kills the job with its last handle.
_EXTENDED_LIMITS = 9
_KILL_ON_JOB_CLOSE = 0x2000
# A killed process ends at once; the panel does not wait longer.
_WAIT_SECONDS = 1.0


class ProcessGroup:
    """A process in a process group of its own, or in a job object on Windows.

    Windows kills the processes of a job object when the process that made it ends, however that happens.

    Args:
        command: program and arguments.
        environment: all environment variables.
        folder: working folder of the process; by default that of this one.

    Attributes:
        process: the process; its three standard streams are pipes.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path | None = None) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            start_new_session=os.name != "nt",
        )
        self._job: Any = _jobObject(self.process) if sys.platform == "win32" else None

    def closeInput(self) -> None:
        """Close standard input, which asks the process to stop."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def kill(self) -> None:
        """Kill the process and all that it has started, even if the process itself has ended."""
        self.closeInput()
        if sys.platform == "win32":
            if self._job is not None:
                _windows().TerminateJobObject(self._job, 1)
            elif self.process.poll() is None:
                self.process.kill()
        else:
            # The group keeps its number, that of the process, as long as one of its processes runs.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        # Otherwise it stays in the system's list of processes as long as Slicer runs.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_WAIT_SECONDS)


def _windows() -> Any:
    import ctypes
    from ctypes import wintypes

    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009
    handle, number, pointer = wintypes.HANDLE, wintypes.DWORD, ctypes.c_void_p
    kernel.CreateJobObjectW.restype = handle
    kernel.CreateJobObjectW.argtypes = [pointer, wintypes.LPCWSTR]
    kernel.SetInformationJobObject.argtypes = [handle, ctypes.c_int, pointer, number]
    kernel.AssignProcessToJobObject.argtypes = [handle, handle]
    kernel.TerminateJobObject.argtypes = [handle, wintypes.UINT]
    return kernel


def _jobObject(process: Any) -> Any:
    """Put a process into a new job object; return its handle, or ``None`` if that fails."""
    import ctypes
    from ctypes import wintypes

    class Limits(ctypes.Structure):
        _fields_ = (
            ("times", ctypes.c_int64 * 2),
            ("flags", wintypes.DWORD),
            ("sizes", ctypes.c_size_t * 2),
            ("processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("priorities", wintypes.DWORD * 2),
            ("counters", ctypes.c_uint64 * 6),
            ("memory", ctypes.c_size_t * 4),
        )

    kernel = _windows()
    job = kernel.CreateJobObjectW(None, None)
    limits = Limits(flags=_KILL_ON_JOB_CLOSE)
    good = job and kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits))
    return job if good and kernel.AssignProcessToJobObject(job, int(process._handle)) else None
