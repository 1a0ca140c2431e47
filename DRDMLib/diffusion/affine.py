"""Poses: affine maps of a whole image, as subjects lie in scanners and differ in size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The largest effect of an amount of 1; the shipped models were trained on subjects that differ as much.
MAX_ROTATION_DEGREES = 15.0
MAX_SCALING = 0.15
MAX_SHIFT = 0.06
MAX_POSE = 2.0


def random_rotations(batch: int, ndim: int, degrees: float, generator: torch.Generator) -> Tensor:
    """Draw rotations (batch, d, d) about a random axis by an angle uniform in +-``degrees``."""
    device = generator.device
    angle = (torch.rand(batch, generator=generator, device=device) * 2 - 1) * math.radians(degrees)
    sin, cos = angle.sin(), angle.cos()
    if ndim == 2:
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    axis = F.normalize(torch.randn(batch, 3, generator=generator, device=device), dim=1)
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(batch, 3, 3)
    eye = torch.eye(3, device=device)
    return eye + sin.view(-1, 1, 1) * cross + (1 - cos).view(-1, 1, 1) * (cross @ cross)


def random_affine(ndim: int, amount: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw an affine map about the center of the image: matrix (d, d) and shift (d,), fraction of the side.

    Args:
        amount: at 1 it rotates by up to 15 degrees, scales by up to 15 % (each axis by up to 5 % more or less than the
            others) and shifts by up to 6 % of the side along each axis; at other values by that many times as much.
        generator: source of all randomness; its device does the work.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * 2 - 1

    scales = torch.exp(amount * MAX_SCALING * (uniform(1) + uniform(ndim) / 3))
    matrix = random_rotations(1, ndim, amount * MAX_ROTATION_DEGREES, generator)[0] * scales
    shift = amount * MAX_SHIFT * uniform(ndim)
    return matrix, shift


def random_pose(size: int, ndim: int, amount: float, generator: torch.Generator) -> Tensor:
    """Draw :func:`random_affine` as a field: (1, d, *S), fraction of the side.

    Args:
        size: side of the image, voxels.
        amount, generator: as there.
    """
    matrix, shift = random_affine(ndim, amount, generator)
    line = (torch.arange(size, device=generator.device) + 0.5) / size - 0.5
    places = torch.stack(torch.meshgrid(*[line] * ndim, indexing="ij"))
    moved = torch.tensordot(matrix, places, dims=1) + shift.view(-1, *[1] * ndim)
    result: Tensor = (moved - places)[None]
    return result
