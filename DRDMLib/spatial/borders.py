"""The faces of a scan: where tissue touches them, nothing moves in from outside, because the scan does not show it.

A face is closed when tissue touches it (a neck, the ends of a slab, all sides of a crop). Displacements are then zero
along its normal, so that the new image reads nothing from beyond the face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..runtime.remembered import Remembered
from .coordinates import direction_matrix, index_to_physical
from .field_grid import Block, FieldGrid
from .field_samples import FieldSamples, box_sides, boxes, over_boxes
from .model_grid import ModelGrid
from .resampling import field_on_grid, slabs

# A face is closed where more than this share of its voxels is tissue, or more than this share of the intensity range
# above the darkest.
_SHARE, _TISSUE = 0.005, 0.1
# Number of voxels that are looked at for the range of intensities.
_SAMPLE = 2**20
# Points at most this far beyond a face are on it, millimeters.
_ON_FACE = 1e-3
# Rounding of positions, voxels.
_ROUNDING = 1e-3


# A run makes several versions of a scan.
_RANGES = Remembered[np.ndarray](4)


@dataclass(frozen=True)
class Face:
    """One closed face of a scan.

    Attributes:
        point: a point of the face, LPS, millimeters; the face is half a voxel outside of the last voxels' centers.
        normal: direction at right angles to it, unit length, LPS.
    """

    point: tuple[float, ...]
    normal: tuple[float, ...]


def closed_faces(image: sitk.Image) -> tuple[Face, ...]:
    """Find the faces of a scan that tissue touches; the limit of tissue is remembered for the last few images.

    Tissue is what is brighter than a tenth of the range between the 0.5th and the 99.5th percentile.

    Args:
        image: 2D or 3D, single-channel. Axes with a single voxel have no faces.
    """
    # By filters alone: several threads may share the image, and access to its voxels can move them in memory.
    size = image.GetSize()
    step = max(1, int((np.prod(size) / _SAMPLE) ** (1 / len(size))))
    sample = sitk.GetArrayFromImage(sitk.Shrink(image, [min(step, n) for n in size]))
    key = (hashlib.blake2b(sample.tobytes()).digest(), sample.shape, sample.dtype.str, step)
    low, high = _RANGES.of(key, lambda: _range_of(sample))
    if not high > low:
        low, high = sitk.MinimumMaximum(image)
    threshold = low + _TISSUE * (high - low)
    direction = direction_matrix(image)
    faces = []
    for axis, count in enumerate(size):
        if count < 2:
            continue
        for layer_number, position in ((0, -0.5), (count - 1, count - 0.5)):
            shape, start = list(size), [0] * len(size)
            shape[axis], start[axis] = 1, layer_number
            layer = sitk.GetArrayFromImage(sitk.RegionOfInterest(image, shape, start))
            if np.count_nonzero(layer > threshold) > _SHARE * layer.size:
                index = [(n - 1) / 2 for n in size]
                index[axis] = position
                point = image.TransformContinuousIndexToPhysicalPoint(index)
                faces.append(Face(point, tuple(direction[:, axis].tolist())))
    return tuple(faces)


def _range_of(sample: np.ndarray) -> np.ndarray:
    """Return the 0.5th and the 99.5th percentile."""
    return np.percentile(sample.astype(np.float32), [0.5, 99.5])


def planes_on_grid(faces: Sequence[Face], grid: ModelGrid) -> tuple[tuple[float, ...], ...]:
    """Find the positions of closed faces on a model grid.

    Returns:
        For each spatial axis of the grid's tensors, the positions of the faces at right angles to it, in voxels.
    """
    spatial = 2 if grid.stack else grid.ndim
    order = range(spatial) if grid.axes == "ijk" else range(spatial - 1, -1, -1)
    at: list[tuple[float, ...]] = []
    for axis in order:
        inside = [face for face in faces if abs(grid.direction[:, axis] @ np.asarray(face.normal)) > 0.5]
        offsets = [grid.direction[:, axis] @ (np.asarray(face.point) - np.asarray(grid.origin)) for face in inside]
        at.append(tuple(float(offset / grid.spacing[axis]) for offset in offsets))
    return tuple(at)


def invented_fraction(field: sitk.Image, reference: sitk.Image, faces: Sequence[Face]) -> float:
    """Compute the fraction of voxels that are read from beyond a closed face, where the scan shows nothing.

    Args:
        field: displacement field, vector image, millimeters, LPS.
        reference: the scan.
    """
    middle = np.asarray(reference.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in reference.GetSize()]))
    origin, steps = np.asarray(reference.GetOrigin()), index_to_physical(reference)
    limits = []
    for face in faces:
        point, normal = np.asarray(face.point), np.asarray(face.normal)
        outward = normal * np.sign(normal @ (point - middle))
        axis = int(np.abs(outward @ steps).argmax())
        depths = (origin - point) @ outward + np.arange(reference.GetSize()[axis]) * (outward @ steps[:, axis])
        limits.append(_Limit(len(steps) - 1 - axis, outward, depths, most=_ON_FACE))
    beyond = sum(int(np.count_nonzero(~inside)) for _, inside in _within_limits(field, reference, limits))
    return beyond / int(reference.GetNumberOfPixels())


def inside_mask(field: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Mark the voxels whose value is read from inside the scan, up to half a voxel around its outermost centers.

    Args:
        field: displacement field, vector image, millimeters, LPS.
        reference: the scan.

    Returns:
        8-bit image on the grid of the scan: 1 inside, 0 where the scan shows nothing.
    """
    mask = np.ones(reference.GetSize()[::-1], np.uint8)
    for where, inside in _within_limits(field, reference, _faces_in_voxels(reference)):
        mask[where] = inside
    image = sitk.GetImageFromArray(mask)
    image.CopyInformation(reference)
    return image


