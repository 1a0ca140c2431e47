"""Fields made as they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..deformation import deform, model_for
from ..models.model import Model
from .world import WorldField, image_of, world_field


class FieldGenerator:
    """Runs the network for every draw: seconds on a CPU, and always new.

    Example:
        >>> source = FieldGenerator("brain-t1-3d", levels=(20, 40, 60), steps=12)

    Args:
        model: loaded, or a name or path; by default the best one for the first image.
        levels: T', one of which is drawn each time.
        steps, pose: see :func:`DRDMLib.deform`.
        device: where the network runs; with DataLoader's workers use ``"cpu"``.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        levels: Sequence[int] = (20, 40, 60),
        steps: int | None = None,
        pose: float = 0.0,
        device: str | torch.device = "auto",
        plane: str = "auto",
    ) -> None:
        self.model = model
        self.levels, self.steps, self.pose, self.device, self.plane = tuple(levels), steps, pose, device, plane

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """See :class:`DRDMLib.loaders.world.FieldSource`.

        Raises:
            ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
        """
        picture = image_of(image[0], affine)
        if not isinstance(self.model, Model):
            self.model = model_for(picture, self.model, self.device)
        level = self.levels[seed % len(self.levels)]
        made = deform(picture, self.model, level, seed, self.steps, pose=self.pose, plane=self.plane)
        return world_field(made.field, picture)
