"""Deform an image in space: Algorithms 2, 3 and 4 of the paper, from images to fields in millimeters."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .diffusion.affine import random_pose
from .diffusion.fields import compose
from .diffusion.forward import ForwardProcess
from .diffusion.recovery import recover
from .invertibility.certificate import certify_on_grid
from .invertibility.inverse import inverse_field, inverse_layers, inverse_points
from .invertibility.metrics import FieldMetrics, measure_on_grid
from .invertibility.repair import NOT_REPAIRED, Repair, repair
from .io.images import fit_label, require_scalar_image
from .models.catalogue import load_model
from .models.model import Model
from .runtime.device import full_precision
from .runtime.fallback import with_fallback
from .settings import DEFAULT_LEVEL, DeformationSettings
from .spatial.model_grid import (
    ModelGrid,
    field_image,
    image_extent,
    model_grid,
    needs_refinement,
    physical_field,
    sample_image,
)
from .spatial.resampling import field_on_grid, slabs, warp_image, warp_label

# Slices of a stack that are recovered together; bounds the memory that the network needs.
_STACK_BATCH = 16

Progress = Callable[[int, int], None]
DEFAULT_SETTINGS = DeformationSettings()


class Generated(NamedTuple):
    """Fields on the model's grid, (N, d, *S), fraction of the side: before and after recovery."""

    random: Tensor
    recovered: Tensor


@dataclass
class Deformation:
    """One new version of an image: the field, and what it does.

    Attributes:
        reference: the image it was made from; its grid is the grid of everything produced.
        field: the displacement field as a coarse grid transform that reaches past the image and falls to zero there;
            vector image, millimetres, LPS; points from the new image to where to read in the original.
        seed, level, steps, pose, seconds, model, device: how it was made, and on what kind of device.
        repaired: what was changed to make it invertible.
        certified: whether it is proven to be; ``None``: not examined yet, see ``metrics``.
    """

    reference: sitk.Image
    field: sitk.Image
    seed: int = 0
    level: int = DEFAULT_LEVEL
    steps: int = 0
    pose: float = 0.0
    seconds: float = 0.0
    model: str = ""
    device: str = ""
    repaired: Repair = NOT_REPAIRED
    certified: bool | None = None
    _random: Callable[[], sitk.Image] | None = dataclasses.field(default=None, repr=False)

    @cached_property
    def random_field(self) -> sitk.Image:
        """The same as ``field`` for the random deformation before recovery; made when it is asked for."""
        assert self._random is not None
        return self._random()

    @property
    def transform(self) -> sitk.Transform:
        """Maps points of the new image to points of the original, LPS millimetres."""
        return displacement_transform(self.field)

    @cached_property
    def inverse(self) -> sitk.Image:
        """The inverse field over the extent of ``field``: takes points of the original to points of the new image.

        Its grid is as fine as it takes to be right between its nodes too, and can be large; see
        :func:`DRDMLib.invertibility.inverse.inverse_field`. For a few points :meth:`inverse_points` is exact and quick.
        """
        return inverse_field(self.field, self.reference)

    @property
    def inverse_transform(self) -> sitk.Transform:
        """Maps points of the original to points of the new image, LPS millimetres."""
        return displacement_transform(self.inverse)

    @property
    def inverse_ddf(self) -> sitk.Image:
        """The inverse of ``ddf`` on the image's grid, right to a ten-thousandth of a voxel at each voxel's centre."""
        size = self.reference.GetSize()
        image = sitk.GetImageFromArray(
            np.concatenate(list(inverse_layers(self.field, self.reference, slabs(size)))), isVector=True
        )
        image.CopyInformation(self.reference)
        return image

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """Points of the original (markups, surfaces) to points of the new image: (K, d), LPS millimetres."""
        return inverse_points(self.field, points)

    @cached_property
    def metrics(self) -> FieldMetrics:
        """Figures of the field on the image's grid; certified are the field itself and its samples on that grid."""
        figures = measure_on_grid(self.field, self.reference)
        certified = self.certified
        if certified is None:
            certified = certify_on_grid(self.field, self.reference).certified
        return dataclasses.replace(figures, certified_invertible=certified)

    @property
    def ddf(self) -> sitk.Image:
        """The field on the image's grid: vector image, 32-bit, millimetres, LPS."""
        whole = field_on_grid(self.field, self.reference, 0, self.reference.GetSize()[-1])
        image = sitk.GetImageFromArray(whole, isVector=True)
        image.CopyInformation(self.reference)
        return image

    def warp(self, image: sitk.Image) -> sitk.Image:
        """``image`` (the original, or another that lies with it in space) deformed, on the reference's grid; linear."""
        return warp_image(image, self.reference, self.transform)

    def warp_label(self, label: sitk.Image) -> sitk.Image:
        """A label map of the original deformed, on the reference's grid; no new values, thin structures stay.

        Raises:
            ImageError: not a label map, of another dimension, or lying elsewhere.
        """
        return warp_label(fit_label(label, self.reference), self.reference, self.transform)


