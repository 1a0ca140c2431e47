"""Displacement fields as the grids that ``certificate`` judges: as they are, sampled elsewhere, or continued.

Axes of a grid are in array order (slowest first); component k of a displacement is the one along axis k, and both
nodes and displacements are in millimeters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from .coordinates import direction_matrix

Block = tuple[slice, ...]

# A displacement stored with 32 bits and read back is off by less than this share of its length.
STORED = 2.0**-21


class DisplacementGrid(Protocol):
    """Displacements at the nodes of a rectilinear grid, handed out in blocks.

    Attributes:
        nodes: positions along each axis, increasing.
        rounding: how far displacements may be off, as a share of the largest in the block.
    """

    @property
    def nodes(self) -> tuple[np.ndarray, ...]: ...

    @property
    def rounding(self) -> float: ...

    def block(self, where: Block) -> np.ndarray:
        """(d, *n) float64, the displacements at the nodes in ``where``."""
        ...

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        """Whether ``changed``, a mark for each node of the stored field, concerns this block."""
        ...


@dataclass(frozen=True)
class FieldGrid:
    """A field in space, on its own grid.

    Attributes:
        vectors: (*S, d), millimeters, LPS.
        spacing: millimeters, array order.
        direction: (d, d), columns are the directions of SimpleITK's axes (the array's in reverse).
        origin: of the first node, LPS.
        source: whose memory ``vectors`` is, kept for as long.
    """

    vectors: np.ndarray
    spacing: tuple[float, ...]
    direction: np.ndarray
    origin: np.ndarray
    rounding: float = 0.0
    source: sitk.Image | None = None

    @staticmethod
    def of(field: sitk.Image, rounding: float = 0.0) -> FieldGrid:
        """A view of ``field``."""
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
        """A copy as a vector image, 64-bit, as ``SimpleITK.DisplacementFieldTransform`` takes it."""
        image = sitk.GetImageFromArray(np.asarray(self.vectors, np.float64), isVector=True)
        image.SetSpacing(self.spacing[::-1])
        image.SetDirection(self.direction.ravel().tolist())
        image.SetOrigin(self.origin.tolist())
        return image

    @property
    def along(self) -> np.ndarray:
        """(d, d): row k takes an LPS vector to its component along array axis k."""
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

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return bool(changed[where].any())

    def border_is_zero(self) -> bool:
        """Whether the field vanishes on all its outermost nodes."""
        axes = range(len(self.spacing))
        return not any(self.vectors[(slice(None),) * a + (end,)].any() for a in axes for end in (0, -1))


@dataclass(frozen=True)
class SampledGrid:
    """A field sampled on other nodes: linear between its own, as a resampled and saved field is.

    Attributes:
        field: where the samples are taken.
        at: positions along each axis in nodes of ``field``, increasing, within its range.
    """

    field: FieldGrid
    at: tuple[np.ndarray, ...]
    rounding: float = STORED

    @property
    def nodes(self) -> tuple[np.ndarray, ...]:
        return tuple(a * s for a, s in zip(self.at, self.field.spacing, strict=True))

    def _source(self, where: Block) -> Block:
        """The nodes of ``field`` that a block is made of."""
        ends = [(math.floor(a[w.start]), math.ceil(a[w.stop - 1])) for a, w in zip(self.at, where, strict=True)]
        sizes = self.field.vectors.shape
        return tuple(slice(min(a, n - 2), max(b, a + 1) + 1) for (a, b), n in zip(ends, sizes, strict=False))

    def block(self, where: Block) -> np.ndarray:
        source = self._source(where)
        values = self.field.block(source)
        for axis, (a, w, s) in enumerate(zip(self.at, where, source, strict=True)):
            position = a[w] - s.start
            before = np.minimum(position.astype(np.int64), values.shape[1 + axis] - 2)
            share = (position - before).reshape([-1 if axis == b else 1 for b in range(len(where))])
            low, values = values.take(before, axis=1 + axis), values.take(before + 1, axis=1 + axis)
            values -= low
            values *= share
            values += low
        return values

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return bool(changed[self._source(where)].any())

    def cells_in_field(self, cells: np.ndarray) -> np.ndarray:
        """Cells of the stored field that the given cells lie in, by their corners and middles: (K, d) -> (M, d)."""
        d = cells.shape[1]
        found = []
        for share in np.stack(np.meshgrid(*[[1e-6, 0.5, 1 - 1e-6]] * d, indexing="ij"), -1).reshape(-1, d):
            places = [a[c] + s * (a[c + 1] - a[c]) for a, c, s in zip(self.at, cells.T, share, strict=True)]
            found.append(np.floor(np.stack(places, axis=1)).astype(np.int64))
        return np.unique(np.concatenate(found), axis=0)


def positions(field: FieldGrid, reference: sitk.Image) -> tuple[np.ndarray, ...] | None:
    """Where the nodes of an image lie along the axes of a field, in nodes of the field, increasing.

    ``None`` if the image's axes are not parallel to the field's, or if the image reaches past the field.
    """
    turn = field.along @ direction_matrix(reference)
    offset = field.along @ (np.asarray(reference.GetOrigin()) - field.origin)
    out = []
    for a in range(reference.GetDimension()):
        axis = int(np.abs(turn[a]).argmax())
        if abs(abs(turn[a, axis]) - 1) > 1e-6 or np.abs(np.delete(turn[a], axis)).max(initial=0) > 1e-6:
            return None
        step = turn[a, axis] * reference.GetSpacing()[axis]
        at = np.sort((offset[a] + step * np.arange(reference.GetSize()[axis])) / field.spacing[a])
        if at[0] < 0 or at[-1] > field.vectors.shape[a] - 1:
            return None
        out.append(at)
    return tuple(out)


def extended(field: FieldGrid, inside: tuple[np.ndarray, ...], stride: int) -> SampledGrid:
    """The grid of an image, continued to the border of the field by every ``stride``-th of the field's own nodes."""
    at = []
    for nodes, n in zip(inside, field.vectors.shape, strict=False):
        below, above = np.arange(0.0, nodes[0] - 0.5, stride), np.arange(n - 1.0, nodes[-1] + 0.5, -stride)[::-1]
        at.append(np.concatenate([below, nodes, above]))
    return SampledGrid(field, tuple(at))


