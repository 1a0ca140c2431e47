"""What is done when a GPU gives up: smaller portions, then the CPU; and it is said.

A GPU's memory is shared with the screen and with other programs, so that what ran yesterday may not run today; Apple's
lacks some operators. Neither is a reason to fail when the CPU can do the same in a minute.
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from ..errors import FallbackWarning

if TYPE_CHECKING:
    from ..models.model import Model

T = TypeVar("T")

_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory", re.IGNORECASE)
_OPERATOR = re.compile(r"\bMPS\b.*|not (currently )?(implemented|supported) for the MPS", re.IGNORECASE | re.DOTALL)


class DeviceLimit(enum.Enum):
    """What a device lacks."""

    NOTHING = "nothing"
    MEMORY = "memory"
    OPERATOR = "an operator"


def device_limit(error: BaseException, device: torch.device) -> DeviceLimit:
    """What ``device`` lacked when it raised ``error``; NOTHING for any other fault."""
    text = str(error)
    # The class has had two names; its text has not changed.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        return DeviceLimit.MEMORY
    if device.type == "mps" and isinstance(error, (NotImplementedError, RuntimeError, TypeError)):
        # float64 is refused with a TypeError, an operator with any of the others.
        return DeviceLimit.OPERATOR if _OPERATOR.search(text) else DeviceLimit.NOTHING
    return DeviceLimit.NOTHING


def with_fallback(compute: Callable[[Model, int], T], model: Model, batch: int) -> T:
    """``compute(model, batch)``; with half the batch when memory is short, and on the CPU when that is not enough.

    Args:
        compute: does the work with a model that may be on another device, so many images at a time.
        batch: images at a time to begin with.

    Warns:
        FallbackWarning: it was done in another way than asked for, and why.
    """
    while True:
        lacking = DeviceLimit.NOTHING
        try:
            return compute(model, batch)
        except Exception as error:
            lacking = device_limit(error, model.device)
            on_cpu = model.device.type == "cpu"
            if lacking is DeviceLimit.MEMORY and on_cpu and batch <= 1:
                raise MemoryError(str(error)) from error
            if lacking is DeviceLimit.NOTHING or (on_cpu and lacking is DeviceLimit.OPERATOR):
                raise
            reason = str(error).strip().splitlines()[0][:120]
        # Only here, where the error and with it the tensors of its frames are gone, can memory be given back.
        release_memory(model.device)
        if lacking is DeviceLimit.MEMORY and batch > 1:
            batch //= 2
            told = f"Memory is short on '{model.device}'; going on with {batch} images at a time."
        elif lacking is DeviceLimit.MEMORY:
            told = f"The memory of the GPU ({model.device}) is full; the CPU is used instead."
            model = model.on("cpu")
        else:
            told = f"The GPU ({model.device}) cannot do this ({reason}); the CPU is used instead."
            model = model.on("cpu")
        warnings.warn(told, FallbackWarning, stacklevel=3)


def release_memory(device: torch.device) -> None:
    """Give back what is cached for later."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif device.type == "mps" and torch.backends.mps.is_available():
        torch.mps.empty_cache()
