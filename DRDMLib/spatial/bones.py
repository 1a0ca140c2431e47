"""Bone in CT images, found by its Hounsfield values, to measure how far a deformation moves it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .coordinates import to_points

# Hounsfield units. Contrast agent can be above the least value of bone, too.
_BONE, _METAL, _BODY = 300, 2500, -300
# Air around a body: an image without it, or with lower values than any CT has, is not taken for CT.
_AIR, _LOWEST = -900, -5000
_LEAST_AIR = 0.02
# Resolution at which bone is found; half the thickness of bridges to a table that are cut; half the width of gaps in
# bone that are closed. Millimeters.
_STEP, _BRIDGE, _GAP = 3.0, 6.0, 3.0
_LEAST_VOLUME = 1000.0


def is_ct(image: sitk.Image) -> bool:
    """Whether the values of a volume look like Hounsfield units: air, and something denser than soft tissue."""
    if image.GetDimension() != 3:
        return False
    values = sitk.GetArrayViewFromImage(image)[tuple(slice(None, None, max(1, n // 64)) for n in image.GetSize()[::-1])]
    low, high = float(values.min()), float(values.max())
    return _LOWEST < low <= _AIR and high > _BONE and float((values <= _AIR).mean()) > _LEAST_AIR


def bone_points(image: sitk.Image) -> np.ndarray:
    """Find bone in a CT: above 300 HU, closed, without the table and metal.

    Args:
        image: 3D, Hounsfield units.

    Returns:
        (K, 3), LPS millimeters, on a grid of about 3 mm.
    """
    factors = [max(1, min(n, round(_STEP / s))) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    small = sitk.Shrink(image, factors)
    values = sitk.GetArrayFromImage(small)
    spacing = np.asarray(small.GetSpacing()[::-1])
    body = values > _BODY
    body = _grown(_largest(~_grown(~body, _BRIDGE, spacing)), _BRIDGE, spacing)
    for layer in body:
        # Lungs and bowel are holes in the body.
        layer[...] = ndimage.binary_fill_holes(layer)
    metal = values > _METAL
    bone = (values > _BONE) & body & ~(_grown(metal, 2 * _STEP, spacing) if metal.any() else metal)
    bone |= ~_grown(~_grown(bone, _GAP, spacing), _GAP, spacing) & body
    parts, _ = ndimage.label(bone)
    large = np.bincount(parts.ravel()) * float(np.prod(spacing)) >= _LEAST_VOLUME
    large[0] = False
    return to_points(np.argwhere(large[parts])[:, ::-1].astype(float), small)


def _grown(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Dilate a mask by a box of this half width, millimeters; outside the image it is continued."""
    sizes = [2 * round(radius / s) + 1 for s in spacing]
    result: np.ndarray = ndimage.maximum_filter(mask.view(np.uint8), sizes, mode="nearest") > 0
    return result


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    result: np.ndarray = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if count else mask
    return result
