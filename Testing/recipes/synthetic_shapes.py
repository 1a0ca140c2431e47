"""Draw synthetic training images: random solids inside one another, each with its own gray value.

Like anatomy, they have closed smooth surfaces and parts inside parts, but no typical contrast. A model that is also
trained on them depends less on the gray values of one modality.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from DRDMLib.diffusion.affine import random_rotations


def draw_shapes(count: int, ndim: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw images of a body with 8 to 16 solids in it, between ellipsoid and box, with random gray values.

    Returns:
        (count, 1, *S) uint8.
    """
    return torch.stack([_draw(ndim, size, generator) for _ in range(count)])


def _draw(ndim: int, size: int, generator: torch.Generator) -> Tensor:
    axis = torch.linspace(-1, 1, size)
    points = torch.stack(torch.meshgrid(*[axis] * ndim, indexing="ij"), -1).view(-1, ndim)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def solid(center: Tensor, radii: Tensor) -> Tensor:
        """Return 1 inside a solid and 0 outside, with an edge about one voxel wide."""
        rotated = (points - center) @ random_rotations(1, ndim, 180.0, generator)[0]
        exponent = float(uniform(2.0, 5.0, 1))
        distance = (rotated / radii).abs().pow(exponent).sum(dim=1).pow(1 / exponent)
        return torch.sigmoid((1 - distance) * float(radii.min()) * size)

    body = solid(uniform(-0.15, 0.15, ndim), uniform(0.5, 1.0, ndim))
    image = body * uniform(0.2, 1.0, 1)
    for _ in range(int(torch.randint(8, 17, (1,), generator=generator))):
        mask = solid(uniform(-0.7, 0.7, ndim), uniform(0.08, 0.45, ndim)) * body
        image = image * (1 - mask) + mask * uniform(0.0, 1.0, 1)
    image = image.view(1, *[size] * ndim)
    # Texture inside the body: slightly smoothed noise, and a gradient across the image.
    noise = torch.randn(image.shape, generator=generator)
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    texture = pool(noise[None], 3, 1, 1)[0] * uniform(0.0, 0.3, 1)
    shading = (points @ uniform(-0.2, 0.2, ndim)).view_as(image)
    textured = image + (texture + shading) * body.view_as(image)
    return (textured.clamp(0, 1) * 255).round().to(torch.uint8)
