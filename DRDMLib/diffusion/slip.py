"""Planes that a deformation does not cross: the free-slip boundary condition.

At such a plane displacements are zero along its normal, and free along the plane. A composition of fields that keep a
plane keeps it, too, so the condition is imposed on the small random fields and on each step of recovery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlipPlanes:
    """Planes at right angles to the axes of a field.

    Attributes:
        at: for each spatial axis, the positions of its planes in voxels of the image grid; they may lie outside of it.
        size: side of the image grid, voxels.
    """

    at: tuple[tuple[float, ...], ...]
    size: int

    def hold(self, field: Tensor, ramp: float = 0.0, *, padded: bool = False) -> Tensor:
        """Make the normal displacement zero at the planes.

        It is zero at the nodes on both sides of a plane, so linear interpolation keeps it zero between them, and a
        composition of two such fields has this property, too.

        Args:
            field: (N, d, *S): on the image grid, or on a control grid.
            ramp: distance from a plane over which the normal displacement grows to its full value, fraction of the
                side; 0 changes the nodes next to the plane only.
            padded: the field is on a control grid, whose central half covers the image.

        Returns:
            (N, d, *S), the same field if there are no planes.
        """
        held = field
        for axis, planes in enumerate(self.at):
            if planes:
                kind = (self.size, ramp, padded, field.device, field.dtype)
                weight = _weight(field.shape[2 + axis], tuple(planes), *kind)
                if held is field:
                    held = field.clone()
                held[:, axis] *= weight.view([-1 if a == axis else 1 for a in range(field.shape[1])])
        return held


@lru_cache(maxsize=256)
def _weight(
    nodes: int,
    planes: tuple[float, ...],
    size: int,
    ramp: float,
    padded: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the factor at each node of one axis: (nodes,), from 0 at the planes to 1; see :meth:`SlipPlanes.hold`."""
    step = (2 if padded else 1) * size / nodes
    first = -size // 2 if padded else 0
    with torch.inference_mode(False):
        positions = (torch.arange(nodes, dtype=torch.float64) + 0.5) * step - 0.5 + first
        weight = torch.ones(nodes, dtype=torch.float64)
        for plane in planes:
            beyond = ((positions - plane).abs() - step).clamp(min=0)
            weight *= (beyond > 1e-9) * torch.sin((beyond / max(ramp * size, 1e-9)).clamp(max=1) * (math.pi / 2))
        # Copied to a GPU only once; Apple's has no 64-bit numbers.
        return weight.to(dtype).to(device)
