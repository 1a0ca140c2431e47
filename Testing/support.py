"""Shared code of the tests: images without symmetry, rotations, and a tiny model with non-zero output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from DRDMLib.diffusion.forward import CONTROL_SIZE, VELOCITY_SCALE
from DRDMLib.models.model import ModelMetadata, save_model
from DRDMLib.networks import build_network


def write_tiny_model(path: Path, ndim: int, size: int = 24) -> Path:
    """Write a compact network with random weights that give small, non-zero steps."""
    torch.manual_seed(ndim)
    network = build_network("compact", ndim, 80, {"width": 8})
    torch.nn.init.normal_(network.out.weight, std=0.01)
    metadata = ModelMetadata(path.stem, "compact", ndim, size, amplitude=2.0, options={"width": 8})
    if ndim == 3:
        # A random deformation of about the published strength on a control grid of half the side: drawing one on the
        # whole grid would take most of the time of a test.
        metadata = replace(metadata, control_size=CONTROL_SIZE // 2, velocity_scale=2 * VELOCITY_SCALE)
    save_model(path, network, metadata)
    return path


def smooth_image(
    size: tuple[int, ...],
    spacing: tuple[float, ...] | None = None,
    direction: np.ndarray | None = None,
    origin: tuple[float, ...] | None = None,
    pixel: int = sitk.sitkInt16,
    seed: int = 0,
) -> sitk.Image:
    """Make an image of blobs on a ramp, without symmetry; the size is in SimpleITK's axis order."""
    d = len(size)
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(0, 1, n) if n > 1 else np.zeros(1) for n in size[::-1]], indexing="ij")
    volume = 100 * axes[-1] + 50 * axes[0]
    for _ in range(12):
        center, width = generator.random(d), 0.06 + 0.1 * generator.random()
        distance = sum((a - c) ** 2 for a, c in zip(axes, center, strict=True))
        volume = volume + generator.uniform(-300, 600) * np.exp(-distance / (2 * width**2))
    image = sitk.Cast(sitk.GetImageFromArray(volume.astype(np.float32)), pixel)
    image.SetSpacing(spacing or (1.0,) * d)
    image.SetOrigin(origin or (-17.0, 23.5, 41.0)[:d])
    if direction is not None:
        image.SetDirection(np.asarray(direction).ravel().tolist())
    return image


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Make a rotation matrix (3, 3) from angles in degrees."""
    transform = sitk.Euler3DTransform((0, 0, 0), *np.radians([x, y, z]).tolist())
    return np.asarray(transform.GetMatrix()).reshape(3, 3)
