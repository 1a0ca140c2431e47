"""Read unusual image files and transforms in a process of their own, because damaged ones can crash ITK's reader.

The process (``reader_process.py``) reads one file after the other and passes the voxels on. It is started only when the
first such file comes. If it ends while it reads a file, twice, the file is refused, and the process that needs the
image goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..runtime.programs import python_program
from .detached import files_of_image
from .files import shown
from .geometry import PERMISSIVE, nifti_axes
from .integrity import most_values

_SCRIPT = Path(__file__).with_name("reader_process.py")
_TRIES = 2
# Bytes of memory that the process may use, and more for each byte of a file.
_MEMORY, _PER_BYTE = 3 * 2**30, 64
# Seconds, and bytes per second of a slow disk.
_PATIENCE, _SLOW = 600.0, 2**20
# Lines that a launcher may print before the process is ready.
_MOST_GREETINGS = 100


@dataclass(frozen=True)
class ReadApart:
    """What the process has read.

    Attributes:
        kind: ITK's name for the reader of the file, such as ``"TIFFImageIO"``, or ``"transform"``; empty if it cannot
            be read.
        image: the image; ``None`` for DICOM files and transforms, which are only tried, and for files that cannot be
            read.
        too_large: whether the header asks for more voxels than the file can hold.
    """

    kind: str
    image: sitk.Image | None = None
    too_large: bool = False


class CannotStart(Exception):
    """The process cannot be started; the text says why."""


class _Reader:
    """The process that reads files, and its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, path: Path, program: str, what: str) -> ReadApart | None:
        """Read a file; ``None`` if the process has ended meanwhile.

        Args:
            program: the Python that runs the process.
            what: ``"image"`` or ``"transform"``.

        Raises:
            CannotStart: there is no such process.
        """
        with nifti_axes(path):
            permissive = os.environ.get(PERMISSIVE)
        most, memory = most_values(path), _MEMORY + _PER_BYTE * sum(p.stat().st_size for p in files_of_image(path))
        request = json.dumps([what, str(path.absolute()), most, memory, PERMISSIVE, permissive])
        with self._lock:
            process = self._running(program)
            assert process.stdin is not None and process.stdout is not None
            killer = threading.Timer(_PATIENCE + path.stat().st_size / _SLOW, _kill, [process])
            killer.start()
            found = None
            try:
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if line.endswith(b"\n"):
                    described = json.loads(line)
                    voxels = process.stdout.read(described.get("bytes", 0))
                    found = _image(described, voxels) if len(voxels) == described.get("bytes", 0) else None
            except OSError:
                # It has ended before it could read all of the request.
                pass
            finally:
                killer.cancel()
                if found is None:
                    self.close()
            return found

    def _running(self, program: str) -> subprocess.Popen[bytes]:
        """Return the process, and start it if there is none that belongs to this process and runs."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self.close()
        if self._process is None or self._owner != os.getpid():
            self._process = _start(program)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, if it was started by this one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            _end(process)


def _start(program: str) -> subprocess.Popen[bytes]:
    """Start the process and wait until it is ready.

    Raises:
        CannotStart: it ends before.
    """
    paths = [part for part in sys.path if Path(part).is_absolute()]
    with tempfile.TemporaryFile() as errors:
        try:
            # No file in the working folder is taken for a library. ("-I" would hide what PythonSlicer sets.)
            process = subprocess.Popen(
                [program, str(_SCRIPT), json.dumps(paths)],
                cwd=_SCRIPT.parent,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                # A group of its own, because the process may be the child of a launcher.
                start_new_session=os.name != "nt",
            )
        except OSError as error:
            raise CannotStart(error.strerror or str(error)) from error
        assert process.stdout is not None
        killer = threading.Timer(_PATIENCE, _kill, [process])
        killer.start()
        try:
            lines = iter(process.stdout.readline, b"")
            if any(b'{"ready": true}' in line for line in itertools.islice(lines, _MOST_GREETINGS)):
                return process
            _end(process)
        except BaseException:
            _end(process)
            raise
        finally:
            killer.cancel()
        errors.seek(0)
        said = errors.read(2**16).decode("utf-8", "replace").split("\n")
        raise CannotStart(next((shown(line, 200) for line in reversed(said) if line.strip()), "it ends at once"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its streams."""
    _kill(process)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    # The number of a process that has ended may be that of another one by now.
    if process.poll() is not None:
        return
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _image(described: dict[str, Any], voxels: bytes) -> ReadApart:
    if "shape" not in described:
        return ReadApart(described["kind"], too_large=bool(described.get("too_large")))
    array = np.frombuffer(voxels, described["type"]).reshape(described["shape"])
    # One value per voxel can be a vector of one, too.
    image = sitk.GetImageFromArray(array, isVector=array.ndim > described["dimension"])
    image.SetSpacing(described["spacing"])
    image.SetOrigin(described["origin"])
    image.SetDirection(described["direction"])
    for key, value in described["metadata"].items():
        image.SetMetaData(key, value)
    return ReadApart(described["kind"], image)


_READER = _Reader()
atexit.register(_READER.close)
if hasattr(os, "register_at_fork"):
    # A process that was forked, such as a worker of a DataLoader, needs a lock and a reader of its own.
    os.register_at_fork(after_in_child=_READER.__init__)  # type: ignore[misc]


def read_apart(path: Path, what: str, *, transform: bool = False) -> ReadApart | None:
    """Read a file in another process.

    Args:
        what: kind of file in error messages, such as ``"image"``.
        transform: the file is a transform and no image.

    Returns:
        What was read; ``None`` if this process runs in a program that has no Python to start.

    Raises:
        ImageError: the reader crashes, or cannot be started.
    """
    program = python_program()
    if program is None:
        return None
    for _ in range(_TRIES):
        try:
            found = _READER.read(path, program, "transform" if transform else "image")
        except CannotStart as error:
            raise ImageError(
                f"The {what} '{path}' cannot be read, because the process that reads such files cannot be started by "
                f"'{program}' ({error}); repair this Python, or save the {what} in another format."
            ) from error
        if found is not None:
            return found
    raise ImageError(
        f"The {what} '{path}' cannot be read, because it crashes its reader, so it is damaged or needs too much "
        "memory; copy or export it again."
    )
