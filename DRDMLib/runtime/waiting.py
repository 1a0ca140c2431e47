"""Let the threads of PyTorch sleep while they wait for each other.

By default they wait actively, which keeps a core busy. If another program uses the core, every step of a computation
then waits until the operating system takes the core away from one of them, and takes up to twenty times as long.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# OpenMP in general, and the OpenMP of Intel and LLVM, which PyTorch uses on Windows and macOS (milliseconds).
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment variables of OpenMP, unless the user has set one of them.

    Args:
        environment: that of a process in which PyTorch is not imported yet; PyTorch reads it once.
    """
    if not any(name in environment for name in _PASSIVE):
        environment.update(_PASSIVE)
