"""Boxes in which an image is deformed: crops of the image, and fields that fall to zero around a box.

A field of a region covers the box and its margin only. It is zero on its border and, by definition, outside it, so the
proof of invertibility covers the whole scan; see :mod:`DRDMLib.invertibility.certificate`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from torch import Tensor

from ..errors import ImageError, SettingError
from .coordinates import to_index, to_points
from .field_grid import STORED, FieldGrid
from .model_grid import (
    MARGIN_LEAST,
    MARGIN_MOST,
    MARGIN_PER_DISPLACEMENT,
    ModelGrid,
    bounding_box,
    doubled,
    to_millimeters,
)

# Tissue around labels that belongs to their box, as a fraction of the longest side of the box around the labels alone,
# and the least of it in millimeters. A model sees an organ and its neighbors then.
_CONTEXT, _CONTEXT_LEAST = 0.25, 8.0
# Connected components that are smaller than this fraction of the largest one are specks, which get no box.
_SPECK = 0.02
# Largest number of nodes of a field that covers several boxes, or a whole scan because of a pose.
_MOST_NODES = 2**23
# Slices of a stack over which a field falls to zero, at most.
_MOST_SLICES = 8


@dataclass(frozen=True)
class Region:
    """A box whose edges are parallel to the axes of the scan.

    Attributes:
        corner, opposite: two opposite corners, in any order: LPS millimeters, three numbers each, or two for a 2D
            image. In an oblique scan they are opposite corners of the box along the scan's axes.

    Raises:
        SettingError: the corners do not have two or three finite numbers.
    """

    corner: tuple[float, ...]
    opposite: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.corner, *self.opposite)
        if len(self.corner) not in (2, 3) or len(self.corner) != len(self.opposite):
            raise SettingError(
                f"A region has six numbers, two opposite corners in LPS millimeters (four for a 2D image), "
                f"not {len(numbers)}."
            )
        if not all(map(math.isfinite, numbers)):
            raise SettingError("The corners of a region must be finite numbers, in LPS millimeters.")

    @staticmethod
    def of(numbers: Sequence[float]) -> Region:
        """Make a region from its six (in 2D four) numbers: one corner, then the opposite one.

        Raises:
            SettingError: there are more or fewer numbers.
        """
        if len(numbers) not in (4, 6):
            raise SettingError(
                f"A region has six numbers, two opposite corners in LPS millimeters (four for a 2D image), "
                f"not {len(numbers)}."
            )
        half = len(numbers) // 2
        return Region(tuple(map(float, numbers[:half])), tuple(map(float, numbers[half:])))

    @property
    def numbers(self) -> tuple[float, ...]:
        """Both corners as one tuple, as :meth:`of` takes them."""
        return (*self.corner, *self.opposite)


Box = tuple[np.ndarray, np.ndarray]
"""First voxel, and the one after the last: (d,) each, SimpleITK's axis order."""


def box_of(region: Region, image: sitk.Image) -> Box:
    """Find the voxels of an image in a region, whose faces are moved to the nearest faces of voxels.

    The box is at least two voxels thick along each axis, unless the image is not.

    Raises:
        SettingError: the region has another dimension than the image.
        ImageError: the region does not overlap the image.
    """
    if len(region.corner) != image.GetDimension():
        raise SettingError(
            f"A region of a {image.GetDimension()}D image has {2 * image.GetDimension()} numbers, "
            f"two opposite corners in LPS millimeters, not {len(region.numbers)}."
        )
    corners = to_index(np.asarray([region.corner, region.opposite]), image) + 0.5
    start = np.rint(corners.min(axis=0)).astype(int)
    stop = np.maximum(np.rint(corners.max(axis=0)).astype(int), start + 1)
    size = np.asarray(image.GetSize())
    first, last = np.maximum(start, 0), np.minimum(stop, size)
    if (first >= last).any():
        low, high = bounding_box(image)
        extent = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        raise ImageError(f"The region lies outside the scan, which covers {extent} mm (LPS); choose another region.")
    last = np.minimum(np.maximum(last, first + 2), size)
    return np.minimum(first, np.maximum(last - 2, 0)), last


