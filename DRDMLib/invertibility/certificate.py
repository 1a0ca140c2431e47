"""Prove that a displacement field is invertible as it is applied: multilinear between its nodes.

The map is ``phi(x) = x + u(x)``, where u is given at the nodes of a rectilinear grid and interpolated linearly along
each axis between them, as ITK and Slicer do. The proof has two parts.

Each cell. In a cell the determinant of phi's derivative is a polynomial of degree d - 1 in each variable. In the
Bernstein basis the values of the polynomial are weighted means of its coefficients. So the determinant is positive in
every point of the closed cell if all coefficients are positive. There are 4 coefficients in 2D, where they are the
determinants at the corners and the test is exact. There are 27 in 3D, where a cell that fails is divided into eight
before it counts as failing (Johnen, Weill and Remacle, "Robust and efficient validation of the linear hexahedral
element", 2017).

Most cells need no coefficients. At any point of a cell, each entry of the derivative lies between the least and the
greatest difference quotient along the cell's edges; this defines a box of matrices. If Gershgorin's discs of all
matrices in the box keep the least eigenvalue of the symmetric part above a positive number, the determinant is at least
the d-th power of that number (Ostrowski and Taussky, 1951). Also, every matrix in the box is regular if
``q = || |C^-1| R || < 1`` for the box's midpoint C and radius R (Beeck, 1975); then ``det >= det C (1 - q)^d``.

The whole map. Let u be zero on the grid's border and, by definition, outside it. Then phi is continuous, piecewise
polynomial, and the identity outside a bounded set. If the determinant is positive in every closed cell, phi is a
Lipschitz map whose determinant is bounded away from zero almost everywhere. It is then a map of bounded distortion, and
therefore open and discrete (Reshetnyak, "Space mappings with bounded distortion", 1989). A map that is the identity
outside a bounded set has degree one. An open and discrete map that preserves orientation takes each value at most as
often as its degree. So phi takes each value exactly once: it is a homeomorphism of space. (The determinant of central
differences proves nothing: Liu et al., "On finite difference Jacobian computation in deformable image registration",
IJCV 132, 2024.)

Rounding. A determinant is accepted only if it is above a tolerance that bounds the error of its evaluation
(:func:`DRDMLib.invertibility.determinant_bounds.tolerance`). Cells are tested in single precision first, and the
remaining ones in double precision. The tested map is the exact one through the stored values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..runtime.threads import own_cores
from ..spatial.field_grid import (
    STORED,
    Block,
    DisplacementGrid,
    FadingGrid,
    FieldGrid,
    SampledGrid,
    coincide,
    continued,
    positions,
)
from .determinant_bounds import Bounds, over_tiles, tolerance
from .device_bounds import DeviceBounds
from .sample_bounds import all_above, least_between_samples

# Cells of a block along each axis: large enough to keep all threads busy, small enough for the processor's cache.
_BLOCK = 48
_MOST_THREADS = 8
# Outside the image, nodes four nodes of the field apart are usually enough for a proof; otherwise nearer ones are used.
GAPS = (4.0, 1.0)
# So few blocks are tested without bounds.
_FEW_BLOCKS = 8
# More blocks than these are shared between threads, whose start and waiting would take longer than the test of fewer.
_MANY_BLOCKS = 64
# Samples of a field are bounded by its nodes: so many cells of it along each axis together, if there are so many times
# as many samples as nodes. Each bound is for what the one before has left undecided.
_BOUNDS = ((4, 1), (2, 2), (1, 3))
# Cells of a tile along each axis, whose difference quotients are first bounded together.
_TILE = 2
# Number of undecided tiles that are tested together.
_CHUNK = 2**10


def blocks(shape: tuple[int, ...], side: int = _BLOCK) -> Iterator[Block]:
    """Divide a grid into blocks of nodes that share their outermost nodes, so that each cell is in exactly one block.

    Args:
        shape: number of nodes along each axis.
        side: number of cells of a block along each axis.
    """
    ranges = [[slice(a, min(a + side, n - 1) + 1) for a in range(0, max(1, n - 1), side)] for n in shape]
    return itertools.product(*ranges)


def _blocks_around(shape: tuple[int, ...], inner: tuple[slice, ...]) -> Iterator[Block]:
    """Divide the cells of a grid outside a box of nodes into blocks, as :func:`blocks` does."""
    whole = [slice(0, n) for n in shape]
    for axis, box in enumerate(inner):
        for side in (slice(0, box.start + 1), slice(box.stop - 1, shape[axis])):
            ranges = [*inner[:axis], side, *whole[axis + 1 :]]
            for where in blocks(tuple(r.stop - r.start for r in ranges)):
                yield tuple(slice(w.start + r.start, w.stop + r.start) for w, r in zip(where, ranges, strict=True))


def monotone_bound(bounds: Bounds) -> np.ndarray:
    """Bound the least eigenvalue of the derivative's symmetric part in each cell from below, by Gershgorin's discs.

    Args:
        bounds: for each axis, the least and greatest difference quotient, (d, *cells) each, as from :func:`over_tiles`.

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
    """Bound the determinant in each cell from below, from the box of its difference quotients.

    Args:
        bounds: as for ``monotone_bound``.

    Returns:
        (*cells), zero or below where nothing is proven.
    """
    d = len(bounds)
    c = [[(bounds[axis][0][k] + bounds[axis][1][k]) * 0.5 + (axis == k) for axis in range(d)] for k in range(d)]
    # Sums of the radius over the columns; row k belongs to component k.
    rows = np.add.reduce([high - low for low, high in bounds]) * 0.5
    cofactors = [[_cofactor(c, k, i) for i in range(d)] for k in range(d)]
    det = sum(c[0][i] * cofactors[0][i] for i in range(d))
    worst = np.maximum.reduce([sum(np.abs(cofactors[k][i]) * rows[k] for k in range(d)) for i in range(d)])
    # det (1 - worst / det)^d, where worst < det.
    remaining = np.maximum(det - worst, 0) / np.maximum(det, 1e-30)
    result: np.ndarray = remaining**d * det
    return result


