"""Random augmentation of training images: rotation, shift, zoom and contrast (paper, section 4).

Optional, beyond the paper: mirroring, smaller fields of view, and the gray values, blur and noise of other scanners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.affine import random_rotations

# Smallest fraction of each side that a partial view shows.
_SMALLEST_VIEW = 0.55
# Knots of a random gray value curve, largest shading (logarithm) and largest noise of another scanner.
_KNOTS = 7
_SHADING, _NOISE = 0.25, 0.08


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
    size: int | None = None,
    mirror_axes: Sequence[int] = (),
    partial_views: float = 0.0,
    scanner_effects: float = 0.0,
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
        size: voxels along each side of the result; ``None`` keeps those of ``images``. Parts of images that are kept on
            a finer grid stay sharp.
        mirror_axes: axes along which half of the images are mirrored; 0 is the first after the channel.
        partial_views: fraction of the images of which only a box of random proportions is visible, enlarged to the
            whole side as in a scan with a smaller field of view; the border of the box is repeated around it.
        scanner_effects: fraction of the images that receive a random curve of gray values, which may fall, and random
            shading, blur and noise.

    Returns:
        (N, 1, *S).
    """
    batch, ndim = images.shape[0], images.ndim - 2
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    zooms = uniform(*zoom, 1, 1)
    visible = torch.ones(batch, 1, ndim, device=device)
    if partial_views:
        partial = uniform(0.0, 1.0, 1, 1) < partial_views
        visible = torch.where(partial, uniform(_SMALLEST_VIEW, 1.0, 1, ndim), visible)
    largest = visible.amax(dim=2, keepdim=True)
    # A crop with side z may lie anywhere in the image: its center moves by up to 1 - z.
    room = (1 - zooms * visible).clamp(min=0).transpose(1, 2)
    shifts = uniform(-1.0, 1.0, ndim, 1) * room + uniform(-shift, shift, ndim, 1)
    linear = random_rotations(batch, ndim, rotation, generator) * zooms * largest
    if mirror_axes:
        # The matrix has its columns in the order of grid_sample, last axis first.
        allowed = torch.tensor([ndim - 1 - column in mirror_axes for column in range(ndim)], device=device)
        linear = torch.where(allowed & (uniform(0.0, 1.0, 1, ndim) < 0.5), -linear, linear)
    shape = [batch, 1, *([size] * ndim if size else images.shape[2:])]
    if partial_views:
        identity = torch.eye(ndim, ndim + 1, device=device).expand(batch, ndim, ndim + 1)
        points = F.affine_grid(identity, shape, align_corners=False).view(batch, -1, ndim)
        edge = visible / largest
        grid = torch.minimum(torch.maximum(points, -edge), edge) @ linear.transpose(1, 2) + shifts.transpose(1, 2)
        grid = grid.view(batch, *shape[2:], ndim)
    else:
        grid = F.affine_grid(torch.cat([linear, shifts], dim=2), shape, align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    ones = [1] * (ndim + 1)
    if random_contrast:
        moved = moved.clamp(0, 1) ** torch.exp(uniform(-0.7, 0.7, *ones))
        # Voxels outside the image stay dark.
        negative = (moved > 0) * (1 - moved)
        moved = torch.where(uniform(0.0, 1.0, *ones) < 0.5, moved, negative)
    if scanner_effects:
        chosen = uniform(0.0, 1.0, *ones) < scanner_effects
        moved = torch.where(chosen, _with_scanner_effects(moved, generator), moved)
    factor = 1 + contrast * torch.randn(batch, *ones, generator=generator, device=device)
    offset = contrast * torch.randn(batch, *ones, generator=generator, device=device)
    return moved * factor + offset


def _with_scanner_effects(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change the gray values of images (N, 1, *S), 0..1, and blur and shade them and add noise."""
    batch, ndim, device = images.shape[0], images.ndim - 2, images.device
    ones = [1] * (ndim + 1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, device=device)

    mean_filter = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    blurred = mean_filter(images, 3, 1, 1, count_include_pad=False)
    images = images + (blurred - images) * (2 * uniform(*ones) - 1).clamp(min=0)
    curves = _random_curves(batch, generator)
    gray = (images.clamp(0, 1) * (curves.shape[1] - 1)).round().long()
    images = curves.gather(1, gray.flatten(1)).view_as(images)
    coarse = torch.randn(batch, 1, *[4] * ndim, generator=generator, device=device) * _SHADING * uniform(*ones)
    mode = "bilinear" if ndim == 2 else "trilinear"
    shading = F.interpolate(coarse, size=images.shape[2:], mode=mode, align_corners=False).exp()
    noise = torch.randn(images.shape, generator=generator, device=device) * _NOISE * uniform(*ones)
    # In half of the images the noise is proportional to the intensity, like speckle.
    noise = torch.where(uniform(*ones) < 0.5, noise, 2 * noise * images)
    return (images * shading + noise).clamp(0, 1)


def _random_curves(count: int, generator: torch.Generator) -> Tensor:
    """Draw piecewise linear curves of gray values, (count, 256): 40 % rise, 20 % fall, the others do neither."""
    device = generator.device
    knots = torch.rand(count, _KNOTS, generator=generator, device=device)
    kind = torch.rand(count, 1, generator=generator, device=device)
    rising = knots.sort(dim=1).values
    knots = torch.where(kind < 0.4, rising, torch.where(kind < 0.6, rising.flip(1), knots))
    low, high = knots.amin(dim=1, keepdim=True), knots.amax(dim=1, keepdim=True)
    knots = (knots - low) / (high - low).clamp(min=1e-3)
    return F.interpolate(knots[:, None], size=256, mode="linear", align_corners=True)[:, 0]
