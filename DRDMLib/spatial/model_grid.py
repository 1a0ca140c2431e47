"""From an image to the grid a model works on, and from a field on that grid back to millimeters.

A working grid is an ordinary SimpleITK grid (LPS, millimeters). Its axes may be permuted and flipped against the
image's, never tilted, so oblique images need no special case. Tensors carry the axes of the working grid in the order
of the model's ``axes`` policy: ``"kji"`` (the array order of SimpleITK, slowest first) or ``"ijk"`` (its reverse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from ..errors import ImageError, ModelError, SettingError
from .coordinates import direction_matrix
from .field_grid import STORED, FieldGrid

if TYPE_CHECKING:
    from ..models.metadata import ModelMetadata

# How far the field reaches past the working grid before it is zero, in fractions of the grid's side.
_MARGIN_LEAST, _MARGIN_MOST, _MARGIN_OF_POSES = 0.125, 0.5, 1.0
# Nodes a side of a volume's grid up to which a margin of poses costs little memory.
_FEW_NODES = 64
# The margin is this many times the farthest that its face moves outwards or inwards, up to the most: fading out along
# an axis compresses space by what is displaced along that axis alone, so it never folds by itself.
_MARGIN_PER_DISPLACEMENT = 2.5

PLANES = ("axial", "coronal", "sagittal", "auto")


@dataclass(frozen=True)
class ModelGrid:
    """A regular grid in space: what the network sees.

    Attributes:
        size, spacing, origin: one value per axis of the image, SimpleITK's axis order, millimeters, LPS.
        direction: (d, d), columns are the directions of the axes.
        stack: a stack of slices for a 2D model; the last axis then counts the slices.
        axes: order of the tensor's spatial axes, ``"kji"`` or ``"ijk"``.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray = field(repr=False)
    stack: bool = False
    axes: str = "kji"

    @property
    def ndim(self) -> int:
        """Dimension of the space the grid lies in (3 for a stack of slices)."""
        return len(self.size)

    def resampler(self) -> sitk.ResampleImageFilter:
        """A SimpleITK resampler onto this grid (linear)."""
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(self.size)
        resampler.SetOutputSpacing(self.spacing)
        resampler.SetOutputOrigin(self.origin)
        resampler.SetOutputDirection(self.direction.ravel().tolist())
        resampler.SetInterpolator(sitk.sitkLinear)
        return resampler

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """A scalar array in SimpleITK's order -> (N, 1, *S); N counts slices for a stack and is 1 otherwise."""
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        tensor = tensor[:, None] if self.stack else tensor[None, None]
        return self._reorder(tensor)

    def _reorder(self, tensor: Tensor) -> Tensor:
        if self.axes == "ijk":
            spatial = list(range(2, tensor.ndim))
            tensor = tensor.permute(0, 1, *reversed(spatial)).contiguous()
        return tensor


def image_extent(image: sitk.Image) -> np.ndarray:
    """Physical size of the image along its axes, millimeters, voxels counted whole."""
    result: np.ndarray = np.asarray(image.GetSize(), float) * np.asarray(image.GetSpacing(), float)
    return result


def _center(image: sitk.Image) -> np.ndarray:
    index = [(n - 1) / 2.0 for n in image.GetSize()]
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(index))


def _nearest_axes(direction: np.ndarray) -> list[tuple[int, float]]:
    """For each patient axis (L, P, S): the image axis nearest to it and the sign that makes both point the same way."""
    remaining = np.abs(direction).copy()
    nearest: list[tuple[int, float]] = [(0, 1.0)] * 3
    for _ in range(3):
        patient, axis = np.unravel_index(int(np.argmax(remaining)), remaining.shape)
        nearest[int(patient)] = (int(axis), math.copysign(1.0, direction[patient, axis]))
        remaining[patient, :] = -1
        remaining[:, axis] = -1
    return nearest


