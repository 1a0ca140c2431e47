"""The faces of a scan: where tissue touches them, nothing moves in from outside, because the scan does not show it.

A face is closed when tissue touches it (a neck, the ends of a slab, all sides of a crop). Displacements are then zero
along its normal, so that the new image reads nothing from beyond the face.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .coordinates import direction_matrix, index_to_physical
from .field_grid import Block, FieldGrid
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
    """Find the faces of a scan that tissue touches.

    Tissue is what is brighter than a tenth of the range between the 0.5th and the 99.5th percentile.

    Args:
        image: 2D or 3D, single-channel. Axes with a single voxel have no faces.
    """
    # By filters alone: several threads may share the image, and access to its voxels can move them in memory.
    size = image.GetSize()
    step = max(1, int((np.prod(size) / _SAMPLE) ** (1 / len(size))))
    sample = sitk.GetArrayFromImage(sitk.Shrink(image, [min(step, n) for n in size]))
    low, high = np.percentile(sample.astype(np.float32), [0.5, 99.5])
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
    count = 0
    middle = np.asarray(reference.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in reference.GetSize()]))
    origin, steps = np.asarray(reference.GetOrigin()), index_to_physical(reference)
    for start, stop in slabs(reference.GetSize(), 2**21) if faces else ():
        vectors = field_on_grid(field, reference, start, stop)
        beyond = np.zeros(vectors.shape[:-1], bool)
        for face in faces:
            point, normal = np.asarray(face.point), np.asarray(face.normal)
            outward = normal * np.sign(normal @ (point - middle))
            axis = int(np.abs(outward @ steps).argmax())
            index = np.arange(stop - start) + start if axis == len(steps) - 1 else np.arange(reference.GetSize()[axis])
            depths = (origin - point) @ outward + index * (outward @ steps[:, axis])
            shape = [-1 if a == len(steps) - 1 - axis else 1 for a in range(len(steps))]
            beyond |= depths.reshape(shape) + vectors @ outward > _ON_FACE
        count += int(np.count_nonzero(beyond))
    return count / int(reference.GetNumberOfPixels())


def inside_mask(field: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Mark the voxels whose value is read from inside the scan, up to half a voxel around its outermost centers.

    Args:
        field: displacement field, vector image, millimeters, LPS.
        reference: the scan.

    Returns:
        8-bit image on the grid of the scan: 1 inside, 0 where the scan shows nothing.
    """
    size = reference.GetSize()
    mask = np.empty(size[::-1], np.uint8)
    for start, stop, inside in _inside(field, reference):
        mask[start:stop] = inside
    image = sitk.GetImageFromArray(mask)
    image.CopyInformation(reference)
    return image


def outside_fraction(field: sitk.Image, reference: sitk.Image) -> float:
    """Compute the fraction of voxels that are read from outside the scan, be it air or tissue.

    Arguments as in :func:`inside_mask`.
    """
    outside = sum(inside.size - np.count_nonzero(inside) for _, _, inside in _inside(field, reference))
    return float(outside / int(reference.GetNumberOfPixels()))


def _inside(field: sitk.Image, reference: sitk.Image) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield start, end and mask of each slab."""
    size, to_voxels = reference.GetSize(), np.linalg.inv(index_to_physical(reference)).astype(np.float32)
    d = len(size)
    for start, stop in slabs(size, 2**21):
        vectors = field_on_grid(field, reference, start, stop)
        inside = np.ones(vectors.shape[:-1], bool)
        for axis, count in enumerate(size):
            index = np.arange(start, stop) if axis == d - 1 else np.arange(count)
            at = vectors @ to_voxels[axis] + index.reshape([-1 if a == d - 1 - axis else 1 for a in range(d)])
            inside &= (at >= -0.5 - _ROUNDING) & (at <= count - 0.5 + _ROUNDING)
        yield start, stop, inside


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
