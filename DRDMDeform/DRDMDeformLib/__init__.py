"""The parts of the DRDMDeform module: panel -> logic -> MRML bridge -> DRDMLib."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Use the library that belongs to the module, not another version installed by pip. It is beside the module when
# installed, and one folder above it in the source tree.
for _folder in Path(__file__).resolve().parents[1:3]:
    _library = _folder / "DRDMLib" / "__init__.py"
    if _library.is_file() and "DRDMLib" not in sys.modules:
        _found = importlib.util.find_spec("DRDMLib")
        if _found is None or _found.origin is None or not _library.samefile(_found.origin):
            sys.path.insert(0, str(_folder))
            importlib.invalidate_caches()
        break
