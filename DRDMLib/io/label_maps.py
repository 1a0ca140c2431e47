"""Tell label maps from images by their values."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

# More values than this are unusual in a label map.
MOST_VALUES = 300
# In a label map, nearly all neighbors that are both no background have the same value. In scans they rarely do, and in
# drawn images about half of them.
_EQUAL_NEIGHBORS = 0.75
_MOST_VOXELS = 2**23


def _middle(image: sitk.Image) -> np.ndarray:
    """Return the voxels of an image, of a large one the middle layers."""
    view = sitk.GetArrayViewFromImage(image)
    layers = max(2, _MOST_VOXELS // max(1, view[0].size))
    first = max(0, (len(view) - layers) // 2)
    return np.asarray(view[first : first + layers])


def has_whole_numbers(image: sitk.Image) -> bool:
    """Whether all voxels are whole numbers, whatever their type."""
    view = sitk.GetArrayViewFromImage(image)
    return view.dtype.kind in "iu" or all(np.array_equal(layer, np.rint(layer)) for layer in view)


def looks_like_label(image: sitk.Image) -> bool:
    """Whether the voxels of a scalar image look like those of a label map.

    They are whole numbers, few different ones, and nearly all neighbors are equal.
    """
    if not has_whole_numbers(image):
        return False
    if len(np.unique(sitk.GetArrayViewFromImage(image))) > MOST_VALUES:
        return False
    return equal_neighbors(image) >= _EQUAL_NEIGHBORS


def equal_neighbors(image: sitk.Image) -> float:
    """Compute how many neighbors along the fastest axis are equal, of those that are both not the lowest value."""
    values = _middle(image)
    lowest = values.min()
    first, second = values[..., :-1], values[..., 1:]
    both = (first != lowest) & (second != lowest)
    count = int(both.sum())
    return float((first == second)[both].mean()) if count else 1.0
