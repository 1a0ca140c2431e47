"""Recovery networks by name. Each maps (image (N, 1, *S), t (N,)) to a step (N, d, *S), fraction of the side.

``default_steps`` of each network is the number of recovery steps that have nearly the same effect as one step for each
level. It was measured with ``Testing/benchmarks/steps.py``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from .compact import CompactNet
from .recresacnet import RecResACNet

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
        return ARCHITECTURES[architecture](ndim, timesteps, **(options or {}))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The architecture '{architecture}' does not accept the options {options}; check their names and values."
        ) from error


__all__ = ["ARCHITECTURES", "CompactNet", "RecResACNet", "build_network"]
