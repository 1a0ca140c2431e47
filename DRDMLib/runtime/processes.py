"""Find out whether a process runs, by its number."""

from __future__ import annotations

import os
import sys


def is_running(process: int) -> bool:
    """Whether there is a process of this number, or this cannot be known.

    Numbers are used again, so it may be another process than the one that had the number before.
    """
    if sys.platform == "win32":
        # os.kill would end the process there.
        import ctypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        # PROCESS_QUERY_LIMITED_INFORMATION.
        handle = kernel.OpenProcess(0x1000, False, process)
        if not handle:
            # ERROR_INVALID_PARAMETER: there is no such process.
            return bool(ctypes.get_last_error() != 87)
        status = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(status))
        kernel.CloseHandle(handle)
        # STILL_ACTIVE.
        return not known or status.value == 259
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
