"""Find out how the world coordinates of a given image relate to those in which a field was made.

ITK and nibabel may see one file at different places: they prefer another of NIfTI's two transforms, differ in files
with neither, and only ITK converts units. Fields that were made with one reader are then moved to the world of the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ImageError
from ..io.geometry import distance_in_voxels

# Largest distance of voxels that count as the same, in voxels.
_SAME = 0.1
# Least overlap of an image with the one that the field was made for, as a fraction of the smaller one.
_LEAST_OVERLAP = 0.1
# How a grid lies on the voxels of an image, from the most to the least likely.
_IDENTICAL, _SAME_VOXELS, _INSIDE, _PARALLEL, _OVERLAPS, _NOWHERE = range(6)


@dataclass(frozen=True)
class FileGeometry:
    """Where a file's voxels lie, as different readers see them.

    Attributes:
        size: (X, Y, Z).
        affine: (4, 4), voxel indices to RAS millimeters, as the image was read for the field.
        others: affines that other readers may see.
    """

    size: tuple[int, ...]
    affine: np.ndarray
    others: tuple[np.ndarray, ...] = ()

    @staticmethod
    def of(values: dict[str, Any]) -> FileGeometry:
        """Convert from the plain values of :meth:`to_dict`."""
        others = tuple(np.asarray(one, np.float64) for one in values["others"])
        return FileGeometry(tuple(values["size"]), np.asarray(values["affine"], np.float64), others)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the metadata of a bank."""
        others = [o for o in self.others if distance_in_voxels(self.affine, o, self.size) > 1e-3]
        return {"size": list(self.size), "affine": self.affine.tolist(), "others": [o.tolist() for o in others]}

    def to_world(
        self,
        name: str,
        affine: np.ndarray,
        shape: Sequence[int],
        original: np.ndarray | None = None,
        original_shape: Sequence[int] | None = None,
    ) -> np.ndarray | None:
        """Find the matrix (4, 4) from the field's world to that of an image; ``None`` if they are the same.

        Args:
            name: name of the case in error messages.
            affine, shape: of the image, which may be cropped, flipped or resampled.
            original, original_shape: affine and size of its file as it was read, if they are known.

        Raises:
            ImageError: the image is at another place than the one that the field was made for.
        """
        # An image without a header has voxel indices as its world.
        views = [self.affine, *self.others, np.eye(4)]
        seen = None if original is None else self._seen(name, views, original, original_shape)
        if seen is None:
            seen = self._most_likely(name, views, affine, tuple(shape))
        if distance_in_voxels(self.affine, seen, self.size) <= 1e-3:
            return None
        return np.asarray(seen @ np.linalg.inv(self.affine))

    def _seen(
        self, name: str, views: list[np.ndarray], original: np.ndarray, shape: Sequence[int] | None
    ) -> np.ndarray | None:
        """Return the view that a reader had of the file; ``None`` if it was another file."""
        shape = self.size if shape is None else tuple(shape)
        fits = [self._fit(view, original, shape) for view in views]
        if min(fits) <= _SAME_VOXELS:
            return views[fits.index(min(fits))]
        if shape == self.size:
            raise _elsewhere(name)
        return None

    def _most_likely(
        self, name: str, views: list[np.ndarray], affine: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        fits = [self._fit(view, affine, shape) for view in views]
        if fits[-1] != _IDENTICAL:
            fits[-1] = _NOWHERE
        best = min(fits)
        found = [view for view, fit in zip(views, fits, strict=True) if fit == best]
        linear = np.linalg.inv(found[0][:3, :3]) @ affine[:3, :3]
        shifted = shape == self.size and best > _SAME_VOXELS and np.allclose(linear, np.eye(3), atol=1e-3)
        if best == _NOWHERE or shifted:
            raise _elsewhere(name)
        if best > _IDENTICAL and any(distance_in_voxels(found[0], one, self.size) > _SAME for one in found[1:]):
            raise ImageError(
                f"Readers see the file of '{name}' at different places, and it is not known which of them this image "
                "has; save the file with equal sform and qform, or give the image uncropped."
            )
        return found[0]

    def _fit(self, view: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> int:
        """Rate how a grid lies on the voxels of the file, seen through ``view``."""
        if tuple(shape) == self.size and distance_in_voxels(view, affine, self.size) <= _SAME:
            return _IDENTICAL
        steps = np.linalg.inv(view) @ affine
        low, high = _box(steps, shape)
        size = np.asarray(self.size)
        shared = np.clip(np.minimum(high, size - 0.5) - np.maximum(low, -0.5), 0, None)
        if np.prod(shared) < _LEAST_OVERLAP * min(np.prod(high - low), np.prod(size)):
            return _NOWHERE
        if np.abs(steps[:3, :3]).max(axis=0).sum() < np.abs(steps[:3, :3]).sum() - 1e-2 * np.abs(steps[:3, :3]).max():
            return _OVERLAPS
        unit = np.allclose(np.abs(steps[:3, :3]).max(axis=0), 1, atol=_SAME / max(shape))
        whole = np.abs(low + 0.5 - np.rint(low + 0.5)).max() <= _SAME
        if not (unit and whole):
            return _PARALLEL
        if np.abs(low + 0.5).max() <= _SAME and np.abs(high + 0.5 - size).max() <= _SAME:
            return _SAME_VOXELS
        return _INSIDE if (low >= -0.5 - _SAME).all() and (high <= size - 0.5 + _SAME).all() else _PARALLEL


def _box(steps: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the lowest and highest corner of a grid, at the faces of its voxels."""
    corners = np.asarray(np.meshgrid(*[[-0.5, n - 0.5] for n in shape], [1], indexing="ij")).reshape(4, -1)
    points = (steps @ corners)[:3]
    return points.min(axis=1), points.max(axis=1)


def _elsewhere(name: str) -> ImageError:
    return ImageError(
        f"The image of '{name}' is not where the image lies that its fields were made for; "
        "use that image, or make the bank again."
    )
