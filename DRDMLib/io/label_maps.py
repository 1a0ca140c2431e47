"""Tell label maps from images by their values."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

# More values than this are unusual in a label map.
MOST_VALUES = 300
# In a label map, nearly all neighbors that are both no background have the same value. In scans they rarely do, and in
# drawn images about half of them.
_EQUAL_NEIGHBORS = 0.75
# Below this there is a warning.
_IMAGE_NEIGHBORS = 0.5
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
    if not has_whole_numbers(image) or distinct_values(image) is None:
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


def distinct_values(image: sitk.Image, most: int = MOST_VALUES) -> np.ndarray | None:
    """Return the different values of a scalar image, increasing, or ``None`` if there are more than ``most``."""
    found = np.empty(0)
    for layer in sitk.GetArrayViewFromImage(image):
        if layer.dtype.kind in "iu" and int(layer.max()) - int(layer.min()) < 2**16:
            # Faster than sorting.
            low = int(layer.min())
            present = np.zeros(int(layer.max()) - low + 1, bool)
            present[(layer - layer.dtype.type(low)).astype(f"u{layer.itemsize}")] = True
            own = np.flatnonzero(present) + low
        else:
            own = np.unique(layer)
        found = np.union1d(found, own)
        if len(found) > most:
            return None
    return found


def mask_warning(image: sitk.Image, name: str) -> str:
    """Return a warning if an image has only two values, as a mask has, or an empty string."""
    values = distinct_values(image, 2)
    if values is None or len(values) != 2:
        return ""
    return f"The image '{name}' has only two values, like a mask; check whether it is the scan."


def label_warning(label: sitk.Image, image: sitk.Image, name: str) -> str:
    """Return a warning if a label map looks like none, or an empty string.

    Args:
        label: whole numbers, on the grid of ``image``.
        name: name of the label in the warning.
    """
    view, other = sitk.GetArrayViewFromImage(label), sitk.GetArrayViewFromImage(image)
    if view.shape == other.shape and all(np.array_equal(a, b) for a, b in zip(view, other, strict=True)):
        same = distinct_values(label, 2)
        # A mask that is its own label has had a warning as an image.
        return "" if same is not None else f"The label '{name}' is the image itself; choose its label map."
    values = distinct_values(label)
    if values is None:
        problem = f"has more than {MOST_VALUES} different values"
    elif len(values) and values[0] < 0:
        problem = f"has negative values ({values[0]:g} is the lowest)"
    elif len(values) > 2 and equal_neighbors(label) < _IMAGE_NEIGHBORS:
        problem = "has hardly any neighbors with equal values, as a scan"
    else:
        return ""
    if looks_like_label(image):
        return f"The label '{name}' looks like a scan, and its image like a label map; check whether they are swapped."
    return f"The label '{name}' {problem}; check whether it is a label map."
