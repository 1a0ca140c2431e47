"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError


def partial_path(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def output_error(path: Path, error: OSError) -> OutputError:
    """What to tell a person when writing failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"The disk is full; free some space and run again ('{path}' was not written).")
    return OutputError(f"'{path}' cannot be written ({error.strerror or error}); choose another output folder.")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives the name to write under; the file gets its own name if all went well, and is removed if not.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a small file; complete under its name or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    with atomic_write(path) as partial:
        partial.write_bytes(data)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """:func:`write_bytes` for text, UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def read_object(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object that has ``keys``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such an object.
    """
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise ValueError(f"'{path}' is not a JSON object with {', '.join(keys)}.")
    return value
