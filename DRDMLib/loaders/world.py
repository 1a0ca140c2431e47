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
from ..io.geometry import require_right_angles
from ..spatial.coordinates import index_to_physical

# Types whose values 32-bit floating-point numbers hold.
_NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.float32)
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

    def moved(self, to_world: np.ndarray) -> WorldField:
        """Return the same field in other world coordinates.

        Args:
            to_world: (4, 4), from the field's world coordinates to the others.
        """
        linear = torch.as_tensor(to_world[:3, :3], dtype=torch.float32)
        vectors = (linear @ self.vectors.flatten(1)).view_as(self.vectors)
        return WorldField(vectors, to_world @ self.affine)


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
        ImageError: the affine has a shear, which SimpleITK's images cannot represent.

    Warns:
        FallbackWarning: the axes are not exactly at right angles; the nearest orthonormal ones are used.
    """
    matrix = _FLIP @ np.asarray(affine, np.float64)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    direction = matrix / spacing
    image = sitk.GetImageFromArray(np.ascontiguousarray(tensor.detach().cpu().numpy().T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((_FLIP @ np.asarray(affine, np.float64)[:3, 3]).tolist())
    return require_right_angles(image, "image")


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

    Raises:
        ImageError: integers beyond 2^53 are to be interpolated linearly.
    """
    sides = torch.as_tensor(image.shape[1:], dtype=torch.float32).view(3, 1, 1, 1)
    if not _exact_in_32_bits(image, label):
        return _warped_exactly(image, displacement / sides, label)
    values = warp(image[None].to(torch.float32), (displacement / sides)[None], mode="nearest" if label else "linear")[0]
    if not image.is_floating_point():
        values = values.round()
    return values.to(image.dtype)


def _exact_in_32_bits(image: Tensor, label: bool) -> bool:
    """Whether 32-bit floating-point numbers hold the values of an image, or are as good as they need to be."""
    if image.dtype in _NARROW or image.numel() == 0:
        return True
    if image.is_floating_point():
        return not label or torch.equal(image.to(torch.float32).to(image.dtype), image)
    low, high = _range(image)
    return low >= -(2**24) and high <= 2**24


def _range(image: Tensor) -> tuple[int, int]:
    """Return the lowest and highest value of integers."""
    values = image.numpy() if image.dtype == torch.uint64 else image.to(torch.int64)
    return int(values.min()), int(values.max())


def _warped_exactly(image: Tensor, ddf: Tensor, label: bool) -> Tensor:
    """Warp an image whose values need more than 32 bits; ``ddf`` (3, X, Y, Z) is in fractions of the side."""
    if label:
        # The voxel to read at each point, instead of its value.
        sides = [torch.arange(n, dtype=torch.float32) for n in image.shape[1:]]
        voxels = warp(torch.stack(torch.meshgrid(*sides, indexing="ij"))[None], ddf[None], mode="nearest")[0].long()
        x, y, z = voxels.numpy()
        return torch.from_numpy(image.numpy()[:, x, y, z])
    if max(-_range(image)[0], _range(image)[1]) > 2**53:
        raise ImageError("The image has integers beyond 2^53, which cannot be interpolated; rescale its values first.")
    values = warp(image[None].to(torch.float64), ddf[None].to(torch.float64))[0]
    return values.round().to(image.dtype)


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
