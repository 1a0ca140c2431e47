"""Displacement fields as tensors: warp images, compose fields, and make steps invertible.

A field ``u`` has shape (N, d, *S), where *S are the d spatial axes. Channel k is the displacement along spatial axis k,
as a fraction of the side: divided by the number of voxels along that axis, so ``u * side`` is in voxels. A field lies
on the grid of the image that it produces and points to the position that is read in the source image:
``out(x) = in(x + u(x))``. A dense displacement field (``ddf``) is a whole deformation, a displacement velocity field
(``dvf``) a small one that is composed with itself.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest Lipschitz bound of the small steps that are composed: their Jacobian determinants are at least 0.25 in 2D and
# 0.125 in 3D.
STEP_BOUND = 0.5
_SMOOTHINGS = 16

_MODES = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}


def sampling_grid(ddf: Tensor) -> Tensor:
    """Convert a field to the sampling positions that ``torch.nn.functional.grid_sample`` takes.

    Args:
        ddf: (N, d, *S), fraction of the side.

    Returns:
        (N, *S, d), where -1 and 1 are the centers of the outermost voxels; the last axis has the order of
        ``grid_sample`` (fastest axis first).
    """
    ndim = ddf.shape[1]
    coordinates = []
    for axis, side in enumerate(ddf.shape[2:]):
        voxel = _voxels(side, ddf.device, ddf.dtype).view([-1 if a == axis else 1 for a in range(ndim)])
        # The order of operations is as published, because recovery is sensitive to the last bit (see recovery.py).
        coordinates.append((ddf[:, axis] * side).add_(voxel).div_(max((side - 1) / 2.0, 0.5)).sub_(1.0))
    # Each axis has its own part of the memory, which takes less time than alternating numbers.
    return torch.stack(coordinates[::-1], dim=1).movedim(1, -1)


def _voxels(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return 0, 1, ..., ``count - 1``."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A CUDA graph uses the same memory forever, so it must not be that of the cache.
        return torch.arange(count, device=device, dtype=dtype)
    return _counted(count, device, dtype)


@lru_cache(maxsize=64)
def _counted(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return 0, 1, ..., ``count - 1``; the same tensor again at every call."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device, dtype=dtype)


def warp(image: Tensor, ddf: Tensor, *, padding: str = "border", mode: str = "linear") -> Tensor:
    """Warp an image: ``out(x) = image(x + ddf(x))``.

    Args:
        image: (N or 1, C, *S).
        ddf: (N, d, *S), fraction of the side.
        padding: values outside the image: ``"border"`` (its nearest voxel) or ``"zeros"``.
        mode: ``"linear"``, ``"nearest"``, or ``"cubic"`` (in 2D; in 3D it means linear, as PyTorch has no tricubic
            interpolation).

    Returns:
        (N, C, *S).
    """
    if ddf.device.type == "cpu" and ddf.shape[0] == 1 and image.shape[0] == 1 and torch.get_num_threads() > 1:
        return _warp_in_slabs(image, ddf, padding, mode)
    return _resample(image, sampling_grid(ddf), padding, mode)


def _warp_in_slabs(image: Tensor, ddf: Tensor, padding: str, mode: str) -> Tensor:
    """Warp a single image on the CPU, slab by slab.

    PyTorch distributes the items of a batch over its threads, so the slabs are passed as a batch.
    """
    grid = sampling_grid(ddf)[0]
    parts = math.gcd(grid.shape[0], 1 << (torch.get_num_threads() - 1).bit_length())
    warped = _resample(image, grid.view(parts, -1, *grid.shape[1:]), padding, mode)
    return warped.transpose(0, 1).reshape(1, image.shape[1], *grid.shape[:-1])


def _resample(image: Tensor, grid: Tensor, padding: str, mode: str) -> Tensor:
    """Interpolate ``image`` (N or 1, C, *S) at the positions ``grid`` (N, *G, d) of ``sampling_grid``: (N, C, *G).

    ``grid`` may be changed.
    """
    if image.shape[0] != grid.shape[0]:
        image = image.expand(grid.shape[0], *image.shape[1:])
    if mode == "cubic" and grid.shape[-1] == 3:
        mode = "linear"
    if padding == "border" and mode != "cubic":
        # The same arithmetic as padding_mode="border", which is missing on Apple's GPU (MPS).
        grid = grid.clamp(-1.0, 1.0) if grid.requires_grad else grid.clamp_(-1.0, 1.0)
        padding = "zeros"
    return F.grid_sample(image, grid.to(image.dtype), mode=_MODES[mode], padding_mode=padding, align_corners=True)


def compose(first: Tensor, then: Tensor, *, padding: str = "border") -> Tensor:
    """Compose two fields: ``u(x) = then(x) + first(x + then(x))``.

    Warping an image with ``u`` is the same as warping it with ``first``, and then the result with ``then``.

    Args:
        first, then: (N, d, *S), fraction of the side.
        padding: values of ``first`` outside its grid: ``"border"`` or ``"zeros"``.

    Returns:
        (N, d, *S), fraction of the side.
    """
    return warp(first, then, padding=padding).add_(then)


def self_compose(dvf: Tensor, times: Tensor | int) -> Tensor:
    """Compose a field with itself ``times`` times, by repeated squaring (about 2 log2 n compositions instead of n).

    Args:
        dvf: (N, d, *S), fraction of the side.
        times: one number for all fields, or a tensor (N,) with one number for each; 0 gives no displacement.

    Returns:
        (N, d, *S), fraction of the side.
    """
    counts = torch.as_tensor(times).expand(dvf.shape[0]).tolist()
    result = torch.zeros_like(dvf)
    power = dvf
    begun = False
    for bit in range(max(counts).bit_length()):
        if bit > 0:
            power = compose(power, power)
        chosen = [bool(count >> bit & 1) for count in counts]
        if not any(chosen):
            continue
        product = compose(result, power) if begun else power
        if not all(chosen):
            marks = torch.tensor(chosen, device=dvf.device).view(-1, *[1] * (dvf.ndim - 1))
            product = torch.where(marks, product, result)
        result = product
        begun = True
    return result


def lipschitz_bound(ddf: Tensor) -> Tensor:
    """Bound the Lipschitz constant of a field (in the maximum norm). Below 1, ``x + u(x)`` is invertible.

    For each component, the largest absolute one-sided difference along each axis is taken over the whole grid, and
    these are added up over the axes; the result is the largest sum of all components. So the bound also holds between
    the grid points, and outside the grid if the values at the border are continued.

    Args:
        ddf: (N, d, *S), fraction of the side.

    Returns:
        (N,), voxels of displacement per voxel.
    """
    total = torch.zeros(ddf.shape[0], ddf.shape[1], device=ddf.device, dtype=ddf.dtype)
    for axis in range(2, ddf.ndim):
        total += ddf.diff(dim=axis).flatten(2).abs_().amax(dim=2)
    # A tensor of the sides would have to be copied to a GPU.
    return torch.stack([total[:, k] * side for k, side in enumerate(ddf.shape[2:])]).amax(dim=0)


def invertible_step(ddf: Tensor, bound: float = STEP_BOUND) -> Tensor:
    """Make the field of a step invertible by limiting :func:`lipschitz_bound`.

    A field that is too steep is smoothed by means over three voxels, which never make it steeper. If it is still
    too steep after 16 of them, it is scaled down. Each field of the batch is treated separately; one within the
    bound is returned unchanged.

    Args:
        ddf: (N, d, *S), fraction of the side.
        bound: largest allowed :func:`lipschitz_bound`.

    Returns:
        (N, d, *S), fraction of the side.
    """
    ddf = ddf.contiguous()
    one_each = (-1, *[1] * (ddf.ndim - 1))
    for _ in range(_SMOOTHINGS):
        steep = lipschitz_bound(ddf) > bound
        # Nearly all steps are within the bound. Waiting for the GPU here costs less than smoothing without need.
        if not steep.any():
            return ddf
        ddf = torch.where(steep.view(one_each), _smoothed(ddf), ddf)
    return ddf * (bound / lipschitz_bound(ddf).clamp(min=1e-12)).clamp(max=1.0).view(one_each)


def _smoothed(ddf: Tensor) -> Tensor:
    """Return means over three voxels along each axis; outside the grid the values at the border are continued."""
    for axis in range(2, ddf.ndim):
        last = ddf.shape[axis] - 1
        total = ddf.clone()
        total.narrow(axis, 1, last).add_(ddf.narrow(axis, 0, last))
        total.narrow(axis, 0, last).add_(ddf.narrow(axis, 1, last))
        for end in (0, last):
            total.narrow(axis, end, 1).add_(ddf.narrow(axis, end, 1))
        ddf = total.mul_(1 / 3)
    return ddf


def resize_field(ddf: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample a field to another number of grid points over the same extent (linear, cell-centered).

    Args:
        ddf: (N, d, *S), fraction of the side; the unit does not depend on the grid, so values are not rescaled.
        shape: number of grid points along each axis.

    Returns:
        (N, d, *shape), fraction of the side.
    """
    if _can_be_doubled(ddf, shape):
        for axis in (4, 3, 2):
            ddf = _doubled(ddf, axis)
        return ddf
    mode = "bilinear" if ddf.shape[1] == 2 else "trilinear"
    return F.interpolate(ddf, size=shape, mode=mode, align_corners=False)


