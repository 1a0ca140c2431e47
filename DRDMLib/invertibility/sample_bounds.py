"""Bound the determinants between the samples of a field by its own nodes: of each group of cells, or of all at once.

The bounds are those of :mod:`DRDMLib.invertibility.determinant_bounds`, for cells that need not be as large as those of
the field: a grid of samples that is continued outside of the image, and the field's own cells with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..spatial.field_grid import Block, SampledGrid
from .determinant_bounds import least_determinant, tolerance

# Nodes of a field that are processed together; few enough for the processor's cache.
_NODES = 2**16
# Groups along each axis that have one bound, at first and where that does not decide; each divides the one before.
_TOGETHER = (4, 2, 1)
# More than the rounding of a determinant in single precision.
_STRICT_MARGIN = 1e-3


class LeastBetweenSamples(NamedTuple):
    """Lower bounds of the determinant between the samples of a field, one for each group of cells.

    They are also lower bounds of the Bernstein coefficients, whose factors are difference quotients along edges. They
    are so far below these that :func:`DRDMLib.invertibility.certificate.failing_cells` would accept the cells, too.

    Attributes:
        least: (*groups)
        groups: for each axis, the group of each cell.
    """

    least: np.ndarray
    groups: list[np.ndarray]

    def of(self, where: Block) -> float:
        """Return the least bound of the cells in a block of nodes."""
        ends = [(int(g[w.start]), int(g[w.stop - 2]) + 1) for g, w in zip(self.groups, where, strict=True)]
        return float(self.least[tuple(slice(a, b) for a, b in ends)].min())


class Windows(NamedTuple):
    """Between which nodes of a field its samples lie.

    Attributes:
        groups: for each axis, the group of each cell between samples; those of a group begin in one cell of the field.
        first, last: for each axis, the first and the last cell of the field that each group lies in: (groups,).
        least, most: for each axis, the bounds of a cell's length as it is read, divided by that as it is applied.
        finest: least side of a cell, millimeters.
    """

    groups: list[np.ndarray]
    first: list[np.ndarray]
    last: list[np.ndarray]
    least: list[np.ndarray]
    most: list[np.ndarray]
    finest: float

    @staticmethod
    def of(grid: SampledGrid) -> Windows:
        """Find them for a grid that has at least two nodes along each axis."""
        rows, finest = [], math.inf
        shape, spacings = grid.field.vectors.shape[:-1], grid.field.spacing
        for at, read_at, n, spacing in zip(grid.at, grid.read_at or grid.at, shape, spacings, strict=True):
            read = np.clip(read_at, 0, n - 1)
            low = np.minimum(np.floor(read[:-1]).astype(np.int64), n - 2)
            high = np.clip(np.ceil(read[1:]).astype(np.int64) - 1, low, n - 2)
            begins = np.diff(low, prepend=-1) > 0
            first = np.flatnonzero(begins)
            # Around the outermost voxels' centers, and beyond the field, values are not read at the nodes themselves.
            ratio = np.diff(read) / np.diff(at)
            ratios = (np.minimum.reduceat(ratio, first), np.maximum.reduceat(ratio, first))
            rows.append((np.cumsum(begins) - 1, low[first], np.maximum.reduceat(high, first), *ratios))
            finest = min(finest, float(np.diff(at).min()) * spacing)
        groups, firsts, lasts, least, most = (list(column) for column in zip(*rows, strict=True))
        return Windows(groups, firsts, lasts, least, most, finest)

    def joined(self, count: int) -> Windows:
        """Join so many groups along each axis, beginning with the first, into one."""
        starts = [np.arange(0, len(first), count) for first in self.first]
        ends = [(np.maximum.reduceat, self.last), (np.minimum.reduceat, self.least), (np.maximum.reduceat, self.most)]
        last, least, most = ([reduce(x, at) for x, at in zip(axes, starts, strict=True)] for reduce, axes in ends)
        groups = [group // count for group in self.groups]
        first = [x[at] for x, at in zip(self.first, starts, strict=True)]
        return Windows(groups, first, last, least, most, self.finest)

    def with_field(self) -> Windows:
        """Let the bounds hold for the field's own cells, too, which are read as they are."""
        least, most = [np.minimum(x, 1.0) for x in self.least], [np.maximum(x, 1.0) for x in self.most]
        return self._replace(least=least, most=most)

    def cover(self, shape: tuple[int, ...]) -> bool:
        """Whether each cell of a field with so many nodes lies in a group."""
        ends = zip(self.first, self.last, shape, strict=True)
        return all(f[0] == 0 and last[-1] == n - 2 and (f[1:] <= last[:-1] + 1).all() for f, last, n in ends)

    def slab(self, start: int, stop: int) -> tuple[Windows, Block]:
        """Return the windows of some groups along the first axis, and the nodes on which they lie.

        Its ``groups`` mean nothing.
        """

        def cut(axes: list[np.ndarray]) -> list[np.ndarray]:
            return [axes[0][start:stop], *axes[1:]]

        first, last = cut(self.first), cut(self.last)
        nodes = tuple(slice(int(f[0]), int(at.max()) + 2) for f, at in zip(first, last, strict=True))
        first, last = ([at - w.start for at, w in zip(ends, nodes, strict=True)] for ends in (first, last))
        return Windows(cut(self.groups), first, last, cut(self.least), cut(self.most), self.finest), nodes

    def members(self, axis: int, along: int) -> np.ndarray:
        """List the difference quotients of each group along an axis, the last one repeatedly: (steps, groups).

        Args:
            axis: of the array of difference quotients.
            along: the axis along which these are between nodes; along the others they are at nodes.
        """
        last = self.last[axis] + (axis != along)
        steps = np.arange(int((last - self.first[axis]).max()) + 1)
        members: np.ndarray = np.minimum(self.first[axis] + steps[:, None], last)
        return members


