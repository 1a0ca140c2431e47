"""Draw synthetic training images: organs, bones, vessels and airways, each with its own gray value.

Like anatomy, they have closed smooth surfaces, parts inside parts, walls, and tubes, but no typical contrast. A model
that is also trained on them depends less on the gray values of one modality. Everything is computed on the generator's
device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from DRDMLib.diffusion.affine import random_rotations

# Points on the center line of a tube.
_LINE_POINTS = 40


def draw_shapes(count: int, ndim: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw bodies, or images filled with tissue, with organs and tubes in random gray values.

    Returns:
        (count, 1, *S) uint8.
    """
    return torch.stack([_Drawing(ndim, size, generator).draw() for _ in range(count)])


def draw_labels(
    labels: Tensor, count: int, generator: torch.Generator, *, inner_only: float = 0.0, inner: int = 0
) -> Tensor:
    """Draw random label maps in random gray values, with texture; label 0 is mostly dark.

    Args:
        labels: (M, 1, *S), label maps.
        inner_only: fraction of the images that show only the labels up to ``inner``, like a brain without its skull.

    Returns:
        (count, 1, *S) uint8.
    """
    return torch.stack([_draw_label(labels, generator, inner_only, inner) for _ in range(count)])


def _draw_label(labels: Tensor, generator: torch.Generator, inner_only: float, inner: int) -> Tensor:
    device = generator.device
    number = int(torch.randint(len(labels), (1,), generator=generator, device=device))
    alone = _random(generator) < inner_only
    label = labels[number].to(device).long()
    if alone:
        label = torch.where(label <= inner, label, 0)
    grays = torch.rand(256, generator=generator, device=device)
    if _random(generator) < 0.75:
        grays[0] = 0.05 * grays[0]
    image = grays[label]
    texture = _texture(label.ndim - 1, label.shape[-1], generator)
    image = _mean_filter(image[None])[0] + texture * (0.1 * _random(generator)) * (image > 0.06)
    return _to_bytes(image)


