"""The parts of the DRDMDeform module: panel -> logic -> MRML bridge -> DRDMLib."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Installed, DRDMLib lies beside the module; in the source tree one folder above it.
if importlib.util.find_spec("DRDMLib") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))
