"""Resample images onto the grid that a model works on, and convert fields on that grid back to physical space.

A model grid is an ordinary SimpleITK grid (LPS, millimeters). Its axes may be permuted and flipped with respect to
those of the image, but are always parallel to them, so oblique images need no special treatment. Tensors have the axes
of the model grid in the order of the model's ``axes`` setting: ``"kji"`` (SimpleITK's array order, slowest first) or
``"ijk"`` (the reverse).
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
from .affine import AffineMap
from .coordinates import direction_matrix
from .field_grid import STORED, FieldGrid

if TYPE_CHECKING:
    from ..models.metadata import ModelMetadata

# Width of the margin around the model grid in which the field falls to zero, as fractions of the grid's side: least,
# most, and most where it falls to an affine map, because what leads toward another scan can bend a face.
MARGIN_LEAST, MARGIN_MOST, MARGIN_OF_POSES = 0.125, 0.5, 1.0
# The margin is this many times the largest displacement of its face along its axis, within the limits above. Where the
# field fades out along an axis, only displacement along that axis compresses space, so the fading itself never folds.
MARGIN_PER_DISPLACEMENT = 2.5

PLANES = ("axial", "coronal", "sagittal", "auto")


@dataclass(frozen=True)
class ModelGrid:
    """The grid in physical space that the network works on.

    Attributes:
        size, spacing, origin: one value per axis, in SimpleITK's axis order: voxels; millimeters; LPS millimeters.
        direction: (d, d), columns are the directions of the axes.
        stack: whether it is a stack of slices for a 2D model; the last axis then counts the slices.
        axes: order of the tensor's spatial axes, ``"kji"`` or ``"ijk"``.
        spare: number of nodes at either end of each axis that the image does not reach, in SimpleITK's axis order; all
            of it is on the grid if it is empty.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray = field(repr=False)
    stack: bool = False
    axes: str = "kji"
    spare: tuple[int, ...] = ()

    @property
    def ndim(self) -> int:
        """Dimension of the physical space, 2 or 3 (3 for a stack of slices)."""
        return len(self.size)

    def resampler(self) -> sitk.ResampleImageFilter:
        """Make a SimpleITK resampler onto this grid, with linear interpolation."""
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(self.size)
        resampler.SetOutputSpacing(self.spacing)
        resampler.SetOutputOrigin(self.origin)
        resampler.SetOutputDirection(self.direction.ravel().tolist())
        resampler.SetInterpolator(sitk.sitkLinear)
        return resampler

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Convert an array of scalars in SimpleITK's order to a tensor, (N, 1, *S).

        N is the number of slices for a stack, and 1 otherwise.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        tensor = tensor[:, None] if self.stack else tensor[None, None]
        return self._reorder(tensor)

    def _reorder(self, tensor: Tensor) -> Tensor:
        if self.axes == "ijk":
            spatial = list(range(2, tensor.ndim))
            tensor = tensor.permute(0, 1, *reversed(spatial)).contiguous()
        return tensor


def image_extent(image: sitk.Image) -> np.ndarray:
    """Compute the physical size of an image along its axes: (d,), millimeters, measured to the faces of the voxels."""
    result: np.ndarray = np.asarray(image.GetSize(), float) * np.asarray(image.GetSpacing(), float)
    return result


def effective_dimension(image: sitk.Image) -> int:
    """Return 2 for a 2D image or a volume with a single slice, else 3."""
    return 2 if image.GetDimension() == 2 or 1 in image.GetSize() else 3


def _center(image: sitk.Image) -> np.ndarray:
    index = [(n - 1) / 2.0 for n in image.GetSize()]
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(index))


def nearest_axes(direction: np.ndarray) -> list[tuple[int, float]]:
    """Find, for each patient axis (L, P, S), the nearest image axis and the sign that makes both point the same way."""
    remaining = np.abs(direction).copy()
    nearest: list[tuple[int, float]] = [(0, 1.0)] * 3
    for _ in range(3):
        patient, axis = np.unravel_index(int(np.argmax(remaining)), remaining.shape)
        nearest[int(patient)] = (int(axis), math.copysign(1.0, direction[patient, axis]))
        remaining[patient, :] = -1
        remaining[:, axis] = -1
    return nearest