def region_of(box: Box, image: sitk.Image) -> Region:
    """Return the region of a box of voxels, measured to the faces of the voxels."""
    corners = to_points(np.stack([box[0] - 0.5, box[1] - 0.5]), image)
    return Region(tuple(corners[0].tolist()), tuple(corners[1].tolist()))


def crop(image: sitk.Image, box: Box) -> sitk.Image:
    """Cut a box of voxels out of an image."""
    start, stop = box
    result: sitk.Image = sitk.RegionOfInterest(image, (stop - start).tolist(), start.tolist())
    return result


def crop_for_grid(image: sitk.Image, grid: ModelGrid) -> sitk.Image:
    """Cut out the part of an image that covers a model grid, which may be larger than the box it was placed on."""
    ends = np.asarray(list(itertools.product(*[(-1.0, n) for n in grid.size])))
    points = np.asarray(grid.origin) + (ends * grid.spacing) @ grid.direction.T
    index = to_index(points, image)
    start = np.clip(np.floor(index.min(axis=0)).astype(int) - 1, 0, np.asarray(image.GetSize()) - 1)
    stop = np.clip(np.ceil(index.max(axis=0)).astype(int) + 2, start + 1, image.GetSize())
    return crop(image, (start, stop))


def regions_around(label: sitk.Image, values: Sequence[int]) -> tuple[Region, ...]:
    """Return boxes around labels and some of their surroundings.

    Parts of the labels that are clearly apart, such as paired organs, get a box each; boxes that overlap are joined.

    Args:
        label: label map, on the grid of the image.
        values: values of the labels; none for all except 0.

    Raises:
        ImageError: no voxel has such a value.
    """
    array = sitk.GetArrayFromImage(label)
    chosen = np.isin(array, values) if len(values) else array != 0
    if not chosen.any():
        if not len(values):
            raise ImageError("The label is empty, so there is nothing to deform around; choose another label.")
        present = ", ".join(str(int(v)) for v in np.unique(array) if v) or "none"
        wanted = ", ".join(map(str, values))
        raise ImageError(f"The label has no voxel of {wanted}; its values are {present}.")
    # Components are searched in the box around all labels, which saves memory in a large scan.
    whole = ndimage.find_objects(chosen.view(np.uint8))[0]
    offset = np.asarray([one.start for one in whole[::-1]])
    parts, _ = ndimage.label(chosen[whole], np.ones((3,) * chosen.ndim))
    counts = np.bincount(parts.ravel())[1:]
    found = ndimage.find_objects(parts)
    spacing = np.asarray(label.GetSpacing())
    boxes: list[Box] = []
    for slices, count in zip(found, counts, strict=True):
        if count >= _SPECK * counts.max():
            start = np.asarray([one.start for one in slices[::-1]]) + offset
            stop = np.asarray([one.stop for one in slices[::-1]]) + offset
            around = max(_CONTEXT * float(((stop - start) * spacing).max()), _CONTEXT_LEAST)
            voxels = np.rint(around / spacing).astype(int)
            boxes.append((np.maximum(start - voxels, 0), np.minimum(stop + voxels, label.GetSize())))
    return tuple(region_of(box, label) for box in _joined(boxes))


def _joined(boxes: list[Box]) -> list[Box]:
    """Join boxes that overlap, until none do."""
    for a, b in itertools.combinations(range(len(boxes)), 2):
        (start, stop), (other, end) = boxes[a], boxes[b]
        if (np.maximum(start, other) < np.minimum(stop, end)).all():
            rest = [box for k, box in enumerate(boxes) if k not in (a, b)]
            return _joined([*rest, (np.minimum(start, other), np.maximum(stop, end))])
    return boxes


