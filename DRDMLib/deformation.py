"""New versions of one image: Algorithm 2 from an image in space to a field in millimetres."""

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

from .diffusion.affine import MOST, random_pose
from .diffusion.fields import compose
from .diffusion.forward import random_ddf
from .diffusion.recovery import countdown, recover
from .errors import SettingError
from .invertibility.certificate import certify_carried
from .invertibility.inverse import inverse_field, inverse_layers, inverse_points
from .invertibility.metrics import FieldMetrics, measure_carried
from .invertibility.repair import NOT_REPAIRED, Repair, repair
from .io.images import fit_label, require_scalar_image
from .models.catalogue import load_model
from .models.model import Model
from .runtime.device import full_precision
from .runtime.fallback import relieved
from .spatial.model_grid import (
    WorkingGrid,
    carried_field,
    field_image,
    image_extent,
    needs_refinement,
    sample_image,
    working_grid,
)
from .spatial.resampling import field_on_grid, slabs, warp_image, warp_label

DEFAULT_LEVEL = 48
# Slices of a stack that are recovered together; bounds the memory that the network needs.
_STACK_BATCH = 16

Progress = Callable[[int, int], None]


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
        figures = measure_carried(self.field, self.reference)
        certified = self.certified
        if certified is None:
            certified = certify_carried(self.field, self.reference).certified
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
    level: int,
    seed: int | Sequence[int],
    *,
    steps: int | None = None,
    pose: float = 0.0,
    start: str = "level",
    on_step: Progress | None = None,
) -> Generated:
    """Draw a random deformation of ``level`` and recover from it (Algorithm 2), on the model's grid and device.

    Args:
        images: (N, 1, *S), 0..1; the slices of a stack share one random deformation, so that they stay together.
        seed: of the random deformation; or of several, (K,), of a single image, which are computed together.
        steps, pose: as for :func:`deform`; both fields have the same pose.
        on_step: called with (done, total); may raise to cancel.

    Warns:
        FallbackWarning: memory was short, so that fewer slices were taken at a time, or the CPU.
    """
    steps = model.usual_steps if steps is None else steps
    seeds = tuple(seed) if isinstance(seed, Sequence) else (seed,)
    if len(seeds) > 1:
        images = images.expand(len(seeds), *images.shape[1:])

    def compute(model: Model, batch: int) -> Generated:
        with full_precision(model.device):
            return _generate(images, model, level, seeds, steps, pose, start, on_step, batch)

    return relieved(compute, model, min(_STACK_BATCH, len(images)))


def _generate(
    images: Tensor,
    model: Model,
    level: int,
    seeds: tuple[int, ...],
    steps: int | None,
    pose: float,
    start: str,
    on_step: Progress | None,
    batch: int,
) -> Generated:
    m = model.metadata
    # An invertible map whose displacement is multiplied need not be one: the gain goes into the small steps.
    gain = (m.size / m.control_size if m.amplitude is None else m.amplitude) / 2
    scale = m.velocity_scale * gain
    draw = partial(random_ddf, control_size=m.control_size, noise_grids=m.noise_grids)
    draw = partial(draw, m.size, m.ndim, level, velocity_scale=scale, amplitude=2.0)
    sources = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    drawn = torch.cat([draw(source) for source in sources])
    drawn = drawn.expand(len(images), *drawn.shape[1:])
    total = len(countdown(model, start, level, steps))
    chunks = images.split(batch)
    parts = []
    for number, chunk in enumerate(chunks):

        def report(done: int, _: int, __: Tensor, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(chunks) * total)

        first = number * batch
        some = drawn[first : first + len(chunk)]
        parts.append(recover(model, chunk, some, start, level, steps, on_step=report))
    recovered = torch.cat(parts)
    if not pose:
        return Generated(drawn, recovered)
    # Drawn last, and taken up last: with another pose a seed still gives the same anatomy.
    poses = torch.cat([random_pose(m.size, m.ndim, pose, source) for source in sources])
    poses = poses.expand(len(images), *poses.shape[1:])
    return Generated(compose(drawn, poses), compose(recovered, poses))


