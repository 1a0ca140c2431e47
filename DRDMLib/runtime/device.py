"""Which processor does the work."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import FallbackWarning, SettingError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device called ``name``.

    Args:
        name: ``"auto"`` (CUDA, else Apple MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. Automatic
            passes over a GPU on which nothing runs, with a :class:`FallbackWarning`.

    Raises:
        SettingError: there is no such device on this computer.
    """
    has_mps = torch.backends.mps.is_available()
    if str(name) == "auto":
        return _best("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"Device '{name}' is not known; use auto, cpu, cuda, cuda:N or mps.") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps,
    }
    if not present.get(device.type, False):
        raise SettingError(f"Device '{name}' is not on this computer; use --device auto or cpu.")
    return device


class _Switches:
    """PyTorch's for the arithmetic of NVIDIA GPUs; they belong to the process, whose threads share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[tuple[Any, str, Any]] = []

    def use(self) -> None:
        """The first user sets them."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                wanted = self._wanted()
                self._before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
                self._set(wanted)

    def leave(self) -> None:
        """The last one puts back what was there."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._set(self._before)

    @staticmethod
    def _wanted() -> list[tuple[Any, str, Any]]:
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        chosen: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
        if hasattr(cudnn, "conv"):
            return chosen + [(cudnn.conv, "fp32_precision", "ieee"), (products, "fp32_precision", "ieee")]
        # PyTorch before 2.9.
        return chosen + [(cudnn, "allow_tf32", False), (products, "allow_tf32", False)]

    @staticmethod
    def _set(values: list[tuple[Any, str, Any]]) -> None:
        for where, name, value in values:
            setattr(where, name, value)


_SWITCHES = _Switches()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """On an NVIDIA GPU convolutions and matrix products in 32 bits, and by the same algorithm each time.

    PyTorch lets convolutions round to ten bits (TensorFloat-32) unless told otherwise, and other programs of the same
    process may have had them chosen by their speed, which differs from one time to the next.
    """
    if device.type != "cuda":
        yield
        return
    _SWITCHES.use()
    try:
        yield
    finally:
        _SWITCHES.leave()


@functools.cache
def _best(kind: str) -> torch.device:
    device = torch.device(kind)
    fault = "" if kind == "cpu" else kernel_fault(device)
    if not fault:
        return device
    warnings.warn(f"The GPU cannot be used with this PyTorch ({fault}); using the CPU.", FallbackWarning, stacklevel=3)
    return torch.device("cpu")


def kernel_fault(device: torch.device) -> str:
    """Why a small convolution and a small warp do not run on a device; empty if they do.

    A card that is newer or older than what PyTorch was built for says that it is available, and fails at the first
    kernel.
    """
    try:
        cube = torch.ones(1, 1, 4, 4, 4, device=device)
        convolved = F.conv3d(cube, cube[..., :3, :3, :3], padding=1)
        warped = F.grid_sample(convolved, torch.zeros(1, 2, 2, 2, 3, device=device), align_corners=True)
        if not torch.isfinite(warped.sum()).item():
            return "a small computation gave nonsense"
    except Exception as error:
        return str(error).strip().splitlines()[0][:200] or type(error).__name__
    return ""