def _cofactor(m: list[list[np.ndarray]], row: int, column: int) -> np.ndarray:
    rest = [[value for j, value in enumerate(line) if j != column] for i, line in enumerate(m) if i != row]
    if len(rest) == 1:
        return -rest[0][0] if (row + column) % 2 else rest[0][0]
    (a, b), (c, d) = rest
    result: np.ndarray = b * c - a * d if (row + column) % 2 else a * d - b * c
    return result


def bernstein_coefficients(corners: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Compute the Bernstein coefficients of the determinant of ``x + u(x)`` in K cells.

    Args:
        corners: (K, *[2] * d, d), displacements at the corners; component k is along axis k.
        spacing: (K, d), the sides of the cells, in the same unit.

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


# Converts coefficients of degree two on an interval to those on its two halves (which share the middle one).
_HALVES = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5], [0, 0, 1]])


def bernstein_bound(corners: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Bound the determinant in K cells from below by the least Bernstein coefficient, in 3D after one division.

    Arguments as in :func:`bernstein_coefficients`.

    Returns:
        (K,).
    """
    c = bernstein_coefficients(corners, spacing)
    bound: np.ndarray = c.min(axis=tuple(range(1, c.ndim)))
    if spacing.shape[1] == 3:
        exact = c[:, ::2, ::2, ::2].min(axis=(1, 2, 3))
        loose = bound < exact
        parts = np.einsum("ai,bj,ck,nijk->nabc", _HALVES, _HALVES, _HALVES, c[loose], optimize=True)
        bound[loose] = parts.min(axis=(1, 2, 3))
    return bound


def failing_cells(
    grid: DisplacementGrid,
    margin: float = 0.0,
    changed: np.ndarray | None = None,
    besides: tuple[slice, ...] | None = None,
    *,
    bounded: bool = False,
    on_device: DeviceBounds | None = None,
) -> np.ndarray:
    """Find the cells in which the determinant is not proven to be above ``margin``.

    Args:
        changed: bool, one for each node of the stored field; only blocks that depend on marked nodes are tested.
            ``None`` tests all.
        besides: a box of nodes; the cells between them are not tested.
        bounded: first bound the determinants by the nodes of the stored field, and only test the blocks that this does
            not decide; ``grid`` is a :class:`SampledGrid`.
        on_device: bounds the determinants of all cells first; ``grid`` is a field or its samples.

    Returns:
        Indices (K, d), array order.
    """
    shape = tuple(map(len, grid.nodes))
    every = blocks(shape) if besides is None else _blocks_around(shape, besides)
    wanted = [where for where in every if changed is None or grid.touched(where, changed)]
    least = None
    if on_device is not None and changed is None:
        assert isinstance(grid, FieldGrid | SampledGrid)
        least = on_device.least(grid)
    if least is not None:
        wanted = [where for where in wanted if not least.of(where) > margin]
    elif bounded:
        assert isinstance(grid, SampledGrid)
        finer = math.prod(shape) / grid.field.vectors[..., 0].size
        for together, times in _BOUNDS:
            # Otherwise it takes less time to test the samples.
            if len(wanted) > _FEW_BLOCKS and finer > times:
                least = least_between_samples(grid, together)
                wanted = [where for where in wanted if not least.of(where) > margin]

    def find(where: Block) -> np.ndarray:
        return _failing_in_block(grid, where, margin)

    if len(wanted) > _MANY_BLOCKS:
        with ThreadPoolExecutor(min(_MOST_THREADS, own_cores())) as pool:
            found = list(pool.map(find, wanted))
    else:
        found = [find(where) for where in wanted]
    return np.concatenate([np.zeros((0, len(grid.nodes)), np.int64), *found])


def _failing_in_block(grid: DisplacementGrid, where: Block, margin: float) -> np.ndarray:
    steps = [np.diff(n[w]) for n, w in zip(grid.nodes, where, strict=True)]
    shape, d = tuple(map(len, steps)), len(steps)
    if 0 in shape:
        return np.zeros((0, d), np.int64)
    finest = min(float(s.min()) for s in steps)
    shifted, farthest = grid.relative(where)
    bounds = over_tiles(shifted, steps, _TILE)
    slopes = np.array([[_steepest(*pair) for pair in zip(low, high, strict=True)] for low, high in bounds])
    largest = 1 + max(0.0, float(slopes.max()))
    rounding = grid.rounding * farthest / finest
    coarse = 16 * tolerance(largest, _largest(shifted) / finest, rounding, 2.0**-23)
    least = 1 - float(slopes.sum(0).max())
    if least > 0 and least**d > margin + coarse:
        return np.zeros((0, d), np.int64)
    tiles = _undecided(bounds, margin + coarse)
    if not len(tiles):
        return tiles
    values = grid.block(where)
    displacement = _largest(values) / finest
    fine = tolerance(largest, displacement, grid.rounding * displacement, 2.0**-52)
    failing = []
    for start in range(0, len(tiles), _CHUNK):
        cells = _cells_of_tiles(tiles[start : start + _CHUNK], shape)
        cells = cells[_undecided(_bounds_of_cells(values, steps, cells), margin + 16 * fine)[:, 0]]
        spacing = np.stack([s[i] for s, i in zip(steps, cells.T, strict=True)], axis=1)
        failing.append(cells[~(bernstein_bound(corner_values(values, cells), spacing) > margin + fine)])
    found = np.sort(np.ravel_multi_index(tuple(np.concatenate(failing).T), shape))
    result: np.ndarray = np.stack(np.unravel_index(found, shape), axis=1) + [w.start for w in where]
    return result


def _cells_of_tiles(tiles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """List the cells of tiles with indices (K, d), in a block with ``shape`` cells: indices (M, d)."""
    d = len(shape)
    offsets = np.stack(np.unravel_index(np.arange(_TILE**d), (_TILE,) * d), axis=1)
    cells = (tiles[:, None] * _TILE + offsets).reshape(-1, d)
    inside: np.ndarray = cells[(cells < shape).all(axis=1)]
    return inside


def _bounds_of_cells(values: np.ndarray, steps: list[np.ndarray], cells: np.ndarray) -> Bounds:
    """Find the least and greatest difference quotients in the cells with indices (K, d): (d, K) for each axis.

    Args:
        values: (d, *n), at the nodes.
        steps: distances of the nodes along each axis.
    """
    d = len(values)
    index = np.asarray(np.ravel_multi_index(tuple(cells.T), values.shape[1:]))
    offsets = np.asarray(np.ravel_multi_index(tuple(np.indices((2,) * d)), values.shape[1:]))
    corners = values.reshape(d, -1).take(index + offsets[..., None], axis=1)
    bounds = []
    for axis, step in enumerate(steps):
        edges = np.diff(corners, axis=1 + axis).reshape(d, -1, len(cells))
        density = (1 / step).astype(values.dtype)[cells[:, axis]]
        bounds.append((edges.min(axis=1) * density, edges.max(axis=1) * density))
    return bounds


def _undecided(bounds: Bounds, threshold: float) -> np.ndarray:
    """Find the cells, or tiles, that neither bound proves to be above ``threshold``: indices (K, d).

    The faster bound comes first and decides most of them.
    """
    least = monotone_bound(bounds)
    cells = np.flatnonzero(~(least > threshold ** (1 / len(bounds))))
    remaining = [(low.reshape(len(low), -1)[:, cells], high.reshape(len(high), -1)[:, cells]) for low, high in bounds]
    cells = cells[~(interval_bound(remaining) > threshold)]
    return np.stack(np.unravel_index(cells, least.shape), axis=1)


def _steepest(low: np.ndarray, high: np.ndarray) -> float:
    return max(-float(low.min()), float(high.max()))


def _largest(values: np.ndarray) -> float:
    return max(float(values.max()), -float(values.min()))


def corner_values(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the values (d, *n) at the corners of the cells with indices (K, d): (K, *[2] * d, d)."""
    d = len(values)
    axes = [np.arange(2).reshape([-1 if a == b else 1 for b in range(d)]) for a in range(d)]
    index = tuple(cells[:, a].reshape(-1, *[1] * d) + axes[a] for a in range(d))
    return np.stack([component[index] for component in values], axis=-1)


class Certificate(NamedTuple):
    """Whether a field is proven to be invertible, and if not, the reason as one short clause."""

    certified: bool
    reason: str = ""


def certify_on_grid(field: sitk.Image, reference: sitk.Image) -> Certificate:
    """Test a field that is zero on its border, or affine, and its samples on the grid of ``reference`` as saved.

    The samples are tested as they are applied, up to half a voxel outside of the outermost voxels' centers. Farther out
    they are continued by the field itself, up to its border, and by the map of the border beyond. If the map of this
    continued grid is a homeomorphism of space, then its restriction to the image takes no value twice.

    Args:
        field: vector image, millimeters, LPS.
        reference: the image; outside a field that is zero on its border nothing moves.
    """
    coarse = FieldGrid.of(field, STORED)
    if coarse.border_map() is None:
        return Certificate(False, "the field is neither zero nor affine on its border")
    inside = positions(coarse, reference)
    if inside is not None and proven_at_once(coarse, inside, 0.0):
        return Certificate(True)
    if len(failing_cells(coarse)):
        return Certificate(False, "the field folds")
    if inside is None:
        return Certificate(False, "the field does not cover the image, or their axes are not parallel")
    if not len(failing_samples(coarse, inside, 0.0)[1]):
        return Certificate(True)
    return Certificate(False, "the field folds where it is sampled on the image's grid")


def proven_at_once(field: FieldGrid, inside: tuple[np.ndarray, ...], margin: float) -> bool:
    """Whether bounds are enough to prove a field and its samples on the grid of an image, continued outside.

    Neither :func:`failing_cells` nor :func:`failing_samples` would find anything then, but they take longer.

    Args:
        field: it is zero or affine on its border.
        inside, margin: see :func:`failing_samples`.
    """
    return min(field.vectors.shape[:-1]) > 1 and all_above(continued(field, inside, GAPS[0]), margin)


def failing_samples(
    field: FieldGrid,
    inside: tuple[np.ndarray, ...],
    margin: float,
    changed: np.ndarray | None = None,
    on_device: DeviceBounds | None = None,
) -> tuple[SampledGrid, np.ndarray]:
    """Find the cells that fail in a field's samples on the grid of an image, continued outside.

    Args:
        field: it is zero or affine on its border, and none of its own cells fails.
        inside: nodes of the image's grid, see :func:`DRDMLib.spatial.field_grid.positions`.
        margin, changed, on_device: see :func:`failing_cells`.

    Returns:
        The grid of the samples, and indices (K, d) of its cells.
    """
    same = coincide(inside)
    for gap in GAPS:
        grid = continued(field, inside, gap)
        # Copies of the field's own nodes need no test.
        bounds = None if same else on_device
        cells = failing_cells(grid, margin, changed, grid.inner if same else None, bounded=not same, on_device=bounds)
        if not len(cells):
            break
    return grid, cells


def certify_saved(ddf: sitk.Image) -> Certificate:
    """Test a displacement field without its image (vector image, millimeters, LPS).

    It is tested as it is applied, up to half a voxel outside of the outermost voxels' centers, where it has the values
    at these centers. Outside it is continued by the affine map that its border follows; if it follows none, its values
    fall smoothly to zero there. If this continued map is a homeomorphism of space, the field takes no value twice.
    (This condition is sufficient, not necessary.)
    """
    field = FieldGrid.of(ddf)
    if min(ddf.GetSize()) > 1 and len(failing_cells(field)):
        return Certificate(False, "the field folds")
    outside = field.border_map() if min(ddf.GetSize()) > 1 else None
    if outside is not None:
        continued_by_it = FadingGrid(field, 4 * max(field.spacing), outside)
        if outside.moves_nothing or not len(failing_cells(continued_by_it)):
            return Certificate(True)
    largest = float(np.sqrt((field.vectors.astype(np.float64) ** 2).sum(-1).max()))
    if len(failing_cells(FadingGrid(field, 6 * largest + max(field.spacing)))):
        return Certificate(False, "the field does not fold, but its border moves too much for a proof")
    return Certificate(True)
