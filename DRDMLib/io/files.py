"""Write files that appear under their name only when they are complete, and decide which names they may have."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError

if sys.platform != "win32":
    import fcntl

# Bytes. File systems allow 255; the rest is for endings such as "_t79-79_000_moving.nii.gz" and for "..partial".
LONGEST_NAME = 200
# Windows reserves these names, whatever follows after a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]|con(in|out)\$) *(\.|$)", re.IGNORECASE)
_SEPARATORS = frozenset('/\\:*?"<>|')
# Joiners, which are part of words in some scripts.
_JOINERS = frozenset("\u200c\u200d")
# Suffixes of the files that SimpleITK reads.
SUFFIXES = (
    *(".nii.gz", ".nii", ".img.gz", ".img", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"),
    *(".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".j2k", ".bmp", ".lsm", ".gipl", ".gipl.gz", ".vtk"),
    *(".mnc", ".mrc", ".rec", ".h5", ".hdf5", ".hdf", ".pic", ".spr"),
)
# Errors of file systems that cannot sync.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)
_DOUBLE_SUFFIXES = (".seg.nrrd", ".nii.gz", ".img.gz", ".gipl.gz")
# Other suffixes have a letter; numbers after a dot are part of the name ("1.2.840.1").
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def image_stem(path: str | os.PathLike[str]) -> str:
    """Return a file name without its image suffix (``scan.nii.gz`` -> ``scan``)."""
    name = Path(path).name
    suffix = next((suffix for suffix in _DOUBLE_SUFFIXES if name.lower().endswith(suffix)), "")
    stem = name[: -len(suffix)] if suffix else _SUFFIX.sub("", name)
    return stem or "image"


def _is_allowed(character: str) -> bool:
    """Whether a character may be part of a file name on every system: no separator, control character or half pair."""
    if character in _SEPARATORS:
        return False
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def file_name(name: str) -> str:
    """Return the file name for the name of a case, model or image, without suffix; most names stay as they are.

    The result is one part of a path that can be written on Linux, Windows and macOS, so that no name leads out of a
    folder: slashes and other characters that cannot be used become ``-``, parts such as ``..`` and dots and spaces at
    the ends are removed, reserved names such as ``CON`` get a ``_``, and what is longer than ``LONGEST_NAME`` bytes is
    shortened and gets a digest of the whole. Letters with accents are composed (Unicode NFC).
    """
    name = unicodedata.normalize("NFC", name)
    parts = "".join(c if _is_allowed(c) else "/" for c in name).split("/")
    if len(parts) > 1:
        parts = [part.strip() for part in parts if part.strip(" .")]
    # Leading dots make hidden files; Windows removes dots and spaces at the end.
    made = "-".join(parts).strip().lstrip(".").rstrip(" .").strip() or "case"
    if _DEVICE.match(made):
        made = f"_{made}"
    if len(made.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
        made = f"{made.encode()[: LONGEST_NAME - 9].decode(errors='ignore').rstrip(' .')}-{digest}"
    return made


def file_names(names: Sequence[str]) -> list[str]:
    """Return a different file name for each name, see :func:`file_name`.

    They also differ where upper and lower case are the same. Names that are not unique get a number; names that need no
    change keep theirs before others get it.
    """
    made = [file_name(name) for name in names]
    result = [""] * len(made)
    taken: set[str] = set()
    for k, (name, new) in enumerate(zip(names, made, strict=True)):
        if unicodedata.normalize("NFC", name) == new and name_key(new) not in taken:
            taken.add(name_key(new))
            result[k] = new
    last: dict[str, int] = {}
    for k, new in enumerate(made):
        if result[k]:
            continue
        unique, number = new, last.get(name_key(new), 1)
        while name_key(unique) in taken:
            number += 1
            unique = f"{new}-{number}"
        last[name_key(new)] = number
        taken.add(name_key(unique))
        result[k] = unique
    return result


def name_key(name: str) -> str:
    """Return a text that is equal for names that are the same file on some system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def shown(name: str, longest: int = 60) -> str:
    """Return a name for a message: one line, without control characters, and not too long."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names for a message: a few of them, and how many there are besides."""
    first = ", ".join(f"'{shown(name)}'" for name in names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and a noun for a message: ``1 pair``, ``2 pairs``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def path_problem(path: Path) -> str:
    """Return why a path cannot be the path of any file, or an empty string."""
    try:
        os.fspath(path).encode()
        os.lstat(path)
    except UnicodeEncodeError:
        return "its name is not valid text"
    except ValueError:
        return "its name has a null character"
    except OSError as error:
        # What is missing or forbidden is reported when the file is read.
        return "its name is too long" if error.errno == errno.ENAMETOOLONG else ""
    return ""


def require_no_links_out(folder: Path) -> None:
    """Require that no link inside a folder leads out of it, because files would be written there.

    The folder itself may be a link, and need not exist.

    Raises:
        OutputError: there is such a link, or the folder cannot be read.
    """
    if not folder.is_dir():
        return
    root, waiting = folder.resolve(), [os.fspath(folder)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    # Junctions are links of Windows, known to Python 3.12 and later.
                    if entry.is_symlink() or getattr(entry, "is_junction", bool)():
                        if not Path(entry.path).resolve().is_relative_to(root):
                            raise OutputError(
                                f"'{entry.path}' is a link that leads out of the output folder; "
                                "remove it, or choose a new folder."
                            )
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    except (OSError, RuntimeError) as error:
        # Older versions of Python raise RuntimeError for a circle of links.
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error


def partial_path(path: Path) -> Path:
    """Return the path to which a file is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def output_error(path: Path, error: OSError) -> OutputError:
    """Convert a failure to write a file to an error with a message for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"The disk is full; free some space and run again ('{path}' was not written).")
    return OutputError(f"'{path}' cannot be written ({error.strerror or error}); choose another output folder.")


def sync(descriptor: int) -> None:
    """Wait until the content of an open file is on the disk.

    Raises:
        OSError: the system cannot tell.
    """
    if sys.platform == "darwin":
        # Its fsync does not wait for the disk. Not all file systems have this call.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk, where the system can tell."""
    # Windows only syncs what is open for writing.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        sync(descriptor)
    except OSError as error:
        # Some network shares cannot sync.
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    # Windows has no such call; its file systems write names in their own order.
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            _sync(folder)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provide a temporary path to write a file to; the file gets its own name on success and is removed on failure.

    It gets its name only after its content is on the disk, so that a power cut leaves a whole file or none.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    partial = partial_path(path)
    try:
        # What a killed process left there may be a link; it must not be followed.
        partial.unlink(missing_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a small file, completely or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    with atomic_write(path) as partial:
        partial.write_bytes(data)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a small text file in UTF-8, see :func:`write_bytes`.

    Bytes of file names that are no text are written as escapes, as in JSON.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Convert plain values to JSON; NaN and infinite numbers, which JSON does not have, become null."""
    separators = (",", ":") if indent is None else None
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


def finite(value: Any) -> Any:
    """Return plain values with ``None`` in the place of NaN and infinite numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def digest_of_files(paths: Sequence[Path]) -> str:
    """Return one digest of the contents of several files, in this order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(2**22):
                total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def read_object(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object that must have the given keys.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object with these keys.
    """
    # From bytes, because editors on Windows may add a byte-order mark.
    try:
        value = json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError(f"'{path}' is nested too deeply.") from error
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise ValueError(f"'{path}' is not a JSON object with {', '.join(keys)}.")
    return value
