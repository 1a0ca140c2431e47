"""Warp images, labels and fields at full resolution with SimpleITK, slab by slab to save memory on large CT images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import SimpleITK as sitk

from .coordinates import to_index, to_points
from .field_samples import samples_of_transform
from .label_vote import warp_by_vote
from .mirror import mirrored_transform, mirrored_values
from .thin_structures import restore_thin

_SLAB_VOXELS = 2**23
# Integers up to here have their own 32-bit floating-point number.
_MOST_EXACT_32 = 2**24
# Grids are the same if they are nowhere farther apart than this, in voxels.
_SAME = 1e-3
# Bound of the rounding error of an interpolated value, as a fraction of the largest value of an image: positions of up
# to a thousand voxels have an error of less than 1e-12 voxels.
_ROUNDING = 2.0**-38


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

    Outside the image its mirror image is used, so that tissue which moves into the field of view looks like its
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
    moved = _moved_box(image, reference, transform)
    mirror = _Mirror(image, reference, transform) if dtype.kind in "iu" and moved is None else None
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetDefaultPixelValue(float("inf"))
        resampler.SetOutputPixelType(pixel_type)
        if moved is not None:
            yield _partly_resampled(image, resampler, moved, start, stop)
        elif mirror is not None:
            yield mirror.resampled(resampler, start)
        else:
            values = _mirrored_outside(image, resampler)
            yield _rounded(values, dtype) if dtype.kind in "iu" else values.astype(dtype)


class _Mirror:
    """Resamples an image of integers slab by slab; outside of the image, its mirror image is read.

    Only the voxels outside are computed anew, so that it takes a third of the time of :func:`_mirrored_outside`. The
    results are the same to the bit: where a rounding error could change an integer, that function is used.

    Args:
        image: the image.
        reference, transform: see :func:`warped_slabs`.
    """

    def __init__(self, image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> None:
        # Several threads may warp the same image, see warp_label.
        self._image, self._reference = sitk.Image(image), reference
        self._dtype = numpy_type(image.GetPixelID())
        self._samples = samples_of_transform(transform, reference)
        self._voxels: np.ndarray | None = None
        self._tolerance = 0.0

    def resampled(self, resampler: sitk.ResampleImageFilter, start: int) -> np.ndarray:
        """Resample a slab.

        Args:
            resampler: for the slab; its default value is infinite.
            start: first layer of the slab.
        """
        if self._samples is None:
            return _rounded(_mirrored_outside(self._image, resampler), self._dtype)
        values = sitk.GetArrayFromImage(resampler.Execute(self._image))
        outside = np.isinf(values)
        if outside.any():
            if self._voxels is None:
                self._voxels = sitk.GetArrayViewFromImage(self._image)
                self._tolerance = _ROUNDING * max(abs(float(self._voxels.min())), abs(float(self._voxels.max())))
            inner = mirrored_values(self._voxels, self._image, self._samples, self._reference, start, outside)
            low, high = (np.rint((inner + sign * self._tolerance).astype(values.dtype)) for sign in (-1, 1))
            if (low != high).any():
                return _rounded(_mirrored_outside(self._image, resampler), self._dtype)
            values[outside] = low
        return _rounded(values, self._dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    result: np.ndarray = np.rint(values, out=values).astype(dtype)
    return result


def _mirrored_outside(image: sitk.Image, resampler: sitk.ResampleImageFilter) -> np.ndarray:
    """Resample an image to floating-point numbers; outside of the image, its mirror image is read.

    Args:
        resampler: its default value is infinite, which marks voxels that lie outside.
    """
    values = sitk.GetArrayFromImage(resampler.Execute(image))
    outside = np.isinf(values)
    if outside.any():
        resampler.SetTransform(mirrored_transform(resampler.GetTransform(), image, resampler, outside))
        resampler.SetUseNearestNeighborExtrapolator(True)
        values[outside] = sitk.GetArrayFromImage(resampler.Execute(image))[outside]
    return values


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
    """Warp a label map onto the grid of ``reference``, by partial volumes; no new label values appear.

    Near borders, the label with the largest share of the voxels around wins, see :mod:`DRDMLib.spatial.label_vote`.
    Where space is compressed, structures that are only one or two voxels thick could fall between the sampled
    positions, or come apart. :mod:`DRDMLib.spatial.thin_structures` keeps them in one piece.

    Args:
        transform: maps points of the result to points of ``label`` (LPS, millimeters).
    """
    # Several threads may warp the same label. Getting an array view makes SimpleITK move the voxels if a filter is
    # reading the image, which frees the memory that another thread is looking at. So each thread needs its own image.
    label = sitk.Image(label)
    if _changes_nothing(label, reference, transform):
        return _with_geometry(sitk.GetArrayFromImage(label), reference)
    source = sitk.GetArrayViewFromImage(label)
    moved = _moved_box(label, reference, transform)
    if moved is None:
        warped = warp_by_vote(source, label, reference, transform)
    else:
        # What lies outside the box is copied; it could change at the borders of labels otherwise.
        warped = sitk.GetArrayFromImage(label)
        if (moved[0] < moved[1]).all():
            part = sitk.RegionOfInterest(reference, (moved[1] - moved[0]).tolist(), moved[0].tolist())
            where = tuple(slice(a, b) for a, b in zip(moved[0][::-1].tolist(), moved[1][::-1].tolist(), strict=True))
            warped[where] = warp_by_vote(source, label, part, transform)
    restore_thin(source, label, warped, reference, transform)
    return _with_geometry(warped, reference)


def _moved_box(
    image: sitk.Image, reference: sitk.Image, transform: sitk.Transform
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the voxels that a displacement field can move: the first one, and the one after the last, (d,) each.

    Returns:
        ``None`` if all can move, or if the image does not lie on the grid of ``reference``. Voxels outside the box are
        copied, because resampling could change them by rounding.
    """
    field = transform.Downcast()
    if not isinstance(field, sitk.DisplacementFieldTransform) or image.GetSize() != reference.GetSize():
        return None
    points = np.concatenate([np.zeros((1, image.GetDimension())), np.diag(image.GetSize()).astype(float)])
    if np.abs(to_index(to_points(points, image), reference) - points).max() >= _SAME:
        return None
    grid = field.GetDisplacementField()
    ends = [(0, n - 1) for n in grid.GetSize()]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, len(ends)).astype(float)
    index = to_index(to_points(corners, grid), reference)
    size = np.asarray(reference.GetSize())
    start = np.clip(np.ceil(index.min(axis=0) - _SAME).astype(int), 0, size)
    stop = np.clip(np.floor(index.max(axis=0) + _SAME).astype(int) + 1, start, size)
    return None if (start == 0).all() and (stop == size).all() else (start, stop)


def _partly_resampled(
    image: sitk.Image,
    resampler: sitk.ResampleImageFilter,
    moved: tuple[np.ndarray, np.ndarray],
    start: int,
    stop: int,
) -> np.ndarray:
    """Resample the voxels of a slab that lie in a box, and copy the others; see :func:`_moved_box`.

    Args:
        resampler: for the layers ``start`` to ``stop`` (exclusive).
    """
    first = [0] * (image.GetDimension() - 1) + [start]
    values = sitk.GetArrayFromImage(sitk.RegionOfInterest(image, [*image.GetSize()[:-1], stop - start], first))
    low, high = moved[0].copy(), moved[1].copy()
    low[-1], high[-1] = max(low[-1], start), min(high[-1], stop)
    if (low >= high).any():
        return values
    resampler.SetSize((high - low).tolist())
    resampler.SetOutputOrigin(image.TransformIndexToPhysicalPoint(low.tolist()))
    inner = _mirrored_outside(image, resampler)
    low[-1], high[-1] = low[-1] - start, high[-1] - start
    where = tuple(slice(a, b) for a, b in zip(low[::-1].tolist(), high[::-1].tolist(), strict=True))
    values[where] = np.rint(inner) if values.dtype.kind in "iu" else inner
    return values


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
