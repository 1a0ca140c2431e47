"""A synthetic image for the measurements of speed and memory, always the same."""

from __future__ import annotations

import numpy as np

# Voxels along each axis, by dimension.
SIDES = {2: 256, 3: 128}
SEED = 0
# Standard deviation; the body has an intensity of 500.
NOISE = 25.0


def phantom(ndim: int, side: int | None = None) -> np.ndarray:
    """Make a body with a rim, four organs, shading and noise: (side,) * ndim, 32-bit.

    The noise matters: networks trained on scans have nothing to work with in perfectly smooth areas.
    """
    generator = np.random.default_rng(SEED)
    line = np.linspace(-1, 1, side or SIDES[ndim], dtype=np.float32)
    axes = np.meshgrid(*[line] * ndim, indexing="ij", sparse=True)

    def ellipsoid(center: np.ndarray, radii: np.ndarray) -> np.ndarray:
        squares = [((x - c) / r) ** 2 for x, c, r in zip(axes, center.tolist(), radii.tolist(), strict=True)]
        return 1 / (1 + np.exp(np.clip((np.sqrt(sum(squares)) - 1) / 0.03, -60, 60)))

    image = 900 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.8)) - 400 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.72))
    for strength in (300, -200, 250, -300):
        image += strength * ellipsoid(generator.uniform(-0.4, 0.4, ndim), generator.uniform(0.1, 0.3, ndim))
    for _ in range(6):
        waves = [k * x for k, x in zip(generator.uniform(-12, 12, ndim).tolist(), axes, strict=True)]
        image += 15 * np.cos(sum(waves) + float(generator.uniform(0, 6)))
    image += generator.normal(0, NOISE, image.shape)
    return image.astype(np.float32)