def outside_fraction(field: sitk.Image, reference: sitk.Image) -> float:
    """Compute the fraction of voxels that are read from outside the scan, be it air or tissue.

    Arguments as in :func:`inside_mask`.
    """
    parts = _within_limits(field, reference, _faces_in_voxels(reference))
    outside = sum(int(np.count_nonzero(~inside)) for _, inside in parts)
    return float(outside / int(reference.GetNumberOfPixels()))


@dataclass(frozen=True)
class _Limit:
    """What a voxel must not exceed to be read from inside: ``start[index along axis] + displacement @ row``.

    Attributes:
        axis: array axis of the image.
        row: (d,).
        start: one number for each layer along the axis.
        least, most: limits.
    """

    axis: int
    row: np.ndarray
    start: np.ndarray
    least: float = -np.inf
    most: float = np.inf

    def of(self, vectors: np.ndarray, where: Block) -> np.ndarray:
        """Whether the voxels of a box keep the limits, by their displacements (d, *n): bool, (*n)."""
        moved = sum(self.row[k] * vectors[k] for k in np.flatnonzero(self.row))
        at = moved + self.start[where[self.axis]].reshape(self._shape(len(where)))
        result: np.ndarray = (at >= self.least) & (at <= self.most)
        return result

    def surely(self, samples: FieldSamples) -> np.ndarray:
        """Find the boxes of an image in which all voxels keep the limits, by the nodes around them."""
        moved = sum(float(self.row[k]) * samples.nodes[k].astype(np.float64) for k in np.flatnonzero(self.row))
        cells = [samples.cells(axis) for axis in range(len(samples.at))]
        sides = box_sides(samples.shape)
        # Single precision rounds by less.
        rounding = 2.0**-20 * (np.abs(moved).max() + np.abs(self.start).max())
        low, high = (
            over_boxes(function, moved, cells, 1).reshape(tuple(map(len, sides)))
            + np.reshape([function.reduce(self.start[s]) for s in sides[self.axis]], self._shape(len(sides)))
            for function in (np.minimum, np.maximum)
        )
        sure: np.ndarray = (low > self.least + rounding) & (high < self.most - rounding)
        return sure.reshape(-1)

    def _shape(self, d: int) -> list[int]:
        return [-1 if axis == self.axis else 1 for axis in range(d)]


def _faces_in_voxels(reference: sitk.Image) -> list[_Limit]:
    """Make the limits of positions in the scan, up to half a voxel around its outermost centers."""
    to_voxels = np.linalg.inv(index_to_physical(reference)).astype(np.float32)
    d = len(to_voxels)
    return [
        _Limit(d - 1 - axis, to_voxels[axis], np.arange(count, dtype=float), -0.5 - _ROUNDING, count - 0.5 + _ROUNDING)
        for axis, count in enumerate(reference.GetSize())
    ]


def _within_limits(
    field: sitk.Image, reference: sitk.Image, limits: Sequence[_Limit]
) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield boxes of voxels, and which of their voxels keep all limits; in the boxes left out, all do."""
    samples = FieldSamples.of(field, reference) if limits else None
    if samples is None:
        for start, stop in slabs(reference.GetSize(), 2**21) if limits else ():
            where = (slice(start, stop), *[slice(0, n) for n in reference.GetSize()[-2::-1]])
            vectors = np.moveaxis(field_on_grid(field, reference, start, stop), -1, 0)
            yield where, np.logical_and.reduce([limit.of(vectors, where) for limit in limits])
        return
    sure = np.array([limit.surely(samples) for limit in limits])
    for number, where in enumerate(boxes(samples.shape)):
        unsure = [limit for limit, decided in zip(limits, sure[:, number], strict=True) if not decided]
        if unsure:
            vectors = samples.box(where)
            yield where, np.logical_and.reduce([limit.of(vectors, where) for limit in unsure])


def hold_faces(field: FieldGrid, faces: Sequence[Face], where: Block | None = None) -> None:
    """Make the normal displacement zero at the nodes on both sides of each face, in place.

    Args:
        field: its axes are parallel to those of the scan.
        where: change only this block of nodes.
    """
    d = len(field.spacing)
    for face in faces:
        normal = np.asarray(face.normal)
        axis = int(np.abs(field.along @ normal).argmax())
        position = float((field.along @ (np.asarray(face.point) - field.origin))[axis]) / field.spacing[axis]
        nodes = {int(np.floor(position + 1e-6)), int(np.ceil(position - 1e-6))}
        block = where if where is not None else tuple(slice(0, n) for n in field.vectors.shape[:-1])
        for node in nodes:
            if block[axis].start <= node < block[axis].stop:
                layer = field.vectors[tuple(node if a == axis else block[a] for a in range(d))]
                layer -= (layer @ normal)[..., None] * normal
