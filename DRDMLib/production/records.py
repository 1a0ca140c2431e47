"""Records of samples: everything that is needed to make a sample again, bit by bit."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import __version__
from ..errors import OutputError
from ..io.files import digest_of_files, read_object, write_text
from ..io.schema import wrong_key
from . import schemas

RECORDS = "records"
DONE, FAILED, REJECTED = "done", "failed", "rejected"


def software() -> dict[str, str]:
    """Return the versions of all software that affects the numbers."""
    return {
        "drdm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "SimpleITK": sitk.Version.VersionString(),
    }


def device_described(device: torch.device) -> dict[str, str]:
    """Return the type and the name of the device; both can affect the last bits."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    if device.type == "cpu":
        return {"type": "cpu", "name": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    return {"type": device.type, "name": platform.machine()}


def record_path(folder: Path, name: str) -> Path:
    """Return the path of the record of a sample."""
    return folder / RECORDS / f"{name}.json"


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write a record. It is written after the sample's files and therefore confirms that they are complete."""
    return write_text(record_path(folder, record["name"]), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        OutputError: the file is not a record.
    """
    try:
        record = read_object(path, ("name", "status"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{path}' is not the record of a sample; choose a file in the folder '{RECORDS}' of a run."
        ) from error
    wrong = wrong_key(record, schemas.RECORD_NEEDED, schemas.RECORD)
    if wrong is not None:
        raise OutputError(f"The record '{path}' has no valid '{wrong}'; choose the unchanged file of a run.")
    return record


def is_whole(record: dict[str, Any]) -> bool:
    """Whether the record of a task that is done has all that reports need."""
    needed = schemas.DONE | (schemas.SAMPLE if record.get("levels") else {})
    return record["status"] == DONE and wrong_key(record, needed, {}) is None


def completed(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a finished task: its files are there, or it was given up because of the limits.

    Returns:
        ``None`` if the task must be done, or done again.
    """
    path = record_path(folder, name)
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except OutputError:
        return None
    if record["status"] == REJECTED:
        return record
    files = files_of(folder, record)
    there = files is not None and all(path.is_file() for path in files.values())
    return record if there and is_whole(record) else None


def files_of(folder: Path, record: dict[str, Any]) -> dict[str, Path] | None:
    """Return the files of a sample, kind -> path; ``None`` if the record names one outside of the run's folder."""
    found = {}
    files = record.get("files")
    for kind, name in files.items() if isinstance(files, dict) else ():
        if not isinstance(name, str) or not schemas.is_inside(name):
            return None
        found[kind] = folder / name
    return found if isinstance(files, dict) else None


def changed_files(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    """Compare the files of a finished sample with the sizes and digests in its record.

    Returns:
        Path in the run's folder -> how it differs, for files that are not as they were written.
    """
    found = {}
    sizes, expected = record.get("sizes", {}), record.get("digests", {})
    for kind, path in (files_of(folder, record) or {}).items():
        try:
            size = path.stat().st_size
            # Records of older versions have no sizes.
            if size != sizes.get(kind, size):
                found[record["files"][kind]] = f"has {size} bytes instead of {sizes[kind]}"
            elif kind not in expected:
                found[record["files"][kind]] = "has no digest in its record"
            elif digest_of_files([path]) != expected[kind]:
                found[record["files"][kind]] = "has other content than when it was written"
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            found[record["files"][kind]] = "is missing" if missing else f"cannot be read ({error.strerror})"
    return found
