"""Recovery networks by name. Each maps (image (N, 1, *S), t (N,)) to a step (N, d, *S), fraction of the side.

``default_steps`` of each network is the number of recovery steps that have nearly the same effect as one step for each
level. It was measured with ``Testing/benchmarks/steps.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .compact import CompactNet
from .recresacnet import RecResACNet

# Limits of whole-number options: larger networks are not trained here, and files with larger numbers are damaged.
_LIMITS = {"width": (1, 1024), "depth": (0, 64), "passes": (1, 16)}
_SWITCHES = ("whole", "coarse", "places")
# Values of the largest array in a network for one image; a model file must not ask for all the memory.
_MOST_VALUES = 2**31

ARCHITECTURES: dict[str, type[nn.Module]] = {"recresacnet": RecResACNet, "compact": CompactNet}


def build_network(architecture: str, ndim: int, timesteps: int, options: dict[str, Any] | None = None) -> nn.Module:
    """Build a network with new weights.

    Args:
        architecture: one of ``ARCHITECTURES``.
        ndim: dimension of the images, 2 or 3.
        timesteps: number of levels T.
        options: keyword arguments of the network's class.

    Raises:
        ModelError: the architecture is not known, or does not accept the options.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"Architecture '{architecture}' is not known to this version of DRDM; choose one of {known}.")
    try:
        for name, value in (options or {}).items():
            low, high = _LIMITS.get(name, (0, 0))
            if name in _LIMITS and (type(value) is not int or not low <= value <= high):
                raise ValueError(name)
            if name in _SWITCHES and type(value) is not bool:
                raise ValueError(name)
        return ARCHITECTURES[architecture](ndim, timesteps, **(options or {}))
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ModelError(
            f"The architecture '{architecture}' does not accept the options {options}; check their names and values."
        ) from error


def shapes_of_network(
    architecture: str, ndim: int, size: int, timesteps: int, options: dict[str, Any] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a network's state, without using memory for it.

    Args:
        size: voxels along each side of its images.

    Raises:
        ModelError: as :func:`build_network`, or the network needs more memory than a computer has.
    """
    with torch.device("meta"):
        network = build_network(architecture, ndim, timesteps, options)
    widest = max((tensor.shape[0] for tensor in network.state_dict().values() if tensor.ndim > 2), default=1)
    if widest * (size // 2) ** ndim > _MOST_VALUES:
        raise ModelError(
            f"The model needs too much memory ({widest} channels on a grid of side {size}), so its file is damaged; "
            "download or copy it again."
        )
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


__all__ = ["ARCHITECTURES", "CompactNet", "RecResACNet", "build_network", "shapes_of_network"]
