"""Displacement fields in RAS world coordinates, and their use on tensors of any voxel grid."""

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
    """A displacement field on a grid of its own.

    Attributes:
        vectors: (3, X, Y, Z) float32, RAS millimetres; 2D fields have Z = 1 and no displacement along it.
        affine: (4, 4) float64, voxel indices of the grid to RAS millimetres.
    """

    vectors: Tensor
    affine: np.ndarray


class FieldSource(Protocol):
    """Where a transform gets its fields from: made beforehand, or as they are needed."""

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """A field for a case.

        Args:
            name: of the case.
            image: (C, X, Y, Z), its image as it is now.
            affine: (4, 4), of the image.
            seed: 0 to 2^31 - 1.
        """
        ...


def world_field(field: sitk.Image, reference: sitk.Image) -> WorldField:
    """A field of DRDM, cut to what an image needs of it.

    Args:
        field: vector image, LPS millimetres, that reaches past ``reference``.
    """
    d = field.GetDimension()
    corners = np.asarray(np.meshgrid(*[[-0.5, n - 0.5] for n in reference.GetSize()], indexing="ij")).reshape(d, -1).T
    places = [
        field.TransformPhysicalPointToContinuousIndex(reference.TransformContinuousIndexToPhysicalPoint(c.tolist()))
        for c in corners
    ]
    first = np.clip(np.floor(np.min(places, axis=0)).astype(int), 0, None)
    last = np.clip(np.ceil(np.max(places, axis=0)).astype(int) + 1, None, field.GetSize())
    cut = field[tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))]
    vectors = np.zeros((3, *cut.GetSize(), *[1] * (3 - d)), np.float32)
    vectors[:d] = sitk.GetArrayFromImage(cut).T.reshape(d, *vectors.shape[1:])
    vectors[:2] *= -1
    return WorldField(torch.from_numpy(vectors), ras_affine(cut))


def ras_affine(image: sitk.Image) -> np.ndarray:
    """(4, 4), voxel indices to RAS millimetres."""
    d = image.GetDimension()
    affine = np.eye(4)
    affine[:d, :d] = index_to_physical(image)
    affine[:d, 3] = image.GetOrigin()
    affine[:2] *= -1
    return affine


def image_of(tensor: Tensor, affine: np.ndarray) -> sitk.Image:
    """A tensor (X, Y, Z) as an image in space.

    Raises:
        ImageError: the affine has shears, which images have no words for.
    """
    matrix = _FLIP @ np.asarray(affine, np.float64)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    direction = matrix / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ImageError("The image's affine has shears; resample it to a rectangular grid before it is deformed.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(tensor.detach().cpu().numpy().T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((_FLIP @ np.asarray(affine, np.float64)[:3, 3]).tolist())
    return image


def displacement_on(field: WorldField, affine: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """The field on another voxel grid, linear between its nodes.

    Args:
        affine: (4, 4), of that grid.
        shape: (X, Y, Z).

    Returns:
        (3, X, Y, Z), channel k in voxels along axis k: where to read, ``new[i] = original[i + u[i]]``.
    """
    affine = np.asarray(affine, np.float64)
    to_unit = _to_unit(field.vectors.shape[1:]) @ np.linalg.inv(field.affine) @ affine
    # grid_sample counts axes from the fastest.
    grid = torch.stack([_along(row, shape) for row in to_unit[2::-1]], dim=-1)[None]
    vectors = field.vectors.to(torch.float32)[None]
    world = F.grid_sample(vectors, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    to_voxels = torch.as_tensor(np.linalg.inv(affine[:3, :3]), dtype=torch.float32)
    return (to_voxels @ world.flatten(1)).view_as(world)


def warped(image: Tensor, displacement: Tensor, *, label: bool = False) -> Tensor:
    """An image (C, X, Y, Z) read where a displacement in voxels (3, X, Y, Z) points; its type is kept.

    Outside the image its nearest voxel is read.

    Args:
        label: take the nearest voxel, so that no value appears that was not there.
    """
    sides = torch.as_tensor(image.shape[1:], dtype=torch.float32).view(3, 1, 1, 1)
    values = warp(image[None].to(torch.float32), (displacement / sides)[None], mode="nearest" if label else "linear")[0]
    if not image.is_floating_point():
        values = values.round()
    return values.to(image.dtype)


def _along(row: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """``row @ (x, y, z, 1)`` in every voxel: (X, Y, Z)."""
    total = torch.full(shape, float(row[3]))
    for axis, side in enumerate(shape):
        if row[axis] != 0:
            steps = torch.as_tensor(row[axis] * np.arange(side), dtype=torch.float32)
            total += steps.view([-1 if axis == k else 1 for k in range(3)])
    return total


def _to_unit(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel indices to -1 ... 1; an axis of a single voxel is its middle everywhere."""
    scale = np.diag([*[2 / (n - 1) if n > 1 else 0.0 for n in shape], 1.0])
    scale[:3, 3] = [-1.0 if n > 1 else 0.0 for n in shape]
    return scale
