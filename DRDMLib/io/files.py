"""Write files that appear under their name only when they are complete."""

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
    """Return the path to which a file is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def output_error(path: Path, error: OSError) -> OutputError:
    """Convert a failure to write a file to an error with a message for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"The disk is full; free some space and run again ('{path}' was not written).")
    return OutputError(f"'{path}' cannot be written ({error.strerror or error}); choose another output folder.")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provide a temporary path to write a file to; the file gets its own name on success and is removed on failure.

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
    """Write a small file, completely or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    with atomic_write(path) as partial:
        partial.write_bytes(data)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a small text file in UTF-8, see :func:`write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def read_object(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object that must have the given keys.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object with these keys.
    """
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise ValueError(f"'{path}' is not a JSON object with {', '.join(keys)}.")
    return value
