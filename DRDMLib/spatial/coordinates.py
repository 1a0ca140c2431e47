"""Voxel indices and physical points of an image: LPS millimeters, indices in SimpleITK's axis order."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk


def direction_matrix(image: sitk.Image) -> np.ndarray:
    """(d, d), columns are the directions of the image's axes."""
    d = image.GetDimension()
    return np.asarray(image.GetDirection(), float).reshape(d, d)


def index_to_physical(image: sitk.Image) -> np.ndarray:
    """(d, d): takes steps in voxels to steps in millimeters."""
    result: np.ndarray = direction_matrix(image) * np.asarray(image.GetSpacing())
    return result


def to_points(index: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Voxel indices (K, d), whole or not, to points (K, d)."""
    result: np.ndarray = index @ index_to_physical(image).T + np.asarray(image.GetOrigin())
    return result


def to_index(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Points (K, d) to voxel indices (K, d), not rounded."""
    result: np.ndarray = (points - np.asarray(image.GetOrigin())) @ np.linalg.inv(index_to_physical(image)).T
    return result
