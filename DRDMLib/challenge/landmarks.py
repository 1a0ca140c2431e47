"""Landmarks: check those that a user has set, and choose points on strong features of an image."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import ImageError
from ..io.files import shown
from ..io.points import Landmarks
from ..spatial.coordinates import index_to_physical, inside, to_points

# Number of points that are chosen, and of voxels that are looked at.
COUNT = 300
_MOST_VOXELS = 2**22
_MOST_CANDIDATES = 20000


def require_inside(landmarks: Landmarks, image: sitk.Image, path: str) -> None:
    """Check that all points lie in an image.

    Raises:
        ImageError: some lie outside of it.
    """
    outside = ~inside(landmarks.points, image)
    if outside.any():
        first = landmarks.names[int(np.flatnonzero(outside)[0])]
        raise ImageError(
            f"{int(outside.sum())} of {len(outside)} points of '{path}' lie outside of the scan (the first is "
            f"'{shown(first)}'); choose the points of this scan, and check whether they are LPS."
        )


def choose_landmarks(image: sitk.Image, mask: sitk.Image, count: int = COUNT) -> Landmarks:
    """Choose points at corners of structures: where the gray values change strongly in all directions.

    Args:
        mask: on the grid of the image, not zero where points may lie.
        count: largest number of points. They keep a distance, so that they cover the mask.
    """
    size = image.GetSize()
    step = max(1, round((np.prod(size) / _MOST_VOXELS) ** (1 / len(size)) + 0.49))
    every = tuple(slice(None, None, step if n > step else 1) for n in size[::-1])
    values = ndimage.gaussian_filter(sitk.GetArrayViewFromImage(image)[every].astype(np.float32), 1.0)
    allowed = sitk.GetArrayViewFromImage(mask)[every] > 0
    strength = np.where(allowed, _cornerness(values), -1)
    peaks = np.flatnonzero((strength > 0) & (strength == ndimage.maximum_filter(strength, 3)))
    peaks = peaks[np.argsort(-strength.ravel()[peaks], kind="stable")][:_MOST_CANDIDATES]
    steps = np.asarray([s.step or 1 for s in every])
    index = (np.stack(np.unravel_index(peaks, strength.shape), axis=1) * steps)[:, ::-1].astype(np.float64)
    along = index * np.abs(np.linalg.norm(index_to_physical(image), axis=0))
    wide = [n > 1 for n in strength.shape]
    volume = allowed.sum() * np.prod((np.asarray(image.GetSpacing())[::-1] * steps)[wide])
    distance = 0.5 * (volume / count) ** (1 / max(1, sum(wide)))
    chosen: list[int] = []
    for k in range(len(along)):
        if len(chosen) == count:
            break
        if not chosen or np.linalg.norm(along[chosen] - along[k], axis=1).min() >= distance:
            chosen.append(k)
    return Landmarks([f"p{k + 1}" for k in range(len(chosen))], to_points(index[chosen], image))


def _cornerness(values: np.ndarray) -> np.ndarray:
    """Return the determinant of the structure tensor divided by its trace, zero where nothing changes."""
    axes = [axis for axis, n in enumerate(values.shape) if n > 1]
    slopes = [np.gradient(values, axis=axis) for axis in axes]
    smooth = [[ndimage.gaussian_filter(a * b, 1.5) for b in slopes[: k + 1]] for k, a in enumerate(slopes)]
    n = len(axes)
    tensor = np.empty((*values.shape, n, n), np.float32)
    for a in range(n):
        for b in range(n):
            tensor[..., a, b] = smooth[max(a, b)][min(a, b)]
    trace = np.trace(tensor, axis1=-2, axis2=-1)
    result: np.ndarray = np.linalg.det(tensor) / (trace ** (n - 1) + 1e-6 * float(trace.max() or 1) ** (n - 1))
    return result
