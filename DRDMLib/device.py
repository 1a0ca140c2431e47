"""Which processor does the work."""

from __future__ import annotations

import os

# Apple's MPS lacks a few operators (3D grid_sample in some versions); torch then does those on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

import torch

from .errors import SettingError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device called ``name``.

    Args:
        name: ``"auto"`` (CUDA, else Apple MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises:
        SettingError: there is no such device on this computer.
    """
    has_mps = torch.backends.mps.is_available()
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
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


def describe() -> dict[str, str]:
    """Version of PyTorch, the device that ``"auto"`` takes, and the name of the GPU if there is one that works."""
    device, gpu = choose_device(), ""
    if device.type == "cuda":
        # A card newer than the build says that it is available, and fails at the first kernel.
        torch.ones(8, device=device).sum().item()
        gpu = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        gpu = "Apple GPU"
    return {"torch": torch.__version__, "device": device.type, "gpu": gpu}


if __name__ == "__main__":
    import json

    print(json.dumps({"event": "item", **describe()}))