def error_between_samples(
    windows: Windows, slopes: list[float], largest: float, rounding: float, shifted: float = 0.0
) -> float:
    """Bound the error of a bound between samples.

    Args:
        slopes: for each axis, the largest difference quotient between nodes.
        largest: largest displacement, millimeters.
        rounding: see :class:`DRDMLib.spatial.field_grid.DisplacementGrid`.
        shifted: the largest of the values, millimeters, if they were subtracted in single precision.
    """
    entry = 1 + max(slope * max(1.0, float(most.max())) for slope, most in zip(slopes, windows.most, strict=True))
    displacement = largest / windows.finest
    single = 2.0**-16 * entry ** len(slopes)
    if shifted:
        single += 2 * tolerance(entry, shifted / windows.finest, 0.0, 2.0**-23)
    return 2 * tolerance(entry, displacement, rounding * displacement, 2.0**-52) + single


def least_between_samples(grid: SampledGrid, together: int = 1) -> LeastBetweenSamples:
    """Bound the determinant between the samples of a field from below.

    Args:
        grid: it has at least two nodes along each axis.
        together: number of groups along each axis that have one bound. Several take a fraction of the time, and the
            bound is looser.
    """
    field, windows = grid.field, Windows.of(grid).joined(together)
    values = field.block(tuple(slice(0, n) for n in field.vectors.shape[:-1]))
    lows, highs, slopes = _slopes_in_windows(values, field.spacing, windows)
    error = error_between_samples(windows, slopes, float(np.abs(values).max()), grid.rounding)
    least = least_determinant(lows, highs, [0.0] * len(lows))
    return LeastBetweenSamples(least - np.float32(error), windows.groups)


def all_above(grid: SampledGrid, margin: float) -> bool:
    """Whether bounds are enough to prove that the determinant is above ``margin`` in the cells of a field and between
    its samples, which takes a fraction of the time of testing them.

    Args:
        grid: its nodes reach from one end of the field to the other; it has at least two along each axis.
    """
    windows = Windows.of(grid).with_field()
    return windows.cover(grid.field.vectors.shape[:-1]) and _all_proven(grid, windows, margin, [0.0] * len(grid.at))