def _can_be_doubled(ddf: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether ``resize_field`` can double a field in 3D axis by axis, which computes no gradients."""
    return (
        ddf.device.type == "cpu"
        and ddf.dtype == torch.float32
        and ddf.ndim == 5
        and min(ddf.shape) > 0
        and ddf.is_contiguous()
        and all(side == 2 * before for side, before in zip(shape, ddf.shape[2:], strict=True))
        and not (torch.is_grad_enabled() and ddf.requires_grad)
    )


def _doubled(values: Tensor, axis: int) -> Tensor:
    """Double the number of points along an axis with linear interpolation, cell-centered.

    The order of operations is that of ``torch.nn.functional.interpolate``, which gives the same bits but takes several
    times as long in 3D: the product with 0.25 is exact or rounded as there, and that with 0.75 is added the same way.
    """
    side = values.shape[axis]
    result = values.new_empty([2 * n if a == axis else n for a, n in enumerate(values.shape)])
    result.narrow(axis, 0, 1).copy_(values.narrow(axis, 0, 1))
    result.narrow(axis, 2 * side - 1, 1).copy_(values.narrow(axis, side - 1, 1))
    before, after = values.narrow(axis, 0, side - 1), values.narrow(axis, 1, side - 1)
    pairs = result.narrow(axis, 1, 2 * side - 2).unflatten(axis, (side - 1, 2))
    for which, (of_before, of_after) in enumerate(((0.75, 0.25), (0.25, 0.75))):
        torch.mul(after, of_after, out=pairs.select(axis + 1, which)).add_(before, alpha=of_before)
    return result
