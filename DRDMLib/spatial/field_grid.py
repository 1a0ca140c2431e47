"""Displacement fields as grids for ``certificate``: a field itself, resampled to other nodes, or continued outside.

The axes of a grid are in array order (slowest first). Component k of a displacement is the one along axis k. Positions
of nodes and displacements are in millimeters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np
import SimpleITK as sitk

from .affine import AffineMap
from .coordinates import direction_matrix

Block = tuple[slice, ...]

# Bound of the relative error of a displacement that is stored with 32 bits and read back.
STORED = 2.0**-21


class Relative(NamedTuple):
    """Displacements of a block of nodes, less that of one of them.

    Attributes:
        values: (d, *n), float32, millimeters.
        farthest: no component of a displacement is larger.
    """

    values: np.ndarray
    farthest: float


class DisplacementGrid(Protocol):
    """Displacements at the nodes of a rectilinear grid, read in blocks.

    Attributes:
        nodes: positions along each axis, millimeters, increasing.
        rounding: bound of the error of the displacements, as a fraction of the largest one in a block.
    """

    @property
    def nodes(self) -> tuple[np.ndarray, ...]: ...

    @property
    def rounding(self) -> float: ...

    def block(self, where: Block) -> np.ndarray:
        """Return the displacements at the nodes in ``where``: (d, *n), float64, millimeters."""
        ...

    def relative(self, where: Block) -> Relative:
        """Return the displacements in single precision, less a constant, which changes no difference.

        Smaller numbers have smaller rounding errors.
        """
        ...

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        """Whether the block depends on nodes of the stored field that are marked in ``changed`` (bool, one each)."""
        ...


@dataclass(frozen=True)
class FieldGrid:
    """A displacement field in physical space, on its own grid.

    Attributes:
        vectors: (*S, d), array order, millimeters, LPS.
        spacing: millimeters, array order.
        direction: (d, d), columns are the directions of SimpleITK's axes (those of the array in reverse order).
        origin: (d,), position of the first node, LPS.
        rounding: see :class:`DisplacementGrid`.
        source: the image that owns the memory of ``vectors``; it must live as long.
    """

    vectors: np.ndarray
    spacing: tuple[float, ...]
    direction: np.ndarray
    origin: np.ndarray
    rounding: float = 0.0
    source: sitk.Image | None = None

    @staticmethod
    def of(field: sitk.Image, rounding: float = 0.0) -> FieldGrid:
        """Make a view of a field (vector image, millimeters, LPS)."""
        return FieldGrid(
            sitk.GetArrayViewFromImage(field),
            tuple(field.GetSpacing()[::-1]),
            direction_matrix(field),
            np.asarray(field.GetOrigin()),
            rounding,
            field,
        )

    @property
    def nodes(self) -> tuple[np.ndarray, ...]:
        return tuple(np.arange(n) * s for n, s in zip(self.vectors.shape, self.spacing, strict=False))

    def image(self) -> sitk.Image:
        """Copy the field to a vector image, 64-bit, as ``SimpleITK.DisplacementFieldTransform`` needs it."""
        image = sitk.GetImageFromArray(np.asarray(self.vectors, np.float64), isVector=True)
        image.SetSpacing(self.spacing[::-1])
        image.SetDirection(self.direction.ravel().tolist())
        image.SetOrigin(self.origin.tolist())
        return image

    @property
    def steps(self) -> np.ndarray:
        """Matrix (d, d) whose column k is the step between nodes along array axis k, millimeters, LPS."""
        result: np.ndarray = self.direction[:, ::-1] * np.asarray(self.spacing)
        return result

    @property
    def along(self) -> np.ndarray:
        """Matrix (d, d) whose row k gives the component of an LPS vector along array axis k."""
        return np.linalg.inv(self.direction)[::-1]

    def block(self, where: Block) -> np.ndarray:
        vectors = self.vectors[where]
        out = np.empty((len(where), *vectors.shape[:-1]))
        for k, row in enumerate(self.along):
            first, *others = np.flatnonzero(row)
            np.multiply(vectors[..., first], row[first], out=out[k])
            for j in others:
                out[k] += row[j] * vectors[..., j]
        return out

    def relative(self, where: Block) -> Relative:
        along = self.along
        if np.count_nonzero(along) > len(where):
            return _relative(self.block(where))
        vectors = self.vectors[where]
        first = np.asarray(vectors[(0,) * len(where)], np.float64)
        out = np.empty((len(where), *vectors.shape[:-1]), np.float32)
        for k, row in enumerate(along):
            (j,) = np.flatnonzero(row)
            np.subtract(vectors[..., j], first[j], out=out[k], casting="same_kind")
            if row[j] != 1:
                out[k] *= row[j]
        return Relative(out, _largest(out) + float(np.abs(first).max()))

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return bool(changed[where].any())

    def border_is_zero(self) -> bool:
        """Whether the field is zero on all outermost nodes."""
        axes = range(len(self.spacing))
        return not any(self.vectors[(slice(None),) * a + (end,)].any() for a in axes for end in (0, -1))

    def displaced_by(self, affine: AffineMap, where: Block | None = None) -> np.ndarray:
        """Return the displacements of an affine map at the nodes, or in a block of them: (*n, d), millimeters, LPS."""
        block = where or tuple(slice(0, n) for n in self.vectors.shape[:-1])
        index = [np.arange(part.start, part.stop) for part in block]
        return affine.displacements(self.origin, self.steps, index)

    def border_map(self) -> AffineMap | None:
        """Find the affine map that all outermost nodes follow, and that therefore continues the field beyond its grid.

        Returns:
            The identity for a field that is zero there; ``None`` if they follow none, or one that folds space.
        """
        d = len(self.spacing)
        if self.border_is_zero():
            return AffineMap.identity(d)
        shape = np.asarray(self.vectors.shape[:-1])
        if shape.min() < 2:
            return None
        first = np.asarray(self.vectors[(0,) * d], float)
        ends = [self.vectors[tuple(-1 if a == axis else 0 for a in range(d))] for axis in range(d)]
        slopes = np.stack([(end - first) / (n - 1) for end, n in zip(ends, shape, strict=True)], axis=1)
        found = AffineMap.of_slopes(first, self.origin, slopes, self.steps)
        if not found.determinant > 0:
            return None
        for axis, n in enumerate(shape):
            for end in (0, n - 1):
                face = tuple(slice(end, end + 1) if a == axis else slice(0, m) for a, m in enumerate(shape))
                wanted = self.displaced_by(found, face)
                if not np.abs(self.vectors[face] - wanted).max() <= STORED * np.abs(wanted).max():
                    return None
        return found

    def carried_extent(self, affine: AffineMap) -> tuple[np.ndarray, np.ndarray]:
        """Find the box along the axes around the place to which an affine map carries the extent of the field.

        Returns:
            Its first and its last corner, (d,) each, millimeters along the axes from the first node.
        """
        index = np.asarray(list(product(*[(0.0, n - 1.0) for n in self.vectors.shape[:-1]])))
        ends = (affine(index @ self.steps.T + self.origin) - self.origin) @ self.along.T
        return ends.min(axis=0), ends.max(axis=0)

    def covering(self, outside: AffineMap) -> FieldGrid:
        """Continue a field by the affine map of its border, to all points that the map takes into the field's extent.

        Programs that do not continue a field then still show all of the scan where its pose has put it.
        """
        shape = np.asarray(self.vectors.shape[:-1])
        low, high = (end / self.spacing for end in self.carried_extent(outside.inverse()))
        before = np.maximum(np.ceil(-low - 1e-6), 0).astype(int)
        after = np.maximum(np.ceil(high - (shape - 1) - 1e-6), 0).astype(int)
        large = replace(
            self,
            vectors=np.broadcast_to(0.0, (*(shape + before + after).tolist(), len(shape))),
            origin=self.origin - self.steps @ before,
            source=None,
        )
        vectors = large.displaced_by(outside)
        vectors[tuple(slice(b, b + n) for b, n in zip(before.tolist(), shape.tolist(), strict=True))] = self.vectors
        return replace(large, vectors=vectors)

    def without(self, outside: AffineMap) -> FieldGrid:
        """Return the field that is left when an affine map is taken away from what it does to its result.

        The map of this field is the map of the returned one, and then ``outside``. It is linear in the same cells, and
        invertible where that one is. The returned field is zero where this one follows ``outside``.
        """
        rest = self.vectors - self.displaced_by(outside)
        return replace(self, vectors=rest @ outside.inverse().matrix.T)


@dataclass(frozen=True)
class SampledGrid:
    """A field resampled to other nodes with linear interpolation, like a field that is saved on the grid of an image.

    Attributes:
        field: the field that is resampled.
        at: positions of the new nodes along each axis, in nodes of ``field``; increasing. Only a field that is zero on
            its border has nodes outside its extent, where it is zero.
        rounding: see :class:`DisplacementGrid`.
        read_at: positions at which the values of the new nodes are read, if not at their own; not decreasing.
        inner: for each axis, the range of the nodes that are the image's own; ``None`` if this does not matter.
    """

    field: FieldGrid
    at: tuple[np.ndarray, ...]
    rounding: float = STORED
    read_at: tuple[np.ndarray, ...] | None = None
    inner: tuple[slice, ...] | None = None

    @property
    def _read_at(self) -> tuple[np.ndarray, ...]:
        return self.at if self.read_at is None else self.read_at

    @property
    def nodes(self) -> tuple[np.ndarray, ...]:
        return tuple(a * s for a, s in zip(self.at, self.field.spacing, strict=True))

    def _source(self, where: Block) -> Block:
        """Return the nodes of ``field`` from which a block is interpolated."""
        ends = [(math.floor(a[w.start]), math.ceil(a[w.stop - 1])) for a, w in zip(self._read_at, where, strict=True)]
        source = []
        for (a, b), n in zip(ends, self.field.vectors.shape, strict=False):
            first = min(max(a, 0), n - 2)
            source.append(slice(first, min(max(b, first + 1), n - 1) + 1))
        return tuple(source)

    def block(self, where: Block) -> np.ndarray:
        source = self._source(where)
        values = self.field.block(source)
        for axis, (a, w, s) in enumerate(zip(self._read_at, where, source, strict=True)):
            position = np.clip(a[w] - s.start, 0, values.shape[1 + axis] - 1)
            before = np.minimum(position.astype(np.int64), values.shape[1 + axis] - 2)
            fraction = (position - before).reshape([-1 if axis == b else 1 for b in range(len(where))])
            low, values = values.take(before, axis=1 + axis), values.take(before + 1, axis=1 + axis)
            values -= low
            values *= fraction
            values += low
        return values

    def relative(self, where: Block) -> Relative:
        return _relative(self.block(where))

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return bool(changed[self._source(where)].any())

    def cells_in_field(self, cells: np.ndarray) -> np.ndarray:
        """Find the cells of the stored field that overlap the given cells, by their corners and midpoints.

        (K, d) indices -> (M, d) indices.
        """
        d = cells.shape[1]
        found = []
        for fraction in np.stack(np.meshgrid(*[[1e-6, 0.5, 1 - 1e-6]] * d, indexing="ij"), -1).reshape(-1, d):
            points = [a[c] + s * (a[c + 1] - a[c]) for a, c, s in zip(self.at, cells.T, fraction, strict=True)]
            last = np.asarray(self.field.vectors.shape[:d]) - 2
            found.append(np.clip(np.floor(np.stack(points, axis=1)).astype(np.int64), 0, last))
        return np.unique(np.concatenate(found), axis=0)


def positions(field: FieldGrid, reference: sitk.Image) -> tuple[np.ndarray, ...] | None:
    """Compute the positions of an image's voxels along the axes of a field.

    An image may extend past a field that is zero on its border, such as that of a region. The field is zero there, so
    of the voxels outside only the nearest ones are listed.

    Returns:
        For each axis of the field, positions in nodes of the field, increasing; ``None`` if the axes of the image are
        not parallel to those of the field, or if the image extends past a field that is not zero on its border.
    """
    rotation = field.along @ direction_matrix(reference)
    offset = field.along @ (np.asarray(reference.GetOrigin()) - field.origin)
    out = []
    for a in range(reference.GetDimension()):
        axis = int(np.abs(rotation[a]).argmax())
        if abs(abs(rotation[a, axis]) - 1) > 1e-6 or np.abs(np.delete(rotation[a], axis)).max(initial=0) > 1e-6:
            return None
        step = rotation[a, axis] * reference.GetSpacing()[axis]
        at = np.sort((offset[a] + step * np.arange(reference.GetSize()[axis])) / field.spacing[a])
        last = field.vectors.shape[a] - 1
        if at[0] < 0 or at[-1] > last:
            if not field.border_is_zero():
                return None
            inside = np.flatnonzero((at >= 0) & (at <= last))
            if not len(inside):
                inside = np.searchsorted(at, [0]) - 1
            at = at[max(inside[0] - 1, 0) : inside[-1] + 2]
        out.append(at)
    return tuple(out)


def extended(field: FieldGrid, inside: tuple[np.ndarray, ...], stride: int) -> SampledGrid:
    """Resample a field to the grid of an image, continued to the border of the field by the field's own nodes.

    Args:
        inside: nodes of the image's grid, see :func:`positions`.
        stride: outside the image, use every ``stride``-th node of the field.
    """
    at = []
    for nodes, n in zip(inside, field.vectors.shape, strict=False):
        below, above = np.arange(0.0, nodes[0] - 0.5, stride), np.arange(n - 1.0, nodes[-1] + 0.5, -stride)[::-1]
        at.append(np.concatenate([below, nodes, above]))
    return SampledGrid(field, tuple(at))


def continued(field: FieldGrid, inside: tuple[np.ndarray, ...], gap: float) -> SampledGrid:
    """Resample a field to the grid of an image as it is applied, and continue it outside to the border of the field.

    Programs such as ITK apply a saved field up to half a voxel outside of the outermost voxels' centers, with the
    values at these centers. Farther out, where any continuation will do for a proof, the field itself is sampled.

    Args:
        field: it is zero or affine on its border.
        inside: nodes of the image's grid, see :func:`positions`.
        gap: distance of the nodes outside, in nodes of the field.
    """
    at, read_at, inner = [], [], []
    for nodes, n in zip(inside, field.vectors.shape, strict=False):
        first, last = (nodes[1] - nodes[0], nodes[-1] - nodes[-2]) if len(nodes) > 1 else (1.0, 1.0)
        rim = np.array([nodes[0] - first / 2]), np.array([nodes[-1] + last / 2])
        below = _outside(float(rim[0][0]), gap)[::-1]
        above = n - 1 - _outside(n - 1 - float(rim[1][0]), gap)
        at.append(np.concatenate([below, rim[0], nodes, rim[1], above]))
        read_at.append(np.concatenate([below, nodes[:1], nodes, nodes[-1:], above]))
        inner.append(slice(len(below) + 1, len(below) + 1 + len(nodes)))
    return SampledGrid(field, tuple(at), read_at=tuple(read_at), inner=tuple(inner))


def _outside(start: float, gap: float) -> np.ndarray:
    """Return positions from ``start - gap`` down to the border of a field, 0, or beyond it, where the field is zero."""
    found = np.arange(start - gap, gap / 2, -gap)
    return np.append(found, min(0.0, start - 1.0))


def coincide(inside: tuple[np.ndarray, ...]) -> bool:
    """Whether all voxels of an image (see :func:`positions`) are nodes of the field, so that samples are copies."""
    return all(np.abs(a - np.rint(a)).max() < 1e-7 and np.abs(np.diff(a) - 1).max(initial=0) < 1e-7 for a in inside)


@dataclass(frozen=True)
class FadingGrid:
    """A field continued outside its grid as it is applied: first constant for half a voxel, then falling to zero, or to
    an affine map.

    Programs such as ITK apply a saved field up to half a voxel outside of the outermost voxels' centers, with the
    values at these centers.

    Attributes:
        field: the field that is continued.
        reach: distance over which it falls, millimeters.
        outside: what it falls to.
        rings: number of nodes on each side on which it falls.
    """

    field: FieldGrid
    reach: float
    outside: AffineMap | None = None
    rings: int = 12

    @property
    def rounding(self) -> float:
        return self.field.rounding

    @property
    def nodes(self) -> tuple[np.ndarray, ...]:
        steps = self.reach * np.arange(self.rings + 1) / self.rings
        halves = [spacing / 2 for spacing in self.field.spacing]
        return tuple(
            np.concatenate([n[0] - half - steps[::-1], n, n[-1] + half + steps])
            for n, half in zip(self.field.nodes, halves, strict=True)
        )

    def block(self, where: Block) -> np.ndarray:
        shape = self.field.vectors.shape
        added = self.rings + 1
        index = [np.clip(np.arange(w.start, w.stop) - added, 0, n - 1) for w, n in zip(where, shape, strict=False)]
        values = self.field.block(tuple(slice(i[0], i[-1] + 1) for i in index))
        values = values[np.ix_(range(len(index)), *[i - i[0] for i in index])]
        at = [nodes[w] for nodes, w in zip(self.nodes, where, strict=True)]
        rims = [(nodes[added - 1], nodes[-added]) for nodes in self.nodes]
        if self.outside is not None:
            values -= self._displaced([np.clip(a, *rim) for a, rim in zip(at, rims, strict=True)])
        for axis, (w, n) in enumerate(zip(where, shape, strict=False)):
            ring = np.arange(w.start, w.stop) - added
            out = np.maximum(np.maximum(-ring, ring - (n - 1)) - 1, 0) / self.rings
            values *= (0.5 + 0.5 * np.cos(np.pi * out)).reshape([-1 if axis == b else 1 for b in range(len(where))])
        if self.outside is not None:
            values += self._displaced(at)
        return values

    def _displaced(self, at: list[np.ndarray]) -> np.ndarray:
        """Return the displacements of ``outside`` at positions along the axes: (d, *n), along the axes."""
        assert self.outside is not None
        space = np.linalg.inv(self.field.along)
        vectors = self.outside.displacements(self.field.origin, space, at)
        return np.moveaxis(vectors @ self.field.along.T, -1, 0)

    def relative(self, where: Block) -> Relative:
        return _relative(self.block(where))

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return True


def _relative(values: np.ndarray) -> Relative:
    out = np.empty(values.shape, np.float32)
    first = values[tuple([slice(None)] + [slice(1)] * (values.ndim - 1))]
    np.subtract(values, first, out=out, casting="same_kind")
    return Relative(out, _largest(values))


def _largest(values: np.ndarray) -> float:
    return max(float(values.max()), -float(values.min()))


def covering_field(field: sitk.Image) -> sitk.Image:
    """Do the same as :meth:`FieldGrid.covering` for a field (vector image, millimeters, LPS) with a pose.

    Returns:
        Vector image, 64-bit; ``field`` itself, if it is zero on its border, or not affine.
    """
    grid = FieldGrid.of(field)
    outside = grid.border_map()
    return field if outside is None or outside.moves_nothing else grid.covering(outside).image()
