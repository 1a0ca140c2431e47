"""What makes a fixed image more than a deformed copy: noise, blur, bias field, contrast, another grid, another view."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import SettingError
from ..spatial.coordinates import index_to_physical

# Percentiles of the gray values between which noise and contrast are measured.
_RANGE = (0.5, 99.5)
_SAMPLE = 2**22
# Voxels that an axis keeps at least after its ends are cut off.
_LEAST_VOXELS = 8


@dataclass(frozen=True)
class Recipe:
    """How hard the cases of a challenge are. Zero switches a change off.

    Attributes:
        levels: strengths of the deformations; the cases take them in turn.
        pose: rotation, scaling and shift of the whole scan, see :class:`DRDMLib.DeformationSettings`.
        noise: standard deviation of Gaussian noise, as a fraction of the range of gray values.
        blur: largest standard deviation of Gaussian blur, voxels.
        bias: largest deviation of the bias field from 1, as a natural logarithm.
        contrast: largest change of the exponent of gray values, as a natural logarithm.
        resample: largest change of the spacing of each axis, as a natural logarithm.
        crop: largest fraction of the side that is cut off at each face, of the fixed and of the moving image.
    """

    levels: tuple[int, ...]
    pose: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    bias: float = 0.0
    contrast: float = 0.0
    resample: float = 0.0
    crop: float = 0.0

    def __post_init__(self) -> None:
        if not self.levels:
            raise SettingError("There is no level; name at least one.")
        for name, most in (("noise", 1.0), ("blur", 10.0), ("bias", 3.0), ("contrast", 3.0), ("resample", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SettingError(f"{name} {getattr(self, name):g} is out of range; use 0 (none) to {most:g}.")
        if not 0 <= self.crop <= 0.3:
            raise SettingError(f"crop {self.crop:g} is out of range; use 0 (none) to 0.3.")

    def to_dict(self) -> dict[str, Any]:
        """Convert the recipe to a dictionary for a record."""
        return asdict(self) | {"levels": list(self.levels)}


RECIPES = {
    "mild": Recipe((24, 32, 40), pose=0.2, noise=0.01, blur=0.3, bias=0.05, contrast=0.1),
    "medium": Recipe((48, 56, 64), 0.6, noise=0.03, blur=0.6, bias=0.2, contrast=0.3, resample=0.15, crop=0.04),
    "hard": Recipe((64, 70, 76), 1.0, noise=0.06, blur=0.9, bias=0.4, contrast=0.6, resample=0.3, crop=0.08),
}


@dataclass(frozen=True)
class Changes:
    """What is changed in one fixed image; drawn from a recipe.

    Attributes:
        noise: standard deviation, in gray values.
        blur: standard deviation, voxels of the fixed image.
        bias: logarithm of the bias field at the corners of the image, (2,) * d in array order; linear between them.
        gamma: exponent of the gray values, scaled to 0..1.
        low, high: gray values that are scaled to 0 and 1.
        spacing: spacing of the fixed image as a multiple of that of the scan, for each axis.
        fixed_crop, moving_crop: fractions that are cut off, for each axis at its start and at its end.
        seed: seed of the noise.
    """

    noise: float
    blur: float
    bias: np.ndarray
    gamma: float
    low: float
    high: float
    spacing: tuple[float, ...]
    fixed_crop: tuple[tuple[float, float], ...]
    moving_crop: tuple[tuple[float, float], ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Convert the changes to a dictionary for a record."""
        return asdict(self) | {"bias": self.bias.tolist()}