class FadedField(NamedTuple):
    """A field that is zero outside a box and its margin.

    Attributes:
        field: the field; zero on its border.
        margin_mm: distance from the box at which it is zero, the largest over the axes.
        scale: number by which the displacement was multiplied to fit into the margin.
    """

    field: FieldGrid
    margin_mm: float
    scale: float


def faded_field(
    ddf: Tensor, grid: ModelGrid, image: sitk.Image, *, margin: float | None = None, refine: bool = False
) -> FadedField:
    """Convert a field on a model grid to physical space, and let it fall smoothly to zero around a box.

    The margin follows from the displacement of the box's faces, as for a whole image; see
    :func:`DRDMLib.spatial.model_grid.physical_field`.

    Args:
        ddf: (N, d, *S), fraction of the side; N is the number of slices for a stack, and 1 otherwise.
        grid: a model grid that was placed on ``image``.
        image: the box, as an image.
        margin: largest distance from the box at which the field may be other than zero, millimeters. If it is too
            small, the whole field is made smaller.
        refine: make the grid twice as fine, with cubic splines.

    Raises:
        SettingError: the margin is smaller than about two steps of the grid.
    """
    vectors = to_millimeters(ddf, grid)
    first, last, inset = _nodes_inside(grid, image)
    side = max(n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
    inside = vectors[tuple(slice(a, b + 1) for a, b in zip(first[::-1], last[::-1], strict=True))]
    margins, reaches, scale = [], [], 1.0
    for axis in range(grid.ndim):
        faces = inside.take((0, -1), axis=grid.ndim - 1 - axis) @ grid.direction[:, axis]
        needed = MARGIN_PER_DISPLACEMENT * float(np.abs(faces).max())
        reach = min(max(needed, MARGIN_LEAST * side), MARGIN_MOST * side)
        slices = grid.stack and axis == 2
        nodes = max(2, math.ceil(reach / grid.spacing[axis]))
        if slices:
            nodes = min(nodes, _MOST_SLICES)
        if margin is not None:
            most = math.floor((margin + inset[axis]) / grid.spacing[axis] + 1e-6)
            if most < 2 and not slices:
                raise SettingError(
                    f"A margin of {margin:g} mm is too small for this model and region; "
                    f"use at least {2 * grid.spacing[axis]:.1f} mm."
                )
            if most < nodes:
                nodes = max(most, 1)
                if not slices:
                    scale = min(scale, nodes * grid.spacing[axis] / needed if needed > 0 else 1.0)
        margins.append(nodes)
        reaches.append(nodes * grid.spacing[axis] - inset[axis])
    finer = [2 if refine and not (grid.stack and axis == 2) else 1 for axis in range(grid.ndim)]
    values = vectors * scale if scale < 1 else vectors
    for axis in range(grid.ndim):
        matrix = _fading_matrix(grid.size[axis], first[axis], last[axis], margins[axis], finer[axis])
        values = np.moveaxis(np.tensordot(matrix, values, (1, grid.ndim - 1 - axis)), 0, grid.ndim - 1 - axis)
    spacing = [s / f for s, f in zip(grid.spacing, finer, strict=True)]
    start = np.asarray(first) - np.asarray(margins)
    origin = np.asarray(grid.origin) + grid.direction @ (np.asarray(grid.spacing) * start)
    field = FieldGrid(np.ascontiguousarray(values), tuple(spacing[::-1]), grid.direction, origin, STORED)
    return FadedField(field, max(reaches), scale)


def _nodes_inside(grid: ModelGrid, image: sitk.Image) -> tuple[list[int], list[int], list[float]]:
    """Find the first and last node of a model grid along each axis that lie within an image.

    Returns:
        First and last node, and the smaller distance of both from the faces of the image, millimeters.
    """
    faces = to_points(np.stack([np.full(image.GetDimension(), -0.5), np.asarray(image.GetSize()) - 0.5]), image)
    places = ((faces - np.asarray(grid.origin)) @ grid.direction) / np.asarray(grid.spacing)
    first, last, inset = [], [], []
    for low, high, nodes, step in zip(places.min(axis=0), places.max(axis=0), grid.size, grid.spacing, strict=True):
        a, b = max(math.ceil(low - 1e-6), 0), min(math.floor(high + 1e-6), nodes - 1)
        # A box that is thinner than the grid's step has its field from the nearest node.
        middle = min(max(round((low + high) / 2), 0), nodes - 1)
        first.append(a if a <= b else middle)
        last.append(b if a <= b else middle)
        inset.append(step * float(min(first[-1] - low, high - last[-1])))
    return first, last, inset


def _fading_matrix(size: int, first: int, last: int, margin: int, finer: int) -> np.ndarray:
    """Make the matrix that refines values along one axis, and fades them outside the nodes ``first`` to ``last``.

    Returns:
        (nodes of the result, ``size``).
    """
    inner = np.eye(size) if finer == 1 else doubled(np.eye(size), 0)
    inner = inner[first * finer : last * finer + 1]
    border = margin * finer
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(border) / border))[:, None]
    return np.concatenate([ramp * inner[0], inner, ramp[::-1] * inner[-1]])


