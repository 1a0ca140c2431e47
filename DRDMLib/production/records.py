"""What is written about each sample: enough to make it again to the bit."""

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
from ..io.files import read_object, write_text

RECORDS = "records"
DONE, FAILED, REJECTED = "done", "failed", "rejected"


def software() -> dict[str, str]:
    """Versions of everything that takes part in the arithmetic."""
    return {
        "drdm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "SimpleITK": sitk.Version.VersionString(),
    }


def device_described(device: torch.device) -> dict[str, str]:
    """The device as far as it matters for the last bit."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    if device.type == "cpu":
        return {"type": "cpu", "name": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    return {"type": device.type, "name": platform.machine()}


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a sample is."""
    return folder / RECORDS / f"{name}.json"


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write a record; it comes after the sample's files and says that all of them are there."""
    return write_text(record_path(folder, record["name"]), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        OutputError: it is not one.
    """
    try:
        return read_object(path, ("name", "status"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{path}' is not the record of a sample; give a file of a run's folder '{RECORDS}'."
        ) from error


def completed(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a task that need not be done again: made with all files there, or given up for its limits."""
    path = record_path(folder, name)
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except OutputError:
        return None
    if record["status"] == REJECTED:
        return record
    whole = record["status"] == DONE and all((folder / file).is_file() for file in record["files"].values())
    return record if whole else None
