"""Make displacement fields on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..deformation import DEFAULT_SETTINGS, deform_all, model_for
from ..models.model import Model
from ..settings import DeformationSettings
from .world import WorldField, image_of, world_field


class FieldGenerator:
    """Make a new field for every draw; on a CPU this takes seconds.

    Example:
        >>> source = FieldGenerator("brain-t1-3d", levels=(20, 40, 60))

    Args:
        model: a loaded model, its name or its path; by default the best one for the first image.
        levels: T' values; each draw uses one of them.
        settings: settings of the deformations, except for the level.
        device: device of the network; use ``"cpu"`` in worker processes of a DataLoader.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        levels: Sequence[int] = (20, 40, 60),
        settings: DeformationSettings = DEFAULT_SETTINGS,
        device: str | torch.device = "auto",
    ) -> None:
        self.model = model
        self.levels, self.settings, self.device = tuple(levels), settings, device

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """Make a field, see :class:`DRDMLib.loaders.world.FieldSource`.

        Raises:
            ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
        """
        volume = image_of(image[0], affine)
        if not isinstance(self.model, Model):
            self.model = model_for(volume, self.model, self.device)
        level = self.levels[seed % len(self.levels)]
        settings = replace(self.settings, level=level)
        made = next(deform_all(volume, self.model, settings, (seed,)))
        return world_field(made.field, volume)
