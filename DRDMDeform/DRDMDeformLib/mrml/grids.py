"""Voxel grids and points in the conventions of VTK (RAS) and SimpleITK (LPS); both in millimeters.

A :class:`Grid` is the geometry of a SimpleITK image. It is converted from and to matrices that take voxel indices to
RAS, as VTK uses them, so that the change between LPS and RAS is in one place only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..deferred import sitk

# Converts RAS to LPS and back.
FLIP = np.array([-1.0, -1.0, 1.0])
# Axes are at right angles if the cosines between them are below this; other grids are no SimpleITK images.
_MAX_COSINE = 1e-4
# Voxels of two grids are the same ones if they are nowhere further apart than this share of a voxel.
_SAME_VOXEL = 1e-3


@dataclass(frozen=True)
class Grid:
    """A regular voxel grid.

    Attributes:
        size, spacing, origin: one value per axis in SimpleITK's order, millimeters, LPS.
        direction: (3, 3), columns are the directions of the axes.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray

    @classmethod
    def fromImage(cls, image: sitk.Image) -> Grid:
        """The grid of a 3D image."""
        direction = np.asarray(image.GetDirection(), float).reshape(3, 3)
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), direction)

    @classmethod
    def fromMatrix(cls, size: Iterable[int], ijkToRas: np.ndarray) -> Grid | None:
        """The grid of a (4, 4) matrix from voxel index to RAS; ``None`` if its axes are not at right angles."""
        columns = FLIP[:, None] * ijkToRas[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        if not (spacing > 0).all():
            return None
        direction = columns / spacing
        if np.abs(direction.T @ direction - np.eye(3)).max() > _MAX_COSINE:
            return None
        origin = FLIP * ijkToRas[:3, 3]
        return cls(tuple(int(n) for n in size), tuple(spacing.tolist()), tuple(origin.tolist()), direction)

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4) matrix from voxel index to RAS."""
        matrix = np.eye(4)
        matrix[:3, :3] = FLIP[:, None] * self.direction * np.asarray(self.spacing)
        matrix[:3, 3] = FLIP * np.asarray(self.origin)
        return matrix

    @property
    def vtkMatrix(self) -> Any:
        """The matrix from voxel index to RAS as a vtkMatrix4x4."""
        return vtkMatrix(self.matrix)

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.size))

    def place(self, image: sitk.Image) -> sitk.Image:
        """Set spacing, origin and direction of ``image`` to those of this grid, and return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(np.asarray(self.direction).ravel().tolist())
        return image

    def points(self) -> np.ndarray:
        """Positions of the voxels, (N, 3), RAS, first axis fastest."""
        image = sitk.PhysicalPointSource(
            sitk.sitkVectorFloat64, self.size, self.origin, self.spacing, np.asarray(self.direction).ravel().tolist()
        )
        return sitk.GetArrayViewFromImage(image).reshape(-1, 3) * FLIP

    def samplePoints(self, count: int = 9) -> np.ndarray:
        """Points spread evenly over the box of the grid with its outer voxel borders, (count^3, 3), RAS."""
        lines = [np.linspace(-0.5, n - 0.5, count) for n in self.size]
        index = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3)
        return index @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def covering(self, points: np.ndarray, margin: float = 0.0) -> Grid:
        """A grid with the same spacing and direction that covers ``points`` (N, 3), RAS, with a margin in voxels."""
        axes = self.direction * np.asarray(self.spacing)
        index = (points * FLIP) @ np.linalg.inv(axes).T
        low, high = index.min(axis=0) - margin, index.max(axis=0) + margin
        size = np.maximum(np.ceil(high - low - 1e-3), 1).astype(int)
        first = (low + high) / 2 - (size - 1) / 2
        origin = axes @ first
        return Grid(tuple(size.tolist()), self.spacing, tuple(origin.tolist()), self.direction)

    def refined(self) -> Grid:
        """The same box with half the spacing along each axis that has more than one voxel."""
        size = tuple(2 * n - 1 if n > 1 else 1 for n in self.size)
        spacing = tuple(s / 2 if n > 1 else s for n, s in zip(self.size, self.spacing, strict=True))
        return Grid(size, spacing, self.origin, self.direction)


