"""A proof that a displacement field is invertible, as it is applied: multilinear between its nodes.

The map is ``phi(x) = x + u(x)``, where u is given at the nodes of a rectilinear grid and interpolated linearly along
each axis between them; this is what ITK and Slicer do. The proof has two parts.

Every cell: there the determinant of phi's derivative is a polynomial of degree d - 1 in each variable. Written in the
Bernstein basis its values are weighted means of its coefficients, so it is positive in every point of the closed cell
if all coefficients are (4 in 2D, where they are the corners' determinants and the test is exact; 27 in 3D, where a cell
that fails is divided in eight before it is given up; Johnen, Weill and Remacle, "Robust and efficient validation of the
linear hexahedral element", 2017). Most cells need no coefficients: the derivative in any point of a cell has each entry
between the least and the greatest difference quotient along the cell's edges. If Gershgorin's discs of all matrices in
such a box keep the least eigenvalue of the symmetric part above a positive number, the determinant is at least its d-th
power (Ostrowski and Taussky, 1951). And every matrix of the box is regular if ``|| |C^-1| R || < 1`` for the box's
midpoint C and radius R (Beeck, 1975); then ``det >= det C (1 - q)^d``.

The whole: let u be zero on the grid's border and, by definition, outside of it. Then phi is continuous, piecewise
polynomial, and the identity outside of a bounded set. If the determinant is positive in every closed cell, phi is a
Lipschitz map whose determinant is bounded away from zero almost everywhere: a map of bounded distortion, hence open and
discrete (Reshetnyak, "Space mappings with bounded distortion", 1989). The degree of a map that is the identity far out
is one, and an open, discrete map that keeps orientation meets each value at most as often as its degree says. So phi
meets each value exactly once: it is a homeomorphism of space. (The determinant of central differences proves nothing:
Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 132, 2024.)

Rounding: determinants are accepted only above a tolerance that bounds the error of their evaluation (``_tolerance``),
first in single precision, then for what is left in double. The map judged is the exact one through the stored values.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..spatial.field_grid import STORED, Block, DisplacementGrid, FadingGrid, FieldGrid, coincide, extended, positions

# Cells of a block along each axis: large enough that threads do not wait for each other, small enough for a cache.
_BLOCK = 48
_MOST_THREADS = 8
# Past the image, every fourth node of the field will do as a rule; all of them if it does not.
STRIDES = (4, 1)
# Undecided cells that are examined together.
_CHUNK = 2**15


def blocks(shape: tuple[int, ...], side: int = _BLOCK) -> Iterator[Block]:
    """Node ranges that share their outermost nodes, so that each cell of a grid of this shape is in one of them."""
    ranges = [[slice(a, min(a + side, n - 1) + 1) for a in range(0, max(1, n - 1), side)] for n in shape]
    return itertools.product(*ranges)


Bounds = list[tuple[np.ndarray, np.ndarray]]


def _difference_quotients(values: np.ndarray, steps: list[np.ndarray]) -> list[np.ndarray]:
    """Along each axis: (d, *n with n - 1 along the axis)."""
    d = len(steps)
    edges = []
    for axis, step in enumerate(steps):
        n = values.shape[1 + axis]
        edge = _part(values, axis, 1, n) - _part(values, axis, 0, n - 1)
        edge *= (1 / step).astype(values.dtype).reshape([-1 if axis == b else 1 for b in range(d)])
        edges.append(edge)
    return edges


def _part(values: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """(d, *n) from ``start`` to ``stop`` along one of the grid's axes."""
    return values[(slice(None),) * (1 + axis) + (slice(start, stop),)]


