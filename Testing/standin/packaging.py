"""`slicer.packaging`: checks real requirements, installs nothing.

Imitates Base/Python/slicer/packaging.py (Slicer 5.11 and later).
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import slicer
from packaging.requirements import Requirement


def load_requirements(path: str | Path) -> list[Requirement]:
    """Read the requirements of a file; comments and options of pip are left out."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def pip_check(requirement: Requirement) -> bool:
    """Whether it is installed in a version that does."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def pip_ensure(
    requirements: list[Requirement],
    *,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> None:
    """Do nothing if all is installed, or in testing mode.

    Raises:
        RuntimeError: something is missing; the stand-in does not install.
    """
    if skip_in_testing and slicer.app.testingEnabled():
        return
    missing = [str(requirement) for requirement in requirements if not pip_check(requirement)]
    if missing:
        raise RuntimeError(f"The stand-in installs nothing: {', '.join(missing)}")