def require_plane(plane: str) -> None:
    """Check that ``plane`` is one of ``PLANES``.

    Raises:
        SettingError: it is not.
    """
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
    return nearest_axes(direction_matrix(image))[patient][0]


def model_grid(image: sitk.Image, model: ModelMetadata, *, plane: str = "auto") -> ModelGrid:
    """Place the grid of a model on an image.

    The grid is isotropic in millimeters, and the longest side of the image fills it, unless the model's ``geometry`` is
    ``"stretch"``. A 2D model treats a volume as a stack of slices.

    Args:
        image: 2D or 3D image.
        model: gives ``ndim``, ``size``, ``geometry``, ``orientation`` and ``axes``.
        plane: slice plane for a 2D model on a volume; ``"auto"`` uses the plane of the acquisition.

    Raises:
        ModelError: the model is 3D, but the image is 2D or a single slice.
        SettingError: the plane is not known.
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
        nearest = nearest_axes(direction)
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
        # The first node that is kept lies at the face of the image, or just beyond it.
        spare=tuple(max(0, int((n - e / s) / 2 - 0.5)) for n, e, s in zip(size, extent, spacing, strict=True)),
    )


def _shrink(image: sitk.Image, grid: ModelGrid) -> sitk.Image:
    """Average over blocks of voxels when the grid is much coarser than the image, to avoid aliasing."""
    projection = np.abs(direction_matrix(image).T @ grid.direction)
    target = projection @ np.asarray(grid.spacing)
    factors = [max(1, int(t / s)) for t, s in zip(target, image.GetSpacing(), strict=True)]
    factors = [min(f, n) for f, n in zip(factors, image.GetSize(), strict=True)]
    return sitk.BinShrink(image, factors) if max(factors) > 1 else image


def sample_image(image: sitk.Image, grid: ModelGrid, intensity: str = "percentile", padding: str = "zeros") -> Tensor:
    """Resample an image onto the model grid, with intensities scaled to 0..1.

    Args:
        intensity: ``"percentile"`` maps the 0.5th and 99.5th percentile to 0 and 1, ``"minmax"`` the minimum and the
            maximum; values beyond are clipped.
        padding: values outside the image: ``"zeros"``, or ``"border"`` (the nearest voxel).

    Returns:
        (N, 1, *S); N is the number of slices for a stack, and 1 otherwise.

    Raises:
        ImageError: the image is too thin for this grid, or has no contrast on it.
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
        raise ImageError("The image is too thin for the model; use a volume with more slices.")
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
    """Do the same as :func:`physical_field`, but return a vector image, 64-bit, millimeters, LPS."""
    return physical_field(ddf, grid, refine=refine, posed=posed).image()


def physical_field(ddf: Tensor, grid: ModelGrid, *, refine: bool = False, posed: bool = False) -> FieldGrid:
    """Convert a field on the model grid to a displacement field in physical space, millimeters, LPS.

    The result extends past the image and falls smoothly to zero there, so that objects outside of it (surface models,
    markups, a larger segmentation) are not torn. What the model grid has beyond a margin around the image is left out.

    Args:
        ddf: (N, d, *S), fraction of the side; N is the number of slices for a stack, and 1 otherwise.
        refine: make the grid twice as fine, with cubic splines. In an image that is much finer than the grid, linear
            interpolation between coarse nodes would show visible kinks.
        posed: the field moves the whole scan, also its faces. Past the image it then falls smoothly to the affine map
            that fits it best, and not to zero; see :meth:`FieldGrid.border_map`.
    """
    whole = FieldGrid(to_millimeters(ddf, grid), grid.spacing[::-1], grid.direction, np.asarray(grid.origin))
    spare = np.asarray(grid.spare or (0,) * grid.ndim)
    outside = _best_affine(whole, spare[::-1].tolist()) if posed else AffineMap.identity(grid.ndim)
    fading = whole.vectors if outside.moves_nothing else whole.vectors - whole.displaced_by(outside)
    margins = _margins(fading, grid, outside, MARGIN_OF_POSES if posed else MARGIN_MOST)
    finer = [2 if refine and not (grid.stack and axis == 2) else 1 for axis in range(grid.ndim)]
    # Interpolating, continuing past the border and fading out are linear and separate for each axis: one matrix each.
    values = torch.from_numpy(fading)
    for axis in range(grid.ndim):
        matrix = torch.from_numpy(_extension_matrix(grid.size[axis], spare[axis], margins[axis], finer[axis]))
        before, after = values.shape[: grid.ndim - 1 - axis], values.shape[grid.ndim - axis :]
        lines = values.reshape(math.prod(before), grid.size[axis], math.prod(after))
        values = (matrix @ lines).view(*before, len(matrix), *after)
    spacing = [s / f for s, f in zip(grid.spacing, finer, strict=True)]
    origin = np.asarray(grid.origin) + grid.direction @ (np.asarray(grid.spacing) * (spare - np.asarray(margins)))
    field = FieldGrid(values.numpy(), tuple(spacing[::-1]), grid.direction, origin, STORED)
    if not outside.moves_nothing:
        field.vectors[...] += field.displaced_by(outside)
    return field


