"""Stop a run when the program that started it closes its standard input, or dies.

Signals do not reach a run that a launcher has started, such as PythonSlicer, which starts the real Python as a child.
Standard input passes through the launcher, its end included, on every system.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator

# "stop": watch standard input. The caller starts the run in a process group of its own, which is killed if the run does
# not end in time.
VARIABLE = "DRDM_END_OF_INPUT"
# Longer than the time after which the module kills the run itself.
GRACE_SECONDS = 60.0
_POLL_SECONDS = 0.02


def watch_standard_input(grace_seconds: float = GRACE_SECONDS) -> bool:
    """Interrupt the main thread at the end of standard input, if the environment variable asks for it.

    The interrupt is that of Ctrl-C. It comes once: another one would disturb the cleanup. Call this in the main thread.

    Args:
        grace_seconds: time to clean up; then the process group is killed (on Windows, this process).

    Returns:
        Whether standard input is watched.

    Raises:
        KeyboardInterrupt: standard input has ended already.
    """
    if os.environ.pop(VARIABLE, "") != "stop":
        return False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt_once)
    watched = take_standard_input()

    def watch() -> None:
        for _ in chunks(watched):
            pass
        interrupt_main_thread()
        kill_later(grace_seconds)

    threading.Thread(target=watch, name="standard input", daemon=True).start()
    return True


def interrupt_once(*_: object) -> None:
    """Interrupt the main thread, as Ctrl-C does, and ignore further signals: they would disturb the cleanup."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # With SIG_IGN, Python would report signals that have come meanwhile as errors.
        signal.signal(number, _ignore)
    raise KeyboardInterrupt


def _ignore(*_: object) -> None:
    pass


def take_standard_input() -> int:
    """Return a descriptor for standard input, which is empty for everything else in this process and its children.

    Nothing else may read from, or wait for, the watched pipe: on Windows, loading a library can do so.
    """
    taken = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return taken


def chunks(descriptor: int) -> Iterator[bytes]:
    """Yield what arrives at a descriptor, until its end."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32" and _is_pipe(descriptor):
            import _winapi
            import msvcrt

            # A thread that waits in a read would block others that ask for the state of the pipe.
            handle = msvcrt.get_osfhandle(descriptor)
            while True:
                available = _winapi.PeekNamedPipe(handle, 0)[0]
                if available:
                    yield os.read(descriptor, available)
                else:
                    time.sleep(_POLL_SECONDS)
        else:
            while chunk := os.read(descriptor, 4096):
                yield chunk


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def interrupt_main_thread() -> None:
    """Call the handler of SIGINT in the main thread; except on Windows, this also ends what the thread waits for."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        # Unlike interrupt_main, a signal to the thread also ends what it waits for.
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)


def kill_later(seconds: float) -> None:
    """Kill the process group after some time (on Windows, this process)."""
    time.sleep(seconds)
    if sys.platform == "win32":
        os._exit(130)
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)
