"""Sample a displacement field on the grid of an image whose axes are parallel to its own, box by box.

Linear interpolation is then separate for each axis, which takes a fraction of the time of a general resampler. The
values are those of :func:`DRDMLib.spatial.resampling.field_on_grid`: interpolated in double precision, stored in
single precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk

from .coordinates import direction_matrix
from .field_grid import Block, FieldGrid

# Largest error of a position that is allowed when axes count as parallel, in nodes of the field.
_PARALLEL = 1e-6
# Transforms are only sampled this way if there are at most as many nodes around the image as it has voxels, and only
# this many or this fraction of the voxels; the image must end within a field of more nodes than this fraction.
_LEAST_RATIO, _FEW_NODES = 4, 2**21
# Voxels of a box along each axis of a volume, the slowest first; small enough for the processor's cache.
_SIDES = (16, 16, 64)


@dataclass(frozen=True)
class FieldSamples:
    """Samples of a field on the grid of an image, read in boxes.

    Axes are those of the image's array (slowest first).

    Attributes:
        nodes: (d, *S), millimeters: the nodes of the field around the image, along the axes of the image; component k
            is along LPS axis k. A view of the field's memory.
        at: positions of the voxels along each axis, in nodes; not decreasing.
        spacing: distance of the nodes along each axis, millimeters.
        source: the field, which owns the memory of ``nodes``.
    """

    nodes: np.ndarray
    at: tuple[np.ndarray, ...]
    spacing: tuple[float, ...]
    source: sitk.Image

    @staticmethod
    def of(field: sitk.Image, reference: sitk.Image, *, padded: bool = True) -> FieldSamples | None:
        """Prepare to sample a field (vector image, millimeters, LPS) on the grid of ``reference``.

        Args:
            padded: whether a field may be copied to make it larger, because the image extends past its nodes.

        Returns:
            ``None`` if their axes are not parallel, or if the image extends past a field that is not zero on its
            border, or past any with ``padded=False``: use :func:`DRDMLib.spatial.resampling.field_on_grid` then.
        """
        d = field.GetDimension()
        grid = FieldGrid.of(field)
        size = np.asarray(reference.GetSize())
        to_nodes = np.linalg.inv(direction_matrix(field)) / np.reshape(field.GetSpacing(), (d, 1))
        steps = to_nodes @ (direction_matrix(reference) * np.asarray(reference.GetSpacing()))
        first = to_nodes @ (np.asarray(reference.GetOrigin()) - np.asarray(field.GetOrigin()))
        axes = np.abs(steps).argmax(axis=0)
        others = np.abs(steps) * size
        others[axes, np.arange(d)] = 0
        if len(set(axes.tolist())) < d or others.max() > _PARALLEL:
            return None
        # Array axis k is SimpleITK's axis d-1-k.
        nodes = np.moveaxis(grid.vectors, -1, 0).transpose(0, *[d - int(axes[i]) for i in reversed(range(d))])
        at, spacing = [], []
        for k, i in enumerate(reversed(range(d))):
            step, count = steps[axes[i], i], nodes.shape[1 + k]
            position = first[axes[i]] + step * np.arange(size[i])
            if step < 0:
                nodes, position = np.flip(nodes, 1 + k), count - 1 - position
            if (position[0] < -0.499 or position[-1] > count - 0.501) and not grid.border_is_zero():
                return None
            if position[0] < 0 or position[-1] > count - 1 or count < 2:
                if not padded:
                    return None
                # Outside, ITK reads the outermost value for half a node, and then zero.
                nodes = np.pad(nodes, [(1, 1) if a == 1 + k else (0, 0) for a in range(1 + d)], mode="edge")
                position, count = np.clip(position + 1, 0, count + 1), count + 2
            # Only the nodes around the image, and one more on each side.
            start, stop = max(int(position[0]) - 1, 0), min(int(position[-1]) + 4, count)
            start = min(start, stop - 2)
            nodes, position = nodes[(slice(None),) * (1 + k) + (slice(start, stop),)], position - start
            at.append(position)
            spacing.append(float(field.GetSpacing()[axes[i]]))
        return FieldSamples(nodes, tuple(at), tuple(spacing), field)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels of the image along each axis."""
        return tuple(map(len, self.at))

    def cells(self, axis: int) -> np.ndarray:
        """Find the cell between nodes in which each voxel lies, along one axis: (n,)."""
        result: np.ndarray = np.minimum(self.at[axis].astype(np.int64), self.nodes.shape[1 + axis] - 2)
        return result

    def box(self, where: Block, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Sample the field in a box of voxels: (d, *n), by default float32, millimeters, LPS."""
        befores, fractions, source = [], [], []
        for axis, part in enumerate(where):
            before = self.cells(axis)[part]
            fractions.append(self.at[axis][part] - before)
            befores.append(before - before[0])
            source.append(slice(int(before[0]), int(before[-1]) + 2))
        block = (slice(None), *source)
        values = np.ascontiguousarray(self.nodes[block], np.float64)
        for axis in range(len(where) - 1, 0, -1):
            low, high = values.take(befores[axis], axis=1 + axis), values.take(befores[axis] + 1, axis=1 + axis)
            high -= low
            high *= fractions[axis].reshape([-1 if axis == a else 1 for a in range(len(where))])
            high += low
            values = high
        out = np.empty((len(values), len(fractions[0]), *values.shape[2:]), dtype)
        change = np.diff(values, axis=1)
        layer = np.empty_like(values[:, 0])
        for number, (before, fraction) in enumerate(zip(befores[0].tolist(), fractions[0].tolist(), strict=True)):
            np.multiply(change[:, before], fraction, out=layer)
            np.add(layer, values[:, before], out=out[:, number], casting="same_kind")
        return out


def samples_of_transform(transform: sitk.Transform, reference: sitk.Image) -> FieldSamples | None:
    """Prepare to sample the field of a transform.

    Returns:
        ``None`` also if it is not a displacement field, or has too many nodes.
    """
    concrete = transform.Downcast()
    if not isinstance(concrete, sitk.DisplacementFieldTransform):
        return None
    field, voxels = concrete.GetDisplacementField(), reference.GetNumberOfPixels()
    samples = FieldSamples.of(field, reference, padded=field.GetNumberOfPixels() <= voxels / _LEAST_RATIO)
    most = max(voxels / _LEAST_RATIO, min(voxels, _FEW_NODES))
    return None if samples is None or math.prod(samples.nodes.shape[1:]) > most else samples


def box_sides(shape: tuple[int, ...], sides: tuple[int, ...] = _SIDES) -> list[list[slice]]:
    """Divide each axis of an image, so that boxes of voxels fit into the processor's cache.

    Args:
        sides: most voxels of a box along each axis of a volume; an image of fewer axes has the last ones.
    """
    sides = sides[-len(shape) :]
    return [[slice(a, min(a + s, n)) for a in range(0, n, s)] for n, s in zip(shape, sides, strict=True)]


def boxes(shape: tuple[int, ...], sides: tuple[int, ...] = _SIDES) -> Iterator[Block]:
    """Divide an image into the boxes of :func:`box_sides`."""
    yield from product(*box_sides(shape, sides))


def over_boxes(function: np.ufunc, values: np.ndarray, cells: Sequence[np.ndarray], more: int = 0) -> np.ndarray:
    """Reduce an array with one entry for each cell, or node, to the boxes of an image.

    Args:
        cells: the cell of each voxel along each axis, see :meth:`FieldSamples.cells`.
        more: also use this number of entries after the last cell; 1 for an array of nodes.

    Returns:
        One number for each box, in the order of :func:`boxes`.
    """
    for axis, (of_voxels, sides) in enumerate(zip(cells, box_sides(tuple(map(len, cells))), strict=True)):
        ranges = [(int(of_voxels[s.start]), int(of_voxels[s.stop - 1]) + 1 + more) for s in sides]
        parts = [values[(slice(None),) * axis + (slice(a, b),)] for a, b in ranges]
        values = np.stack([function.reduce(part, axis=axis) for part in parts], axis=axis)
    return values.reshape(-1)