def _margins(fading: np.ndarray, grid: ModelGrid, outside: AffineMap, most: float) -> list[int]:
    """Return the number of nodes over which a field falls to an affine map along each axis, SimpleITK's axis order.

    Args:
        fading: (*S, d), what is to fade out, millimeters, LPS, array order.
        most: of the margin, as a fraction of the grid's side.
    """
    side = max(grid.size[:2]) * max(grid.spacing[:2])
    # What compresses space is the displacement as it is before the affine map.
    before = outside.inverse().matrix
    margins = []
    for axis in range(grid.ndim):
        spare = grid.spare[axis] if grid.spare else 0
        ends = fading.take((spare, -1 - spare), axis=grid.ndim - 1 - axis)
        needed = MARGIN_PER_DISPLACEMENT * float(np.abs(ends @ (grid.direction[:, axis] @ before)).max())
        reach = min(max(needed, MARGIN_LEAST * side), most * side)
        margins.append(max(2, math.ceil(reach / grid.spacing[axis])))
    if grid.stack:
        margins[2] = min(margins[2], 8)
    return margins


def _best_affine(field: FieldGrid, spare: list[int]) -> AffineMap:
    """Fit an affine map to a field at the nodes that an image reaches (least squares).

    Args:
        spare: number of nodes at either end of each axis that the image does not reach, array order.

    Returns:
        The identity, if the map that fits best folds space.
    """
    inner = field.vectors[tuple(slice(n, m - n) for n, m in zip(spare, field.vectors.shape, strict=False))]
    d = inner.ndim - 1
    slopes, middle = np.zeros((d, d)), np.asarray(spare, float)
    for axis, n in enumerate(inner.shape[:-1]):
        # On a full grid the axes do not correlate, so that each slope is found by itself.
        along = np.arange(n) - (n - 1) / 2
        lines = inner.mean(axis=tuple(a for a in range(d) if a != axis))
        slopes[:, axis] = along @ lines / max(1.0, float(along @ along))
        middle[axis] += (n - 1) / 2
    mean = inner.mean(axis=tuple(range(d)))
    found = AffineMap.of_slopes(mean, field.origin + field.steps @ middle, slopes, field.steps)
    return found if found.determinant > 0 else AffineMap.identity(d)


def _extension_matrix(size: int, spare: int, margin: int, finer: int) -> np.ndarray:
    """Make the matrix that refines and extends values along one axis: (nodes of the result, ``size``).

    It interpolates between the nodes with cubic B-splines (``finer=2``), leaves out ``spare`` nodes at both ends, and
    continues the values there, falling smoothly to zero over ``margin`` nodes.
    """
    inner = np.eye(size) if finer == 1 else doubled(np.eye(size), 0)
    inner = inner[spare * finer : len(inner) - spare * finer]
    border = margin * finer
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(border) / border))[:, None]
    return np.concatenate([ramp * inner[0], inner, ramp[::-1] * inner[-1]])