def require_plane(plane: str) -> None:
    """Raise SettingError unless ``plane`` is one of ``PLANES``."""
    if plane not in PLANES:
        raise SettingError(f"Plane '{plane}' is not known; choose one of {', '.join(PLANES)}.")


def _slice_axis(image: sitk.Image, plane: str) -> int:
    require_plane(plane)
    if plane == "auto":
        if 1 in image.GetSize():
            return int(image.GetSize().index(1))
        spacing = image.GetSpacing()
        widest = int(np.argmax(spacing))
        if spacing[widest] > 1.01 * min(spacing):
            return widest
        return 2
    patient = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    return _nearest_axes(direction_matrix(image))[patient][0]


def model_grid(image: sitk.Image, model: ModelMetadata, *, plane: str = "auto") -> ModelGrid:
    """The grid on which ``model`` sees ``image``.

    Proportions stay true (isotropic in millimeters; the longest side of the image fills the grid), unless the model's
    geometry policy is ``"stretch"``. A 2D model sees a volume as a stack of slices.

    Args:
        image: 2D or 3D.
        model: gives ``ndim``, ``size``, ``geometry``, ``orientation`` and ``axes``.
        plane: for a 2D model on a volume: the slices' plane; ``"auto"`` takes the plane of the acquisition.

    Raises:
        ModelError: a 3D model on a 2D image or on a single slice.
    """
    dimension = image.GetDimension()
    direction = direction_matrix(image)
    extent = image_extent(image)
    if model.ndim == 3 and (dimension == 2 or 1 in image.GetSize()):
        raise ModelError(
            f"The model '{model.name}' is for volumes, but the image is a single slice; choose a 2D model with --model."
        )
    side = model.size
    columns = direction.copy()
    stack = model.ndim == 2 and dimension == 3
    size: list[int] = [side] * dimension
    if stack:
        axis = _slice_axis(image, plane)
        order = [a for a in range(3) if a != axis] + [axis]
        columns, extent = direction[:, order], extent[order]
        slices = image.GetSize()[axis]
        size[2] = slices
    elif dimension == 3 and model.orientation == "LPS":
        nearest = _nearest_axes(direction)
        columns = np.stack([sign * direction[:, axis] for axis, sign in nearest], axis=1)
        extent = np.asarray([extent[axis] for axis, _ in nearest])
    if model.geometry == "stretch":
        spacing = extent / side
    else:
        in_plane = extent[:2] if stack else extent
        spacing = np.full(dimension, in_plane.max() / side)
    if stack:
        spacing[2] = extent[2] / size[2]
    origin = _center(image) - columns @ (spacing * (np.asarray(size) - 1) / 2.0)
    return ModelGrid(
        size=tuple(size),
        spacing=tuple(float(s) for s in spacing),
        origin=tuple(float(o) for o in origin),
        direction=columns,
        stack=stack,
        axes=model.axes,
    )


def _shrink(image: sitk.Image, grid: ModelGrid) -> sitk.Image:
    """Averages over whole blocks of voxels when the grid is much coarser than the image, against aliasing."""
    projection = np.abs(direction_matrix(image).T @ grid.direction)
    wanted = projection @ np.asarray(grid.spacing)
    factors = [max(1, int(w / s)) for w, s in zip(wanted, image.GetSpacing(), strict=True)]
    factors = [min(f, n) for f, n in zip(factors, image.GetSize(), strict=True)]
    return sitk.BinShrink(image, factors) if max(factors) > 1 else image


