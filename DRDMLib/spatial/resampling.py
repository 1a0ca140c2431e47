"""Warp images, labels and fields at full resolution with SimpleITK, slab by slab to save memory on large CT images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from .coordinates import to_index, to_points

_SLAB_VOXELS = 2**23
# Integers up to here have their own 32-bit floating-point number.
_MOST_EXACT_32 = 2**24
# Grids are the same if they are nowhere farther apart than this, in voxels.
_SAME = 1e-3


def slabs(size: tuple[int, ...], voxels: int = _SLAB_VOXELS) -> Iterator[tuple[int, int]]:
    """Divide an image into ranges along its slowest axis.

    Args:
        size: size of the image, SimpleITK's axis order.
        voxels: approximate number of voxels of a range.

    Yields:
        (start, stop), stop excluded.
    """
    layer = int(np.prod(size[:-1]))
    thickness = max(1, voxels // max(1, layer))
    for start in range(0, size[-1], thickness):
        yield start, min(start + thickness, size[-1])


def slab_resampler(reference: sitk.Image, start: int, stop: int) -> sitk.ResampleImageFilter:
    """Make a resampler onto the layers ``start`` to ``stop`` (exclusive) of the grid of ``reference``."""
    first = [0] * (reference.GetDimension() - 1) + [start]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([*reference.GetSize()[:-1], stop - start])
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    resampler.SetOutputOrigin(reference.TransformIndexToPhysicalPoint(first))
    return resampler


def warped_slabs(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> Iterator[np.ndarray]:
    """Warp an image with linear interpolation, slab by slab; values are rounded to its pixel type.

    Outside the image its nearest voxel is used, so that tissue which moves into the field of view looks like its
    surroundings.

    Args:
        reference: gives the grid of the result.
        transform: maps points of the result to points of ``image`` (LPS, millimeters).

    Yields:
        Slabs along the slowest axis, in SimpleITK's array order.
    """
    if _changes_nothing(image, reference, transform):
        for start, stop in slabs(reference.GetSize()):
            first = [0] * (image.GetDimension() - 1) + [start]
            part = sitk.RegionOfInterest(image, [*image.GetSize()[:-1], stop - start], first)
            yield sitk.GetArrayFromImage(part)
        return
    dtype = numpy_type(image.GetPixelID())
    pixel_type = sitk.sitkFloat64 if _needs_64_bits(image, dtype) else sitk.sitkFloat32
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetUseNearestNeighborExtrapolator(True)
        resampler.SetOutputPixelType(pixel_type)
        values = sitk.GetArrayFromImage(resampler.Execute(image))
        yield np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


def _needs_64_bits(image: sitk.Image, dtype: np.dtype) -> bool:
    """Whether 32-bit floating-point numbers would change the values of an image."""
    if dtype.kind not in "iu" or dtype.itemsize != 4:
        return dtype.itemsize > 4
    statistics = sitk.MinimumMaximumImageFilter()
    statistics.Execute(image)
    return bool(max(-statistics.GetMinimum(), statistics.GetMaximum()) > _MOST_EXACT_32)


@lru_cache
def numpy_type(pixel_id: int) -> np.dtype:
    """Return the NumPy type for a scalar SimpleITK pixel type."""
    return sitk.GetArrayFromImage(sitk.Image([1, 1], pixel_id)).dtype


def warp_image(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Warp an image onto the grid of ``reference``, see :func:`warped_slabs`."""
    return _assembled(warped_slabs(image, reference, transform), reference, image)


