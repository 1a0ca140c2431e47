"""Mirror images of scans: their voxels stay as they are and change places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..levels import REFLECTIONS
from .coordinates import direction_matrix
from .model_grid import nearest_axes


def reflected_image(image: sitk.Image, reflections: Sequence[str]) -> sitk.Image:
    """Return the mirror image of a scan or a label map about the middle of its grid, which stays where it is.

    Args:
        reflections: some of :data:`DRDMLib.levels.REFLECTIONS`. Along the axis of the grid that is closest to one of
            the patient, voxels are put in reverse order; rows and columns of slices change places with their numbers
            and spacings.

    Raises:
        ImageError: the image is 2D and has no direction from head to feet.
    """
    array, spacing = sitk.GetArrayFromImage(image), list(image.GetSpacing())
    for one in reflections:
        if one == "rows-columns":
            array = np.swapaxes(array, -1, -2)
            spacing[:2] = spacing[1::-1]
        else:
            # The axes of an array are in reverse order.
            array = np.flip(array, -1 - _grid_axis(image, REFLECTIONS.index(one)))
    mirrored = sitk.GetImageFromArray(np.ascontiguousarray(array))
    mirrored.SetSpacing(spacing)
    mirrored.SetDirection(image.GetDirection())
    if mirrored.GetSize() == image.GetSize() and mirrored.GetSpacing() == image.GetSpacing():
        # Not rounded.
        mirrored.SetOrigin(image.GetOrigin())
    else:
        mirrored.SetOrigin((_middle(image) - _middle(mirrored)).tolist())
    return mirrored


def _middle(image: sitk.Image) -> np.ndarray:
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _grid_axis(image: sitk.Image, patient: int) -> int:
    """Return the axis of a grid that is closest to an axis of the patient, SimpleITK's order."""
    direction = direction_matrix(image)
    if patient >= len(direction):
        raise ImageError("A 2D image has no direction from head to feet; leave out 'head-feet' of --mirror.")
    if len(direction) == 2:
        return patient if abs(direction[0, 0]) >= abs(direction[0, 1]) else 1 - patient
    return nearest_axes(direction)[patient][0]
