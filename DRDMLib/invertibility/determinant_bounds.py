"""Bound the determinants of a field's samples from below by the field's own nodes, so that few have to be computed.

The field is linear along each axis between its nodes, and its samples (the voxels of an image) lie on the same axes, no
farther apart than the nodes. So a difference quotient between samples is a mean of the quotients between the nodes
around. This gives a box of matrices for each cell of the field, and the determinant of all of them is at least

    det C - sum over the entries of |cofactor| R - (the terms of second and third order in R),

where C is the middle of the box and R its radius. A quotient of central differences at a voxel is a mean over two
steps along one axis; those of a cell between voxels lie in the cell of the field and the next one along each axis. The
two tetrahedra in the middle of a cell between voxels (see :func:`DRDMLib.invertibility.metrics.digital_diffeomorphism`)
mix edges that are parallel but not the same. They differ by at most the mixed second difference for each step between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from ..spatial.field_samples import FieldSamples

# NumPy on the processor, PyTorch on other devices.
Array = TypeVar("Array", np.ndarray, Tensor)
Function = Callable[..., np.ndarray]
# For each axis the least and greatest difference quotients along it, (d, *cells) each; component k is along axis k.
Bounds = list[tuple[np.ndarray, np.ndarray]]

# Layers of cells that are processed together; few enough for the processor's cache.
_LAYERS = 8


def tolerance(largest: float, displacement: float, rounding: float, epsilon: float) -> float:
    """Bound the rounding error of a determinant in 2D and 3D. 16 times the bound is valid for ``interval_bound``.

    If the entries are at most ``largest`` (at least 1), each with an error of at most ``e``, the error of the
    determinant is less than ``24 e largest^2``.

    Args:
        largest: largest entry of the derivative.
        displacement: largest displacement, divided by the least spacing.
        rounding: error of the displacements as stored, divided by the least spacing.
        epsilon: relative error of the arithmetic.
    """
    entry = 4 * epsilon * (displacement + largest) + 2 * rounding
    return 24 * entry * largest**2


class LeastDeterminants(NamedTuple):
    """Lower bounds of the determinants, one for each cell between the nodes of :class:`FieldSamples`.

    They hold for what is computed in single precision.

    Attributes:
        central: for central differences at the voxels of the cell.
        strict: for the simplices of the cells between voxels whose first corner lies in the cell.
        cells: for each axis, the cell of each voxel.
    """

    central: np.ndarray
    strict: np.ndarray
    cells: list[np.ndarray]


def least_determinants(samples: FieldSamples, direction: np.ndarray) -> LeastDeterminants | None:
    """Bound the determinants of a field's samples from below.

    Args:
        direction: (d, d), columns are the directions of SimpleITK's axes of the image.

    Returns:
        ``None`` if the samples are farther apart than the nodes along an axis.
    """
    d = len(samples.at)
    ratios = [float(np.diff(at).max(initial=0)) for at in samples.at]
    if max(ratios) > 1 + 1e-6:
        return None
    cells = [samples.cells(axis) for axis in range(d)]
    count = samples.nodes.shape[1]
    central: list[np.ndarray] = []
    strict: list[np.ndarray] = []
    for start in range(0, count - 1, _LAYERS):
        stop = min(start + _LAYERS, count - 1)
        # One more layer of cells on each side, and the nodes around them.
        below = max(start - 1, 0)
        part = _in_layers(samples, slice(below, stop + 2), ratios, direction)
        for found, bounds in zip((central, strict), part, strict=True):
            found.append(bounds[start - below : stop - below])
    return LeastDeterminants(np.concatenate(central), np.concatenate(strict), cells)


def _in_layers(
    samples: FieldSamples, layers: slice, ratios: list[float], direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounds ``central`` and ``strict`` in layers of nodes."""
    d = len(ratios)
    nodes = np.ascontiguousarray(samples.nodes[:, layers], np.float64)
    values = _along_axes(nodes, direction)
    steps = [ratio * spacing for ratio, spacing in zip(ratios, samples.spacing, strict=True)]
    edges = [(np.diff(values, axis=1 + a) / samples.spacing[a]).astype(np.float32) for a in range(d)]
    for axis, at in enumerate(samples.at):
        if len(at) == 1:
            # The derivative across a single layer counts as zero.
            edges[axis][:] = 0
    largest = 1 + max(float(np.abs(edge).max()) for edge in edges)
    finest = min((step for step in steps if step > 0), default=1.0)
    error = 4 * tolerance(largest, float(np.abs(nodes).max()) * d / finest, 0.0, 2.0**-24) + 2.0**-16 * largest**d
    low, high = zip(*(over_cells(edge, axis) for axis, edge in enumerate(edges)), strict=True)
    central = least_determinant(
        [_around(x, np.minimum, axis) for axis, x in enumerate(low)],
        [_around(x, np.maximum, axis) for axis, x in enumerate(high)],
        [0.0] * d,
    )
    strict = least_determinant(
        [_next(x, np.minimum) for x in low],
        [_next(x, np.maximum) for x in high],
        _twists(edges, samples.spacing, steps),
    )
    return central - np.float32(error), strict - np.float32(error)


