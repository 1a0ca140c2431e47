"""Continue a scan beyond its faces by its mirror image, where a deformation reads from there."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from .coordinates import to_index, to_points
from .field_samples import FieldSamples

# Layers that are processed together; limits the memory.
_LAYERS = 4


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


def mirrored_values(
    voxels: np.ndarray, image: sitk.Image, samples: FieldSamples, reference: sitk.Image, start: int, outside: np.ndarray
) -> np.ndarray:
    """Read the mirror image at voxels of a slab that fall outside of an image, with linear interpolation.

    Args:
        voxels: of ``image``, array order.
        samples: displacements at the voxels of ``reference``.
        start: first layer of the slab in ``reference``.
        outside: (*S), the voxels of the slab that are read.

    Returns:
        (K,), float64.
    """
    found = []
    sides = np.asarray(image.GetSize(), float)
    for first in range(0, len(outside), _LAYERS):
        part = outside[first : first + _LAYERS]
        index = np.argwhere(part)
        if not len(index):
            continue
        # Only the rows around these voxels.
        low, high = index.min(axis=0), index.max(axis=0) + 1
        where = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        inner = samples.box((slice(start + first + int(low[0]), start + first + int(high[0])), *where[1:]), np.float64)
        vectors = inner[:, part[where]].T
        index[:, 0] += start + first
        moved = to_index(to_points(index[:, ::-1].astype(float), reference) + vectors, image)
        found.append(map_coordinates(voxels, reflected(moved, sides).T[::-1], np.float64, order=1, mode="nearest"))
    return np.concatenate(found)


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