def check_level(model: Model, level: int) -> None:
    """Raises SettingError when ``level`` is not one of the model's."""
    if not 0 <= level < model.timesteps:
        raise SettingError(f"Level {level} is out of range; this model takes 0 to {model.timesteps - 1}.")


def check_pose(pose: float) -> None:
    """Raises SettingError when ``pose`` is none that is on offer."""
    if not 0 <= pose <= MOST:
        raise SettingError(f"Pose {pose:g} is out of range; use 0 (none) to {MOST:g}.")


def prepare(image: sitk.Image, model: Model, plane: str = "auto") -> tuple[WorkingGrid, Tensor]:
    """The model's grid on ``image``, and the image on it: (N, 1, *S), 0..1."""
    how = model.metadata
    grid = working_grid(image, how, plane=plane)
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
    """A new, anatomically plausible version of ``image``, by a field that is proven to be invertible.

    Args:
        image: single channel, 2D or 3D, any spacing and direction.
        model: a loaded model, a catalogue name, a path, or ``None`` for the best shipped one of the image's dimension.
        level: T', 0 (nothing) to T-1 (strongest).
        seed: the same seed gives the same result, on the same device to the bit.
        steps: recovery steps; by default as many as do what a step for each level does (12 for the shipped models). As
            many as the model has levels, or more: one for each.
        device: where to compute, if ``model`` is not loaded yet.
        pose: how much the whole is also rotated, scaled and shifted, 0 to 2; at 1 by up to 15 degrees, 15 % and 6 %
            of the side, see :mod:`DRDMLib.diffusion.affine`. With another pose a seed gives the same anatomy.
        plane: for a 2D model on a volume: ``"axial"``, ``"coronal"``, ``"sagittal"`` or ``"auto"``.
        start: ``"level"`` as in the paper, ``"full"`` as in the authors' script.
        on_step: called with (done, total); may raise to cancel.

    Raises:
        ImageError: the image cannot be used.
        ModelError: the model cannot be used, or is of the other dimension.
        SettingError: level, steps, pose or device out of range.
        DRDMError: the deformation cannot be made invertible.
    """
    one = deform_all(image, model, level, (seed,), steps, device, pose=pose, plane=plane, start=start, on_step=on_step)
    return next(one)


def deform_all(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None = None,
    level: int = DEFAULT_LEVEL,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    device: str | torch.device = "auto",
    *,
    pose: float = 0.0,
    plane: str = "auto",
    start: str = "level",
    on_step: Progress | None = None,
) -> Iterator[Deformation]:
    """A version of ``image`` for each seed; an accelerator computes all of them together.

    Sums over a batch may be taken in another order: the versions are those of :func:`deform` but for rounding. On a
    CPU, where a batch gains nothing, they are made one after the other, and are the same to the bit.

    Args and exceptions as for :func:`deform`.
    """
    begin = time.perf_counter()
    image = require_scalar_image(image)
    if not isinstance(model, Model):
        model = model_for(image, model, device)
    check_level(model, level)
    check_pose(pose)
    grid, tensor = prepare(image, model, plane)
    steps = model.usual_steps if steps is None else steps
    carry: Any = {"refine": needs_refinement(image, grid), "posed": pose > 0}
    together = model.device.type != "cpu" and len(tensor) == 1
    for group in [tuple(seeds)] if together else [(seed,) for seed in seeds]:
        fields = generate(tensor, model, level, group, steps=steps, pose=pose, start=start, on_step=on_step)
        for number, seed in enumerate(group):
            own = slice(number, number + 1) if len(group) > 1 else slice(None)
            recovered, random = fields.recovered[own], fields.random[own]
            carried = carried_field(recovered, grid, **carry)
            repaired = repair(carried, image)
            yield Deformation(
                reference=image,
                field=carried.image(),
                repaired=repaired,
                certified=True,
                _random=partial(field_image, random, grid, **carry),
                seed=seed,
                level=level,
                steps=len(countdown(model, start, level, steps)),
                pose=pose,
                seconds=time.perf_counter() - begin,
                model=model.metadata.name,
                device=recovered.device.type,
            )
            begin = time.perf_counter()


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
