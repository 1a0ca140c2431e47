"""Find programs, never in the working folder, where anyone may have put a file of the same name."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def find_program(name: str) -> str | None:
    """Return the absolute path of a program in one of the folders of ``PATH``; ``None`` if there is none.

    The working folder and relative folders in ``PATH`` are ignored.
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

    It is this Python; inside 3D Slicer and other programs it is PythonSlicer, where it is on the ``PATH``. ``None`` if
    there is neither.
    """
    own = Path(sys.executable or "")
    is_python = own.is_absolute() and own.name.lower().startswith("python")
    if not is_python or _in_slicer(own):
        launcher = find_program("PythonSlicer")
        if launcher is not None:
            return launcher
    return str(own) if is_python else None


def _in_slicer(own: Path) -> bool:
    """Whether this process is 3D Slicer, or its Python, which needs the launcher to find its libraries."""
    home = os.environ.get("SLICER_HOME", "")
    return "slicer" in sys.modules or (bool(home) and own.is_relative_to(home))
