"""Keep files of the working folder from being taken for libraries.

``python -m`` puts the working folder first in the list of places where Python looks for libraries. A file ``torch.py``
or ``numpy.py`` there would be run in the place of the library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def look_elsewhere_first() -> None:
    """Move the working folder to the end of Python's search path, after the installed libraries.

    It stays there for a source tree in which DRDM is run without being installed. Nothing is changed if Python does not
    look in the working folder, as with the command ``drdm`` or ``python -P``.
    """
    first = sys.path[0] if sys.path else ""
    if getattr(sys.flags, "safe_path", False) or os.path.realpath(first or os.curdir) != os.path.realpath(os.curdir):
        return
    sys.path.append(str(Path(sys.path.pop(0)).absolute()))