class _Drawing:
    """One synthetic image while it is drawn."""

    def __init__(self, ndim: int, size: int, generator: torch.Generator) -> None:
        self.ndim, self.size, self.generator = ndim, size, generator
        axis = torch.linspace(-1, 1, size, device=generator.device)
        self.straight = torch.stack(torch.meshgrid(*[axis] * ndim, indexing="ij"), -1).view(-1, ndim)
        # Organs are no ellipsoids, so space is bent before they are drawn.
        bend = torch.stack([self._smooth(5) for _ in range(ndim)], dim=1)
        self.points = self.straight + bend * self._uniform(0.0, 0.12, 1)

    def draw(self) -> Tensor:
        """Draw the image: (1, *S), uint8."""
        whole = _random(self.generator) < 0.7
        body = self._solid(self._uniform(-0.15, 0.15, self.ndim), self._uniform(0.55, 1.1, self.ndim))
        body = body if whole else torch.ones_like(body)
        image = body * self._uniform(0.2, 1.0, 1)
        if whole and _random(self.generator) < 0.4:
            # Skin and fat, or a skull.
            image = self._add_wall(image, body, 0.03, 0.12)
        texture = _texture(self.ndim, self.size, self.generator).view(-1)
        roughness = texture * self._uniform(0.0, 0.1, 1)
        for _ in range(self._integer(6, 17)):
            mask = self._solid(self._uniform(-0.8, 0.8, self.ndim), self._uniform(0.06, 0.45, self.ndim))
            image, roughness = self._add_organ(image, mask * body, roughness, texture)
        for _ in range(self._integer(0, 7)):
            image = self._add_tubes(image, body)
        shading = self.straight @ self._uniform(-0.2, 0.2, self.ndim)
        image = (image + (roughness + shading) * body).view(1, *[self.size] * self.ndim)
        if self.ndim == 2 and _random(self.generator) < 0.12:
            image = image * (0.6 + 0.8 * texture.view_as(image).abs()) * self._fan().view_as(image)
        return _to_bytes(image)

    def _add_organ(self, image: Tensor, mask: Tensor, roughness: Tensor, texture: Tensor) -> tuple[Tensor, Tensor]:
        """Add an organ with its own texture, with or without a wall."""
        image = image * (1 - mask) + mask * self._uniform(0.0, 1.0, 1)
        roughness = roughness * (1 - mask) + mask * texture * self._uniform(0.0, 0.1, 1)
        return (self._add_wall(image, mask, 0.05, 0.3) if _random(self.generator) < 0.3 else image), roughness

    def _add_tubes(self, image: Tensor, body: Tensor) -> Tensor:
        """Add a tube, or several parallel ones, like ribs, vertebrae or fingers."""
        line, radius = self._line(), float(self._uniform(0.02, 0.09, 1))
        repeats, distance = 1, torch.zeros(self.ndim, device=line.device)
        if _random(self.generator) < 0.25:
            repeats, distance = self._integer(3, 8), self._uniform(-0.3, 0.3, self.ndim)
        gray = self._uniform(0.0, 1.0, 1)
        for number in range(repeats):
            mask = self._tube(line + number * distance, radius) * body
            image = image * (1 - mask) + mask * gray
        return image

    def _add_wall(self, image: Tensor, mask: Tensor, thin: float, thick: float) -> Tensor:
        """Add a layer with another gray value along the inside of a mask, where its smoothed edge is."""
        depth = mask.view(1, 1, *[self.size] * self.ndim)
        for _ in range(max(1, round(float(self._uniform(thin, thick, 1)) * self.size / 4))):
            depth = _mean_filter(depth)
        wall = mask * (1 - ((depth.view(-1) - 0.5) * 2).clamp(0, 1))
        return image * (1 - wall) + wall * self._uniform(0.0, 1.0, 1)

    def _solid(self, center: Tensor, radii: Tensor) -> Tensor:
        """Return 1 inside a solid between ellipsoid and box and 0 outside, with an edge about one voxel wide."""
        rotated = (self.points - center) @ random_rotations(1, self.ndim, 180.0, self.generator)[0]
        exponent = float(self._uniform(2.0, 4.0, 1))
        distance = (rotated / radii).abs().clamp(min=1e-6).pow(exponent).sum(dim=1).pow(1 / exponent)
        return torch.sigmoid((1 - distance) * float(radii.min()) * 2 * self.size)

    def _line(self) -> Tensor:
        """Draw a random cubic Bezier curve: (points, d)."""
        controls = self._uniform(-1.0, 1.0, 4, self.ndim)
        t = torch.linspace(0, 1, _LINE_POINTS, device=controls.device)[:, None]
        s = 1 - t
        return s**3 * controls[0] + 3 * s * s * t * controls[1] + 3 * s * t * t * controls[2] + t**3 * controls[3]

    def _tube(self, line: Tensor, radius: float) -> Tensor:
        """Return 1 near a curve, as a row of overlapping balls, and 0 elsewhere."""
        radius = max(radius, float((line[1:] - line[:-1]).norm(dim=1).max()) / 1.8)
        distance = torch.cdist(self.points, line, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        return torch.sigmoid((radius - distance) * self.size)

    def _fan(self) -> Tensor:
        """Return 1 in a sector, the view of a curved ultrasound probe, and 0 outside."""
        across, down = self.straight[:, 1], self.straight[:, 0] + 1 + float(self._uniform(0.1, 0.6, 1))
        radius, angle = torch.hypot(across, down), torch.atan2(across, down).abs()
        nearest, widest = float(self._uniform(0.2, 0.7, 1)), float(self._uniform(0.4, 0.9, 1))
        return ((radius > nearest) & (radius < nearest + 1.7) & (angle < widest)).float()

    def _smooth(self, nodes: int) -> Tensor:
        coarse = torch.randn(1, 1, *[nodes] * self.ndim, generator=self.generator, device=self.generator.device)
        mode = "bicubic" if self.ndim == 2 else "trilinear"
        return F.interpolate(coarse, size=[self.size] * self.ndim, mode=mode, align_corners=True).view(-1)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.generator.device)

    def _integer(self, low: int, high: int) -> int:
        return low + math.floor((high - low) * _random(self.generator))


def _random(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator, device=generator.device))


def _texture(ndim: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw noise with a standard deviation near 1, fine in some images and coarse in others: (1, *S)."""
    noise = torch.randn(1, 1, *[size] * ndim, generator=generator, device=generator.device)
    for _ in range(int(3 * _random(generator))):
        noise = _mean_filter(noise)
    return (noise / noise.std().clamp(min=1e-3))[0]


def _mean_filter(image: Tensor) -> Tensor:
    """Average over three voxels along each axis of (N, C, *S)."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image, 3, 1, 1, count_include_pad=False)


def _to_bytes(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