def coincide(inside: tuple[np.ndarray, ...]) -> bool:
    """Whether an image's nodes are nodes of the field, so that samples are copies."""
    return all(np.abs(a - np.rint(a)).max() < 1e-7 and np.abs(np.diff(a) - 1).max(initial=0) < 1e-7 for a in inside)


@dataclass(frozen=True)
class FadingGrid:
    """A field on its own grid, continued past it: its border's values, falling smoothly to zero.

    Attributes:
        field: what is continued.
        rings: further nodes on each side.
        reach: how far they extend, millimeters.
    """

    field: FieldGrid
    reach: float
    rings: int = 12

    @property
    def rounding(self) -> float:
        return self.field.rounding

    @property
    def nodes(self) -> tuple[np.ndarray, ...]:
        steps = self.reach * np.arange(1, self.rings + 1) / self.rings
        return tuple(np.concatenate([n[0] - steps[::-1], n, n[-1] + steps]) for n in self.field.nodes)

    def block(self, where: Block) -> np.ndarray:
        shape = self.field.vectors.shape
        index = [np.clip(np.arange(w.start, w.stop) - self.rings, 0, n - 1) for w, n in zip(where, shape, strict=False)]
        values = self.field.block(tuple(slice(i[0], i[-1] + 1) for i in index))
        values = values[np.ix_(range(len(index)), *[i - i[0] for i in index])]
        for axis, (w, n) in enumerate(zip(where, shape, strict=False)):
            at = np.arange(w.start, w.stop) - self.rings
            out = np.maximum(np.maximum(-at, at - (n - 1)), 0) / self.rings
            values *= (0.5 + 0.5 * np.cos(np.pi * out)).reshape([-1 if axis == b else 1 for b in range(len(where))])
        return values

    def touched(self, where: Block, changed: np.ndarray) -> bool:
        return True
