"""Read unusual image files in a process of their own, because a damaged header can crash ITK's reader.

The process reads one file after the other and passes the voxels on. It is started only when the first such file comes.
If it ends while it reads a file, twice, the file is refused, and the process that needs the image goes on.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..runtime.programs import python_program
from .detached import files_of_image
from .geometry import PERMISSIVE, nifti_axes
from .integrity import most_values

# Each answer is a line of JSON, then the voxels. The reader's own lines, and those of libraries, must not get between.
_CODE = """
import sys
sys.path[:] = [part for part in sys.path if part]
import json, math, os
sys.path[:] = json.loads(sys.argv[1])
answers, quiet = os.fdopen(os.dup(1), "wb"), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1), os.dup2(quiet, 2)
import SimpleITK as sitk
sitk.ProcessObject.SetGlobalWarningDisplay(False)

def limit_memory(most):
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass

def read(path, most, memory, variable, value):
    limit_memory(memory)
    os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value
    kind = sitk.ImageFileReader.GetImageIOFromFileName(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    if math.prod(reader.GetSize()) * reader.GetNumberOfComponents() > most:
        return {"kind": kind, "too_large": True}, b""
    image = reader.Execute()
    if kind == "GDCMImageIO":
        return {"kind": kind}, b""
    # A copy: a view would not keep the memory of the image.
    voxels = sitk.GetArrayFromImage(image)
    described = {"kind": kind, "shape": voxels.shape, "type": voxels.dtype.str, "bytes": voxels.nbytes}
    described |= {"components": image.GetNumberOfComponentsPerPixel(), "dimension": image.GetDimension()}
    described |= {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return described, voxels

for line in sys.stdin.buffer:
    try:
        described, voxels = read(*json.loads(line))
        answer = json.dumps(described).encode()
    except Exception as error:
        answer, voxels = b'{"kind": "", "failed": true}', b""
    answers.write(answer + b"\\n")
    answers.write(memoryview(voxels).cast("B") if len(voxels) else b"")
    answers.flush()
"""
_TRIES = 2
# Bytes of memory that the process may use, and more for each byte of a file.
_MEMORY, _PER_BYTE = 3 * 2**30, 64
# Seconds, and bytes per second of a slow disk.
_PATIENCE, _SLOW = 600.0, 2**20


@dataclass(frozen=True)
class ReadApart:
    """What the process has read.

    Attributes:
        kind: ITK's name for the reader of the file, such as ``"TIFFImageIO"``; empty if it cannot be read.
        image: the image; ``None`` for DICOM files, which are only tried, and for files that cannot be read.
        too_large: whether the header asks for more voxels than the file can hold.
    """

    kind: str
    image: sitk.Image | None = None
    too_large: bool = False


class CannotStart(Exception):
    """No process can be started here."""


class _Reader:
    """The process that reads files, and its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, path: Path) -> ReadApart | None:
        """Read a file; ``None`` if the process has ended meanwhile.

        Raises:
            CannotStart: there is no such process.
        """
        with nifti_axes(path):
            permissive = os.environ.get(PERMISSIVE)
        most, memory = most_values(path), _MEMORY + _PER_BYTE * sum(p.stat().st_size for p in files_of_image(path))
        request = json.dumps([str(path.absolute()), most, memory, PERMISSIVE, permissive])
        with self._lock:
            process = self._running()
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

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, and start it if there is none that belongs to this process and runs."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self.close()
        if self._process is None or self._owner != os.getpid():
            paths = [part for part in sys.path if Path(part).is_absolute()]
            program = python_program()
            if program is None:
                raise CannotStart
            try:
                # No file in the working folder is taken for a library. ("-I" would hide what PythonSlicer sets.)
                self._process = subprocess.Popen(
                    [program, "-c", _CODE, json.dumps(paths)],
                    cwd=Path(__file__).parent,
                    env=os.environ | {"PYTHONSAFEPATH": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                    # A group of its own, because the process may be the child of a launcher.
                    start_new_session=os.name != "nt",
                )
            except OSError as error:
                raise CannotStart from error
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
    return ReadApart(described["kind"], image)


_READER = _Reader()
atexit.register(_READER.close)
if hasattr(os, "register_at_fork"):
    # A process that was forked, such as a worker of a DataLoader, needs a lock and a reader of its own.
    os.register_at_fork(after_in_child=_READER.__init__)  # type: ignore[misc]


def read_apart(path: Path, what: str) -> ReadApart | None:
    """Read a file in another process.

    Args:
        what: kind of file in error messages, such as ``"image"``.

    Returns:
        What was read; ``None`` if no process can be started here.

    Raises:
        ImageError: the reader crashes.
    """
    for _ in range(_TRIES):
        try:
            found = _READER.read(path)
        except CannotStart:
            return None
        if found is not None:
            return found
    raise ImageError(
        f"The {what} '{path}' cannot be read, because it crashes its reader, so it is damaged or needs too much "
        "memory; copy or export it again."
    )