def warp_label(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Warp a label map onto the grid of ``reference``, with nearest-neighbor interpolation.

    No new label values appear. Where space is compressed, structures that are only one or two voxels thick could fall
    between the sampled positions. Each of their voxels that is missing near its new position is therefore restored
    there.

    Args:
        transform: maps points of the result to points of ``label`` (LPS, millimeters).
    """
    # Several threads may warp the same label. Getting an array view makes SimpleITK move the voxels if a filter is
    # reading the image, which frees the memory that another thread is looking at. So each thread needs its own image.
    label = sitk.Image(label)
    if _changes_nothing(label, reference, transform):
        return _with_geometry(sitk.GetArrayFromImage(label), reference)
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


def _changes_nothing(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> bool:
    """Whether the transform is a field of zeros and the image lies on the grid of ``reference``.

    Such an image is copied, because resampling could change voxels by rounding.
    """
    field = transform.Downcast()
    if not isinstance(field, sitk.DisplacementFieldTransform) or image.GetSize() != reference.GetSize():
        return False
    vectors = field.GetDisplacementField()
    if any(layer.any() for layer in sitk.GetArrayViewFromImage(vectors)):
        return False
    points = np.concatenate([np.zeros((1, image.GetDimension())), np.diag(image.GetSize()).astype(float)])
    return bool(np.abs(to_index(to_points(points, image), reference) - points).max() < _SAME)


def _assembled(pieces: Iterator[np.ndarray], reference: sitk.Image, like: sitk.Image) -> sitk.Image:
    array = np.empty(reference.GetSize()[::-1], numpy_type(like.GetPixelID()))
    start = 0
    for piece in pieces:
        array[start : start + len(piece)] = piece
        start += len(piece)
    return _with_geometry(array, reference)


def _with_geometry(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    return image


def _neighborhood(ndim: int) -> np.ndarray:
    """Return the offsets (3^d, d) from a voxel to its neighbors and itself."""
    return np.stack(np.meshgrid(*[[-1, 0, 1]] * ndim, indexing="ij"), -1).reshape(-1, ndim)


def _thin_voxels(label: np.ndarray) -> np.ndarray:
    """Find the foreground voxels without an inner voxel of their structure next to them: indices (K, d), array order.

    An inner voxel has neighbors with the same label on all sides along the axes. Sheets, tubes and specks up to two
    voxels thick have no inner voxels, whereas the bumps of a thick structure have one nearby.
    """
    inner = label != 0
    for axis in range(label.ndim):
        lines, marks = np.moveaxis(label, axis, 0), np.moveaxis(inner, axis, 0)
        marks[1:] &= lines[1:] == lines[:-1]
        marks[:-1] &= lines[:-1] == lines[1:]
    candidates = np.argwhere((label != 0) & ~inner)
    values = label[tuple(candidates.T)]
    thin = np.ones(len(candidates), bool)
    for offset in _neighborhood(label.ndim):
        near = tuple(np.clip(candidates + offset, 0, np.asarray(label.shape) - 1).T)
        thin &= ~(inner[near] & (label[near] == values))
    return candidates[thin]


def _restore_thin(
    source: np.ndarray, label: sitk.Image, warped: np.ndarray, reference: sitk.Image, transform: sitk.Transform
) -> None:
    """Restore thin voxels of ``source`` whose label is missing within one voxel of their new position in ``warped``.

    ``warped`` is changed in place.
    """
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
    for offset in _neighborhood(warped.ndim):
        near = np.clip(targets + offset, 0, np.asarray(warped.shape) - 1)
        missing &= warped[tuple(near.T)] != values
    warped[tuple(targets[missing].T)] = values[missing]


def _mapping(transform: sitk.Transform) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function that applies a transform to points (K, d); for a displacement field it is vectorized."""
    concrete = transform.Downcast()
    if not isinstance(concrete, sitk.DisplacementFieldTransform):
        return lambda points: np.asarray([transform.TransformPoint(p) for p in points.tolist()])
    field = concrete.GetDisplacementField()
    vectors = sitk.GetArrayViewFromImage(field)
    sides = np.asarray(vectors.shape[:-1])

    def moved(points: np.ndarray) -> np.ndarray:
        index = to_index(points, field)[:, ::-1]
        # As in SimpleITK: linear between nodes, constant for half a voxel past the outermost nodes, zero beyond.
        inside = ((index >= -0.5) & (index < sides - 0.5)).all(axis=1)
        parts = [map_coordinates(vectors[..., k], index.T, order=1, mode="nearest") for k in range(points.shape[1])]
        result: np.ndarray = points + np.where(inside, parts, 0.0).T
        return result

    return moved


def _inverse(
    points: np.ndarray, transform: sitk.Transform, tolerance: float, rounds: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Find the positions that the transform maps to ``points``, by damped fixed-point iteration.

    It converges where space is stretched up to fourfold.

    Args:
        points: (K, d), LPS, millimeters.
        tolerance: largest allowed distance, millimeters.
        rounds: largest number of iterations.

    Returns:
        The positions, (K, d), and whether each was found to within the tolerance, (K,).
    """
    moved, guess = _mapping(transform), points.copy()
    found = np.zeros(len(points), bool)
    for _ in range(rounds):
        remaining = np.flatnonzero(~found)
        if len(remaining) == 0:
            break
        residual = points[remaining] - moved(guess[remaining])
        found[remaining] = np.linalg.norm(residual, axis=1) < tolerance
        guess[remaining] += 0.5 * residual
    return guess, found


def field_component(field: sitk.Image, component: int, reference: sitk.Image) -> Iterator[np.ndarray]:
    """Resample one component of a displacement field to the grid of ``reference``, slab by slab.

    Args:
        component: 0 to d-1, along L, P or S.

    Yields:
        Slabs along the slowest axis, array order, float32, millimeters.
    """
    scalar = sitk.VectorIndexSelectionCast(field, component)
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetOutputPixelType(sitk.sitkFloat32)
        yield sitk.GetArrayFromImage(resampler.Execute(scalar))


def field_on_grid(field: sitk.Image, reference: sitk.Image, start: int, stop: int) -> np.ndarray:
    """Resample a displacement field to the layers ``start`` to ``stop`` (exclusive) of the grid of ``reference``.

    Returns:
        (stop - start, ..., d), array order, float32, millimeters, LPS.
    """
    resampler = slab_resampler(reference, start, stop)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkVectorFloat32)
    return sitk.GetArrayFromImage(resampler.Execute(field))
