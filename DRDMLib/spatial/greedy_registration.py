"""Register two small images on one grid without labels: greedy diffeomorphic registration by local correlation.

The field is composed of many small smooth steps, each along the gradient of the squared correlation of both images
within a small window (Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image
Analysis 12, 2008; here one-sided). Unlike a difference of gray values, this correlation does not depend on the
brightness and contrast that two scanners give the same tissue.

Arrays have SimpleITK's order, (*S); a field (d, *S) is in voxels, and its channel k moves along axis k of the array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .coordinates import thick_axes

# The grids are coarser than the image by these factors, with so many steps on each.
_FACTORS, _STEPS = (4, 2, 1), (40, 30, 25)
# Side of the window of the correlation; largest motion of a step; and the standard deviations of the Gaussians that
# smooth each step and the whole field. In voxels of the grid.
_WINDOW, _MOTION, _STEP_SMOOTHING, _FIELD_SMOOTHING = 5, 0.4, 1.7, 0.7
# Across thick slices the smoothing is less by this factor, and the window is one slice.
_ACROSS = 0.5
# Added to the variances, for images of values 0 to 1: where there is nothing but noise, nothing pulls.
_NOISE = 1e-3


def register(fixed: np.ndarray, moving: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Find the field that makes the moving image look like the fixed one.

    Args:
        fixed, moving: (*S), values 0 to 1.
        spacing: of the axes of the arrays.

    Returns:
        (d, *S), voxels, 64-bit: the version at x shows what the moving image shows at x + field(x).
    """
    thick = thick_axes(spacing)
    field, former = np.zeros(1), [1] * fixed.ndim
    for factor, steps in zip(_FACTORS, _STEPS, strict=True):
        # At least four voxels are left along each axis.
        factors = [1 if one else min(factor, _power(n // 4)) for one, n in zip(thick, fixed.shape, strict=True)]
        small, source = (_coarser(image, factors) for image in (fixed, moving))
        field = _on_finer(field, small.shape, [old // new for old, new in zip(former, factors, strict=True)])
        former = factors
        for _ in range(steps):
            field = _step(field, small, source, thick)
    return field


def warp(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Deform an image (*S) by a field (d, *S), voxels, with linear interpolation; beyond the edge it continues."""
    positions = np.indices(image.shape, dtype=np.float64) + field
    result: np.ndarray = ndimage.map_coordinates(image, positions, order=1, mode="nearest")
    return result


def _step(field: np.ndarray, fixed: np.ndarray, moving: np.ndarray, thick: Sequence[bool]) -> np.ndarray:
    """Compose a field with one more small step."""
    pull = _pull(fixed, warp(moving, field), [1 if one else _WINDOW for one in thick])
    pull = _smoothed(pull, _STEP_SMOOTHING, thick)
    longest = float(np.sqrt(np.square(pull).sum(axis=0).max()))
    if longest == 0:
        return field
    step = pull * (_MOTION / longest)
    composed = np.stack([warp(channel, step) for channel in field]) + step
    return _smoothed(composed, _FIELD_SMOOTHING, thick)


def _pull(fixed: np.ndarray, moved: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """Return the gradient of the squared local correlation with respect to the field: (d, *S)."""

    def mean(values: np.ndarray) -> np.ndarray:
        result: np.ndarray = ndimage.uniform_filter(values, window, mode="nearest")
        return result

    of_fixed, of_moved = mean(fixed), mean(moved)
    variance_fixed = np.maximum(mean(fixed**2) - of_fixed**2, 0) + _NOISE
    variance_moved = np.maximum(mean(moved**2) - of_moved**2, 0) + _NOISE
    together = mean(fixed * moved) - of_fixed * of_moved
    # With its sign, since both are images of one kind: where one is bright as the other is dark, they are not alike.
    weight = 2 * np.abs(together) / (variance_fixed * variance_moved)
    difference = fixed - of_fixed - together / variance_moved * (moved - of_moved)
    slopes = (np.gradient(moved, axis=k) if n > 1 else np.zeros_like(moved) for k, n in enumerate(moved.shape))
    return np.stack([weight * difference * slope for slope in slopes])


def _smoothed(field: np.ndarray, deviation: float, thick: Sequence[bool]) -> np.ndarray:
    deviations = [deviation * (_ACROSS if one else 1) for one in thick]
    return np.stack([ndimage.gaussian_filter(channel, deviations, mode="nearest") for channel in field])


def _coarser(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return every second or fourth voxel of a smoothed image."""
    smooth = ndimage.gaussian_filter(image, [0.5 * f if f > 1 else 0 for f in factors])
    result: np.ndarray = smooth[tuple(slice(None, None, f) for f in factors)]
    return result


def _power(number: int) -> int:
    """Return the largest power of two up to a number; 1 for smaller ones."""
    return 1 << max(0, number.bit_length() - 1)


def _on_finer(field: np.ndarray, shape: tuple[int, ...], factors: Sequence[int]) -> np.ndarray:
    """Return a field on a grid that is finer by ``factors``, in voxels of that."""
    if not field.any():
        return np.zeros((len(shape), *shape))
    axes = [-1] + [1] * len(shape)
    places = np.indices(shape, dtype=np.float64) / np.reshape(factors, axes)
    finer = [ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in field]
    result: np.ndarray = np.stack(finer) * np.reshape(factors, axes)
    return result
