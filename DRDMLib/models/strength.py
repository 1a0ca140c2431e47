"""Words for levels, which mean about the same for every model: subtle, medium, strong.

The same level T' moves a head by 4 % of its side and a slice by 2 %, because each model has its own random field and
undoes its own share of it. A word stands for a share of how much two people of the anatomy differ. With the size of the
model's random field, and with how much of it recovery leaves, this gives a level. Measured figures are on the page
``docs/fit.md``.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from ..diffusion.forward import ForwardProcess, composition_counts
from ..levels import MEANING, Level
from ..settings import DeformationSettings
from .catalogue import CATALOGUE, Entry
from .metadata import ModelMetadata

# Mean distance between matching surfaces of two people, as a fraction of the image's longest side, where it is not
# known for the anatomy. Measured for hearts 0.039, prostates 0.043, hippocampi 0.034 and whole heads 0.024.
PEOPLE_DIFFER = 0.035
# Mean displacement that recovery approaches as the random field gets stronger, fraction of the side, where it was not
# measured for the model.
REACH = 0.12
# Largest displacement of each word as a share of the reach: near the reach, stronger random fields leave waves, but
# hardly move anything farther.
_OF_REACH = {"subtle": 0.25, "medium": 0.4, "strong": 0.6}
# Random fields that are drawn to measure their size, and voxels along each side of them.
_FIELDS, _SIDE = 16, 16


def people_differ(metadata: ModelMetadata) -> float:
    """Return how much two people of a model's anatomy differ, as a fraction of the longest side of the image."""
    entry = _shipped(metadata)
    return metadata.people_differ or (entry.people_differ if entry is not None else None) or PEOPLE_DIFFER


def reach(metadata: ModelMetadata) -> float:
    """Return the mean displacement that the strongest deformations of a model approach, fraction of the side."""
    entry = _shipped(metadata)
    return metadata.reach or (entry.reach if entry is not None else None) or REACH


def mean_displacement(level: int, metadata: ModelMetadata) -> float:
    """Estimate the mean displacement of recovered deformations of a level.

    A random field ``d`` leaves ``d / (1 + d / reach)``, which describes the shipped models to a tenth.

    Args:
        level: T', 0..T-1.

    Returns:
        Fraction of the longest side of the image (with a region, of the region).
    """
    return 0.0 if level <= 0 else _recovered(torch.tensor([level]), metadata)[0]


def _recovered(levels: torch.Tensor, metadata: ModelMetadata) -> list[float]:
    drawn = composition_counts(levels)[0].double() * _one_step(metadata)
    found: list[float] = (drawn / (1 + drawn / reach(metadata))).tolist()
    return found


def _shipped(metadata: ModelMetadata) -> Entry | None:
    return next((entry for entry in CATALOGUE if entry.name == metadata.name), None)


def level_of(level: Level, metadata: ModelMetadata) -> int:
    """Return the number of a level for a model; numbers stay as they are.

    Args:
        level: a number, or one of :data:`DRDMLib.levels.STRENGTHS`.
    """
    if not isinstance(level, str):
        return level
    wanted = min(MEANING[level] * people_differ(metadata), _OF_REACH[level] * reach(metadata))
    numbers = range(1, metadata.timesteps)
    found = _recovered(torch.tensor(numbers), metadata)
    return min(zip(numbers, found, strict=True), key=lambda one: abs(one[1] - wanted))[0]


def with_level(settings: DeformationSettings, metadata: ModelMetadata) -> DeformationSettings:
    """Return the settings with the level as a number for this model."""
    return dataclasses.replace(settings, level=level_of(settings.level, metadata))


def _one_step(metadata: ModelMetadata) -> float:
    """Return the mean displacement of a random field that is composed once, fraction of the side."""
    process = dataclasses.replace(ForwardProcess.of(metadata).invertible(), size=_SIDE)
    grids = None if process.noise_grids is None else tuple(process.noise_grids)
    return _mean_length(process.ndim, process.velocity_scale, process.control_size, grids)


@functools.lru_cache(maxsize=64)
def _mean_length(ndim: int, velocity_scale: float, control_size: int, noise_grids: tuple[int, ...] | None) -> float:
    process = ForwardProcess(_SIDE, ndim, velocity_scale, 2.0, control_size, noise_grids)
    fields = process.ddf(0, torch.Generator().manual_seed(0), batch=_FIELDS)
    return float(fields.double().square().sum(dim=1).sqrt().mean())
