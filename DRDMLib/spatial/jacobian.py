"""Jacobian determinant of a displacement field on a grid; uses only NumPy, so that it works without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def determinant(m: Sequence[Sequence[Any]]) -> Any:
    """Compute the determinant of a 2x2 or 3x3 matrix whose entries are arrays or tensors, element by element.

    General routines are slow on millions of small matrices.
    """
    if len(m) == 2:
        return m[0][0] * m[1][1] - m[0][1] * m[1][0]
    a, b, c = m
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def jacobian_determinant(field: np.ndarray, spacing: tuple[float, ...], direction: np.ndarray) -> np.ndarray:
    """Compute the Jacobian determinant of ``x -> x + u(x)`` by central differences (one-sided at the border).

    Args:
        field: (*S, d) in SimpleITK's array order, millimeters, LPS.
        spacing: (d,), millimeters, SimpleITK's axis order.
        direction: (d, d), columns are the directions of the axes.

    Returns:
        (*S), 0 or below where the field folds.
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
    result: np.ndarray = determinant(columns) / field.dtype.type(np.linalg.det(direction))
    return result


def central_determinants(
    values: np.ndarray, inner: tuple[slice, ...], spacing: tuple[float, ...], direction: np.ndarray
) -> np.ndarray:
    """Do the same as :func:`jacobian_determinant` for a box of voxels, to the bit, in less time and memory.

    Args:
        values: (d, *n), float32, millimeters, LPS: the box and the voxels next to it, as far as the image has them.
        inner: the voxels of the box itself.
        spacing, direction: see :func:`jacobian_determinant`.

    Returns:
        (*inner)
    """
    d = len(values)
    columns = []
    for axis in range(d):
        array_axis = d - 1 - axis
        column = []
        for k in range(d):
            where = tuple(slice(None) if a == array_axis else w for a, w in enumerate(inner))
            lines = values[k][where]
            derivative = _derivative(lines, inner[array_axis], spacing[axis], array_axis)
            if direction[k, axis] != 0:
                derivative += np.float32(direction[k, axis])
            column.append(derivative)
        columns.append(column)
    result: np.ndarray = determinant(columns)
    result /= np.float32(np.linalg.det(direction))
    return result


def _derivative(lines: np.ndarray, inner: slice, spacing: float, axis: int) -> np.ndarray:
    """Compute the differences of ``numpy.gradient`` along one axis, at the positions ``inner``."""

    def part(start: int, stop: int) -> np.ndarray:
        return lines[(slice(None),) * axis + (slice(start, stop),)]

    count = lines.shape[axis]
    if count == 1:
        return np.zeros_like(lines)
    # Positions at the border of the image, which have no neighbor on one side.
    first, last = inner.start == 0, inner.stop == count
    start, stop = inner.start + first, inner.stop - last
    out = np.empty(part(inner.start, inner.stop).shape, lines.dtype)
    own = out[(slice(None),) * axis + (slice(int(first), out.shape[axis] - last),)]
    if stop > start:
        np.subtract(part(start + 1, stop + 1), part(start - 1, stop - 1), out=own)
        own /= 2.0 * spacing
    for end, place, at in ((first, 0, 0), (last, -1, count - 2)):
        if end:
            border = out[(slice(None),) * axis + (place,)]
            np.subtract(part(at + 1, at + 2).squeeze(axis), part(at, at + 1).squeeze(axis), out=border)
            border /= spacing
    return out
