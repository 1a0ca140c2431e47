"""Displacement fields as tensors: warp images, compose fields, and make steps invertible.

A field ``u`` has shape (N, d, *S), where *S are the d spatial axes. Channel k is the displacement along spatial axis k,
as a fraction of the side: divided by the number of voxels along that axis, so ``u * side`` is in voxels. A field lies
on the grid of the image that it produces and points to the position that is read in the source image:
``out(x) = in(x + u(x))``. A dense displacement field (``ddf``) is a whole deformation, a displacement velocity field
(``dvf``) a small one that is composed with itself.
"""

from __future__ import annotations

import math

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
        view = [1] * (ndim + 1)
        view[axis + 1] = side
        voxel = torch.arange(side, device=ddf.device, dtype=ddf.dtype).view(view)
        # The order of operations is as published, because recovery is sensitive to the last bit (see recovery.py).
        coordinates.append((ddf[:, axis] * side + voxel) / max((side - 1) / 2.0, 0.5) - 1.0)
    return torch.stack(coordinates[::-1], dim=-1)


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
    """Interpolate ``image`` (N or 1, C, *S) at the positions ``grid`` (N, *G, d) of ``sampling_grid``: (N, C, *G)."""
    if image.shape[0] != grid.shape[0]:
        image = image.expand(grid.shape[0], *image.shape[1:])
    if mode == "cubic" and grid.shape[-1] == 3:
        mode = "linear"
    if padding == "border" and mode != "cubic":
        # The same arithmetic as padding_mode="border", which is missing on Apple's GPU (MPS).
        grid = grid.clamp(-1.0, 1.0)
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
        marks = torch.tensor(chosen, device=dvf.device).view(-1, *[1] * (dvf.ndim - 1))
        result = product if all(chosen) else torch.where(marks, product, result)
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
    sides = torch.tensor(ddf.shape[2:], device=ddf.device, dtype=ddf.dtype)
    total = torch.zeros(ddf.shape[0], ddf.shape[1], device=ddf.device, dtype=ddf.dtype)
    for axis in range(2, ddf.ndim):
        total += ddf.diff(dim=axis).flatten(2).abs_().amax(dim=2)
    return (total * sides).amax(dim=1)


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
    mode = "bilinear" if ddf.shape[1] == 2 else "trilinear"
    return F.interpolate(ddf, size=shape, mode=mode, align_corners=False)
