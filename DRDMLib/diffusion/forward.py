"""The forward process: random multi-scale deformations of a given level (paper, section 3.1).

Everything is computed on the device of the random generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError
from .fields import resize_field, self_compose, warp
from .published import CONTROL_SIZE, NOISE_RATIO, VELOCITY_SCALE, noise_sides
from .slip import SlipPlanes

if TYPE_CHECKING:
    from ..models.metadata import ModelMetadata


Generators = torch.Generator | Sequence[torch.Generator]

# Distance from a plane over which normal displacements grow to their full size, fraction of the side.
_RAMP = 0.25


class Diffusion(NamedTuple):
    """A random deformation and its last step; both (N, d, *S), fraction of the side.

    Attributes:
        ddf: the complete deformation psi_{t:1} of the level.
        step: its last small step psi_t, which the network must undo.
    """

    ddf: Tensor
    step: Tensor


def composition_counts(level: Tensor) -> tuple[Tensor, Tensor]:
    """Compute how often the small field (DVF) is composed with itself at a level.

    Args:
        level: (N,), t in 0..T-1.

    Returns:
        ``n = clamp(floor(2 t^1.3 / 3), 1, 200)`` for the complete deformation and ``m = floor(t^0.6)`` for its last
        step, (N,) each.
    """
    t = level.to(torch.float32)
    full = torch.floor(2.0 * t.pow(1.3) / 3.0).clamp(1, 200)
    step = torch.floor(t.pow(0.6))
    return full.long(), step.long()


def strength(level: Tensor) -> Tensor:
    """Compute the relative size of the deformation of a level: (N,) -> (N,).

    It is the count ``n`` of :func:`composition_counts` without rounding; 0 below level 0.
    """
    t = level.to(torch.float32)
    return (2.0 * t.clamp(min=0).pow(1.3) / 3.0).clamp(1, 200) * (t >= 0)


@dataclass(frozen=True)
class ForwardProcess:
    """The random deformations that belong to a model (paper, section 3.1).

    Attributes:
        size: side of the image, voxels.
        ndim: dimension of the image, 2 or 3.
        velocity_scale: standard deviation ``v`` of the finest noise of one DVF, as a fraction of the control grid's
            side.
        amplitude: factor on field values when the central half of the control grid is resampled to the image;
            ``None`` means ``size / control_size``, as published. 2 keeps the shape of the deformation exactly.
        control_size: number of nodes of the control grid along each axis.
        noise_grids: number of nodes along each axis of each grid that gets noise, see :meth:`dvf`; ``None`` means as
            published.
        planes: planes that the deformation does not cross.

    Raises:
        SettingError: a noise grid cannot be doubled to the control grid.
    """

    size: int
    ndim: int
    velocity_scale: float = VELOCITY_SCALE
    amplitude: float | None = None
    control_size: int = CONTROL_SIZE
    noise_grids: Sequence[int] | None = None
    planes: SlipPlanes | None = None

    def __post_init__(self) -> None:
        if self.noise_grids is not None and not set(self.noise_grids) <= set(noise_sides(self.control_size)):
            raise SettingError(
                f"Noise grids {list(self.noise_grids)} do not fit a control grid of {self.control_size} nodes; use "
                f"some of {noise_sides(self.control_size)}."
            )

    @staticmethod
    def of(model: ModelMetadata) -> ForwardProcess:
        """Return the process that a model was trained on."""
        return ForwardProcess(
            model.size, model.ndim, model.velocity_scale, model.amplitude, model.control_size, model.noise_grids
        )

    @property
    def gain(self) -> float:
        """Factor on field values from the control grid to the image."""
        return self.size / self.control_size if self.amplitude is None else self.amplitude

    def invertible(self) -> ForwardProcess:
        """Return the same process with its gain moved into the small steps.

        Scaling a deformation at the end could make it fold; composing larger steps does not.
        """
        return replace(self, velocity_scale=self.velocity_scale * (self.gain / 2), amplitude=2.0)

    def ddf(self, level: Tensor | int, generator: Generators, *, batch: int | None = None) -> Tensor:
        """Draw a random deformation psi_{t:1}.

        Args:
            level: t in 0..T-1; one level for all fields, or a tensor (N,).
            generator: source of all random numbers; the fields are computed on its device. Or one for each field, which
                gives the fields that each of them gives alone.
            batch: number of fields; by default the number of levels.

        Returns:
            (N, d, *S), fraction of the side.
        """
        full, _ = composition_counts(_levels(level, batch))
        _, noisy_dvf = self._velocities(len(full), generator)
        deformed = self_compose(noisy_dvf, full)
        if isinstance(generator, Sequence):
            # The last bits of a product of matrices depend on their size.
            return torch.cat([self._on_image(one) for one in deformed.split(1)])
        return self._on_image(deformed)

    def step(self, level: Tensor | int, generator: torch.Generator, *, batch: int | None = None) -> Diffusion:
        """Draw a random deformation and its last step, for training. Arguments as in :meth:`ddf`."""
        full, last = composition_counts(_levels(level, batch))
        dvf, noisy_dvf = self._velocities(len(full), generator)
        return Diffusion(self._on_image(self_compose(noisy_dvf, full)), self._on_image(self_compose(dvf, last)))

    def dvf(self, batch: int, generator: Generators, scale: float | None = None) -> Tensor:
        """Draw small random fields (DVFs) on the control grid: sums of Gaussian noise on grids of 64, 32, 16, 8 nodes.

        With ``noise_grids``, noise on those grids is summed instead, and brought to the control grid by repeated
        doubling. Its smooth parts are then quadratic B-splines, without creases along the lines of a coarse grid.

        Args:
            batch: number of fields.
            generator: source of all random numbers, or one for each field.
            scale: standard deviation of the noise on the control grid itself, by default ``velocity_scale``; noise on a
                grid of s nodes has ``scale * control_size / s``.

        Returns:
            (N, d, *[control_size] * d), fraction of the control grid's side.
        """
        scale = self.velocity_scale if scale is None else scale
        if self.noise_grids is not None:
            return self._smooth_dvf(self.noise_grids, batch, generator, scale)
        shape = (self.control_size,) * self.ndim
        dvf = torch.zeros((batch, self.ndim, *shape), device=_device_of(generator))
        halvings = min(5, int(math.log2(self.control_size)) - 2)
        for side in (self.control_size >> k for k in range(halvings)):
            dvf += resize_field(self._noise(side, batch, generator, scale), shape)
        return dvf

    def _smooth_dvf(self, grids: Sequence[int], batch: int, generator: Generators, scale: float) -> Tensor:
        side = min(grids)
        dvf = torch.zeros((batch, self.ndim, *[side] * self.ndim), device=_device_of(generator))
        while True:
            if side in grids:
                dvf = dvf + self._noise(side, batch, generator, scale)
            if side == self.control_size:
                return dvf
            side *= 2
            dvf = resize_field(dvf, (side,) * self.ndim)

    def _noise(self, side: int, batch: int, generator: Generators, scale: float) -> Tensor:
        shape = (self.ndim, *[side] * self.ndim)
        if isinstance(generator, Sequence):
            noise = torch.stack([torch.randn(shape, generator=own, device=own.device) for own in generator])
        else:
            noise = torch.randn((batch, *shape), generator=generator, device=generator.device)
        return noise * (scale * self.control_size / side)

    def _velocities(self, batch: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """Draw DVF and DVF' of the paper: the small field, and the same with weak noise composed with it."""
        dvf = self.dvf(batch, generator)
        noise = self.dvf(batch, generator, self.velocity_scale * NOISE_RATIO)
        if self.planes is not None:
            dvf, noise = (self.planes.hold(field, _RAMP, padded=True) for field in (dvf, noise))
        return dvf, dvf + warp(noise, dvf)

    def _on_image(self, field: Tensor) -> Tensor:
        field = _central_half(field, self.size) * self.gain
        return field if self.planes is None else self.planes.hold(field)


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
    """Draw a random deformation of a level.

    Args:
        size, ndim, velocity_scale, amplitude, control_size, noise_grids: see :class:`ForwardProcess`.
        level, generator, batch: see :meth:`ForwardProcess.ddf`.

    Returns:
        (N, d, *S), fraction of the side.
    """
    process = ForwardProcess(size, ndim, velocity_scale, amplitude, control_size, noise_grids)
    return process.ddf(level, generator, batch=batch)


def _device_of(generator: Generators) -> torch.device:
    return (generator[0] if isinstance(generator, Sequence) else generator).device


def _levels(level: Tensor | int, batch: int | None) -> Tensor:
    levels = torch.atleast_1d(torch.as_tensor(level))
    result: Tensor = levels.expand(batch if batch is not None else levels.shape[0])
    return result


def _central_half(field: Tensor, size: int) -> Tensor:
    """Cut out the central half of the control grid, as if it were resized to twice ``size`` and cropped.

    (N, d, *[C] * d) -> (N, d, *[size] * d). The linear interpolation between cell centers is one matrix for each axis.
    """
    nodes = torch.arange(field.shape[-1], device=field.device, dtype=field.dtype)
    image = torch.arange(size, device=field.device, dtype=field.dtype)
    positions = (image + size // 2 + 0.5) * (len(nodes) / (2 * size)) - 0.5
    weights = (1 - (positions[:, None] - nodes).abs()).clamp(min=0)
    for axis in range(2, field.ndim):
        field = (field.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return field.contiguous()
