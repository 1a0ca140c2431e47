"""What is done to an image before it is deformed in training: rotation, shift, zoom, contrast (paper, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.affine import random_rotations


def augment_images(
    images: Tensor,
    generator: torch.Generator,
    *,
    rotation: float,
    zoom: tuple[float, float] = (0.6, 1.0),
    shift: float = 0.25,
    contrast: float = 0.1,
    random_contrast: bool = False,
    padding: str = "zeros",
) -> Tensor:
    """Each image (N, 1, *S) turned, shifted, cropped to a share of its side, and changed in contrast.

    Args:
        rotation: largest angle, degrees.
        zoom: least and greatest share of the side that is seen; above 1 the image gets smaller. As published 0.6 to 1.
        shift: largest shift besides, in halves of the side; as published 0.25.
        contrast: standard deviation of the factor and of the offset on intensities.
        random_contrast: also change the curve of gray values, and turn half of the images into their negative, so that
            the network learns nothing of what is bright and what is dark.
        padding: what lies outside of the image, ``"zeros"`` or its ``"border"`` continued.
    """
    batch, ndim = images.shape[0], images.ndim - 2
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    zooms = uniform(*zoom, 1, 1)
    # A crop of the side z may lie anywhere in the image: its centre moves by up to 1 - z.
    shifts = uniform(-1.0, 1.0, ndim, 1) * (1 - zooms).clamp(min=0) + uniform(-shift, shift, ndim, 1)
    affine = torch.cat([random_rotations(batch, ndim, rotation, generator) * zooms, shifts], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    ones = [1] * (ndim + 1)
    if random_contrast:
        turned = turned.clamp(0, 1) ** torch.exp(uniform(-0.7, 0.7, *ones))
        # What is outside the image stays dark.
        negative = (turned > 0) * (1 - turned)
        turned = torch.where(uniform(0.0, 1.0, *ones) < 0.5, turned, negative)
    factor = 1 + contrast * torch.randn(batch, *ones, generator=generator, device=device)
    offset = contrast * torch.randn(batch, *ones, generator=generator, device=device)
    return turned * factor + offset
