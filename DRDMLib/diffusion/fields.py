"""Displacement fields as tensors: warp, compose, and compose with itself.

A field ``u`` has shape (N, d, *spatial); channel k moves along spatial axis k; its unit is the fraction of the image's
side along that axis, so ``u * side`` is in voxels. It lives on the grid of the image that it produces and points to
where to read: ``out(x) = in(x + u(x))``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the small steps that are composed: their determinants are then above 0.25 in 2D, 0.125 in 3D.
STEP_BOUND = 0.5
_SMOOTHINGS = 16

_MODES = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}


def sampling_grid(ddf: Tensor) -> Tensor:
    """Where ``ddf`` reads, in the coordinates of ``grid_sample`` (-1 and 1 are the centres of the outermost voxels).

    Args:
        ddf: (N, d, *S), fraction of the side.

    Returns:
        (N, *S, d), last axis in the order of ``grid_sample`` (fastest axis first).
    """
    ndim = ddf.shape[1]
    coordinates = []
    for axis, side in enumerate(ddf.shape[2:]):
        view = [1] * (ndim + 1)
        view[axis + 1] = side
        voxel = torch.arange(side, device=ddf.device, dtype=ddf.dtype).view(view)
        # The order of operations is the published one: the recovery is sensitive to the last bit (see recovery.py).
        coordinates.append((ddf[:, axis] * side + voxel) / max((side - 1) / 2.0, 0.5) - 1.0)
    return torch.stack(coordinates[::-1], dim=-1)


def warp(image: Tensor, ddf: Tensor, *, padding: str = "border", mode: str = "linear") -> Tensor:
    """Resample ``image`` where ``ddf`` points: ``out(x) = image(x + ddf(x))``.

    Args:
        image: (N or 1, C, *S).
        ddf: (N, d, *S), fraction of the side.
        padding: what lies outside the image: ``"border"`` (its nearest voxel) or ``"zeros"``.
        mode: ``"linear"``, ``"nearest"``, or ``"cubic"`` (2D; 3D falls back to linear, as torch has no tricubic).

    Returns:
        (N, C, *S).
    """
    if ddf.device.type == "cpu" and ddf.shape[0] == 1 and image.shape[0] == 1 and torch.get_num_threads() > 1:
        return _warp_in_slabs(image, ddf, padding, mode)
    return _resample(image, sampling_grid(ddf), padding, mode)


def _warp_in_slabs(image: Tensor, ddf: Tensor, padding: str, mode: str) -> Tensor:
    """The same for a single field on a processor: torch shares work among threads by the batch, so slabs make one."""
    grid = sampling_grid(ddf)[0]
    parts = math.gcd(grid.shape[0], 1 << (torch.get_num_threads() - 1).bit_length())
    warped = _resample(image, grid.view(parts, -1, *grid.shape[1:]), padding, mode)
    return warped.transpose(0, 1).reshape(1, image.shape[1], *grid.shape[:-1])


def _resample(image: Tensor, grid: Tensor, padding: str, mode: str) -> Tensor:
    """``image`` (N or 1, C, *S) at the places ``grid`` (N, *G, d) of ``sampling_grid``: (N, C, *G)."""
    if image.shape[0] != grid.shape[0]:
        image = image.expand(grid.shape[0], *image.shape[1:])
    if mode == "cubic" and grid.shape[-1] == 3:
        mode = "linear"
    if padding == "border" and mode != "cubic":
        # The same arithmetic as padding_mode="border", which Apple's MPS lacks.
        grid = grid.clamp(-1.0, 1.0)
        padding = "zeros"
    return F.grid_sample(image, grid.to(image.dtype), mode=_MODES[mode], padding_mode=padding, align_corners=True)


def compose(first: Tensor, then: Tensor, *, padding: str = "border") -> Tensor:
    """The field of "first ``first``, then ``then`` on its result": ``u(x) = then(x) + first(x + then(x))``.

    Args:
        first, then: (N, d, *S), fraction of the side.
        padding: what ``first`` is outside its grid: ``"border"`` or ``"zeros"``.
    """
    return warp(first, then, padding=padding).add_(then)


def self_compose(dvf: Tensor, times: Tensor | int) -> Tensor:
    """``dvf`` composed with itself ``times`` times, by repeated squaring (about 2 log2 n compositions, not n).

    Args:
        dvf: (N, d, *S), fraction of the side.
        times: one number for all, or a tensor (N,) with one for each; 0 gives no displacement.
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


def steepness(ddf: Tensor) -> Tensor:
    """Largest sum over the axes of a component's one-sided differences, voxels a voxel: (N, d, *S) -> (N,).

    Each axis contributes its largest anywhere, so this bounds the field's Lipschitz constant (largest-component norm),
    also between the nodes and where the border's values are continued. Below 1, ``x + u(x)`` is invertible.
    """
    sides = torch.tensor(ddf.shape[2:], device=ddf.device, dtype=ddf.dtype)
    total = torch.zeros(ddf.shape[0], ddf.shape[1], device=ddf.device, dtype=ddf.dtype)
    for axis in range(2, ddf.ndim):
        total += ddf.diff(dim=axis).flatten(2).abs_().amax(dim=2)
    return (total * sides).amax(dim=1)


def invertible_step(ddf: Tensor, bound: float = STEP_BOUND) -> Tensor:
    """``ddf``, or where it is too steep to be surely invertible, a smoother one whose steepness is at most ``bound``.

    Means over three voxels never make a field steeper; what is left after some of them is scaled down. Each field of
    the batch is treated alone, and one within the bound is returned as it is.
    """
    ddf = ddf.contiguous()
    one_each = (-1, *[1] * (ddf.ndim - 1))
    for _ in range(_SMOOTHINGS):
        steep = steepness(ddf) > bound
        # Steps are gentle nearly always: to ask costs a GPU's queue less than hundreds of kernels that change nothing.
        if not steep.any():
            return ddf
        ddf = torch.where(steep.view(one_each), _smoothed(ddf), ddf)
    return ddf * (bound / steepness(ddf).clamp(min=1e-12)).clamp(max=1.0).view(one_each)


def _smoothed(ddf: Tensor) -> Tensor:
    """Means over three voxels along each axis; the border's values go on beyond it."""
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
    """``ddf`` on another number of grid points over the same extent (linear, cell-centred); values are unchanged."""
    mode = "bilinear" if ddf.shape[1] == 2 else "trilinear"
    return F.interpolate(ddf, size=shape, mode=mode, align_corners=False)
