"""Choose the device that computes, and its arithmetic."""

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
    """Choose a device by its name.

    Args:
        name: ``"auto"`` (CUDA, else Apple MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises:
        SettingError: this device is not available on this computer.

    Warns:
        FallbackWarning: with ``"auto"``, the GPU does not work, so the CPU is chosen.
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
        raise SettingError(f"Device '{name}' is not available on this computer; use --device auto or cpu.")
    return device


def forget_device_tests() -> None:
    """Test a GPU again when it is chosen the next time, and warn again if it does not work."""
    _best.cache_clear()


class _Switches:
    """PyTorch's settings for the arithmetic of NVIDIA GPUs, which all threads of a process share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[tuple[Any, str, Any]] = []

    def use(self) -> None:
        """Register a user; the first one changes the settings."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                precise = self._precise()
                self._before = [(module, name, getattr(module, name)) for module, name, _ in precise]
                self._set(precise)

    def leave(self) -> None:
        """Remove a user; the last one restores the previous settings."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._set(self._before)

    @staticmethod
    def _precise() -> list[tuple[Any, str, Any]]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        deterministic: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
        if hasattr(cudnn, "conv"):
            return deterministic + [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
        # PyTorch before 2.9.
        return deterministic + [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]

    @staticmethod
    def _set(values: list[tuple[Any, str, Any]]) -> None:
        for module, name, value in values:
            setattr(module, name, value)


_SWITCHES = _Switches()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute convolutions and matrix products on NVIDIA GPUs in full 32-bit precision and with fixed algorithms.

    By default PyTorch lets convolutions round to ten bits (TensorFloat-32). Other code in the same process may also
    have enabled the choice of algorithms by speed, which can differ from one time to the next.
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
    text = f"The GPU does not work with this PyTorch ({fault}); the CPU is used instead."
    warnings.warn(text, FallbackWarning, stacklevel=3)
    return torch.device("cpu")


def kernel_fault(device: torch.device) -> str:
    """Test a small convolution and a small warp on a device.

    A GPU that is newer or older than the PyTorch build supports is reported as available, but its first computation
    fails.

    Returns:
        Why the test failed; empty if it passed.
    """
    try:
        cube = torch.ones(1, 1, 4, 4, 4, device=device)
        convolved = F.conv3d(cube, cube[..., :3, :3, :3], padding=1)
        warped = F.grid_sample(convolved, torch.zeros(1, 2, 2, 2, 3, device=device), align_corners=True)
        if not torch.isfinite(warped.sum()).item():
            return "a small test computation gave a wrong result"
    except Exception as error:
        return str(error).strip().splitlines()[0][:200] or type(error).__name__
    return ""