def draw_changes(recipe: Recipe, scan: sitk.Image, seed: int) -> Changes:
    """Draw the changes of one case. Switching one of them off leaves the others as they are."""
    d = scan.GetDimension()
    generator = np.random.default_rng(seed)
    blur, gamma = generator.random(), generator.uniform(-1, 1)
    bias = generator.uniform(-1, 1, (2,) * d)
    spacing = generator.uniform(-1, 1, d)
    crops = generator.random((2, d, 2))
    long = np.asarray(scan.GetSize()) >= 2 * _LEAST_VOXELS
    crops *= recipe.crop * long[None, :, None]
    view = sitk.GetArrayViewFromImage(scan).ravel()
    low, high = np.percentile(view[:: max(1, view.size // _SAMPLE)].astype(np.float64), _RANGE)
    if not high > low:
        low, high = float(view.min()), float(view.max())
    fixed, moving = (tuple((float(a), float(b)) for a, b in crop) for crop in crops)
    return Changes(
        noise=float(recipe.noise * (high - low)),
        blur=float(recipe.blur * blur),
        bias=recipe.bias * bias,
        gamma=float(np.exp(recipe.contrast * gamma)),
        low=float(low),
        high=float(high),
        spacing=tuple(float(np.exp(recipe.resample * s)) if n else 1.0 for s, n in zip(spacing, long, strict=True)),
        fixed_crop=fixed,
        moving_crop=moving,
        seed=int(generator.integers(2**31)),
    )


def cut(scan: sitk.Image, changes: Changes) -> sitk.Image:
    """Cut the scan to the field of view of the moving image; voxels stay where they are."""
    size = np.asarray(scan.GetSize())
    ends = np.floor(np.asarray(changes.moving_crop) * size[:, None]).astype(int)
    if not ends.any():
        return scan
    moving: sitk.Image = sitk.RegionOfInterest(scan, (size - ends.sum(axis=1)).tolist(), ends[:, 0].tolist())
    return moving


def fixed_grid(scan: sitk.Image, changes: Changes) -> sitk.Image:
    """Return an empty image with the grid of the fixed image: another spacing, and ends that are cut off."""
    size, crop = np.asarray(scan.GetSize()), np.asarray(changes.fixed_crop)
    factor = np.asarray(changes.spacing)
    start = crop[:, 0] * size
    count = np.maximum(np.floor((size - start - crop[:, 1] * size) / factor + 1e-6), 1).astype(int)
    grid = sitk.Image(count.tolist(), sitk.sitkUInt8)
    grid.SetSpacing((np.asarray(scan.GetSpacing()) * factor).tolist())
    grid.SetDirection(scan.GetDirection())
    # The face of the first voxel stays where it is, or moves in.
    first = start - 0.5 + factor / 2
    grid.SetOrigin((np.asarray(scan.GetOrigin()) + index_to_physical(scan) @ first).tolist())
    return grid


def alter(image: sitk.Image, changes: Changes) -> sitk.Image:
    """Change the gray values of an image; it keeps its grid and pixel type."""
    if not (changes.blur or changes.bias.any() or changes.noise or changes.gamma != 1):
        return image
    view = sitk.GetArrayViewFromImage(image)
    # 32 bits are enough for integers of 16, and need half the memory.
    kind = np.float32 if view.dtype.itemsize <= 2 or view.dtype == np.float32 else np.float64
    width = changes.high - changes.low
    values = (view.astype(kind) - kind(changes.low)) / kind(width)
    if changes.blur > 0:
        values = ndimage.gaussian_filter(values, [changes.blur if n > 1 else 0 for n in values.shape], mode="nearest")
    if changes.gamma != 1:
        # Values beyond the range go on in a straight line, so that the curve stays monotone.
        inner = values.clip(0, 1)
        values += inner ** kind(changes.gamma) - inner
    if changes.bias.any():
        values *= np.exp(_between_corners(changes.bias.astype(kind), values.shape))
    if changes.noise > 0:
        values += np.random.default_rng(changes.seed).standard_normal(values.shape, kind) * kind(changes.noise / width)
    values = values * kind(width) + kind(changes.low)
    if view.dtype.kind in "iu":
        limits = np.iinfo(view.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    altered = sitk.GetImageFromArray(values.astype(view.dtype))
    altered.CopyInformation(image)
    return altered


def _between_corners(corners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate values at the corners of an image, (2,) * d, linearly to its voxels."""
    for axis, n in enumerate(shape):
        place = np.linspace(0, 1, n, dtype=corners.dtype).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        corners = corners.take([0], axis) * (1 - place) + corners.take([1], axis) * place
    return corners
