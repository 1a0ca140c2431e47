"""Read unusual image files in a process of its own first, because a damaged header can crash ITK's reader.

The process reads one file after the other, and is started only when the first such file comes. If it ends while it
reads a file, twice, the file is refused, and the process that needs the image goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ..errors import ImageError
from ..runtime.programs import python_program
from .integrity import most_values
from .plain_headers import is_plain

# The reader's own lines, and those of libraries, must not get between the answers.
_CODE = """
import json, math, os, sys
sys.path[:] = json.loads(sys.argv[1])
answers, quiet = os.fdopen(os.dup(1), "wb", 0), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1), os.dup2(quiet, 2)
import SimpleITK as sitk
sitk.ProcessObject.SetGlobalWarningDisplay(False)
for line in sys.stdin.buffer:
    try:
        path, most = json.loads(line)
        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        reader.ReadImageInformation()
        if math.prod(reader.GetSize()) * reader.GetNumberOfComponents() <= most:
            reader.Execute()
    except Exception:
        pass
    answers.write(b"done\\n")
"""
_TRIES = 2
# Seconds, and bytes per second of a slow disk.
_PATIENCE, _SLOW = 60.0, 2**20


class _TrialReader:
    """The process that reads files first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def survives(self, path: Path) -> bool:
        """Whether the process still runs after it has read the file, successfully or not."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            killer = threading.Timer(_PATIENCE + path.stat().st_size / _SLOW, _kill, [process])
            killer.start()
            alive = False
            try:
                request = [str(path.absolute()), most_values(path)]
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                alive = process.stdout.readline() == b"done\n"
            except OSError:
                # It has ended before it could read all of the request.
                pass
            finally:
                killer.cancel()
                if not alive:
                    self.close()
            return alive

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, and start it if there is none that belongs to this process and runs."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            paths = [part for part in sys.path if Path(part).is_absolute()]
            program = python_program()
            if program is None:
                raise FileNotFoundError("python")
            # Isolated, so that no file in the working folder is taken for a library.
            self._process = subprocess.Popen(
                [program, "-I", "-c", _CODE, json.dumps(paths)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                # A group of its own, because the process may be the child of a launcher.
                start_new_session=os.name != "nt",
            )
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, if it was started by this one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            _kill(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


_READER = _TrialReader()
atexit.register(_READER.close)


def require_survival(path: Path, what: str) -> None:
    """Check that reading a file does not crash the process; files with plain headers are not tried.

    Args:
        what: kind of file in error messages, such as ``"image"``.

    Raises:
        ImageError: the reader crashes.
    """
    if is_plain(path):
        return
    try:
        if any(_READER.survives(path) for _ in range(_TRIES)):
            return
    except OSError:
        # No process can be started here, so the file is read without a trial.
        return
    raise ImageError(
        f"The {what} '{path}' cannot be read, because it crashes its reader, so it is damaged or needs too much "
        "memory; copy or export it again."
    )
