"""What is done to an image before it is deformed in training: rotation, shift, zoom, contrast (paper, section 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_rotations(batch: int, ndim: int, degrees: float, generator: torch.Generator) -> Tensor:
    """(batch, d, d) rotations about a random axis by an angle uniform in +-``degrees``."""
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


def augment_images(images: Tensor, generator: torch.Generator, *, rotation: float, contrast: float = 0.1) -> Tensor:
    """Each image (N, 1, *S) turned, shifted by up to 12.5 %, cropped to 0.6..1 of its side, and changed in contrast.

    Args:
        rotation: largest angle, degrees.
        contrast: standard deviation of the factor and of the offset on intensities.
    """
    batch, ndim = images.shape[0], images.ndim - 2
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    zoom = uniform(0.6, 1.0, 1, 1)
    # A crop of the side z may lie anywhere in the image: its centre moves by up to 1 - z.
    shift = uniform(-1.0, 1.0, ndim, 1) * (1 - zoom) + uniform(-0.25, 0.25, ndim, 1)
    affine = torch.cat([random_rotations(batch, ndim, rotation, generator) * zoom, shift], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    ones = [1] * (ndim + 1)
    factor = 1 + contrast * torch.randn(batch, *ones, generator=generator, device=device)
    offset = contrast * torch.randn(batch, *ones, generator=generator, device=device)
    return turned * factor + offset
