"""Convert between voxel indices (SimpleITK's axis order) and physical points (LPS, millimeters) of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

# Slices are thick if their distance is this many times the spacing within them.
_THICK = 2.5


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


def thick_axes(spacing: Sequence[float]) -> list[bool]:
    """Return along which axes slices are thick: their distance is much larger than the smallest spacing."""
    return [s > _THICK * min(spacing) for s in spacing]


def corners(image: sitk.Image) -> np.ndarray:
    """Return the indices of the voxels at the corners of an image, (2^d, d)."""
    ends = np.meshgrid(*[(0.0, n - 1.0) for n in image.GetSize()], indexing="ij")
    return np.stack(ends, axis=-1).reshape(-1, len(ends))


@dataclass(frozen=True)
class MovedIndex:
    """Where the voxels of one image, moved by displacements, lie in another image.

    Attributes:
        reference, image: the image whose voxels are moved, and the one that they lie in.
        steps: (d, d), steps in voxels of ``reference`` to steps in voxels of ``image``.
        to_voxels: (d, d), millimeters to steps in voxels of ``image``.
    """

    reference: sitk.Image
    image: sitk.Image
    steps: np.ndarray
    to_voxels: np.ndarray

    @staticmethod
    def of(reference: sitk.Image, image: sitk.Image) -> MovedIndex:
        """Prepare for a pair of images."""
        to_voxels = np.linalg.inv(index_to_physical(image))
        return MovedIndex(reference, image, to_voxels @ index_to_physical(reference), to_voxels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels of ``image`` along each axis, array order."""
        return tuple(self.image.GetSize()[::-1])

    def at(self, first: Sequence[int], vectors: np.ndarray) -> list[np.ndarray]:
        """Find the index in ``image`` of a block of moved voxels.

        Args:
            first: index of the block's first voxel in ``reference``, array order.
            vectors: displacements of the block's voxels, (d, *n), array order, millimeters, LPS.

        Returns:
            One array (*n) for each axis, array order, not rounded.
        """
        d, shape = len(vectors), vectors.shape[1:]
        origin = self.reference.TransformIndexToPhysicalPoint([int(start) for start in reversed(first)])
        offset = self.to_voxels @ (np.asarray(origin) - np.asarray(self.image.GetOrigin()))
        axes = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij", sparse=True)[::-1]
        result = []
        # All sums are written out, because a product of matrices could round differently for other sizes.
        for row in reversed(range(d)):
            unmoved = offset[row]
            for axis in np.flatnonzero(self.steps[row]):
                unmoved = unmoved + self.steps[row, axis] * axes[axis]
            first_axis, *others = np.flatnonzero(self.to_voxels[row])
            position = self.to_voxels[row, first_axis] * vectors[first_axis]
            for axis in others:
                position += self.to_voxels[row, axis] * vectors[axis]
            position += unmoved
            result.append(position)
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