def _over_cells(edges: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value over the edges of each cell that run along ``axis``: (d, *n) -> two of (d, *cells)."""
    low = high = edges
    for other in range(edges.ndim - 1):
        if other != axis:
            n = low.shape[1 + other]
            low = np.minimum(_part(low, other, 0, n - 1), _part(low, other, 1, n))
            high = np.maximum(_part(high, other, 0, n - 1), _part(high, other, 1, n))
    return low, high


def monotone_bound(bounds: Bounds) -> np.ndarray:
    """A lower bound of the least eigenvalue of the derivative's symmetric part in each cell, by Gershgorin's discs.

    Args:
        bounds: along each axis, least and greatest difference quotient, (d, *cells) each, as from ``_over_cells``.

    Returns:
        (*cells); where it is positive, the determinant is at least its d-th power.
    """
    d = len(bounds)
    discs = [bounds[i][0][i] + 1 for i in range(d)]
    for i, j in itertools.combinations(range(d), 2):
        (low_i, high_i), (low_j, high_j) = bounds[i], bounds[j]
        reach = np.maximum(high_i[j] + high_j[i], -(low_i[j] + low_j[i]))
        reach *= 0.5
        discs[i] -= reach
        discs[j] -= reach
    result: np.ndarray = np.minimum.reduce(discs)
    return result


def interval_bound(bounds: Bounds) -> np.ndarray:
    """A lower bound of the determinant in each cell, from the box of its difference quotients.

    Args:
        bounds: as for ``monotone_bound``.

    Returns:
        (*cells), zero or below where nothing is proven.
    """
    d = len(bounds)
    c = [[(bounds[axis][0][k] + bounds[axis][1][k]) * 0.5 + (axis == k) for axis in range(d)] for k in range(d)]
    # Sum over the columns; row k of the radius belongs to component k.
    rows = np.add.reduce([high - low for low, high in bounds]) * 0.5
    cofactors = [[_cofactor(c, k, i) for i in range(d)] for k in range(d)]
    det = sum(c[0][i] * cofactors[0][i] for i in range(d))
    worst = np.maximum.reduce([sum(np.abs(cofactors[k][i]) * rows[k] for k in range(d)) for i in range(d)])
    # det (1 - worst / det)^d, where worst < det.
    share = np.maximum(det - worst, 0) / np.maximum(det, 1e-30)
    result: np.ndarray = share**d * det
    return result


def _cofactor(m: list[list[np.ndarray]], row: int, column: int) -> np.ndarray:
    rest = [[value for j, value in enumerate(line) if j != column] for i, line in enumerate(m) if i != row]
    if len(rest) == 1:
        return -rest[0][0] if (row + column) % 2 else rest[0][0]
    (a, b), (c, d) = rest
    result: np.ndarray = b * c - a * d if (row + column) % 2 else a * d - b * c
    return result


def bernstein_coefficients(corners: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Bernstein coefficients of the determinant of ``x + u(x)`` in cells.

    Args:
        corners: (K, *[2] * d, d), displacements at the corners; component k is along axis k.
        spacing: (K, d), the cells' sides.

    Returns:
        (K, 2, 2) or (K, 3, 3, 3).
    """
    d = spacing.shape[1]
    edges = []
    for axis in range(d):
        edge = np.diff(corners, axis=1 + axis).squeeze(1 + axis) / spacing[:, axis].reshape(-1, *[1] * d)
        edge[..., axis] += 1
        edges.append(edge)
    if d == 2:
        x, y = edges  # x depends on the second index, y on the first
        a, b = x[:, None, :], y[:, :, None]
        determinants: np.ndarray = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
        return determinants
    x, y, z = edges  # x[j, k], y[i, k], z[i, j]
    out = np.zeros((len(corners), 3, 3, 3))
    for i, k, i2, j in itertools.product((0, 1), repeat=4):
        cross = np.cross(y[:, i, k], z[:, i2, j])
        for j2, k2 in itertools.product((0, 1), repeat=2):
            out[:, i + i2, j + j2, k + k2] += np.einsum("na,na->n", x[:, j2, k2], cross)
    weight = np.array([1, 0.5, 1])
    out *= weight[:, None, None] * weight[:, None] * weight
    return out


# Coefficients of degree two on the interval -> those on its two halves (the middle one is shared).
_HALVES = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5], [0, 0, 1]])


