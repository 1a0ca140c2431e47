"""`slicer.packaging`: checks real requirements, installs nothing.

Imitates Base/Python/slicer/packaging.py (Slicer 5.11 and later) as far as load_requirements, pip_check and
pip_ensure; pip_ensure records what it would have installed and fails, as it does for a person who declines.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import slicer
from packaging.requirements import Requirement

requests: list[list[str]] = []


def load_requirements(path: str | Path) -> list[Requirement]:
    """The requirements of a file; comments and options of pip are left out."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def _listed(requirements: Any) -> list[Requirement]:
    if isinstance(requirements, (str, Requirement)):
        requirements = [requirements]
    return [entry if isinstance(entry, Requirement) else Requirement(entry) for entry in requirements]


def pip_check(requirements: str | Requirement | Iterable[str | Requirement]) -> bool:
    """Whether all are installed in a version that does."""
    for requirement in _listed(requirements):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if not requirement.specifier.contains(version, prereleases=True):
            return False
    return True


def pip_ensure(
    requirements: Any,
    constraints: str | Path | None = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> Any:
    """
    Raises:
        RuntimeError: something is missing; the stand-in does not install.
    """
    wanted = _listed(requirements)
    missing = [entry for entry in wanted if not pip_check(entry)]
    if not missing or (skip_in_testing and slicer.app.testingEnabled()):
        return
    if prompt_install and not slicer.util.confirmOkCancelDisplay(
        f"{requester or 'This module'} needs to install Python packages", "Install Python packages?"
    ):
        raise RuntimeError("User declined package installation")
    requests.append([str(entry) for entry in missing])
    raise RuntimeError(f"The stand-in installs nothing: {', '.join(str(entry) for entry in missing)}")