def displacement_transform(field: sitk.Image) -> sitk.DisplacementFieldTransform:
    """``field`` as a transform; SimpleITK empties the image that it is given, so it gets a copy."""
    return sitk.DisplacementFieldTransform(sitk.Image(field))


def generate(
    images: Tensor,
    model: Model,
    settings: DeformationSettings,
    seeds: Sequence[int],
    *,
    on_step: Progress | None = None,
) -> Generated:
    """Draw a random deformation and recover from it (Algorithm 2), on the model's grid and device.

    Args:
        images: (N, 1, *S), 0..1; the slices of a stack share one random deformation, so that they stay together.
        settings: both fields get the same pose.
        seeds: one; or of a single image several, (K,), which are computed together.
        on_step: called with (done, total); may raise to cancel.

    Warns:
        FallbackWarning: memory was short, so that fewer slices were taken at a time, or the CPU.
    """
    if settings.steps is None:
        settings = dataclasses.replace(settings, steps=model.default_steps)
    if len(seeds) > 1:
        images = images.expand(len(seeds), *images.shape[1:])

    def compute(model: Model, batch: int) -> Generated:
        with full_precision(model.device):
            return _generate(images, model, settings, seeds, on_step, batch)

    return with_fallback(compute, model, min(_STACK_BATCH, len(images)))


def _generate(
    images: Tensor,
    model: Model,
    settings: DeformationSettings,
    seeds: Sequence[int],
    on_step: Progress | None,
    batch: int,
) -> Generated:
    process = ForwardProcess.of(model.metadata).invertible()
    sources = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    drawn = torch.cat([process.ddf(settings.level, source) for source in sources])
    drawn = drawn.expand(len(images), *drawn.shape[1:])
    total = len(settings.schedule(model.timesteps))
    chunks = images.split(batch)
    parts = []
    for number, chunk in enumerate(chunks):

        def report(done: int, _: int, __: Tensor, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(chunks) * total)

        some = drawn[number * batch : number * batch + len(chunk)]
        parts.append(recover(model, chunk, some, settings.start, settings.level, settings.steps, on_step=report))
    recovered = torch.cat(parts)
    if not settings.pose:
        return Generated(drawn, recovered)
    # Drawn last and applied last: a seed gives the same anatomy in any pose.
    poses = torch.cat([random_pose(model.size, model.ndim, settings.pose, source) for source in sources])
    poses = poses.expand(len(images), *poses.shape[1:])
    return Generated(compose(drawn, poses), compose(recovered, poses))


def prepare(image: sitk.Image, model: Model, plane: str = "auto") -> tuple[ModelGrid, Tensor]:
    """The model's grid on ``image``, and the image on it: (N, 1, *S), 0..1."""
    how = model.metadata
    grid = model_grid(image, how, plane=plane)
    return grid, sample_image(image, grid, how.intensity, how.image_padding)


def deform(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None = None,
    level: int = DEFAULT_LEVEL,
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device = "auto",
    *,
    pose: float = 0.0,
    plane: str = "auto",
    start: str = "level",
    on_step: Progress | None = None,
) -> Deformation:
    """Make a new, anatomically plausible version of ``image``, by a field that is proven to be invertible.

    Args:
        image: single channel, 2D or 3D, any spacing and direction.
        model: a loaded model, a catalog name, a path, or ``None`` for the best available one for the image.
        level, steps, pose, plane, start: see :class:`DRDMLib.DeformationSettings`.
        seed: the same seed gives the same result, on the same device to the bit.
        device: where to compute, if ``model`` is not loaded yet.
        on_step: called with (done, total); may raise to cancel.

    Raises:
        ImageError: the image cannot be used.
        ModelError: the model cannot be used, or is of the other dimension.
        SettingError: level, steps, pose, plane, start or device out of range.
        DRDMError: the deformation cannot be made invertible.
    """
    settings = DeformationSettings(level, steps, pose, plane, start)
    return next(deform_all(image, model, settings, (seed,), device=device, on_step=on_step))


