"""Stop a training after the step that it is in, because the state in the middle of a step cannot be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAfterStep:
    """Note Ctrl-C and terminations while the block runs, and deliver the first one when it is left.

    Only in the main thread, which is the one that gets signals. Signals that Python does not handle, such as a
    termination in a program without a handler for it, keep their effect. Repeated signals change nothing.

    Args:
        active: whether to do so at all.

    Attributes:
        requested: whether to stop.
    """

    def __init__(self, active: bool) -> None:
        self.requested = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._first: int | None = None

    def __enter__(self) -> StopAfterStep:
        for number in _SIGNALS if self._active else ():
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._first = number if self._first is None else self._first

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._first is not None and kind is None:
            self._before[self._first](self._first, None)
            raise KeyboardInterrupt