def all_strict(grid: SampledGrid) -> bool:
    """Whether bounds are enough to prove that all cells between the samples of a field meet the criterion of
    :func:`DRDMLib.invertibility.metrics.digital_diffeomorphism`, also as computed in single precision.

    Args:
        grid: it has at least two nodes along each axis.
    """
    return _all_proven(grid, Windows.of(grid), _STRICT_MARGIN, None)


def _all_proven(grid: SampledGrid, windows: Windows, margin: float, widened: list[float] | None) -> bool:
    """Whether the bounds of the determinants in all windows are above ``margin``.

    Layers that the bounds of many cells together do not decide are tried again with those of fewer.

    Args:
        widened: see :func:`least_determinant`; ``None`` for the tetrahedra in the middle of the cells.
    """
    field = grid.field
    joined = {count: windows.joined(count) for count in _TOGETHER}
    step = _TOGETHER[0] * max(1, _NODES // math.prod(field.vectors.shape[1:-1]) // _TOGETHER[0])

    def proven(start: int, count: int) -> bool:
        slab, nodes = joined[count].slab(start // count, (start + step) // count)
        values, farthest = field.relative(nodes)
        lows, highs, slopes = _slopes_in_windows(values, field.spacing, slab)
        shifted = max(float(values.max()), -float(values.min()))
        error = error_between_samples(slab, slopes, farthest, grid.rounding, shifted)
        wider = _middle_widened(lows, highs) if widened is None else widened
        return float(least_determinant(lows, highs, wider).min()) > margin + error

    starts = range(0, len(windows.first[0]), step)
    return all(any(proven(start, count) for count in _TOGETHER) for start in starts)


def _middle_widened(lows: list[np.ndarray], highs: list[np.ndarray]) -> Sequence[np.ndarray | float]:
    """Return by how much the edges of the tetrahedra in the middle of a cell leave the bounds of its edges.

    Twice their volume is the determinant of edges that are changed by half of the differences of parallel ones.
    """
    if len(lows) == 2:
        return [0.0, 0.0]
    x, y, z = ((high - low) / 2 for low, high in zip(lows, highs, strict=True))
    return [y + z, x + z, x + y]


def _slopes_in_windows(
    values: np.ndarray, spacing: Sequence[float], windows: Windows
) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Bound the difference quotients of nodes (d, *n) in windows, along each axis.

    Returns:
        The least and the greatest ones, (d, *groups) each, in single precision; and the largest between two nodes.
    """
    d = len(values)
    lows, highs, slopes = [], [], []
    for along in range(d):
        edges = np.diff(values, axis=1 + along)
        edges /= spacing[along]
        edges = edges.astype(np.float32, copy=False)
        low, high = (_over_windows(edges, function, windows, along) for function in (np.minimum, np.maximum))
        scales = (windows.least[along], windows.most[along])
        least, most = (scale.reshape([-1 if a == along else 1 for a in range(d)]) for scale in scales)
        lows.append(np.minimum(low * least, low * most).astype(np.float32))
        highs.append(np.maximum(high * least, high * most).astype(np.float32))
        slopes.append(max(float(edges.max()), -float(edges.min())))
    return lows, highs, slopes


def _over_windows(edges: np.ndarray, function: np.ufunc, windows: Windows, along: int) -> np.ndarray:
    """Reduce values between nodes (one axis) and at nodes (the others) to ranges of cells: (d, *n) -> (d, *groups)."""
    for axis in range(edges.ndim - 1):
        first, *others = windows.members(axis, along)
        reduced = edges.take(first, axis=1 + axis)
        for members in others:
            function(reduced, edges.take(members, axis=1 + axis), out=reduced)
        edges = reduced
    return edges
