"""Locate shipped files and the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import SettingError


def resource(*parts: str) -> Path:
    """Return the path of a shipped file, which may not exist.

    In an installed package, ``Resources`` is inside ``DRDMLib``; in the source tree and in the Slicer module it is next
    to it.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / "Resources", package.parent / "Resources"):
        if root.is_dir():
            return root.joinpath(*parts)
    return package.joinpath("Resources", *parts)


def cache_folder() -> Path:
    """Return the folder for downloaded models and the user's own: ``$DRDM_HOME``, or the cache folder of the system.

    Raises:
        SettingError: the package platformdirs is missing, as in 3D Slicer before the Setup section has installed it.
    """
    if os.environ.get("DRDM_HOME"):
        return Path(os.environ["DRDM_HOME"])
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise SettingError(
            "The package platformdirs is missing; install it with 'pip install platformdirs'."
        ) from error
    return user_cache_path("drdm" if sys.platform.startswith("linux") else "DRDM", appauthor=False, opinion=False)
