"""Figures of a displacement field: how far, how rough, and where it folds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .fields import determinant
from .geometry import image_extent
from .resampling import field_on_grid, slabs


@dataclass(frozen=True)
class FieldMetrics:
    """Figures of one field on the grid it is saved on.

    Attributes:
        mean_mm, max_mm: length of the displacement, millimetres.
        mean_percent, max_percent: the same over the longest physical side of the image.
        folded_fraction: share of voxels with a Jacobian determinant of 0 or below (central differences).
        min_jacobian: smallest determinant.
        certified_invertible: whether the field is proven to be invertible; ``None``: not examined.
    """

    mean_mm: float
    max_mm: float
    mean_percent: float
    max_percent: float
    folded_fraction: float
    min_jacobian: float
    certified_invertible: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


def jacobian_determinant(field: np.ndarray, spacing: tuple[float, ...], direction: np.ndarray) -> np.ndarray:
    """Determinant of the derivative of ``x -> x + u(x)`` by central differences (one-sided at the border).

    Args:
        field: (*S, d) in SimpleITK's array order, millimetres, LPS.
        spacing: millimetres, SimpleITK's axis order.
        direction: (d, d), columns are the directions of the axes.

    Returns:
        (*S).
    """
    d = field.shape[-1]
    columns = []
    for axis in range(d):
        # Array axis d-1-i is SimpleITK's axis i.
        array_axis = d - 1 - axis
        if field.shape[array_axis] > 1:
            derivative = np.gradient(field, spacing[axis], axis=array_axis)
        else:
            derivative = np.zeros_like(field)
        derivative += direction[:, axis].astype(field.dtype)
        columns.append([derivative[..., k] for k in range(d)])
    # Columns are derivatives of x + u along the grid's axes: det(I + G D^-1) = det(D + G) / det(D).
    return determinant(columns) / field.dtype.type(np.linalg.det(direction))


def measure(reference: sitk.Image, layers: Callable[[int, int], np.ndarray]) -> FieldMetrics:
    """Figures of a field that is given slab by slab.

    Args:
        reference: the grid.
        layers: (start, stop) -> (stop - start, ..., d) millimetres along the slowest axis.
    """
    d = reference.GetDimension()
    count = reference.GetSize()[-1]
    direction = np.asarray(reference.GetDirection()).reshape(d, d)
    total, longest, folded, lowest = 0.0, 0.0, 0, math.inf
    for start, stop in slabs(reference.GetSize(), 2**21):
        below, above = max(0, start - 1), min(count, stop + 1)
        block = layers(below, above)
        determinant = jacobian_determinant(block, reference.GetSpacing(), direction)
        own = slice(start - below, start - below + stop - start)
        length = np.sqrt(np.einsum("...i,...i->...", block[own], block[own], dtype=np.float64))
        total += float(length.sum())
        longest = max(longest, float(length.max()))
        folded += int(np.count_nonzero(determinant[own] <= 0))
        lowest = min(lowest, float(determinant[own].min()))
    voxels = reference.GetNumberOfPixels()
    side = float(image_extent(reference).max())
    return FieldMetrics(
        mean_mm=total / voxels,
        max_mm=longest,
        mean_percent=100 * total / voxels / side,
        max_percent=100 * longest / side,
        folded_fraction=folded / voxels,
        min_jacobian=lowest,
    )


def measure_ddf(ddf: sitk.Image) -> FieldMetrics:
    """Figures of a whole displacement field (vector image, millimetres, LPS)."""
    view = sitk.GetArrayViewFromImage(ddf)
    return measure(ddf, lambda start, stop: np.asarray(view[start:stop], np.float32))


def measure_carried(field: sitk.Image, reference: sitk.Image) -> FieldMetrics:
    """Figures of a coarse displacement field as it is on the grid of ``reference``, without making it whole."""
    return measure(reference, lambda start, stop: field_on_grid(field, reference, start, stop))


def folded_fraction(ddf: Tensor) -> Tensor:
    """Share of voxels that fold, for tensors (N, d, *S) in fractions of the side; (N,)."""
    determinants = tensor_jacobian(ddf)
    return (determinants <= 0).flatten(1).float().mean(dim=1)


def tensor_jacobian(ddf: Tensor) -> Tensor:
    """Jacobian determinant by central differences, for tensors (N, d, *S) in fractions of the side; (N, *S)."""
    d = ddf.shape[1]
    sides = ddf.shape[2:]
    rows = []
    for k in range(d):
        voxels = ddf[:, k] * sides[k]
        gradients = torch.gradient(voxels, dim=list(range(1, d + 1)))
        rows.append(torch.stack([g + (1.0 if k == j else 0.0) for j, g in enumerate(gradients)], dim=-1))
    return torch.linalg.det(torch.stack(rows, dim=-2))


def roughness(ddf: Tensor) -> Tensor:
    """Root mean square second difference along the axes, voxels; (N, d, *S) in fractions of the side -> (N,)."""
    total = torch.zeros(ddf.shape[0], device=ddf.device)
    for axis in range(2, ddf.ndim):
        sides = torch.tensor(ddf.shape[2:], device=ddf.device).view(1, -1, *[1] * (ddf.ndim - 2))
        second = (ddf * sides).diff(n=2, dim=axis)
        total += second.square().sum(dim=1).flatten(1).mean(dim=1)
    return total.sqrt()
