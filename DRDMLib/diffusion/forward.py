"""The forward process: random multi-scale deformations of a chosen level (paper, section 3.1).

Everything runs on the device of the random generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .fields import resize_field, self_compose, warp
from .published import CONTROL_SIZE, NOISE_RATIO, VELOCITY_SCALE

if TYPE_CHECKING:
    from ..models.metadata import ModelMetadata


class Diffusion(NamedTuple):
    """A random deformation and its last step; both (N, d, *S), fraction of the side.

    Attributes:
        ddf: the whole deformation psi_{t:1} of the level.
        step: its last small step psi_t, which the network must undo.
    """

    ddf: Tensor
    step: Tensor


def composition_counts(level: Tensor) -> tuple[Tensor, Tensor]:
    """Count how often the small DVF is composed with itself at ``level``.

    Returns:
        ``n = clamp(floor(2 t^1.3 / 3), 1, 200)`` for the deformation and ``m = floor(t^0.6)`` for its last step.
    """
    t = level.to(torch.float32)
    whole = torch.floor(2.0 * t.pow(1.3) / 3.0).clamp(1, 200)
    step = torch.floor(t.pow(0.6))
    return whole.long(), step.long()


def strength(level: Tensor) -> Tensor:
    """Relative size of the deformation of a level: its count ``n``, not rounded; 0 below level 0."""
    t = level.to(torch.float32)
    return (2.0 * t.clamp(min=0).pow(1.3) / 3.0).clamp(1, 200) * (t >= 0)


@dataclass(frozen=True)
class ForwardProcess:
    """The random deformations that belong to a model (paper, section 3.1).

    Attributes:
        size: side of the image, voxels.
        ndim: 2 or 3.
        velocity_scale: standard deviation ``v`` of the finest noise of one DVF, fraction of the control grid's side.
        amplitude: factor on field values when the central half of the control grid becomes the image; by default
            ``size / control_size``, as published. 2 keeps the shape of the deformation exactly.
        control_size: nodes of the control grid along each axis.
        noise_grids: nodes along each axis of the grids that get noise, see :meth:`dvf`; by default as published.
    """

    size: int
    ndim: int
    velocity_scale: float = VELOCITY_SCALE
    amplitude: float | None = None
    control_size: int = CONTROL_SIZE
    noise_grids: Sequence[int] | None = None

    @staticmethod
    def of(model: ModelMetadata) -> ForwardProcess:
        """The process that a model was trained on."""
        return ForwardProcess(
            model.size, model.ndim, model.velocity_scale, model.amplitude, model.control_size, model.noise_grids
        )

    @property
    def gain(self) -> float:
        """Factor on field values from the control grid to the image."""
        return self.size / self.control_size if self.amplitude is None else self.amplitude

    def invertible(self) -> ForwardProcess:
        """The same process with its gain in the small steps: an invertible map that is scaled need not stay one."""
        return replace(self, velocity_scale=self.velocity_scale * (self.gain / 2), amplitude=2.0)

    def ddf(self, level: Tensor | int, generator: torch.Generator, *, batch: int | None = None) -> Tensor:
        """Draw a random deformation psi_{t:1}.

        Args:
            level: t in 0..T-1; one for all, or a tensor (N,).
            generator: source of all randomness; its device does the work.
            batch: number of fields; by default as many as ``level`` has.

        Returns:
            (N, d, *S), fraction of the side.
        """
        whole, _ = composition_counts(_levels(level, batch))
        _, noisy_dvf = self._velocities(len(whole), generator)
        return self._on_image(self_compose(noisy_dvf, whole))

    def step(self, level: Tensor | int, generator: torch.Generator, *, batch: int | None = None) -> Diffusion:
        """Draw a random deformation and its last step, as training needs them. Arguments as in :meth:`ddf`."""
        whole, last = composition_counts(_levels(level, batch))
        dvf, noisy_dvf = self._velocities(len(whole), generator)
        return Diffusion(self._on_image(self_compose(noisy_dvf, whole)), self._on_image(self_compose(dvf, last)))

    def dvf(self, batch: int, generator: torch.Generator, scale: float | None = None) -> Tensor:
        """Draw small random fields on the control grid: sums of Gaussian noise on grids of 64, 32, 16 and 8 nodes.

        With ``noise_grids`` the sum of those is brought to the control grid by doublings, which makes its smooth parts
        quadratic B-splines and leaves no creases along the lines of a coarse grid.

        Args:
            scale: standard deviation of the noise on the control grid itself, by default ``velocity_scale``; noise on
                an s-grid has ``scale * control_size / s``.

        Returns:
            (N, d, *[control_size] * d), fraction of the control grid's side.
        """
        scale = self.velocity_scale if scale is None else scale
        if self.noise_grids is not None:
            return self._smooth_dvf(self.noise_grids, batch, generator, scale)
        shape = (self.control_size,) * self.ndim
        dvf = torch.zeros((batch, self.ndim, *shape), device=generator.device)
        halvings = min(5, int(math.log2(self.control_size)) - 2)
        for side in (self.control_size >> k for k in range(halvings)):
            dvf += resize_field(self._noise(side, batch, generator, scale), shape)
        return dvf

    def _smooth_dvf(self, grids: Sequence[int], batch: int, generator: torch.Generator, scale: float) -> Tensor:
        side = min(grids)
        dvf = torch.zeros((batch, self.ndim, *[side] * self.ndim), device=generator.device)
        while True:
            if side in grids:
                dvf = dvf + self._noise(side, batch, generator, scale)
            if side == self.control_size:
                return dvf
            side *= 2
            dvf = resize_field(dvf, (side,) * self.ndim)

    def _noise(self, side: int, batch: int, generator: torch.Generator, scale: float) -> Tensor:
        noise = torch.randn((batch, self.ndim, *[side] * self.ndim), generator=generator, device=generator.device)
        return noise * (scale * self.control_size / side)

    def _velocities(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """DVF and DVF': the small field, and the same with a little noise that follows it."""
        dvf = self.dvf(batch, generator)
        noise = self.dvf(batch, generator, self.velocity_scale * NOISE_RATIO)
        return dvf, dvf + warp(noise, dvf)

    def _on_image(self, field: Tensor) -> Tensor:
        return _central_half(field, self.size) * self.gain


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
    """Draw a random deformation of ``level``: (N, d, *S), fraction of the side.

    Args:
        size, ndim, velocity_scale, amplitude, control_size, noise_grids: see :class:`ForwardProcess`.
        level, generator, batch: see :meth:`ForwardProcess.ddf`.
    """
    process = ForwardProcess(size, ndim, velocity_scale, amplitude, control_size, noise_grids)
    return process.ddf(level, generator, batch=batch)


def _levels(level: Tensor | int, batch: int | None) -> Tensor:
    levels = torch.atleast_1d(torch.as_tensor(level))
    result: Tensor = levels.expand(batch if batch is not None else levels.shape[0])
    return result


def _central_half(field: Tensor, size: int) -> Tensor:
    """Cut out the central half of the control grid, as if resized to twice ``size`` and cropped.

    Linear interpolation between cell centers is one matrix for each axis: (N, d, *[C] * d) -> (N, d, *[size] * d).
    """
    nodes = torch.arange(field.shape[-1], device=field.device, dtype=field.dtype)
    image = torch.arange(size, device=field.device, dtype=field.dtype)
    places = (image + size // 2 + 0.5) * (len(nodes) / (2 * size)) - 0.5
    weights = (1 - (places[:, None] - nodes).abs()).clamp(min=0)
    for axis in range(2, field.ndim):
        field = (field.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return field.contiguous()
