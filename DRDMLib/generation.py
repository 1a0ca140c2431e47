"""Draw a random deformation of an image and recover from it, on the grid of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import SimpleITK as sitk
import torch
from torch import Tensor

from .diffusion.affine import random_pose
from .diffusion.fields import compose, warp
from .diffusion.forward import ForwardProcess
from .diffusion.recovery import recover
from .diffusion.rigid import RigidParts
from .diffusion.seeds import random_generator
from .diffusion.slip import SlipPlanes
from .models.model import Model
from .runtime.device import full_precision
from .runtime.fallback import with_fallback
from .runtime.threads import one_thread
from .settings import DeformationSettings
from .spatial.model_grid import ModelGrid, model_grid, sample_image

# Most slices of a stack, or versions, that are recovered together; limits the memory that the network needs.
AT_ONCE = 16

Progress = Callable[[int, int], None]


class Generated(NamedTuple):
    """Fields on the model grid: (N, d, *S), fraction of the side.

    Attributes:
        random, recovered: before and after recovery, with the pose and what leads toward another scan.
        own: the recovered field without them.
        at_once: how many images the network has computed at a time; the last bits depend on it.
    """

    random: Tensor
    recovered: Tensor
    own: Tensor
    at_once: int


def generate(
    images: Tensor,
    model: Model,
    settings: DeformationSettings,
    seeds: Sequence[int],
    *,
    planes: SlipPlanes | None = None,
    rigid: RigidParts | None = None,
    toward: Tensor | None = None,
    turned: Tensor | None = None,
    at_once: int = AT_ONCE,
    on_step: Progress | None = None,
) -> Generated:
    """Draw a random deformation and recover from it (Algorithm 2), on the model grid and the model's device.

    Args:
        images: (N, 1, *S), intensities 0..1. The slices of a stack share one random deformation, so that they stay
            aligned.
        settings: how to deform; the random and the recovered field get the same pose. The spread of a population is in
            the axes of the tensors, see :func:`DRDMLib.poses.pose_on_grid`.
        seeds: one seed; or, for a single image, K seeds that are computed together as a batch.
        planes: planes that the deformation does not cross, except by a pose and toward another scan.
        rigid: parts that the recovered deformation moves rigidly, except by a pose.
        toward: (N, d, *S), fraction of the side: a deformation toward another scan. The images are deformed by it
            first, and then as without it.
        turned: (N, d, *S), fraction of the side: a turn that comes last, besides the pose.
        at_once: most images that the network computes at a time.
        on_step: called with (done, total); may raise to cancel.

    Returns:
        The fields, (N or K, d, *S), fraction of the side.

    Warns:
        FallbackWarning: memory was low, so that fewer images were computed at a time, or the CPU was used.
    """
    if settings.steps is None:
        settings = dataclasses.replace(settings, steps=model.default_steps)
    if len(seeds) > 1:
        images = images.expand(len(seeds), *images.shape[1:])

    def compute(model: Model, batch: int) -> Generated:
        with full_precision(model.device), one_thread():
            return _generate(images, model, settings, seeds, planes, rigid, toward, turned, on_step, batch)

    return with_fallback(compute, model, min(at_once, len(images)))


def _generate(
    images: Tensor,
    model: Model,
    settings: DeformationSettings,
    seeds: Sequence[int],
    planes: SlipPlanes | None,
    rigid: RigidParts | None,
    toward: Tensor | None,
    turned: Tensor | None,
    on_step: Progress | None,
    batch: int,
) -> Generated:
    process = dataclasses.replace(ForwardProcess.of(model.metadata).invertible(), planes=planes)
    level = settings.number(model.timesteps)
    generators = [random_generator(seed, model.device) for seed in seeds]
    # Level 0 draws, too, so that a seed gives the same pose at every level.
    drawn = process.ddf(level, generators, batch=len(generators))
    drawn = drawn.expand(len(images), *drawn.shape[1:])
    if toward is not None:
        toward = toward.to(model.device).expand(len(images), *toward.shape[1:])
        images = warp(images.to(model.device), toward, padding=model.metadata.image_padding)
    if level > 0:
        recovered = own = _recovered(images, drawn, model, settings, planes, on_step, batch)
    else:
        drawn = torch.zeros_like(drawn)
        recovered = own = torch.zeros_like(drawn)
        if on_step is not None:
            on_step(1, 1)
    if toward is not None:
        drawn, recovered = compose(toward, drawn), compose(toward, recovered)
    if rigid is not None and (level > 0 or toward is not None):
        recovered = rigid.hold(recovered)
    if not settings.pose:
        return Generated(drawn, recovered, own, batch)
    # The pose is drawn last and applied last, so that a seed gives the same anatomy in any pose.
    pose = settings.drawn_pose()
    poses = torch.cat([random_pose(model.size, model.ndim, pose, generator) for generator in generators])
    poses = poses.expand(len(images), *poses.shape[1:])
    if turned is not None:
        poses = compose(poses, turned.to(model.device).expand_as(poses))
    return Generated(compose(drawn, poses), compose(recovered, poses), own, batch)


def _recovered(
    images: Tensor,
    drawn: Tensor,
    model: Model,
    settings: DeformationSettings,
    planes: SlipPlanes | None,
    on_step: Progress | None,
    batch: int,
) -> Tensor:
    """Recover from the random fields ``drawn``, ``batch`` images at a time."""
    total = len(settings.schedule(model.timesteps))
    chunks = images.split(batch)
    parts = []
    for number, chunk in enumerate(chunks):

        def report(done: int, _: int, __: Tensor, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(chunks) * total)

        random = drawn[number * batch : number * batch + len(chunk)]
        how: Any = {"start": settings.start, "level": settings.level, "steps": settings.steps}
        parts.append(recover(model, chunk, random, **how, planes=planes, on_step=report))
    return torch.cat(parts)


def prepare(image: sitk.Image, model: Model, plane: str = "auto") -> tuple[ModelGrid, Tensor]:
    """Place the model grid on an image, and resample the image onto it.

    Args:
        plane: slice plane for a 2D model on a volume, see :class:`DRDMLib.DeformationSettings`.

    Returns:
        The grid, and the image on it: (N, 1, *S), intensities 0..1; N counts the slices of a stack and is 1 otherwise.
    """
    metadata = model.metadata
    grid = model_grid(image, metadata, plane=plane)
    return grid, sample_image(image, grid, metadata.intensity, metadata.image_padding)
