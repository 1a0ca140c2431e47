"""Algorithms 3 and 4 on one image in space: deform it with its label, and make a registration pair of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import SimpleITK as sitk

from .deformation import Deformation, Progress, deform
from .models.model import Model


class Augmented(NamedTuple):
    """A new version of an image, its label deformed with it, and the deformation."""

    image: sitk.Image
    label: sitk.Image | None
    deformation: Deformation


def augment(
    image: sitk.Image,
    label: sitk.Image | None,
    model: Model,
    level: int,
    seed: int,
    *,
    steps: int | None = None,
    pose: float = 0.0,
    plane: str = "auto",
    on_step: Progress | None = None,
) -> Augmented:
    """Algorithm 3 of the paper: one field, recovered on the image alone, deforms image and label together.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """
    deformation = deform(image, model, level, seed, steps, pose=pose, plane=plane, on_step=on_step)
    return Augmented(
        deformation.warp(image),
        None if label is None else deformation.warp_label(label),
        deformation,
    )


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
    levels: tuple[int, int],
    seed: int,
    *,
    steps: int | None = None,
    pose: float = 0.0,
    plane: str = "auto",
    on_step: Progress | None = None,
) -> Pair:
    """Algorithm 4 of the paper: a moving image, and a fixed one generated from the moving.

    Args:
        levels: T' of the first deformation (original to moving) and of the second (moving to fixed).
        seed: of the first; the second uses a seed derived from it.
        pose: of each of the two, see :func:`DRDMLib.deform`.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """

    def part(number: int) -> Progress | None:
        return None if on_step is None else lambda done, total: on_step(number * total + done, 2 * total)

    first = deform(image, model, levels[0], seed, steps, pose=pose, plane=plane, on_step=part(0))
    moving = first.warp(image)
    second = deform(moving, model, levels[1], seed + 2**31, steps, pose=pose, plane=plane, on_step=part(1))
    moving_label = None if label is None else first.warp_label(label)
    return Pair(
        moving=moving,
        fixed=second.warp(moving),
        moving_label=moving_label,
        fixed_label=None if moving_label is None else second.warp_label(moving_label),
        first=first,
        second=second,
    )
