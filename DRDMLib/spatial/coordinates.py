"""Convert between voxel indices (SimpleITK's axis order) and physical points (LPS, millimeters) of an image."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk


def direction_matrix(image: sitk.Image) -> np.ndarray:
    """Return the directions of the image's axes as columns, (d, d)."""
    d = image.GetDimension()
    return np.asarray(image.GetDirection(), float).reshape(d, d)


def index_to_physical(image: sitk.Image) -> np.ndarray:
    """Return the matrix (d, d) that converts steps in voxels to steps in millimeters."""
    result: np.ndarray = direction_matrix(image) * np.asarray(image.GetSpacing())
    return result


def to_points(index: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Convert voxel indices (K, d), which may be fractional, to points (K, d)."""
    result: np.ndarray = index @ index_to_physical(image).T + np.asarray(image.GetOrigin())
    return result


def to_index(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Convert points (K, d) to voxel indices (K, d), not rounded."""
    result: np.ndarray = (points - np.asarray(image.GetOrigin())) @ np.linalg.inv(index_to_physical(image)).T
    return result


def thinned_grid(image: sitk.Image, most: int) -> sitk.Image:
    """Make an empty image over the box between the outermost nodes of an image, with at most ``most`` nodes."""
    size = np.asarray(image.GetSize())
    fewer = size.copy()
    while fewer.prod() > most:
        fewer = np.maximum(fewer // 2 + 1, np.minimum(fewer, 4))
    grid = sitk.Image(fewer.tolist(), sitk.sitkUInt8)
    spacing = np.asarray(image.GetSpacing()) * np.maximum(size - 1, 1) / np.maximum(fewer - 1, 1)
    grid.SetSpacing(spacing.tolist())
    grid.SetOrigin(image.GetOrigin())
    grid.SetDirection(image.GetDirection())
    return grid


def inside(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Return which points (K, d) lie within the faces of an image: (K,) bool."""
    index = to_index(points, image)
    result: np.ndarray = np.all((index >= -0.5) & (index <= np.asarray(image.GetSize()) - 0.5), axis=1)
    return result
