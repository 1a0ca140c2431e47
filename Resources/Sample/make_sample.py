"""Draws the sample that comes with DRDM: a phantom of a T1-weighted hippocampus crop, and its label map.

Nothing in it is from a scan. ``python Resources/Sample/make_sample.py`` writes sample.nii.gz and sample_label.nii.gz
beside itself; the same files every time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

SIZE = (36, 52, 36)
CSF, GRAY, WHITE = 35.0, 115.0, 175.0


def curve_distance(points: np.ndarray, curve: np.ndarray, radius: np.ndarray, squash: float) -> np.ndarray:
    """Signed distance-like value to a tube of changing radius along a curve; negative inside."""
    best = np.full(points.shape[:-1], np.inf)
    for center, r in zip(curve, radius, strict=True):
        offset = (points - center) * np.array([1.0, 1.0, squash])
        best = np.minimum(best, np.linalg.norm(offset, axis=-1) - r)
    return best


def soft(distance: np.ndarray, width: float = 0.8) -> np.ndarray:
    """1 inside, 0 outside, smooth over about a voxel."""
    return 1 / (1 + np.exp(distance / width * 2))


def folds(shape: tuple[int, ...], generator: np.random.Generator, scale: float) -> np.ndarray:
    """Smooth random texture with values around -1..1."""
    noise = ndimage.gaussian_filter(generator.normal(size=shape), scale, mode="wrap")
    return noise / np.abs(noise).max()


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Image (uint8) and label map (1 head, 2 body and tail), arrays in (z, y, x)."""
    generator = np.random.default_rng(2407)
    shape = SIZE[::-1]
    points = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in SIZE], indexing="ij"), axis=-1)
    points = points.transpose(2, 1, 0, 3)

    # Cortex: white matter with bands of gray, and thin dark clefts between them.
    pattern = folds(shape, generator, 5.0)
    image = WHITE - (WHITE - GRAY) * soft(np.abs(pattern) - 0.22, 0.12)
    image = image - (image - CSF) * soft(np.abs(pattern) - 0.03, 0.04) * 0.8

    # Hippocampus: a tapering arc from the head (front, low) to the tail (back, high), bending inwards.
    s = np.linspace(0, 1, 60)
    curve = np.stack([13 + 9 * s**1.6, 41 - 31 * s, 13 + 9 * s**1.3 + 1.5 * np.sin(3 * s)], axis=-1)
    radius = 5.6 - 3.0 * s**0.8 + 0.9 * np.exp(-(((s - 0.12) / 0.1) ** 2))
    body = curve_distance(points, curve, radius, 1.25)

    # White matter around it (alveus, fimbria below), a dark temporal horn outside of it.
    image = image + (WHITE - image) * soft(np.abs(body - 2.2) - 1.0, 1.0)
    horn = curve_distance(points, curve + np.array([-4.5, -1.0, 3.4]), radius * 0.42 + 0.5, 1.0)
    image = image + (CSF - image) * soft(horn)
    cistern = curve_distance(points, curve + np.array([7.5, 2.0, -2.0]), np.full(60, 1.9), 1.0)
    image = image + (CSF - image) * soft(cistern) * 0.9
    image = image + (GRAY + 8 - image) * soft(body)
    image = image - 14 * soft(np.abs(body + 1.8) - 0.35, 0.5)

    image = image * (1 + 0.06 * folds(shape, generator, 9.0)) + generator.normal(0, 3.5, shape)
    image = ndimage.gaussian_filter(image, 0.45)
    label = np.where(body < 0, np.where(points[..., 1] > 31, 1, 2), 0)
    return np.clip(image, 0, 255).astype(np.uint8), label.astype(np.uint8)


def main() -> None:
    """Write both files."""
    for name, array in zip(("sample", "sample_label"), draw(), strict=True):
        image = sitk.GetImageFromArray(array)
        image.SetOrigin((-32.0, -60.0, -28.0))
        sitk.WriteImage(image, str(Path(__file__).with_name(f"{name}.nii.gz")), useCompression=True)


if __name__ == "__main__":
    main()
