"""Find programs, never in the working folder, where anyone may have put a file of the same name."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def find_program(name: str) -> str | None:
    """Return the absolute path of a program in one of the folders of ``PATH``; ``None`` if there is none.

    Other than ``shutil.which`` and Windows itself, it does not look in the working folder, and ignores relative folders
    in ``PATH``.
    """
    folders = [folder.strip('"') for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    if sys.platform == "win32":
        folders.append(str(Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"))
        names = [f"{name}{suffix}" for suffix in (".exe", ".com")]
    else:
        names = [name]
    for folder in folders:
        for candidate in names if Path(folder).is_absolute() else []:
            path = Path(folder) / candidate
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def python_program() -> str | None:
    """Return the Python that runs DRDM in other processes, as an absolute path.

    It is PythonSlicer inside Slicer, where it is on the ``PATH``, otherwise this Python; ``None`` if this process runs
    in another program.
    """
    launcher = find_program("PythonSlicer")
    if launcher is not None:
        return launcher
    own = sys.executable or ""
    return own if Path(own).is_absolute() and Path(own).name.lower().startswith("python") else None
