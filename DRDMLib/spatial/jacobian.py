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