def deform_all(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None = None,
    settings: DeformationSettings = DEFAULT_SETTINGS,
    seeds: Sequence[int] = (0,),
    *,
    device: str | torch.device = "auto",
    on_step: Progress | None = None,
) -> Iterator[Deformation]:
    """Make a version of ``image`` for each seed; an accelerator computes all of them together.

    A batch may add up sums in another order: the versions are those of :func:`deform` but for rounding. On a CPU, where
    a batch gains nothing, they are made one after the other and are the same to the bit.

    Args:
        settings: the same for all versions.
        seeds: one for each version.

    The other arguments and the exceptions are those of :func:`deform`.
    """
    begin = time.perf_counter()
    image = require_scalar_image(image)
    if not isinstance(model, Model):
        model = model_for(image, model, device)
    schedule = dataclasses.replace(settings, steps=settings.steps or model.default_steps).schedule(model.timesteps)
    grid, tensor = prepare(image, model, settings.plane)
    carry: Any = {"refine": needs_refinement(image, grid), "posed": settings.pose > 0}
    together = model.device.type != "cpu" and len(tensor) == 1
    for group in [tuple(seeds)] if together else [(seed,) for seed in seeds]:
        fields = generate(tensor, model, settings, group, on_step=on_step)
        for number, seed in enumerate(group):
            own = slice(number, number + 1) if len(group) > 1 else slice(None)
            recovered, random = fields.recovered[own], fields.random[own]
            carried = physical_field(recovered, grid, **carry)
            repaired = repair(carried, image)
            yield Deformation(
                reference=image,
                field=carried.image(),
                repaired=repaired,
                certified=True,
                _random=partial(field_image, random, grid, **carry),
                seed=seed,
                level=settings.level,
                steps=len(schedule),
                pose=settings.pose,
                seconds=time.perf_counter() - begin,
                model=model.metadata.name,
                device=recovered.device.type,
            )
            begin = time.perf_counter()


def chosen_model_message(model: Model) -> str:
    """What to tell a user who has not named a model."""
    return f"Model: {model.metadata.name} (the best one here for {model.ndim}D images of this size)."


class Augmented(NamedTuple):
    """A new version of an image, its label deformed with it, and the deformation."""

    image: sitk.Image
    label: sitk.Image | None
    deformation: Deformation


def augment(
    image: sitk.Image,
    label: sitk.Image | None,
    model: Model,
    settings: DeformationSettings,
    seed: int,
    *,
    on_step: Progress | None = None,
) -> Augmented:
    """Algorithm 3 of the paper: one field, recovered on the image alone, deforms image and label together.

    Raises:
        ImageError, ModelError, SettingError: as :func:`deform`.
    """
    deformation = next(deform_all(image, model, settings, (seed,), on_step=on_step))
    warped = None if label is None else deformation.warp_label(label)
    return Augmented(deformation.warp(image), warped, deformation)


@dataclass
class Pair:
    """A moving and a fixed image with the exact field between them: ``fixed(x) = moving(x + field(x))``.

    Resampling ``moving`` with the field gives ``fixed`` voxel by voxel; the price is that ``fixed`` has been
    interpolated once more.

    Attributes:
        moving, fixed: two versions of one image.
        moving_label, fixed_label: the label in both, if there is one.
        first: original -> moving.
        second: moving -> fixed; its field is the ground truth, on the fixed image's grid.
    """

    moving: sitk.Image
    fixed: sitk.Image
    moving_label: sitk.Image | None
    fixed_label: sitk.Image | None
    first: Deformation
    second: Deformation


def synthesize(
    image: sitk.Image,
    label: sitk.Image | None,
    model: Model,
    settings: tuple[DeformationSettings, DeformationSettings],
    seed: int,
    *,
    on_step: Progress | None = None,
) -> Pair:
    """Algorithm 4 of the paper: a moving image, and a fixed one generated from the moving.

    Args:
        settings: of the first deformation (original to moving) and of the second (moving to fixed).
        seed: of the first; the second uses a seed derived from it.

    Raises:
        ImageError, ModelError, SettingError: as :func:`deform`.
    """

    def part(number: int) -> Progress | None:
        return None if on_step is None else lambda done, total: on_step(number * total + done, 2 * total)

    first = augment(image, label, model, settings[0], seed, on_step=part(0))
    second = augment(first.image, first.label, model, settings[1], seed + 2**31, on_step=part(1))
    return Pair(first.image, second.image, first.label, second.label, first.deformation, second.deformation)


def model_for(
    image: sitk.Image, name_or_path: str | os.PathLike[str] | None, device: str | torch.device = "auto"
) -> Model:
    """The named model, or without a name the best one that is here for images of such dimension and size.

    Raises:
        ModelError, SettingError: as :func:`DRDMLib.load_model`.
    """
    extent = float(image_extent(image).max())
    return load_model(name_or_path, device, ndim=effective_dimension(image), extent=extent)


def effective_dimension(image: sitk.Image) -> int:
    """2 for a 2D image or a volume of a single slice, else 3."""
    return 2 if image.GetDimension() == 2 or 1 in image.GetSize() else 3
