"""Locate shipped files and the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import SettingError


def resource(*parts: str) -> Path:
    """Path of a shipped file; it may not exist.

    In an installed package ``Resources`` lies inside ``DRDMLib``; in the source tree and beside the Slicer module it
    lies next to it.
    """
    here = Path(__file__).resolve().parents[1]
    for root in (here / "Resources", here.parent / "Resources"):
        if root.is_dir():
            return root.joinpath(*parts)
    return here.joinpath("Resources", *parts)


def cache_folder() -> Path:
    """Where downloaded models and the user's own are kept: ``$DRDM_HOME``, else the cache folder of the system.

    Raises:
        SettingError: platformdirs is missing, as in 3D Slicer before its Setup section has installed it.
    """
    if os.environ.get("DRDM_HOME"):
        return Path(os.environ["DRDM_HOME"])
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise SettingError("The package platformdirs is missing; install it: pip install platformdirs") from error
    return user_cache_path("drdm" if sys.platform.startswith("linux") else "DRDM", appauthor=False, opinion=False)
