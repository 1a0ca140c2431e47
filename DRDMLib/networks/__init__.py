"""Recovery networks by name. Each maps (image (N, 1, *S), t (N,)) to a step (N, d, *S) in fractions of the side.

``default_steps`` of each is how many visits of recovery do what visiting every level does, or nearly: measured by
``Testing/benchmarks/benchmark_steps.py``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from .compact import CompactNet
from .recresacnet import RecResACNet

ARCHITECTURES: dict[str, type[nn.Module]] = {"recresacnet": RecResACNet, "compact": CompactNet}


def build_network(architecture: str, ndim: int, timesteps: int, options: dict[str, Any] | None = None) -> nn.Module:
    """A network with fresh weights.

    Raises:
        ModelError: the architecture is not one of ``ARCHITECTURES``, or does not know an option.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"Architecture '{architecture}' is not known to this version of DRDM; it knows {known}.")
    try:
        return ARCHITECTURES[architecture](ndim, timesteps, **(options or {}))
    except (TypeError, ValueError) as error:
        raise ModelError(f"Options {options} do not fit the architecture '{architecture}'.") from error


__all__ = ["ARCHITECTURES", "CompactNet", "RecResACNet", "build_network"]
