"""The final warp of images and labels by SimpleITK, slab by slab, so that a large CT stays small in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from .coordinates import to_index, to_points

_SLAB_VOXELS = 2**23


def slabs(size: tuple[int, ...], voxels: int = _SLAB_VOXELS) -> Iterator[tuple[int, int]]:
    """Ranges along the slowest axis that hold about ``voxels`` voxels each."""
    layer = int(np.prod(size[:-1]))
    thickness = max(1, voxels // max(1, layer))
    for start in range(0, size[-1], thickness):
        yield start, min(start + thickness, size[-1])


def slab_resampler(reference: sitk.Image, start: int, stop: int) -> sitk.ResampleImageFilter:
    """A resampler onto layers ``start`` to ``stop`` (exclusive) of the grid of ``reference``."""
    first = [0] * (reference.GetDimension() - 1) + [start]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([*reference.GetSize()[:-1], stop - start])
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    resampler.SetOutputOrigin(reference.TransformIndexToPhysicalPoint(first))
    return resampler


def warped_slabs(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> Iterator[np.ndarray]:
    """``image`` read where ``transform`` points from each voxel of ``reference``, linear, rounded to its pixel type.

    Outside the image its nearest voxel is read: what enters the field of view looks like its surroundings.
    """
    dtype = numpy_type(image.GetPixelID())
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetUseNearestNeighborExtrapolator(True)
        resampler.SetOutputPixelType(sitk.sitkFloat64 if dtype.itemsize > 4 else sitk.sitkFloat32)
        values = sitk.GetArrayFromImage(resampler.Execute(image))
        yield np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


@lru_cache
def numpy_type(pixel_id: int) -> np.dtype:
    """What NumPy calls a SimpleITK pixel type of scalars."""
    return sitk.GetArrayFromImage(sitk.Image([1, 1], pixel_id)).dtype


def warp_image(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """:func:`warped_slabs` put together, on the grid of ``reference``."""
    return _assembled(warped_slabs(image, reference, transform), reference, image)


def warp_label(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """A label map read where ``transform`` points from each voxel of ``reference`` (nearest voxel).

    No value appears that was not there. Structures one or two voxels thick would fall between the samples where space
    is compressed: each of their voxels that left no trace nearby is put where it belongs.
    """
    # Several threads may warp one label. To look at an image's voxels, SimpleITK first moves them if a filter is
    # reading that image, and what another thread was looking at is freed: each must have an image of its own.
    label = sitk.Image(label)
    parts = []
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        resampler.SetUseNearestNeighborExtrapolator(True)
        parts.append(sitk.GetArrayFromImage(resampler.Execute(label)))
    warped = np.concatenate(parts)
    _restore_thin(sitk.GetArrayViewFromImage(label), label, warped, reference, transform)
    return _with_geometry(warped, reference)


def _assembled(pieces: Iterator[np.ndarray], reference: sitk.Image, like: sitk.Image) -> sitk.Image:
    whole = np.empty(reference.GetSize()[::-1], numpy_type(like.GetPixelID()))
    at = 0
    for piece in pieces:
        whole[at : at + len(piece)] = piece
        at += len(piece)
    return _with_geometry(whole, reference)


def _with_geometry(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    return image


def _around(ndim: int) -> np.ndarray:
    """Offsets (3^d, d) of a voxel's neighborhood, itself included."""
    return np.stack(np.meshgrid(*[[-1, 0, 1]] * ndim, indexing="ij"), -1).reshape(-1, ndim)


def _thin_voxels(label: np.ndarray) -> np.ndarray:
    """Indices (K, d), array order, of foreground voxels with no inner voxel of their structure next to them.

    An inner voxel has its own value on all sides along the axes: sheets, tubes and specks up to two voxels thick have
    none, and the bumps of a thick structure have one nearby.
    """
    inner = label != 0
    for axis in range(label.ndim):
        lines, marks = np.moveaxis(label, axis, 0), np.moveaxis(inner, axis, 0)
        marks[1:] &= lines[1:] == lines[:-1]
        marks[:-1] &= lines[:-1] == lines[1:]
    candidates = np.argwhere((label != 0) & ~inner)
    values = label[tuple(candidates.T)]
    thin = np.ones(len(candidates), bool)
    for offset in _around(label.ndim):
        near = tuple(np.clip(candidates + offset, 0, np.asarray(label.shape) - 1).T)
        thin &= ~(inner[near] & (label[near] == values))
    return candidates[thin]


