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
    return direction_matrix(image) * np.asarray(image.GetSpacing())


def to_points(index: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Voxel indices (K, d), whole or not, to points (K, d)."""
    return index @ index_to_physical(image).T + np.asarray(image.GetOrigin())


def to_index(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Points (K, d) to voxel indices (K, d), not rounded."""
    return (points - np.asarray(image.GetOrigin())) @ np.linalg.inv(index_to_physical(image)).T
