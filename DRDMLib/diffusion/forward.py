"""The forward process: random multi-scale deformations of a chosen level (paper, section 3.1).

Everything runs on the device of the generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .fields import resize_field, self_compose, warp
from .published import CONTROL_SIZE, NOISE_RATIO, VELOCITY_SCALE


class Diffusion(NamedTuple):
    """What the forward process draws for one level.

    ``ddf`` is the whole deformation psi_{t:1} of the level, ``step`` the last small one psi_t, which the network must
    undo; both (N, d, *S), fraction of the side.
    """

    ddf: Tensor
    step: Tensor


def composition_counts(level: Tensor) -> tuple[Tensor, Tensor]:
    """How often the small DVF is composed with itself at ``level``.

    Returns:
        ``n = clamp(floor(2 t^1.3 / 3), 1, 200)`` for the deformation and ``m = floor(t^0.6)`` for its last step.
    """
    t = level.to(torch.float32)
    whole = torch.floor(2.0 * t.pow(1.3) / 3.0).clamp(1, 200)
    step = torch.floor(t.pow(0.6))
    return whole.long(), step.long()


def strength(level: Tensor) -> Tensor:
    """How large the deformation of a level is beside others: its count ``n``, not rounded; 0 below level 0."""
    t = level.to(torch.float32)
    return (2.0 * t.clamp(min=0).pow(1.3) / 3.0).clamp(1, 200) * (t >= 0)


def random_dvf(
    batch: int,
    ndim: int,
    generator: torch.Generator,
    *,
    scale: float,
    control_size: int = CONTROL_SIZE,
    noise_grids: Sequence[int] | None = None,
) -> Tensor:
    """One small random field on the control grid: the sum of Gaussian noise on grids of 64, 32, 16 and 8 nodes a side.

    Args:
        scale: standard deviation ``v`` of the noise on the control grid itself, fraction of that grid's side; noise on
            an s-grid has ``v * control_size / s``.
        noise_grids: nodes a side of the grids that get noise, by default those four, as published. The sum is then
            brought to the control grid by doublings, which makes its smooth parts (quadratic B-splines) and leaves no
            creases along a coarse grid's lines.
    """
    device = generator.device
    halvings = min(5, int(math.log2(control_size)) - 2)
    shape = (control_size,) * ndim
    if noise_grids is not None:
        return _smooth_dvf(batch, ndim, generator, scale, control_size, noise_grids)
    dvf = torch.zeros((batch, ndim, *shape), device=device)
    for side in (control_size >> k for k in range(halvings)):
        noise = torch.randn((batch, ndim, *[side] * ndim), generator=generator, device=device)
        dvf += resize_field(noise * (scale * control_size / side), shape)
    return dvf


def _smooth_dvf(
    batch: int, ndim: int, generator: torch.Generator, scale: float, control_size: int, noise_grids: Sequence[int]
) -> Tensor:
    side = min(noise_grids)
    dvf = torch.zeros((batch, ndim, *[side] * ndim), device=generator.device)
    while True:
        if side in noise_grids:
            noise = torch.randn(dvf.shape, generator=generator, device=generator.device)
            dvf = dvf + noise * (scale * control_size / side)
        if side == control_size:
            return dvf
        side *= 2
        dvf = resize_field(dvf, (side,) * ndim)


def diffuse(
    size: int,
    ndim: int,
    level: Tensor | int,
    generator: torch.Generator,
    *,
    batch: int | None = None,
    velocity_scale: float = VELOCITY_SCALE,
    amplitude: float | None = None,
    control_size: int = CONTROL_SIZE,
    noise_grids: Sequence[int] | None = None,
) -> Diffusion:
    """Draw a random deformation of ``level`` and its last step (paper, section 3.1, equations of the forward process).

    Args:
        size: side of the image, voxels.
        ndim: 2 or 3.
        level: t in 0..T-1; one for all, or a tensor (N,).
        generator: source of all randomness; its device is where the work is done.
        batch: number of fields; by default as many as ``level`` has.
        velocity_scale: standard deviation of the finest noise of one DVF.
        amplitude: what field values are multiplied by when the central half of the control grid becomes the image;
            by default ``size / control_size``, as published. 2 keeps the shape of the deformation exactly.
        control_size: nodes of the control grid per axis.
        noise_grids: see :func:`random_dvf`.
    """
    whole, last = composition_counts(_levels(level, batch))
    dvf, noisy_dvf = _draw(len(whole), ndim, generator, velocity_scale, control_size, noise_grids)
    gain = size / control_size if amplitude is None else amplitude
    ddf, step = self_compose(noisy_dvf, whole), self_compose(dvf, last)
    return Diffusion(_central_half(ddf, size) * gain, _central_half(step, size) * gain)


def random_ddf(
    size: int,
    ndim: int,
    level: Tensor | int,
    generator: torch.Generator,
    *,
    batch: int | None = None,
    velocity_scale: float = VELOCITY_SCALE,
    amplitude: float | None = None,
    control_size: int = CONTROL_SIZE,
    noise_grids: Sequence[int] | None = None,
) -> Tensor:
    """A random deformation of ``level``: (N, d, *S), fraction of the side. Arguments as in :func:`diffuse`."""
    whole, _ = composition_counts(_levels(level, batch))
    _, noisy_dvf = _draw(len(whole), ndim, generator, velocity_scale, control_size, noise_grids)
    gain = size / control_size if amplitude is None else amplitude
    return _central_half(self_compose(noisy_dvf, whole), size) * gain


def _levels(level: Tensor | int, batch: int | None) -> Tensor:
    levels = torch.atleast_1d(torch.as_tensor(level))
    return levels.expand(batch if batch is not None else levels.shape[0])


def _draw(
    count: int,
    ndim: int,
    generator: torch.Generator,
    scale: float,
    control_size: int,
    noise_grids: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """DVF and DVF': the small field, and the same with a little noise that follows it."""
    draw = partial(random_dvf, count, ndim, generator, control_size=control_size, noise_grids=noise_grids)
    dvf, noise = draw(scale=scale), draw(scale=scale * NOISE_RATIO)
    return dvf, dvf + warp(noise, dvf)


def _central_half(field: Tensor, size: int) -> Tensor:
    """The central half of the control grid, ``size`` nodes a side: as if resized to twice the size and cropped.

    Linear interpolation between cell centres is one matrix for each axis: (N, d, *[C] * d) -> (N, d, *[size] * d).
    """
    nodes = torch.arange(field.shape[-1], device=field.device, dtype=field.dtype)
    image = torch.arange(size, device=field.device, dtype=field.dtype)
    places = (image + size // 2 + 0.5) * (len(nodes) / (2 * size)) - 0.5
    weights = (1 - (places[:, None] - nodes).abs()).clamp(min=0)
    for axis in range(2, field.ndim):
        field = (field.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return field.contiguous()
