"""Poses: random affine maps of a whole image, for differences in position and size between subjects."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .poses import PoseSpread

# Largest effects at an amount of 1. The shipped models were trained on subjects that differ by as much.
MAX_ROTATION_DEGREES = 15.0
MAX_SCALING = 0.15
MAX_SHIFT = 0.06
MAX_POSE = 2.0


def random_rotations(batch: int, ndim: int, degrees: float, generator: torch.Generator) -> Tensor:
    """Draw rotation matrices (batch, d, d): about a random axis, by an angle uniform in -``degrees``..``degrees``."""
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
    """Draw an affine map about the center of the image.

    Args:
        amount: at 1 the map rotates by up to 15 degrees, scales by up to 15 % (each axis by up to 5 % more or less than
            the others) and shifts by up to 6 % of the side along each axis. Other values multiply these limits.
        generator: source of all random numbers; the map is computed on its device.

    Returns:
        Matrix (d, d), and shift (d,) as a fraction of the side.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * 2 - 1

    scales = torch.exp(amount * MAX_SCALING * (uniform(1) + uniform(ndim) / 3))
    matrix = random_rotations(1, ndim, amount * MAX_ROTATION_DEGREES, generator)[0] * scales
    shift = amount * MAX_SHIFT * uniform(ndim)
    return matrix, shift


def random_pose(size: int, ndim: int, amount: float | PoseSpread, generator: torch.Generator) -> Tensor:
    """Draw a random affine map as a displacement field.

    Args:
        size: side of the image, voxels.
        amount, generator: as for :func:`random_affine`; or the spread of a population, in the axes of the tensor and
            with shifts as fractions of the side.

    Returns:
        (1, d, *S), fraction of the side.
    """
    if isinstance(amount, PoseSpread):
        matrix, shift = amount.draw(generator)
    else:
        matrix, shift = random_affine(ndim, amount, generator)
    line = (torch.arange(size, device=generator.device) + 0.5) / size - 0.5
    positions = torch.stack(torch.meshgrid(*[line] * ndim, indexing="ij"))
    moved = torch.tensordot(matrix, positions, dims=1) + shift.view(-1, *[1] * ndim)
    result: Tensor = (moved - positions)[None]
    return result
