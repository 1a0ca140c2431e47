"""Losses of Algorithm 1 (paper, section 3.4). All fields are (N, d, *S), in fractions of the side.

``carried`` is the prediction, resampled by the step that it should undo.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.fields import compose, warp
from ..spatial.jacobian import determinant


class LossTerms(NamedTuple):
    """The weighted sum to minimize, and its parts."""

    total: Tensor
    distance: Tensor
    angle: Tensor
    regularity: Tensor


class RelativeDistance:
    """Relative squared error, voxel by voxel: ``|100 p + 100 psi|^2 / (|100 psi|^2 + 1e-3)``."""

    def __call__(self, carried: Tensor, step: Tensor) -> Tensor:
        error = (100 * (carried + step)).square().sum(dim=1)
        return (error / ((100 * step).square().sum(dim=1) + 1e-3)).mean()


class EnergyDistance:
    """Squared error relative to the energy of the whole step, sample by sample.

    :class:`RelativeDistance` weights every voxel by its own displacement, which pulls predictions toward zero. The
    minimizer of this loss is the conditional mean of the step.
    """

    def __call__(self, carried: Tensor, step: Tensor) -> Tensor:
        error = (100 * (carried + step)).square().flatten(1).mean(dim=1)
        return (error / ((100 * step).square().flatten(1).mean(dim=1) + 1e-5)).mean()


class Residual:
    """Energy and gradient energy of the deformation that remains after a correction, relative to the original ones.

    ``|u|^2 / |psi|^2 + |grad u|^2 / |grad psi|^2``, where ``u`` is the deformation ``psi`` followed by the correction.
    The conditional mean of the deformation to undo minimizes both terms. The second term gives small scales, which
    distort a shape rather than move it, as much weight as large ones. Both terms are computed in every second voxel
    along each axis, because the network's field is not finer.
    """

    def __call__(self, correction: Tensor, deformation: Tensor) -> LossTerms:
        every = (slice(None), slice(None)) + (slice(None, None, 2),) * correction.shape[1]
        correction, deformation = correction[every], deformation[every]
        left = compose(deformation, correction)
        distance = (_energy(left) / (_energy(deformation) + 1e-9)).mean()
        steep = (_steepness(left) / (_steepness(deformation) + 1e-9)).mean()
        return LossTerms(distance + steep, distance, torch.zeros_like(distance), steep)


def _energy(field: Tensor) -> Tensor:
    return field.square().flatten(1).mean(dim=1)


def _steepness(field: Tensor) -> Tensor:
    parts = [field.diff(dim=axis).square().flatten(1).mean(dim=1) for axis in range(2, field.ndim)]
    return torch.stack(parts).sum(dim=0)


class Angle:
    """Mean cosine between prediction and step; the best value is -1."""

    def __call__(self, carried: Tensor, step: Tensor) -> Tensor:
        p, s = carried * 1e5, step * 1e5
        dot = (p * s).sum(dim=1)
        return (dot / torch.sqrt(p.square().sum(dim=1) * s.square().sum(dim=1) + 1e-4)).mean()


class Regularity:
    """Penalty on roughness above a threshold and on negative determinants of the forward-difference matrix.

    The mean over axes of ``relu(|forward difference| - 1e-4)``, plus twice ``mean(relu(-det))``.
    """

    def __call__(self, prediction: Tensor) -> Tensor:
        ndim = prediction.shape[1]
        differences = [prediction.diff(dim=axis + 2) for axis in range(ndim)]
        rough = sum((d.abs() - 1e-4).relu().mean() for d in differences) / ndim
        common = tuple(slice(None, side - 1) for side in prediction.shape[2:])
        columns = [d[(slice(None), slice(None)) + common].unbind(1) for d in differences]
        result: Tensor = rough + 2 * (-determinant(columns)).relu().mean()
        return result


class RecoveryLoss:
    """The published training loss: distance + angle + 10 x regularity.

    Args:
        distance: ``"published"`` or ``"energy"``.
    """

    def __init__(self, distance: str = "published") -> None:
        self.distance = RelativeDistance() if distance == "published" else EnergyDistance()
        self.angle = Angle()
        self.regularity = Regularity()

    def __call__(self, prediction: Tensor, step: Tensor) -> LossTerms:
        """Return the loss of ``prediction``, which should undo ``step``."""
        carried = warp(prediction, step)
        distance = self.distance(carried, step)
        angle = self.angle(carried, step)
        regularity = self.regularity(prediction)
        return LossTerms(distance + angle + 10 * regularity, distance, angle, regularity)