def sample_image(image: sitk.Image, grid: ModelGrid, intensity: str = "percentile", padding: str = "zeros") -> Tensor:
    """``image`` on the working grid with intensities in 0..1: (N, 1, *S).

    Args:
        intensity: ``"percentile"`` maps the 0.5th and 99.5th percentile to 0 and 1, ``"minmax"`` the extremes.
        padding: what lies outside of the image: ``"zeros"``, or its ``"border"`` continued.

    Raises:
        ImageError: the image has no contrast on this grid.
    """
    outside = float("-inf")
    resampler = grid.resampler()
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(outside)
    resampler.SetUseNearestNeighborExtrapolator(False)
    small = _shrink(image, grid)
    array = sitk.GetArrayFromImage(resampler.Execute(small))
    inside = np.isfinite(array)
    values = array[inside]
    if values.size == 0:
        raise ImageError("The image is too thin to be seen by the model; use a volume of more slices.")
    low, high = float(values.min()), float(values.max())
    if intensity == "percentile":
        lower, upper = (float(v) for v in np.percentile(values, [0.5, 99.5]))
        if upper > lower:
            low, high = lower, upper
    if not high > low:
        raise ImageError("The image has no contrast (all its voxels are equal); choose another image.")
    if padding == "border":
        resampler.SetUseNearestNeighborExtrapolator(True)
        array, inside = sitk.GetArrayFromImage(resampler.Execute(small)), np.ones_like(inside)
    array = np.where(inside, (array - low) / (high - low), 0.0).clip(0.0, 1.0)
    return grid.to_tensor(array)


def field_image(ddf: Tensor, grid: ModelGrid, *, refine: bool = False, posed: bool = False) -> sitk.Image:
    """:func:`physical_field` as a vector image, 64-bit, as ``SimpleITK.DisplacementFieldTransform`` takes it."""
    return physical_field(ddf, grid, refine=refine, posed=posed).image()


def physical_field(ddf: Tensor, grid: ModelGrid, *, refine: bool = False, posed: bool = False) -> FieldGrid:
    """A field on the working grid as a displacement field in space, millimeters, LPS.

    The result reaches past the working grid and falls smoothly to zero there, so that whatever lies beyond the image
    (models, markups, a larger segmentation) is not torn.

    Args:
        ddf: (N, d, *S), fraction of the side; N counts slices for a stack.
        refine: make the grid twice as fine with cubic splines (a linearly interpolated coarse grid has visible kinks
            in an image that is much finer).
        posed: its border moves as far as a pose takes it, so that it needs more room to fall to zero.
    """
    vectors = _to_millimeters(ddf, grid)
    side = max(grid.size[:2]) * max(grid.spacing[:2])
    roomy = posed and (grid.ndim == 2 or (not grid.stack and max(grid.size) <= _FEW_NODES))
    most = _MARGIN_OF_POSES if roomy else _MARGIN_MOST
    margins = []
    for axis in range(grid.ndim):
        faces = vectors.take((0, -1), axis=grid.ndim - 1 - axis) @ grid.direction[:, axis]
        farthest = _MARGIN_PER_DISPLACEMENT * float(np.abs(faces).max())
        reach = min(max(farthest, _MARGIN_LEAST * side), most * side)
        margins.append(max(2, math.ceil(reach / grid.spacing[axis])))
    if grid.stack:
        margins[2] = min(margins[2], 8)
    finer = [2 if refine and not (grid.stack and axis == 2) else 1 for axis in range(grid.ndim)]
    # Interpolating, continuing past the border and fading out are linear, and along one axis after the other.
    carried = torch.from_numpy(vectors)
    for axis in range(grid.ndim):
        matrix = torch.from_numpy(_carrier(grid.size[axis], margins[axis], finer[axis]))
        before, after = carried.shape[: grid.ndim - 1 - axis], carried.shape[grid.ndim - axis :]
        lines = carried.reshape(math.prod(before), grid.size[axis], math.prod(after))
        carried = (matrix @ lines).view(*before, len(matrix), *after)
    spacing = [s / f for s, f in zip(grid.spacing, finer, strict=True)]
    origin = np.asarray(grid.origin) - grid.direction @ (np.asarray(grid.spacing) * np.asarray(margins))
    return FieldGrid(carried.numpy(), tuple(spacing[::-1]), grid.direction, origin, STORED)


