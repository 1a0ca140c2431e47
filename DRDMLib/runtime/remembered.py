"""Results of computations that are remembered while the process runs, by what they were computed from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """The last results of one kind; several threads may ask for them.

    Args:
        most: so many results are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._found: OrderedDict[Hashable, T] = OrderedDict()

    def of(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result for a key; it is computed, perhaps by several threads at the same time, if it is new."""
        with self._lock:
            if key in self._found:
                return self._found[key]
        result = compute()
        with self._lock:
            self._found[key] = result
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return result

    def forget(self) -> None:
        """Forget all results."""
        with self._lock:
            self._found.clear()