def united(fields: Sequence[FieldGrid], *, stack: bool = False) -> FieldGrid:
    """Add fields that have the same directions, on a grid that covers all of them.

    The grid has the smallest spacing of the fields, unless it would have too many nodes; it is coarser then.

    Args:
        stack: they are fields of a stack of slices, with the same slices.
    """
    if len(fields) == 1:
        return fields[0]
    like = fields[0]
    spacing = np.min([field.spacing for field in fields], axis=0)
    ends = [_ends(field, like) for field in fields]
    low, high = np.min([e[0] for e in ends], axis=0), np.max([e[1] for e in ends], axis=0)
    grid = _empty_grid(like, low, high, spacing, stack=stack)
    total = np.zeros_like(grid.vectors)
    for field in fields:
        total += _sampled(field, _node_positions(grid, field))
    return replace(grid, vectors=total)


def posed(field: FieldGrid, pose: FieldGrid, *, stack: bool = False) -> FieldGrid:
    """Compose a field with the pose that is applied to its result: ``pose(x) + field(x + pose(x))``.

    Args:
        field: zero on its border.
        pose: an affine map on a grid that covers the whole scan; it has the directions of ``field``.
        stack: both are fields of a stack of slices, with the same slices.

    Returns:
        The composed field, on a grid that covers the scan and the pose of ``field``. On its border it is the pose.
    """
    outside = pose.border_map()
    assert outside is not None, "a pose is an affine map"
    offset = pose.along @ (field.origin - pose.origin)
    ends = [*_ends(pose, pose), *(offset + end for end in field.carried_extent(outside.inverse()))]
    spacing = np.minimum(field.spacing, pose.spacing)
    grid = _empty_grid(pose, np.min(ends, axis=0), np.max(ends, axis=0), spacing, stack=stack)
    moved = grid.displaced_by(outside)
    return replace(grid, vectors=moved + _sampled(field, _node_positions(grid, field, moved)))


