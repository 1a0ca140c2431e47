"""Carry points and images with a saved deformation, in either direction.

A saved field takes points of the new version to points of the original, because images are read with it. Points and
surfaces of the original are carried to the new version with its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import ImageError
from ..spatial.affine import AffineMap
from ..spatial.coordinates import corners, to_index, to_points
from ..spatial.field_grid import DisplacementGrid, FadingGrid, FieldGrid
from ..spatial.resampling import slabs
from .inverse import TOLERANCE, Mapping

# Points farther than this part of a voxel of the field from where they should be are counted as not exact.
_EXACT = 100 * TOLERANCE


class SavedField:
    """A deformation that was read from files.

    Beyond the grid of a displacement field the affine map that its border follows goes on; if it follows none, the
    displacement falls smoothly to zero, over six times the largest one.

    Args:
        parts: displacement fields and other transforms, in the order in which they are applied to a point of the new
            version.
    """

    def __init__(self, parts: Sequence[sitk.Transform]) -> None:
        self._parts = [_Part.of(one) for part in parts for one in _flattened(part)]
        self.dimension: int = parts[0].GetDimension()
        self._cache: tuple[tuple[object, ...], sitk.Transform] | None = None

    @property
    def place(self) -> sitk.Image | None:
        """The displacement field (vector image, millimeters, LPS), unless there are other transforms, too."""
        return self._parts[0].field if len(self._parts) == 1 else None

    @property
    def is_local(self) -> bool:
        """Whether the deformation is one field that is zero on its border, such as that of a region."""
        return self.place is not None and FieldGrid.of(self.place).border_is_zero()

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Map points of the new version to points of the original: (K, d) -> (K, d), LPS, millimeters."""
        for part in self._parts:
            points = part.forward(points)
        return points

    def to_new(self, points: np.ndarray) -> tuple[np.ndarray, int]:
        """Map points of the original to points of the new version.

        Args:
            points: (K, d), LPS, millimeters.

        Returns:
            The points (K, d), and how many of them are not exact, because the field is not invertible there.

        Raises:
            ImageError: a part is a transform that cannot be inverted.
        """
        wrong = 0
        for part in reversed(self._parts):
            points, missed = part.backward(points)
            wrong = max(wrong, missed)
        return points, wrong

    def transform(self, grid: sitk.Image, inverse: bool = False) -> sitk.Transform:
        """Return the transform with which an image on a grid is resampled.

        Args:
            grid: the image; the result lies on its grid.
            inverse: make the original from the new version, and not the new version from the original.
        """
        # Many label maps of one scan have the same grid.
        key = (inverse, grid.GetSize(), grid.GetSpacing(), grid.GetOrigin(), grid.GetDirection())
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._inverse_on(grid) if inverse else self._over(grid))
        return self._cache[1]

    def _over(self, grid: sitk.Image) -> sitk.Transform:
        """Return the deformation itself, with its fields continued as far as a grid needs them."""
        parts = [part.over(grid) for part in self._parts]
        return parts[0] if len(parts) == 1 else sitk.CompositeTransform(parts[::-1])

    def _inverse_on(self, grid: sitk.Image) -> sitk.Transform:
        """Invert the deformation at each voxel of a grid."""
        d, shape = grid.GetDimension(), grid.GetSize()[::-1]
        vectors = np.empty((*shape, d))
        for start, stop in slabs(grid.GetSize(), 2**21):
            index = np.indices((stop - start, *shape[1:])).reshape(d, -1).T.astype(np.float64)
            index[:, 0] += start
            points = to_points(index[:, ::-1], grid)
            vectors[start:stop] = (self.to_new(points)[0] - points).reshape(stop - start, *shape[1:], d)
        image = sitk.GetImageFromArray(vectors, isVector=True)
        image.CopyInformation(grid)
        return sitk.DisplacementFieldTransform(image)


def _flattened(transform: sitk.Transform) -> list[sitk.Transform]:
    """Return the parts of a composite transform in the order in which they are applied to a point."""
    transform = transform.Downcast()
    if not isinstance(transform, sitk.CompositeTransform):
        return [transform]
    numbers = reversed(range(transform.GetNumberOfTransforms()))
    return [one for number in numbers for one in _flattened(transform.GetNthTransform(number))]