def vtkMatrix(matrix: np.ndarray) -> Any:
    """Convert a (4, 4) array to a vtkMatrix4x4."""
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(np.asarray(matrix, float).ravel().tolist())
    return out


def numpyMatrix(matrix: Any) -> np.ndarray:
    """Convert a vtkMatrix4x4 to a (4, 4) array."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def concatenate(*parts: Any) -> Any:
    """A vtkGeneralTransform that applies ``parts`` (vtkAbstractTransform or vtkMatrix4x4) one after the other."""
    general = vtk.vtkGeneralTransform()
    general.PostMultiply()
    for part in parts:
        general.Concatenate(part)
    return general


def linearMatrix(general: Any) -> np.ndarray | None:
    """The (4, 4) matrix of a vtkGeneralTransform, or ``None`` if one of its parts is not linear."""
    general.Update()
    parts = [general.GetConcatenatedTransform(n) for n in range(general.GetNumberOfConcatenatedTransforms())]
    if not all(part.IsA("vtkLinearTransform") for part in parts):
        return None
    corners = transformPoints(general, np.vstack([np.zeros(3), np.eye(3)]))
    matrix = np.eye(4)
    matrix[:3, :3] = (corners[1:] - corners[0]).T
    matrix[:3, 3] = corners[0]
    return matrix


def transformPoints(transform: Any, points: np.ndarray) -> np.ndarray:
    """Transform points (N, 3), RAS, with a vtkAbstractTransform."""
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    source.SetDataTypeToDouble()
    target.SetDataTypeToDouble()
    source.SetData(numpy_to_vtk(np.ascontiguousarray(points, np.float64), deep=True))
    transform.Update()
    transform.TransformPoints(source, target)
    return vtk_to_numpy(target.GetData()).copy()


def imageData(array: np.ndarray) -> Any:
    """Copy an array (k, j, i) or (k, j, i, components) to a vtkImageData with origin 0 and spacing 1."""
    components = array.shape[3] if array.ndim == 4 else 1
    flat = (
        np.ascontiguousarray(array).reshape(-1, components) if components > 1 else np.ascontiguousarray(array).ravel()
    )
    image = vtk.vtkImageData()
    image.SetDimensions(*(int(n) for n in array.shape[2::-1]))
    scalars = numpy_to_vtk(flat, deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def arrayOf(image: Any) -> np.ndarray:
    """View of the voxels of a vtkImageData, (k, j, i) or (k, j, i, components); valid while the image exists."""
    scalars = image.GetPointData().GetScalars()
    shape = image.GetDimensions()[::-1]
    components = scalars.GetNumberOfComponents()
    return vtk_to_numpy(scalars).reshape(shape if components == 1 else (*shape, components))


def copiedVoxels(image: Any, matrix: np.ndarray, fromWorld: Any, grid: Grid) -> np.ndarray | None:
    """The voxels of an image on a grid in the world, (k, j, i), if the grid has the same voxels; otherwise ``None``.

    They are those that ``volumes.reslice`` finds at the nearest voxel, in a small part of its time. A segmentation
    mostly lies on the grid of its volume.

    Args:
        image: vtkImageData with one value per voxel; outside it the values are 0.
        matrix: (4, 4), from the voxel index of ``image`` to its own RAS coordinates.
        fromWorld: vtkGeneralTransform from the world to these coordinates.
        grid: in the world.
    """
    linear = linearMatrix(fromWorld)
    if linear is None:
        return None
    toIndex = np.linalg.inv(matrix) @ linear @ grid.matrix
    shift = np.rint(toIndex[:3, 3])
    exact = np.eye(4)
    exact[:3, 3] = shift
    if (np.abs(toIndex - exact) @ [*grid.size, 1])[:3].max() > _SAME_VOXEL:
        return None
    source = arrayOf(image)
    voxels = np.zeros(grid.size[::-1], source.dtype)
    first = np.asarray(image.GetExtent()[::2]) - shift.astype(int)
    low, high = np.maximum(first, 0), np.minimum(first + image.GetDimensions(), grid.size)
    if (low < high).all():
        here, there = (
            tuple(slice(a, b) for a, b in zip((low - start)[::-1], (high - start)[::-1], strict=True))
            for start in (0, first)
        )
        voxels[here] = source[there]
    return voxels
