"""Make displacement fields on demand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..deforming import make_deformations
from ..errors import FallbackWarning, SettingError
from ..io.geometry import distance_in_voxels
from ..levels import STRENGTHS, Level
from ..models.catalogue import load_model
from ..models.choice import choose_model
from ..models.model import Model
from ..regions import find_target
from ..settings import DeformationSettings, Pose, RegionSettings
from .world import WorldField, image_of, ras_affine, world_field


class FieldGenerator:
    """Generate a field for every call of :meth:`draw`; on a CPU this takes seconds.

    The same seed and image give the same field. Only the first channel of an image is used.

    Example:
        >>> source = FieldGenerator("brain-t1-3d", levels=(20, 40, 60))

    Args:
        model: a loaded model, its name or its path; by default the one that fits each image best. Choosing takes
            a fraction of a second for each image that this process has not seen yet.
        levels: strengths of the deformations, numbers or words, see :class:`DRDMLib.DeformationSettings`; the seed
            selects one of them.
        steps, pose, plane, border, region, bones: see :class:`DRDMLib.DeformationSettings`. A region is one or several
            boxes; for a region around labels make a bank, which reads the labels.
        device: where the network runs; use ``"cpu"`` in worker processes of a DataLoader, which cannot share a GPU.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        levels: Sequence[Level] = STRENGTHS,
        steps: int | None = None,
        pose: Pose = 0.0,
        device: str | torch.device = "auto",
        plane: str = "auto",
        border: str = "auto",
        region: RegionSettings | None = None,
        bones: str = "auto",
    ) -> None:
        if region is not None and (region.around is not None or region.keep):
            raise SettingError("Fields around labels need the labels; make a bank of them with make_bank.")
        self.model, self.levels, self.device = model, tuple(levels), device
        # Models by their names, where none is given.
        self._chosen: dict[str, Model] = {}
        self.settings = DeformationSettings(
            steps=steps, pose=pose, plane=plane, border=border, region=region, bones=bones
        )

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """Generate a field for an image; an image of one value, such as an empty crop, is left as it is.

        Args:
            name: of the case; not used here, see :class:`DRDMLib.loaders.world.FieldSource`.
            image: (C, X, Y, Z).
            affine: (4, 4), voxel indices to RAS millimeters.
            seed: 0 to 2^31 - 1.

        Raises:
            ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
        """
        (field,) = self.draw_all(name, image, affine, (seed,))
        return field

    def draw_all(self, name: str, image: Tensor, affine: np.ndarray, seeds: Sequence[int]) -> list[WorldField]:
        """Generate several fields for an image; a GPU makes those of a level together.

        On a GPU they can differ from those of :meth:`draw` by rounding.

        Args:
            seeds: one for each field; the other arguments are those of :meth:`draw`.
        """
        if bool(image[0].min() == image[0].max()):
            # It shows nothing that could move; a pipeline's random crop must not stop a training.
            still = torch.zeros(3, *image.shape[1:])
            return [WorldField(still.clone(), np.asarray(affine, np.float64)) for _ in seeds]
        volume = image_of(image[0], affine)
        model = self._model_for(volume)
        own = ras_affine(volume)
        # Only an image whose axes are not quite at right angles has another affine now.
        same = distance_in_voxels(own, np.asarray(affine, np.float64), volume.GetSize()) < 1e-3
        fields: dict[int, WorldField] = {}
        for number, level in enumerate(self.levels):
            places = [place for place, seed in enumerate(seeds) if seed % len(self.levels) == number]
            settings = replace(self.settings, level=level)
            made = make_deformations(volume, model, settings, [seeds[place] for place in places]) if places else ()
            for place, one in zip(places, made, strict=True):
                field = world_field(one.field, volume)
                fields[place] = field if same else field.moved(affine @ np.linalg.inv(own))
        return [fields[place] for place in range(len(seeds))]

    def _model_for(self, volume: sitk.Image) -> Model:
        """Return the model that was given, or the one that fits an image best. It depends on nothing but the image."""
        if self.model is None:
            region = self.settings.region
            place = volume if region is None else find_target(volume, region).largest
            choice = choose_model(place, plane=self.settings.plane)
            if choice.warning():
                warnings.warn(choice.warning(), FallbackWarning, stacklevel=3)
            if choice.name not in self._chosen:
                self._chosen[choice.name] = load_model(choice.name, self.device)
            return self._chosen[choice.name]
        if not isinstance(self.model, Model):
            self.model = load_model(self.model, self.device)
        return self.model
