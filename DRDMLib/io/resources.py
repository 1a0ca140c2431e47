"""Where the files are that come with the library: shipped models and the sample."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
    """Where downloaded models are kept: ``$DRDM_HOME``, else the user's cache folder of the system."""
    if os.environ.get("DRDM_HOME"):
        return Path(os.environ["DRDM_HOME"])
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "DRDM"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "DRDM"
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "drdm"