def to_millimeters(ddf: Tensor, grid: ModelGrid) -> np.ndarray:
    """Convert a field (N, d, *S), fraction of the side, to an array (*size reversed, D), LPS millimeters."""
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


def from_millimeters(field: sitk.Image, grid: ModelGrid) -> Tensor:
    """Convert a displacement field to one on the model grid; the reverse of :func:`to_millimeters`.

    Args:
        field: vector image, LPS millimeters; beyond its grid it continues with the values of its border.

    Returns:
        (N, d, *S), fraction of the side; N is the number of slices for a stack, and 1 otherwise. Displacement across
        the slices of a stack is left out.
    """
    resampler = grid.resampler()
    resampler.SetUseNearestNeighborExtrapolator(True)
    along = sitk.GetArrayFromImage(resampler.Execute(field)) @ grid.direction
    d = 2 if grid.stack else grid.ndim
    sides = np.asarray(grid.size[:d]) * np.asarray(grid.spacing[:d])
    order = range(d) if grid.axes == "ijk" else range(d - 1, -1, -1)
    values = np.stack([along[..., k] / sides[k] for k in order], axis=1 if grid.stack else 0)
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return grid._reorder(tensor if grid.stack else tensor[None])


def mean_displacement(ddf: Tensor, grid: ModelGrid, image: sitk.Image) -> float:
    """Compute the mean displacement within an image as a fraction of its longest side.

    Args:
        ddf: (N, d, *S), fraction of the side.
        grid: the model grid on the image.
    """
    extent = image_extent(image)
    lengths = np.linalg.norm(to_millimeters(ddf, grid), axis=-1)
    sides = np.abs(grid.direction.T @ direction_matrix(image)) @ extent
    middle = []
    for nodes, side, spacing in zip(grid.size[::-1], sides[::-1], grid.spacing[::-1], strict=True):
        outside = max(0, int((nodes - side / spacing) / 2))
        middle.append(slice(outside, nodes - outside))
    return float(lengths[tuple(middle)].mean() / extent.max())


def doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate at the nodes and halfway between them along one axis, with cubic B-splines."""
    coefficients = ndimage.spline_filter1d(values, order=3, axis=axis, mode="mirror")
    c = np.moveaxis(coefficients, axis, 0)
    c = np.concatenate([c[1:2], c, c[-2:-1]])
    nodes = np.moveaxis(values, axis, 0)
    out = np.empty((2 * len(nodes) - 1, *nodes.shape[1:]), values.dtype)
    out[0::2] = nodes
    out[1::2] = (c[:-3] + 23 * (c[1:-2] + c[2:-1]) + c[3:]) / 48
    return np.moveaxis(out, 0, axis)


def needs_refinement(image: sitk.Image, grid: ModelGrid) -> bool:
    """Whether the physical field should be finer than the model grid, because the image is much finer."""
    return bool(max(grid.spacing[:2]) >= 1.5 * min(image.GetSpacing()))


def same_grid(a: sitk.Image, b: sitk.Image, tolerance: float = 1e-3) -> bool:
    """Whether two images have their voxels at the same positions, to within ``tolerance`` of a voxel."""
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
    """Compute the lowest and highest corner of an image: (d,) each, LPS millimeters, at the faces of the voxels."""
    d = image.GetDimension()
    corners = []
    for bits in range(2**d):
        index = [(image.GetSize()[a] - 0.5) if bits >> a & 1 else -0.5 for a in range(d)]
        corners.append(image.TransformContinuousIndexToPhysicalPoint(index))
    points = np.asarray(corners)
    return points.min(axis=0), points.max(axis=0)


def overlap(a: sitk.Image, b: sitk.Image) -> float:
    """Compute the overlap of two images' bounding boxes, as a fraction of the smaller box."""
    (a0, a1), (b0, b1) = bounding_box(a), bounding_box(b)
    shared = np.prod(np.clip(np.minimum(a1, b1) - np.maximum(a0, b0), 0, None))
    return float(shared / min(np.prod(a1 - a0), np.prod(b1 - b0)))
