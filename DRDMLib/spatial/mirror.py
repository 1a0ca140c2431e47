"""Continue a scan beyond its faces by its mirror image, where a deformation reads from there."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from .coordinates import to_index, to_points


def reflected(index: np.ndarray, side: float | np.ndarray) -> np.ndarray:
    """Reflect positions along an axis at its faces, as often as needed.

    Args:
        index: positions in voxels, not rounded.
        side: number of voxels along the axis; the faces are at -0.5 and ``side - 0.5``.

    Returns:
        Positions from 0 to ``side - 1``.
    """
    turned = np.mod(index + 0.5, 2 * side)
    result: np.ndarray = np.clip(np.minimum(turned, 2 * side - turned) - 0.5, 0, side - 1)
    return result


def reflect_outside(index: np.ndarray, side: int) -> None:
    """Reflect the positions along an axis that lie beyond its faces, in place; see :func:`reflected`."""
    if index.size and (index.min() < -0.5 or index.max() > side - 0.5):
        outside = (index < -0.5) | (index > side - 0.5)
        index[outside] = reflected(index[outside], side)


def mirrored_transform(
    transform: sitk.Transform, image: sitk.Image, grid: sitk.ResampleImageFilter, outside: np.ndarray
) -> sitk.DisplacementFieldTransform:
    """Make a transform that reads the mirror image at the nodes of a grid whose points fall outside of an image.

    Reflection is about the faces of the image, half a voxel beyond the centers of its outermost voxels, as often as
    needed.

    Args:
        transform: maps points of the grid to points of ``image`` (LPS, millimeters).
        grid: a resampler that has the grid.
        outside: (*S), array order: the nodes of the grid that are read from outside of the image.

    Returns:
        A transform that is valid at the nodes ``outside`` only.
    """
    sampler = sitk.TransformToDisplacementFieldFilter()
    sampler.SetSize(grid.GetSize())
    sampler.SetOutputSpacing(grid.GetOutputSpacing())
    sampler.SetOutputOrigin(grid.GetOutputOrigin())
    sampler.SetOutputDirection(grid.GetOutputDirection())
    field = sampler.Execute(transform)
    vectors = sitk.GetArrayFromImage(field)
    nodes = to_points(np.argwhere(outside)[:, ::-1].astype(float), field)
    index = to_index(nodes + vectors[outside], image)
    vectors[outside] = to_points(reflected(index, np.asarray(image.GetSize(), float)), image) - nodes
    mirrored = sitk.GetImageFromArray(vectors, isVector=True)
    mirrored.CopyInformation(field)
    return sitk.DisplacementFieldTransform(mirrored)