def _ends(field: FieldGrid, like: FieldGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last position of a field along the array axes of ``like``, millimeters."""
    last = (np.asarray(field.vectors.shape[:-1]) - 1) * np.asarray(field.spacing)
    offset = like.along @ (field.origin - like.origin)
    return offset, offset + last


def _empty_grid(like: FieldGrid, low: np.ndarray, high: np.ndarray, spacing: np.ndarray, *, stack: bool) -> FieldGrid:
    """Make a field of zeros along the axes of ``like``, from ``low`` to ``high``, millimeters from its first node.

    The spacing grows until there are not too many nodes; that of the slices of a stack (array axis 0) is kept.
    """
    spacing = np.array(spacing, float)

    def nodes() -> list[int]:
        size: list[int] = (np.ceil((high - low) / spacing - 1e-6).astype(int) + 3).tolist()
        return size

    while math.prod(nodes()) > _MOST_NODES:
        spacing[1 if stack else 0 :] *= 1.05
    size = nodes()
    origin = like.origin + np.linalg.inv(like.along) @ (low - spacing)
    return FieldGrid(np.zeros((*size, len(size))), tuple(spacing.tolist()), like.direction, origin, STORED)


def _node_positions(grid: FieldGrid, field: FieldGrid, moved: np.ndarray | None = None) -> np.ndarray:
    """Return the positions of the nodes of ``grid``, moved by vectors, in nodes of ``field``: (d, *S)."""
    d = len(grid.spacing)
    to_space = np.linalg.inv(grid.along) * np.asarray(grid.spacing)
    to_field = field.along / np.reshape(field.spacing, (-1, 1))
    start = to_field @ (grid.origin - field.origin)
    matrix = to_field @ to_space
    shape = grid.vectors.shape[:-1]
    out = np.empty((d, *shape))
    for k in range(d):
        out[k] = start[k]
        for axis, n in enumerate(shape):
            if abs(matrix[k, axis]) > 1e-12:
                out[k] += (matrix[k, axis] * np.arange(n)).reshape([-1 if axis == b else 1 for b in range(d)])
        if moved is not None:
            out[k] += moved @ to_field[k]
    return out


def _sampled(field: FieldGrid, places: np.ndarray) -> np.ndarray:
    """Interpolate a field, which is zero outside its grid, at positions in its nodes: (d, *S) -> (*S, d)."""
    d = len(places)
    # Positions on the outermost nodes can miss them by rounding.
    last = np.reshape(np.asarray(field.vectors.shape[:-1]) - 1.0, (-1, *[1] * d))
    near = np.where(np.abs(places - last) < 1e-6, last, np.where(np.abs(places) < 1e-6, 0.0, places))
    values = [ndimage.map_coordinates(field.vectors[..., k], near, order=1, mode="constant") for k in range(d)]
    return np.stack(values, axis=-1)


def hold_still(field: FieldGrid, mask: sitk.Image, *, stack: bool = False) -> None:
    """Make a field zero on a mask and smaller around it, in place.

    At a distance r from the mask (less one cell of the field), the displacement becomes at most r / 2.5, so that
    fading alone does not fold space.

    Args:
        mask: not 0 where nothing may move.
        stack: the field is that of a stack of slices, whose last axis has the slices of the image.
    """
    grid = sitk.Image([int(n) for n in field.vectors.shape[-2::-1]], sitk.sitkUInt8)
    grid.SetSpacing(field.spacing[::-1])
    grid.SetDirection(field.direction.ravel().tolist())
    grid.SetOrigin(field.origin.tolist())
    corners = to_points(np.asarray(list(itertools.product(*[(-0.5, n - 0.5) for n in grid.GetSize()]))), grid)
    index = to_index(corners, mask)
    start = np.clip(np.floor(index.min(axis=0)).astype(int), 0, np.asarray(mask.GetSize()) - 1)
    stop = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, start + 1, mask.GetSize())
    part = crop(mask, (start, stop))
    if not sitk.GetArrayViewFromImage(part).any():
        return
    distances = sitk.SignedMaurerDistanceMap(part, squaredDistance=False, useImageSpacing=True)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(grid)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetUseNearestNeighborExtrapolator(True)
    distance = sitk.GetArrayFromImage(resampler.Execute(distances)).astype(np.float64)
    # All nodes around a voxel of the mask get zero, so that it stays where it is between them, too.
    cell = math.sqrt(sum(s * s for s in field.spacing[1 if stack else 0 :]))
    free = np.maximum(distance - cell, 0.0)
    length = np.sqrt((field.vectors**2).sum(axis=-1))
    weight = free / np.maximum(np.hypot(free, MARGIN_PER_DISPLACEMENT * length), 1e-12)
    field.vectors[...] *= weight[..., None]