def _along_axes(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Convert LPS components (d, *n) to those along the axes of an image's array."""
    rows = np.linalg.inv(direction)[::-1]
    return np.stack([sum(row[k] * vectors[k] for k in np.flatnonzero(row)) for row in rows])


def _part(values: np.ndarray, axis: int, start: int | None, stop: int | None) -> np.ndarray:
    return values[(slice(None),) * (1 + axis) + (slice(start, stop),)]


def over_cells(edges: np.ndarray, along: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the least and greatest value over those edges of each cell that are parallel to an axis.

    Args:
        edges: (d, *n), between nodes along this axis, and at nodes along the others.

    Returns:
        Two arrays (d, *cells).
    """
    low = high = edges
    for axis in range(edges.ndim - 1):
        if axis != along:
            low = np.minimum(_part(low, axis, None, -1), _part(low, axis, 1, None))
            high = np.maximum(_part(high, axis, None, -1), _part(high, axis, 1, None))
    return low, high


def over_tiles(values: np.ndarray, steps: list[np.ndarray], side: int) -> Bounds:
    """Find the least and greatest difference quotients over tiles of cells.

    Args:
        values: (d, *n), at the nodes.
        steps: distances of the nodes along each axis.
        side: number of cells of a tile along each axis; the last tiles may have fewer.

    Returns:
        Two arrays (d, *tiles) for each axis.
    """
    d = len(steps)
    bounds = []
    for along, step in enumerate(steps):
        density = (1 / step).astype(values.dtype).reshape([-1 if axis == along else 1 for axis in range(d)])
        lows: list[np.ndarray] = []
        highs: list[np.ndarray] = []
        # One component at a time stays in the processor's cache.
        for component in values:
            edges = np.diff(component, axis=along)
            for function, found in ((np.minimum, lows), (np.maximum, highs)):
                reduced = edges
                for axis in range(d):
                    if axis != along:
                        reduced = _over_steps(reduced, function, axis, side, shared=1)
                found.append(_over_steps(reduced * density, function, along, side, shared=0))
        bounds.append((np.stack(lows), np.stack(highs)))
    return bounds


def _over_steps(values: np.ndarray, function: np.ufunc, axis: int, side: int, *, shared: int) -> np.ndarray:
    """Reduce ``side`` entries at a time along an axis, together with the ``shared`` next ones."""
    count = -(-(values.shape[axis] - shared) // side)

    def part(of: np.ndarray, start: int, stop: int | None, step: int) -> np.ndarray:
        return of[(slice(None),) * axis + (slice(start, stop, step),)]

    parts = [part(part(values, start, None, side), 0, count, 1) for start in range(side + shared)]
    if len(parts) == 1:
        return parts[0]
    # The last tile may have fewer entries.
    whole = parts[1].shape[axis] == count
    result: np.ndarray = function(parts[0], parts[1]) if whole else parts[0].copy()
    for other in parts[2 if whole else 1 :]:
        place = part(result, 0, other.shape[axis], 1)
        function(place, other, out=place)
    return result


def _around(values: np.ndarray, function: Function, axis: int) -> np.ndarray:
    """Include the cells before and after, along one axis."""
    result: np.ndarray = values.copy()
    for own, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        place, near = _part(result, axis, own.start, own.stop), _part(values, axis, other.start, other.stop)
        function(place, near, out=place)
    return result


def _next(values: np.ndarray, function: Function) -> np.ndarray:
    """Include the next cell along each axis."""
    result: np.ndarray = values.copy()
    for axis in range(values.ndim - 1):
        place = _part(result, axis, None, -1)
        function(place, _part(result, axis, 1, None), out=place)
    return result


def _twists(edges: list[np.ndarray], spacing: tuple[float, ...], steps: list[float]) -> list[np.ndarray | float]:
    """Bound how far the columns of the tetrahedra in the middle lie outside the box: (d, *cells) for each axis."""
    d = len(edges)
    if d == 2:
        return [0.0] * d
    twist = {}
    for a, b in itertools.combinations(range(d), 2):
        mixed = np.abs(np.diff(edges[b], axis=1 + a)) / np.float32(spacing[a])
        (c,) = {0, 1, 2} - {a, b}
        twist[a, b] = _next(np.maximum(_part(mixed, c, None, -1), _part(mixed, c, 1, None)), np.maximum)
    x, y, _ = (np.float32(step / 2) for step in steps)
    one, two = x * twist[0, 1], x * twist[0, 2] + y * twist[1, 2]
    widened: list[np.ndarray | float] = [one + two, two, one]
    return widened


def least_determinant(low: list[Array], high: list[Array], widened: Sequence[Array | float]) -> Array:
    """Bound the determinant of the identity plus a matrix from below, over boxes of matrices.

    Args:
        low, high: for each column, its least and greatest entries, (d, *cells).
        widened: for each column, how far entries can lie outside these, (d, *cells) or a number.

    Returns:
        (*cells)
    """
    d = len(low)
    c = [[(low[a][k] + high[a][k]) * 0.5 for k in range(d)] for a in range(d)]
    r = [[(high[a][k] - low[a][k]) * 0.5 for k in range(d)] for a in range(d)]
    for a, wider in enumerate(widened):
        c[a][a] += 1
        if not isinstance(wider, float):
            for k in range(d):
                r[a][k] += wider[k]
        elif wider:
            for k in range(d):
                r[a][k] += wider
    size = [[abs(x) for x in column] for column in c]
    if d == 2:
        result: Array = c[0][0] * c[1][1] - c[0][1] * c[1][0]
        for k in (0, 1):
            result -= r[1][k] * (size[0][1 - k] + r[0][1 - k]) + size[1][k] * r[0][1 - k]
        return result
    others = [(1, 2), (2, 0), (0, 1)]
    total: Array = c[0][0] * 0
    for a, k in itertools.product(range(3), repeat=2):
        (i, j), (m, n) = others[a], others[k]
        cofactor = c[i][m] * c[j][n] - c[i][n] * c[j][m]
        if a == 0:
            total += c[a][k] * cofactor
        cofactor = abs(cofactor)
        small = r[i][m] * r[j][n] + r[i][n] * r[j][m]
        total -= r[a][k] * cofactor + size[a][k] * small
        if a == 0:
            total -= r[a][k] * small
    return total