def _restore_thin(
    source: np.ndarray, label: sitk.Image, warped: np.ndarray, reference: sitk.Image, transform: sitk.Transform
) -> None:
    """Put thin voxels of ``source`` that left no trace within one voxel into ``warped``, in place."""
    voxels = _thin_voxels(source)
    if len(voxels) == 0:
        return
    points = to_points(voxels[:, ::-1], label)
    origins, found = _inverse(points, transform, 0.5 * min(label.GetSpacing()))
    targets = np.rint(to_index(origins, reference)).astype(np.int64)[:, ::-1]
    inside = found & ((targets >= 0) & (targets < np.asarray(warped.shape))).all(axis=1)
    values = source[tuple(voxels[inside].T)]
    targets = targets[inside]
    missing = np.ones(len(targets), bool)
    for offset in _around(warped.ndim):
        near = np.clip(targets + offset, 0, np.asarray(warped.shape) - 1)
        missing &= warped[tuple(near.T)] != values
    warped[tuple(targets[missing].T)] = values[missing]


def _mapping(transform: sitk.Transform) -> Callable[[np.ndarray], np.ndarray]:
    """What takes points (K, d) where the transform takes them: all at once for a displacement field."""
    plain = transform.Downcast()
    if not isinstance(plain, sitk.DisplacementFieldTransform):
        return lambda points: np.asarray([transform.TransformPoint(p) for p in points.tolist()])
    field = plain.GetDisplacementField()
    vectors = sitk.GetArrayViewFromImage(field)
    sides = np.asarray(vectors.shape[:-1])

    def moved(points: np.ndarray) -> np.ndarray:
        places = to_index(points, field)[:, ::-1]
        # As SimpleITK: linear between nodes, the outermost node's value half a node further, nothing beyond.
        inside = ((places >= -0.5) & (places < sides - 0.5)).all(axis=1)
        parts = [map_coordinates(vectors[..., k], places.T, order=1, mode="nearest") for k in range(points.shape[1])]
        result: np.ndarray = points + np.where(inside, parts, 0.0).T
        return result

    return moved


def _inverse(
    points: np.ndarray, transform: sitk.Transform, tolerance: float, rounds: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Where the transform must be asked to arrive at ``points``, and whether it was found to ``tolerance`` millimeters.

    Damped fixed-point iteration: it converges where space is stretched up to fourfold.
    """
    moved, guess = _mapping(transform), points.copy()
    found = np.zeros(len(points), bool)
    for _ in range(rounds):
        left = np.flatnonzero(~found)
        if len(left) == 0:
            break
        missed = points[left] - moved(guess[left])
        found[left] = np.linalg.norm(missed, axis=1) < tolerance
        guess[left] += 0.5 * missed
    return guess, found


def field_component(field: sitk.Image, component: int, reference: sitk.Image) -> Iterator[np.ndarray]:
    """One component of a displacement field, millimeters, on the grid of ``reference``, slab by slab, 32-bit."""
    scalar = sitk.VectorIndexSelectionCast(field, component)
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetOutputPixelType(sitk.sitkFloat32)
        yield sitk.GetArrayFromImage(resampler.Execute(scalar))


def field_on_grid(field: sitk.Image, reference: sitk.Image, start: int, stop: int) -> np.ndarray:
    """Layers ``start`` to ``stop`` of a displacement field on the grid of ``reference``: (..., d), millimeters."""
    resampler = slab_resampler(reference, start, stop)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkVectorFloat32)
    return sitk.GetArrayFromImage(resampler.Execute(field))
