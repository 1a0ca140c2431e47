"""Retry with smaller batches, and then on the CPU, when the GPU cannot do a computation; each time with a warning.

The display and other programs use the memory of the GPU too, so a computation that worked yesterday may not fit today.
Apple's GPU lacks some operators. Neither is a reason to fail if the CPU can do the same in a minute.
"""

from __future__ import annotations

import contextlib
import enum
import re
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import FallbackWarning

if TYPE_CHECKING:
    from ..models.model import Model

T = TypeVar("T")

_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory", re.IGNORECASE)
# The lock of each GPU.
_TURNS: dict[str, contextlib.AbstractContextManager[Any]] = {}
_OPERATOR = re.compile(r"\bMPS\b.*|not (currently )?(implemented|supported) for the MPS", re.IGNORECASE | re.DOTALL)


class DeviceLimit(enum.Enum):
    """What a device lacks for a computation."""

    NOTHING = "nothing"
    MEMORY = "memory"
    OPERATOR = "an operator"


def device_limit(error: BaseException, device: torch.device) -> DeviceLimit:
    """Find out what a device lacked when a computation raised ``error``; ``NOTHING`` for any other kind of error."""
    text = str(error)
    # The class of this error differs between versions of PyTorch, but its text does not.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        return DeviceLimit.MEMORY
    if device.type == "mps" and isinstance(error, (NotImplementedError, RuntimeError, TypeError)):
        # A missing data type (float64) raises a TypeError, a missing operator any of the others.
        return DeviceLimit.OPERATOR if _OPERATOR.search(text) else DeviceLimit.NOTHING
    return DeviceLimit.NOTHING


def with_fallback(compute: Callable[[Model, int], T], model: Model, batch: int) -> T:
    """Return ``compute(model, batch)``; with half the batch if memory is low, and on the CPU if that is not enough.

    Args:
        compute: does the computation with the given model, which may be a copy on another device, and with at most the
            given number of images at a time.
        model: the model to start with.
        batch: number of images at a time to start with.

    Warns:
        FallbackWarning: a smaller batch or the CPU was used, and why.

    Raises:
        MemoryError: the memory of the CPU is not enough for a single image.
    """
    while True:
        lacking = DeviceLimit.NOTHING
        try:
            with _turn(model.device):
                return compute(model, batch)
        except Exception as error:
            lacking = device_limit(error, model.device)
            on_cpu = model.device.type == "cpu"
            if lacking is DeviceLimit.MEMORY and on_cpu and batch <= 1:
                raise MemoryError(str(error)) from error
            if lacking is DeviceLimit.NOTHING or (on_cpu and lacking is DeviceLimit.OPERATOR):
                raise
            reason = str(error).strip().splitlines()[0][:120]
        # Memory can be released only here: the error is gone, and with it the tensors that its traceback kept alive.
        model.graphs.clear()
        release_memory(model.device)
        if lacking is DeviceLimit.MEMORY and batch > 1:
            batch //= 2
            text = f"Memory is low on '{model.device}'; the computation continues with {batch} images at a time."
        elif lacking is DeviceLimit.MEMORY:
            text = f"The memory of the GPU ({model.device}) is full; the CPU is used instead."
            model = model.on("cpu")
        else:
            text = f"The GPU ({model.device}) does not support this computation ({reason}); the CPU is used instead."
            model = model.on("cpu")
        warnings.warn(text, FallbackWarning, stacklevel=3)


def _turn(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Wait until no other thread computes on a GPU: together they would need more memory, and save no time."""
    return contextlib.nullcontext() if device.type == "cpu" else _TURNS.setdefault(str(device), threading.RLock())


def release_memory(device: torch.device) -> None:
    """Release the memory that PyTorch has cached on a device."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif device.type == "mps" and torch.backends.mps.is_available():
        torch.mps.empty_cache()
