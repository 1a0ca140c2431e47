"""Random augmentation of training images: rotation, shift, zoom and contrast (paper, section 4)."""

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
    """Rotate, shift and crop each image at random, and change its contrast.

    Args:
        images: (N, 1, *S), on the device of ``generator``.
        rotation: largest angle, degrees.
        zoom: smallest and largest fraction of the image's side that stays visible; above 1 the image is shrunk.
            Published: 0.6 to 1.
        shift: largest additional shift, as a fraction of half the side. Published: 0.25.
        contrast: standard deviation of the random factor and of the random offset that are applied to intensities.
        random_contrast: also apply a random gamma curve and invert half of the images, so that the network does not
            depend on which tissue is bright.
        padding: values outside the image: ``"zeros"``, or ``"border"`` to repeat its border voxels.

    Returns:
        (N, 1, *S).
    """
    batch, ndim = images.shape[0], images.ndim - 2
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    zooms = uniform(*zoom, 1, 1)
    # A crop with side z may lie anywhere in the image: its center moves by up to 1 - z.
    shifts = uniform(-1.0, 1.0, ndim, 1) * (1 - zooms).clamp(min=0) + uniform(-shift, shift, ndim, 1)
    affine = torch.cat([random_rotations(batch, ndim, rotation, generator) * zooms, shifts], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    ones = [1] * (ndim + 1)
    if random_contrast:
        moved = moved.clamp(0, 1) ** torch.exp(uniform(-0.7, 0.7, *ones))
        # Voxels outside the image stay dark.
        negative = (moved > 0) * (1 - moved)
        moved = torch.where(uniform(0.0, 1.0, *ones) < 0.5, moved, negative)
    factor = 1 + contrast * torch.randn(batch, *ones, generator=generator, device=device)
    offset = contrast * torch.randn(batch, *ones, generator=generator, device=device)
    return moved * factor + offset
