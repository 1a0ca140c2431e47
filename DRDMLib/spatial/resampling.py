"""Warp images, labels and fields at full resolution, slab by slab to save memory on large CT images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import SimpleITK as sitk

from .coordinates import to_index, to_points
from .field_grid import Block
from .field_samples import samples_of_transform
from .label_vote import LabelVote, warp_by_vote
from .linear_warp import LinearWarp, in_boxes
from .mirror import mirrored_transform
from .thin_structures import restore_thin

_SLAB_VOXELS = 2**23
# Integers up to here have their own 32-bit floating-point number.
_MOST_EXACT_32 = 2**24
# Grids are the same if they are nowhere farther apart than this, in voxels.
_SAME = 1e-3
_PIXEL_TYPES = {np.dtype(np.float32): sitk.sitkFloat32, np.dtype(np.float64): sitk.sitkFloat64}


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
    return _block_resampler(reference, _layers(reference, start, stop))


def _layers(reference: sitk.Image, start: int, stop: int) -> Block:
    return (slice(start, stop), *[slice(0, n) for n in reference.GetSize()[-2::-1]])


def _block_resampler(reference: sitk.Image, where: Block) -> sitk.ResampleImageFilter:
    """Make a resampler onto a block of the grid of ``reference``; one slice for each axis, array order."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([part.stop - part.start for part in reversed(where)])
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    resampler.SetOutputOrigin(reference.TransformIndexToPhysicalPoint([part.start for part in reversed(where)]))
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
    dtype = numpy_type(image.GetPixelID())
    unchanged = _changes_nothing(image, reference, transform)
    moved = None if unchanged else _moved_box(image, reference, transform)
    values = None if unchanged else _values(image, reference, transform, dtype)
    for start, stop in slabs(reference.GetSize()):
        layers = _layers(reference, start, stop)
        if values is not None and moved is None:
            yield values(layers)
            continue
        slab = _copied_layers(image, start, stop)
        if values is not None and moved is not None:
            inner = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(layers, moved, strict=True))
            place = (slice(inner[0].start - start, inner[0].stop - start), *inner[1:])
            if all(part.start < part.stop for part in inner):
                slab[place] = values(inner)
        yield slab


def _copied_layers(image: sitk.Image, start: int, stop: int) -> np.ndarray:
    first = [0] * (image.GetDimension() - 1) + [start]
    return sitk.GetArrayFromImage(sitk.RegionOfInterest(image, [*image.GetSize()[:-1], stop - start], first))


def _values(
    image: sitk.Image, reference: sitk.Image, transform: sitk.Transform, dtype: np.dtype
) -> Callable[[Block], np.ndarray]:
    """Return a function that computes a block of the warped image, rounded to its type ``dtype``."""
    precision = _precision(image, dtype)
    samples = samples_of_transform(transform, reference)
    linear = None if samples is None else LinearWarp(image, reference, samples)

    def values(where: Block) -> np.ndarray:
        if linear is not None:
            result = linear.values(where, precision)
        else:
            resampler = _block_resampler(reference, where)
            resampler.SetTransform(transform)
            resampler.SetInterpolator(sitk.sitkLinear)
            resampler.SetDefaultPixelValue(float("inf"))
            resampler.SetOutputPixelType(_PIXEL_TYPES[precision])
            result = _mirrored_outside(image, resampler)
        return (np.rint(result, out=result) if dtype.kind in "iu" else result).astype(dtype, copy=False)

    return values


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


def _precision(image: sitk.Image, dtype: np.dtype) -> np.dtype:
    """Return the type of floating-point numbers in which an image of a type is read."""
    return np.dtype(np.float64 if _needs_64_bits(image, dtype) else np.float32)


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
        if all(p.start < p.stop for p in moved):
            size, first = [p.stop - p.start for p in reversed(moved)], [p.start for p in reversed(moved)]
            part = sitk.RegionOfInterest(reference, size, first)
            warped[moved] = warp_by_vote(source, label, part, transform)
    restore_thin(source, label, warped, reference, transform)
    return _with_geometry(warped, reference)


def warp_together(
    images: Sequence[sitk.Image], label: sitk.Image | None, reference: sitk.Image, transform: sitk.Transform
) -> tuple[list[sitk.Image], sitk.Image | None]:
    """Do the same as :func:`warp_image` for each image and :func:`warp_label`, and sample the field only once.

    Images on other grids, and those of which only a box moves, are warped one by one.
    """
    everything = [*images, *([] if label is None else [label])]
    samples = samples_of_transform(transform, reference)
    if (
        samples is None
        or len(everything) < 2
        or not all(_same_voxels(one, reference) for one in everything)
        or _changes_nothing(reference, reference, transform)
        or _moved_box(reference, reference, transform) is not None
    ):
        warped = [warp_image(image, reference, transform) for image in images]
        return warped, None if label is None else warp_label(label, reference, transform)
    readers = [LinearWarp(image, reference, samples) for image in images]
    types = [numpy_type(image.GetPixelID()) for image in images]
    results = [np.empty(samples.shape, dtype) for dtype in types]
    # As when they are read one by one, so that the values are the same.
    precise = [_precision(image, dtype) for image, dtype in zip(images, types, strict=True)]
    # Its own image, see :func:`warp_label`.
    label = None if label is None else sitk.Image(label)
    source = None if label is None else sitk.GetArrayViewFromImage(label)
    voter = None if source is None else LabelVote(source)
    labels = None if source is None else np.empty(samples.shape, source.dtype)

    def fill(box: Block) -> None:
        positions = readers[0].positions(box)
        for reader, result, precision in zip(readers, results, precise, strict=True):
            values = reader.at(positions).astype(precision)
            result[box] = np.rint(values) if result.dtype.kind in "iu" else values
        if voter is not None and labels is not None:
            labels[box] = voter.at(positions)

    in_boxes(fill, samples.shape)
    made = [_with_geometry(result, reference) for result in results]
    if label is None or source is None or labels is None:
        return made, None
    restore_thin(source, label, labels, reference, transform)
    return made, _with_geometry(labels, reference)


def _same_voxels(image: sitk.Image, reference: sitk.Image) -> bool:
    """Whether two images have the very same grid."""
    grids = [(i.GetSize(), i.GetSpacing(), i.GetOrigin(), i.GetDirection()) for i in (image, reference)]
    return grids[0] == grids[1]


def _moved_box(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> Block | None:
    """Find the voxels that a displacement field can move: one slice for each axis, array order.

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
    if (start == 0).all() and (stop == size).all():
        return None
    return tuple(slice(a, b) for a, b in zip(start[::-1].tolist(), stop[::-1].tolist(), strict=True))


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