class _Part:
    """One transform of a deformation."""

    field: sitk.Image | None = None

    def __init__(self, transform: sitk.Transform) -> None:
        self.transform = transform

    @staticmethod
    def of(transform: sitk.Transform) -> _Part:
        if isinstance(transform, sitk.DisplacementFieldTransform):
            return _Displacement(transform)
        return _Part(transform)

    def forward(self, points: np.ndarray) -> np.ndarray:
        return _through(self.transform, points)

    def backward(self, points: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            inverse = self.transform.GetInverse()
        except RuntimeError as error:
            raise ImageError(
                f"The transform has a part that cannot be inverted ({self.transform.GetName()}); save it as a "
                "displacement field."
            ) from error
        return _through(inverse, points), 0

    def over(self, grid: sitk.Image) -> sitk.Transform:
        """The transform for points of a grid."""
        return self.transform


class _Displacement(_Part):
    """A displacement field, continued beyond its grid."""

    def __init__(self, transform: sitk.DisplacementFieldTransform) -> None:
        super().__init__(transform)
        # A copy, because the transform that SimpleITK reads may lose its field.
        self.field = sitk.Image(transform.GetDisplacementField())
        grid = FieldGrid.of(self.field)
        # One layer has no extent of its own.
        found = grid.border_map() if min(self.field.GetSize()) > 1 else None
        self._outside = found or AffineMap.identity(self.field.GetDimension())
        self._own = grid if self._outside.moves_nothing else grid.without(self._outside)
        self._reach = 0.0
        continued: DisplacementGrid = self._own
        if found is None:
            largest = max(float(np.linalg.norm(layer, axis=-1).max(initial=0)) for layer in grid.vectors)
            self._reach = 6 * largest + max(grid.spacing)
            continued = FadingGrid(grid, self._reach)
        self._ends = [(float(nodes[0]), float(nodes[-1])) for nodes in continued.nodes]
        self._continued = continued
        self._mapping: Mapping | None = None

    def _map(self) -> Mapping:
        if self._mapping is None:
            self._mapping = Mapping(self._continued)
        return self._mapping

    def _inside(self, along: torch.Tensor) -> torch.Tensor:
        inside = torch.ones(len(along), dtype=torch.bool)
        for (low, high), x in zip(self._ends, along.T, strict=True):
            inside &= (x >= low) & (x <= high)
        return inside

    def _to_axes(self, points: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((points - self._own.origin) @ self._own.along.T)

    def _to_space(self, along: torch.Tensor) -> np.ndarray:
        return np.asarray(along.numpy() @ np.linalg.inv(self._own.along).T + self._own.origin)

    def forward(self, points: np.ndarray) -> np.ndarray:
        along = self._to_axes(points)
        inside = self._inside(along)
        mapped: np.ndarray = points.copy()
        if bool(inside.any()):
            mapped[inside.numpy()] = self._to_space(self._map()(along[inside]))
        return mapped if self._outside.moves_nothing else self._outside(mapped)

    def backward(self, points: np.ndarray) -> tuple[np.ndarray, int]:
        if not self._outside.moves_nothing:
            points = self._outside.inverse()(points)
        along = self._to_axes(points)
        inside = self._inside(along)
        if not bool(inside.any()):
            return points, 0
        along = along[inside]
        found = self._map().inverse(along)
        missed = (self._map()(found) - along).abs().amax(dim=1)
        mapped: np.ndarray = points.copy()
        mapped[inside.numpy()] = self._to_space(found)
        return mapped, int((missed > _EXACT * min(self._own.spacing)).sum())

    def over(self, grid: sitk.Image) -> sitk.Transform:
        """The field, continued as far as a grid needs it."""
        assert self.field is not None
        size = np.asarray(self.field.GetSize())
        ends = to_index(to_points(corners(grid), grid), self.field)
        if not self._outside.moves_nothing and ((ends < 0) | (ends > size - 1)).any():
            within = sitk.DisplacementFieldTransform(self._own.image())
            return sitk.CompositeTransform([self._outside.transform(), within])
        most = np.ceil(self._reach / np.asarray(self.field.GetSpacing()))
        below = np.clip(np.ceil(-ends.min(axis=0) - 1e-3), 0, most).astype(int)
        above = np.clip(np.ceil(ends.max(axis=0) - (size - 1) - 1e-3), 0, most).astype(int)
        if not (below.any() or above.any()):
            return sitk.DisplacementFieldTransform(sitk.Cast(self.field, sitk.sitkVectorFloat64))
        pads = [*zip(below[::-1].tolist(), above[::-1].tolist(), strict=True), (0, 0)]
        vectors = np.pad(sitk.GetArrayFromImage(self.field).astype(np.float64), pads, mode="edge")
        for axis, ((low, high), spacing) in enumerate(zip(pads, self._own.spacing, strict=False)):
            at = np.arange(vectors.shape[axis]) - low
            out = np.maximum(np.maximum(-at, at - (vectors.shape[axis] - low - high - 1)), 0) * spacing / self._reach
            fade = 0.5 + 0.5 * np.cos(np.pi * np.minimum(out, 1))
            vectors *= fade.reshape([-1 if axis == b else 1 for b in range(vectors.ndim)])
        field = sitk.GetImageFromArray(vectors, isVector=True)
        field.SetSpacing(self.field.GetSpacing())
        field.SetDirection(self.field.GetDirection())
        field.SetOrigin(to_points(-below[None].astype(float), self.field)[0].tolist())
        return sitk.DisplacementFieldTransform(field)


def _through(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    mapped: np.ndarray = np.asarray([transform.TransformPoint(point) for point in points.tolist()])
    return mapped.reshape(points.shape)
