"""Temporary folders with copies of scans. Those that a crash of Slicer has left are removed at the next start."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import slicer

from DRDMLib.runtime.processes import is_running

_PREFIX = "drdm-"
# File that names the process that a folder belongs to; folders without it are left alone.
_OWNER = "drdm-owner.json"


def temporaryFolder() -> Path:
    """Make a folder for files that another process reads; the caller removes it.

    Only this user can read it. ``slicer.util.tempDirectory`` names a folder after the millisecond, so two calls may
    share one: https://github.com/Slicer/Slicer/blob/main/Base/Python/slicer/util.py
    """
    parent = Path(slicer.app.temporaryPath)
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    owner = {"program": "DRDM Deform", "host": socket.gethostname(), "process": os.getpid()}
    (folder / _OWNER).write_text(json.dumps(owner), encoding="utf-8")
    return folder


def removeLeftovers() -> list[Path]:
    """Remove the temporary folders of processes on this computer that have ended without removing them.

    Returns:
        The removed folders.
    """
    removed = []
    for folder in sorted(Path(slicer.app.temporaryPath).glob(f"{_PREFIX}*")):
        if not folder.is_symlink() and _isLeftover(folder / _OWNER):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _isLeftover(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        process = owner["process"]
        own = owner["program"] == "DRDM Deform" and owner["host"] == socket.gethostname()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return own and isinstance(process, int) and process > 0 and not is_running(process)