def _carrier(size: int, margin: int, finer: int) -> np.ndarray:
    """What carries values along one axis to a finer and longer one: (nodes of the result, ``size``).

    Between the nodes by cubic B-splines, past the ends their values, falling smoothly to zero over ``margin`` nodes.
    """
    inner = np.eye(size) if finer == 1 else _doubled(np.eye(size), 0)
    rim = margin * finer
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(rim) / rim))[:, None]
    return np.concatenate([ramp * inner[0], inner, ramp[::-1] * inner[-1]])


def _to_millimeters(ddf: Tensor, grid: ModelGrid) -> np.ndarray:
    """(N, d, *S) -> array (*size reversed, D) of LPS millimeters."""
    u = grid._reorder(ddf.detach()).cpu().numpy().astype(np.float64)
    d = u.shape[1]
    # Channel k moves along tensor axis k; component i of a SimpleITK vector moves along its axis i.
    channels = range(d) if grid.axes == "ijk" else reversed(range(d))
    along = np.zeros((*u.shape[2:], grid.ndim)) if not grid.stack else np.zeros((u.shape[0], *u.shape[2:], grid.ndim))
    for component, channel in enumerate(channels):
        values = u[:, channel] if grid.stack else u[0, channel]
        along[..., component] = values * (grid.size[component] * grid.spacing[component])
    result: np.ndarray = along @ grid.direction.T
    return result


def _doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Values at the nodes and halfway between them along one axis, by cubic B-splines."""
    coefficients = ndimage.spline_filter1d(values, order=3, axis=axis, mode="mirror")
    c = np.moveaxis(coefficients, axis, 0)
    c = np.concatenate([c[1:2], c, c[-2:-1]])
    nodes = np.moveaxis(values, axis, 0)
    out = np.empty((2 * len(nodes) - 1, *nodes.shape[1:]), values.dtype)
    out[0::2] = nodes
    out[1::2] = (c[:-3] + 23 * (c[1:-2] + c[2:-1]) + c[3:]) / 48
    return np.moveaxis(out, 0, axis)


def needs_refinement(image: sitk.Image, grid: ModelGrid) -> bool:
    """Whether the carried field should be finer than the working grid, for this image."""
    return bool(max(grid.spacing[:2]) >= 1.5 * min(image.GetSpacing()))


def same_grid(a: sitk.Image, b: sitk.Image, tolerance: float = 1e-3) -> bool:
    """Whether two images have voxels at the same places (to ``tolerance`` of a voxel)."""
    if a.GetSize() != b.GetSize():
        return False
    step = min(a.GetSpacing())
    far = [n - 1 for n in a.GetSize()]
    corners: list[Any] = [[0] * a.GetDimension(), far]
    return all(
        np.allclose(a.TransformIndexToPhysicalPoint(c), b.TransformIndexToPhysicalPoint(c), atol=tolerance * step)
        for c in corners
    ) and np.allclose(a.GetDirection(), b.GetDirection(), atol=1e-4)


def bounding_box(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the image in space, millimeters, voxels counted whole."""
    d = image.GetDimension()
    corners = []
    for bits in range(2**d):
        index = [(image.GetSize()[a] - 0.5) if bits >> a & 1 else -0.5 for a in range(d)]
        corners.append(image.TransformContinuousIndexToPhysicalPoint(index))
    points = np.asarray(corners)
    return points.min(axis=0), points.max(axis=0)


def overlap(a: sitk.Image, b: sitk.Image) -> float:
    """Shared part of two images' bounding boxes, as a fraction of the smaller box."""
    (a0, a1), (b0, b1) = bounding_box(a), bounding_box(b)
    shared = np.prod(np.clip(np.minimum(a1, b1) - np.maximum(a0, b0), 0, None))
    return float(shared / min(np.prod(a1 - a0), np.prod(b1 - b0)))
