"""Continue a scan beyond its faces by its mirror image, where a deformation reads from there."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from .coordinates import to_index, to_points


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
    sides = np.asarray(image.GetSize(), float)
    turned = np.mod(index + 0.5, 2 * sides)
    turned = np.minimum(turned, 2 * sides - turned) - 0.5
    vectors[outside] = to_points(np.clip(turned, 0, sides - 1), image) - nodes
    mirrored = sitk.GetImageFromArray(vectors, isVector=True)
    mirrored.CopyInformation(field)
    return sitk.DisplacementFieldTransform(mirrored)