def bernstein_bound(corners: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A lower bound of the determinant in cells, (K,): the least Bernstein coefficient, after one division in 3D."""
    c = bernstein_coefficients(corners, spacing)
    bound: np.ndarray = c.min(axis=tuple(range(1, c.ndim)))
    if spacing.shape[1] == 3:
        exact = c[:, ::2, ::2, ::2].min(axis=(1, 2, 3))
        loose = bound < exact
        parts = np.einsum("ai,bj,ck,nijk->nabc", _HALVES, _HALVES, _HALVES, c[loose], optimize=True)
        bound[loose] = parts.min(axis=(1, 2, 3))
    return bound


def _tolerance(largest: float, displacement: float, rounding: float, epsilon: float) -> float:
    """Bounds the error of a determinant, and with 16 times its value that of ``interval_bound``, in 2D and 3D.

    Entries up to ``largest`` (at least 1), each off by ``e``, put a determinant off by less than ``24 e largest^2``.

    Args:
        largest: of the derivative's entries.
        displacement: the largest, over the least spacing.
        rounding: of the displacements as stored, over the least spacing.
        epsilon: of the arithmetic.
    """
    entry = 4 * epsilon * (displacement + largest) + 2 * rounding
    return 24 * entry * largest**2


def failing_cells(grid: DisplacementGrid, margin: float = 0.0, changed: np.ndarray | None = None) -> np.ndarray:
    """Cells in which the determinant is not proven to be above ``margin``: (K, d) indices, array order.

    Args:
        changed: bool, one for each node of the stored field: only look at what these concern.
    """
    wanted = [where for where in blocks(tuple(map(len, grid.nodes))) if changed is None or grid.touched(where, changed)]
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda where: _failing_in_block(grid, where, margin), wanted))
    return np.concatenate([np.zeros((0, len(grid.nodes)), np.int64), *found])


def _failing_in_block(grid: DisplacementGrid, where: Block, margin: float) -> np.ndarray:
    values = grid.block(where)
    steps = [np.diff(n[w]) for n, w in zip(grid.nodes, where, strict=True)]
    d, finest = len(steps), min(float(s.min()) for s in steps)
    # A shift changes no difference, and smaller numbers are rounded less.
    shifted = values - values[:, :1, :1].reshape(d, -1)[:, :1].reshape(-1, *[1] * d)
    edges = _difference_quotients(shifted.astype(np.float32), steps)
    slopes = np.array([[_largest(component) for component in edge] for edge in edges])
    largest = 1 + float(slopes.max())
    displacement = _largest(values) / finest
    rounding = grid.rounding * displacement
    coarse = 16 * _tolerance(largest, _largest(shifted) / finest, rounding, 2.0**-23)
    share = 1 - float(slopes.sum(0).max())
    if share > 0 and share**d > margin + coarse:
        return np.zeros((0, d), np.int64)
    undecided = _undecided([_over_cells(edge, axis) for axis, edge in enumerate(edges)], margin + coarse)
    fine = _tolerance(largest, displacement, rounding, 2.0**-52)
    failing = []
    for start in range(0, len(undecided), _CHUNK):
        cells = undecided[start : start + _CHUNK]
        spacing = np.stack([s[i] for s, i in zip(steps, cells.T, strict=True)], axis=1)
        failing.append(cells[~(bernstein_bound(corner_values(values, cells), spacing) > margin + fine)])
    result: np.ndarray = np.concatenate([*failing, undecided[:0]]) + [w.start for w in where]
    return result


def _undecided(bounds: Bounds, threshold: float) -> np.ndarray:
    """Cells that neither bound proves to be above ``threshold``: (K, d) indices. The quicker bound decides most."""
    least = monotone_bound(bounds)
    left = np.flatnonzero(~(least > threshold ** (1 / len(bounds))))
    few = [(low.reshape(len(low), -1)[:, left], high.reshape(len(high), -1)[:, left]) for low, high in bounds]
    left = left[~(interval_bound(few) > threshold)]
    return np.stack(np.unravel_index(left, least.shape), axis=1)


def _largest(values: np.ndarray) -> float:
    return max(float(values.max()), -float(values.min()))


def corner_values(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(d, *n) and (K, d) -> (K, *[2] * d, d)."""
    d = len(values)
    axes = [np.arange(2).reshape([-1 if a == b else 1 for b in range(d)]) for a in range(d)]
    at = tuple(cells[:, a].reshape(-1, *[1] * d) + axes[a] for a in range(d))
    return np.stack([component[at] for component in values], axis=-1)


class Certificate(NamedTuple):
    """Whether a field is proven to be invertible, and if not, why: one short clause."""

    certified: bool
    reason: str = ""


def certify_on_grid(field: sitk.Image, reference: sitk.Image) -> Certificate:
    """Judges a field that falls to zero at its border, and its samples on the grid of ``reference`` as they are saved.

    The samples are continued past the image by nodes of the field itself, up to its border; the map of the continued
    grid is a homeomorphism of space, so its restriction to the image never meets a value twice.
    """
    coarse = FieldGrid.of(field, STORED)
    if not coarse.border_is_zero():
        return Certificate(False, "the field does not end in zeros")
    if len(failing_cells(coarse)):
        return Certificate(False, "the field folds")
    inside = positions(coarse, reference)
    if inside is None:
        return Certificate(False, "the field does not cover the image, or is tilted against it")
    if coincide(inside) or any(not len(failing_cells(extended(coarse, inside, s))) for s in STRIDES):
        return Certificate(True)
    return Certificate(False, "the field folds where it is sampled on the image's grid")


def certify_saved(ddf: sitk.Image) -> Certificate:
    """Judges a displacement field alone (vector image, millimeters, LPS).

    Where it does not end in zeros it is continued by its border's values, falling smoothly to zero: if that whole map
    is a homeomorphism of space, the field never meets a value twice. (It is a sufficient condition.)
    """
    field = FieldGrid.of(ddf)
    if min(ddf.GetSize()) > 1 and len(failing_cells(field)):
        return Certificate(False, "the field folds")
    if min(ddf.GetSize()) > 1 and field.border_is_zero():
        return Certificate(True)
    largest = float(np.sqrt((field.vectors.astype(np.float64) ** 2).sum(-1).max()))
    if len(failing_cells(FadingGrid(field, 6 * largest + max(field.spacing)))):
        return Certificate(False, "the field does not fold, but its border moves so that nothing is proven")
    return Certificate(True)
