"""Give a scan a share of the gray values of another one to which it is registered.

Two scanners, and two people, show the same structure with other gray values, and a network that has seen those of few
scans takes it for another structure. The change has two parts: a curve, by which the histogram of the scan becomes that
of the other one, and a smooth factor for each place, for what still differs there. Zhao et al. have a network learn
such changes ("Data augmentation using learned transformations for one-shot medical image segmentation", CVPR 2019,
arXiv:1902.09383); here they are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .spatial.bones import is_ct
from .spatial.resampling import numpy_type, slab_resampler, slabs

# Points of the curve; and its greatest slope, the least being one divided by it: a steeper one would show noise.
_POINTS, _STEEPEST = 33, 5.0
# Standard deviation of the Gaussian that makes the factor smooth, voxels of the grid on which scans are registered; it
# is not less than this across thick slices.
_SMOOTHING, _LEAST_SMOOTHING = 1.3, 0.6
# Added to both scans before they are divided, for values 0 to 1, so that air has no factor; and the largest logarithm
# of the factor.
_FLOOR, _MOST = 0.05, 1.0
# Whole numbers below this are Hounsfield units, and not the gray values of a scanner.
_LEAST_HOUNSFIELD = -50


@dataclass(frozen=True)
class GrayChange:
    """How the gray values of a scan become those of another one.

    Attributes:
        own: gray values of the scan, increasing.
        other: what they become.
        base: gray value of air, which has no factor.
        factor: natural logarithm of the factor by which what is above air is multiplied then, on a grid over the scan.
    """

    own: np.ndarray
    other: np.ndarray
    base: float
    factor: sitk.Image

    def apply(self, image: sitk.Image, share: float) -> sitk.Image:
        """Change a share of the way.

        Args:
            image: the scan.
            share: 0 (nothing) to 1 (all of it).

        Returns:
            A new image of the same type and on the same grid. Whole numbers are rounded, and none is below the smallest
            of the scan.
        """
        dtype = numpy_type(image.GetPixelID())
        source = sitk.GetArrayViewFromImage(image)
        result = np.empty(source.shape, dtype)
        ends = (float(source.min()), float(np.iinfo(dtype).max)) if dtype.kind in "iu" else None
        for start, stop in slabs(image.GetSize()):
            resampler = slab_resampler(image, start, stop)
            resampler.SetInterpolator(sitk.sitkLinear)
            resampler.SetUseNearestNeighborExtrapolator(True)
            factor = np.exp(share * sitk.GetArrayFromImage(resampler.Execute(self.factor)))
            values = source[start:stop].astype(np.float64)
            within = np.clip(values, self.own[0], self.own[-1])
            values += share * (np.interp(within, self.own, self.other) - within)
            values = self.base + (values - self.base) * factor
            result[start:stop] = values if ends is None else np.rint(values).clip(*ends)
        changed = sitk.GetImageFromArray(result)
        changed.CopyInformation(image)
        return changed


def gray_may_change(image: sitk.Image) -> bool:
    """Whether the gray values of a scan may change: not Hounsfield units, which are the same on every scanner."""
    if is_ct(image):
        return False
    values = sitk.GetArrayViewFromImage(image)
    return values.dtype.kind not in "iu" or float(values.min()) >= _LEAST_HOUNSFIELD


def gray_change(
    own: sitk.Image, other: np.ndarray, seen: np.ndarray, field: np.ndarray, scale: Sequence[float]
) -> GrayChange:
    """Compare a scan with another one to which it is registered.

    Args:
        own: the scan on a coarse grid, values 0 to 1.
        other: (*S), the other scan, values 0 to 1; array order.
        seen: (*S), where it shows something; somewhere it does.
        field: (d, *S), voxels, by which the scan is deformed to look like the other one, see
            :func:`DRDMLib.spatial.greedy_registration.register`.
        scale: gray values of the scan that are 0 and 1 here.
    """
    places = np.indices(other.shape)[:, seen] + field[:, seen]
    values = sitk.GetArrayFromImage(own).astype(np.float64)
    warped = ndimage.map_coordinates(values, places, order=1, mode="nearest")
    shown = other[seen]
    before, after = _curve(warped, shown)
    warped = np.interp(warped, before, after)
    # Each voxel of the other scan counts where the scan shows the same place.
    index = np.ravel_multi_index(tuple(np.rint(places).astype(int)), other.shape, mode="clip")
    smoothing = [max(_SMOOTHING * min(own.GetSpacing()) / s, _LEAST_SMOOTHING) for s in own.GetSpacing()[::-1]]

    def gathered(weights: np.ndarray) -> np.ndarray:
        sums = np.bincount(index, weights, minlength=other.size).reshape(other.shape)
        result: np.ndarray = ndimage.gaussian_filter(sums, smoothing, mode="nearest")
        return result

    count = gathered(np.ones(len(index)))
    ratio = np.log((gathered(shown) + _FLOOR * count + 1e-9) / (gathered(warped) + _FLOOR * count + 1e-9))
    factor = sitk.GetImageFromArray((np.clip(ratio, -_MOST, _MOST) * count.clip(0, 1)).astype(np.float32))
    factor.CopyInformation(own)
    low, high = scale
    return GrayChange(low + before * (high - low), low + after * (high - low), float(low), factor)


def _curve(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the curve that gives values the histogram of others, as nearly as its slope allows; all are 0 to 1."""
    shares, points = np.linspace(0, 1, _POINTS), np.linspace(0, 1, _POINTS)
    # Increasing, also where many voxels are equal.
    own = np.quantile(before, shares) + 1e-6 * np.arange(_POINTS)
    other = np.quantile(after, shares)
    slopes = np.diff(np.interp(points, own, other)) / np.diff(points)
    curve = np.concatenate([[0], np.cumsum(slopes.clip(1 / _STEEPEST, _STEEPEST) * np.diff(points))])
    return points, curve + float(np.mean(other - np.interp(own, points, curve)))
