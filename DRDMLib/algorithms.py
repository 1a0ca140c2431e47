"""Algorithms 3 and 4 on one image in space: deform it with its label, and make a registration pair of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import SimpleITK as sitk

from .deformation import Deformation, Progress, deform, displacement_transform
from .images import fit_label
from .models import Model
from .resampling import warp_image, warp_label


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
    plane: str = "auto",
    on_step: Progress | None = None,
) -> Augmented:
    """Algorithm 3 of the paper: one field, recovered on the image alone, deforms image and label together.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """
    deformation = deform(image, model, level, seed, steps, plane=plane, on_step=on_step)
    return Augmented(
        deformation.warp(image),
        None if label is None else deformation.warp_label(label),
        deformation,
    )


@dataclass
class Pair:
    """A moving and a fixed image with the exact field between them: ``fixed(x) = moving(x + field(x))``.

    Attributes:
        moving, fixed: two versions of one image; each is read from the original once, so both are equally sharp.
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
    plane: str = "auto",
    on_step: Progress | None = None,
) -> Pair:
    """Algorithm 4 of the paper: a moving image, and a fixed one generated from the moving.

    Args:
        levels: T' of the first deformation (original to moving) and of the second (moving to fixed).
        seed: of the first; the second uses a seed derived from it.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """

    def part(number: int) -> Progress | None:
        return None if on_step is None else lambda done, total: on_step(number * total + done, 2 * total)

    first = deform(image, model, levels[0], seed, steps, plane=plane, on_step=part(0))
    moving = first.warp(image)
    second = deform(moving, model, levels[1], seed + 2**31, steps, plane=plane, on_step=part(1))
    # SimpleITK applies the transform that was added last first: from fixed to moving, then to the original.
    both = sitk.CompositeTransform([displacement_transform(first.field), displacement_transform(second.field)])
    fitted = None if label is None else fit_label(label, image)
    return Pair(
        moving=moving,
        fixed=warp_image(image, image, both),
        moving_label=None if fitted is None else warp_label(fitted, image, first.transform),
        fixed_label=None if fitted is None else warp_label(fitted, image, both),
        first=first,
        second=second,
    )
