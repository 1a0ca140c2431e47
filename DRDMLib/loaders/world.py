"""Displacement fields in RAS world coordinates, and their application to tensors on any voxel grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.fields import warp
from ..errors import ImageError
from ..spatial.coordinates import index_to_physical

_FLIP = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class WorldField:
    """A displacement field on its own grid.

    Attributes:
        vectors: (3, X, Y, Z) float32, RAS millimeters; 2D fields have Z = 1 and no displacement along that axis.
        affine: (4, 4) float64, voxel indices of the grid to RAS millimeters.
    """

    vectors: Tensor
    affine: np.ndarray


class FieldSource(Protocol):
    """A source of fields for a transform: precomputed ones, or new ones on demand."""

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """Return a field for a case.

        Args:
            name: name of the case.
            image: (C, X, Y, Z), the current image of the case.
            affine: (4, 4), voxel indices of the image to RAS millimeters.
            seed: 0 to 2^31 - 1.
        """
        ...


def world_field(field: sitk.Image, reference: sitk.Image) -> WorldField:
    """Convert a field to world coordinates, cropped to the extent of an image.

    Args:
        field: vector image, LPS millimeters, that covers ``reference`` and more.
        reference: the image.
    """
    d = field.GetDimension()
    corners = np.asarray(np.meshgrid(*[[-0.5, n - 0.5] for n in reference.GetSize()], indexing="ij")).reshape(d, -1).T
    indices = [
        field.TransformPhysicalPointToContinuousIndex(reference.TransformContinuousIndexToPhysicalPoint(c.tolist()))
        for c in corners
    ]
    first = np.clip(np.floor(np.min(indices, axis=0)).astype(int), 0, None)
    last = np.clip(np.ceil(np.max(indices, axis=0)).astype(int) + 1, None, field.GetSize())
    cut = field[tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))]
    vectors = np.zeros((3, *cut.GetSize(), *[1] * (3 - d)), np.float32)
    vectors[:d] = sitk.GetArrayFromImage(cut).T.reshape(d, *vectors.shape[1:])
    vectors[:2] *= -1
    return WorldField(torch.from_numpy(vectors), ras_affine(cut))


def ras_affine(image: sitk.Image) -> np.ndarray:
    """Return the affine (4, 4) from voxel indices to RAS millimeters."""
    d = image.GetDimension()
    affine = np.eye(4)
    affine[:d, :d] = index_to_physical(image)
    affine[:d, 3] = image.GetOrigin()
    affine[:2] *= -1
    return affine


def image_of(tensor: Tensor, affine: np.ndarray) -> sitk.Image:
    """Convert a tensor (X, Y, Z) with an affine (4, 4) to an image.

    Raises:
        ImageError: the affine has shears, which SimpleITK's images cannot represent.
    """
    matrix = _FLIP @ np.asarray(affine, np.float64)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    direction = matrix / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ImageError("The image's affine has shears; resample the image to a rectangular grid first.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(tensor.detach().cpu().numpy().T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((_FLIP @ np.asarray(affine, np.float64)[:3, 3]).tolist())
    return image


def displacement_on(field: WorldField, affine: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Resample a field to another voxel grid with linear interpolation.

    Args:
        affine: (4, 4), voxel indices of that grid to RAS millimeters.
        shape: (X, Y, Z), size of that grid.

    Returns:
        Displacement u (3, X, Y, Z), channel k in voxels along axis k, for ``new[i] = original[i + u[i]]``.
    """
    affine = np.asarray(affine, np.float64)
    to_unit = _to_unit(field.vectors.shape[1:]) @ np.linalg.inv(field.affine) @ affine
    # grid_sample lists the last axis first.
    grid = torch.stack([_along(row, shape) for row in to_unit[2::-1]], dim=-1)[None]
    vectors = field.vectors.to(torch.float32)[None]
    world = F.grid_sample(vectors, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    to_voxels = torch.as_tensor(np.linalg.inv(affine[:3, :3]), dtype=torch.float32)
    return (to_voxels @ world.flatten(1)).view_as(world)


def warped(image: Tensor, displacement: Tensor, *, label: bool = False) -> Tensor:
    """Warp an image (C, X, Y, Z) by a displacement in voxels (3, X, Y, Z) and keep its data type.

    Points outside the image take the value of the nearest voxel.

    Args:
        label: use nearest-neighbor interpolation, so that no new values appear.
    """
    sides = torch.as_tensor(image.shape[1:], dtype=torch.float32).view(3, 1, 1, 1)
    values = warp(image[None].to(torch.float32), (displacement / sides)[None], mode="nearest" if label else "linear")[0]
    if not image.is_floating_point():
        values = values.round()
    return values.to(image.dtype)


def _along(row: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Return ``row @ (x, y, z, 1)`` for every voxel: (X, Y, Z)."""
    total = torch.full(shape, float(row[3]))
    for axis, side in enumerate(shape):
        if row[axis] != 0:
            steps = torch.as_tensor(row[axis] * np.arange(side), dtype=torch.float32)
            total += steps.view([-1 if axis == k else 1 for k in range(3)])
    return total


def _to_unit(shape: tuple[int, ...]) -> np.ndarray:
    """Return the matrix from voxel indices to -1 ... 1; an axis with a single voxel maps to 0."""
    scale = np.diag([*[2 / (n - 1) if n > 1 else 0.0 for n in shape], 1.0])
    scale[:3, 3] = [-1.0 if n > 1 else 0.0 for n in shape]
    return scale
