"""Make samples of a dataset: an image with its label, or a pair of images with the field between them.

These are Algorithms 3 and 4 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import SimpleITK as sitk

from .deformation import Deformation
from .deforming import finish, make_deformations
from .diffusion.seeds import Purpose, derived_seed
from .generation import Progress
from .models.model import Model
from .regions import Target, find_target
from .settings import DeformationSettings
from .toward import Way
from .versions import Drawn


class Augmented(NamedTuple):
    """A new version of an image, its label and further channels deformed in the same way, and the deformation."""

    image: sitk.Image
    label: sitk.Image | None
    deformation: Deformation
    channels: tuple[sitk.Image, ...] = ()


def augment(
    image: sitk.Image,
    label: sitk.Image | None,
    model: Model,
    settings: DeformationSettings,
    seed: int,
    *,
    channels: Sequence[sitk.Image] = (),
    target: Target | None = None,
    toward: Way | None = None,
    gray: bool = False,
    drawn: Drawn | None = None,
    on_step: Progress | None = None,
) -> Augmented:
    """Deform an image and its label together (Algorithm 3 of the paper).

    The field is recovered from the image alone, and applied to both.

    Args:
        label: a label map of the image, or ``None``.
        channels: further images of the same scan, which are deformed in the same way.
        target: the regions of ``settings``, if they were found in this image before.
        toward: the way to another scan, of which the version goes a part, see :func:`DRDMLib.toward.find_way`.
        gray: the gray values of the version also go a part of the way toward those of the other scan.
        drawn: the fields of the seed with these settings, if they were drawn before.

    Raises:
        ImageError, ModelError, SettingError, DRDMError: as :func:`deform`.
    """
    if drawn is None:
        made = make_deformations(
            image, model, settings, (seed,), label=label, target=target, toward=toward, on_step=on_step
        )
        deformation = next(made)
    else:
        deformation = finish(drawn, image)
    if gray and toward is not None and toward.gray is not None:
        image = toward.gray.apply(image, toward.gray_share(seed))
    (image, *channels), warped = deformation.warp_together([image, *channels], label)
    return Augmented(image, warped, deformation, tuple(channels))


@dataclass
class Pair:
    """A moving and a fixed image with the exact field between them: ``fixed(x) = moving(x + field(x))``.

    Resampling ``moving`` with the field gives ``fixed`` in every voxel. For this, ``fixed`` has been interpolated once
    more than ``moving``.

    Attributes:
        moving, fixed: two versions of one image.
        moving_label, fixed_label: the label deformed with each of them, if there is a label.
        first: the deformation from the original to the moving image.
        second: the deformation from the moving to the fixed image; its field, on the fixed image's grid, is the ground
            truth.
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
    toward: Callable[[sitk.Image], Way | None] | None = None,
    drawn: Drawn | None = None,
    on_step: Progress | None = None,
) -> Pair:
    """Make a moving image, and a fixed image from the moving one (Algorithm 4 of the paper).

    Args:
        label: a label map of the image, or ``None``.
        settings: of the first deformation (original to moving) and of the second (moving to fixed).
        seed: of the first deformation; the second uses a seed derived from it.
        toward: finds the way from the moving image to another scan, of which the fixed image goes a part.
        drawn: the fields of the first deformation, if they were drawn before.

    Raises:
        ImageError, ModelError, SettingError, DRDMError: as :func:`deform`.
    """

    def part(number: int) -> Progress | None:
        return None if on_step is None else lambda done, total: on_step(number * total + done, 2 * total)

    first = augment(image, label, model, settings[0], seed, drawn=drawn, on_step=part(0))
    target = None
    if settings[1].region is not None:
        # What is kept lies where the first deformation, with its pose, has put it.
        before = first.deformation.target
        kept = None if before is None or before.mask is None else first.deformation.warp_label(before.mask)
        target = find_target(first.image, settings[1].region, first.label, kept)
    own_seed = derived_seed(seed, Purpose.SECOND)
    way = None if toward is None else toward(first.image)
    second = augment(first.image, first.label, model, settings[1], own_seed, target=target, toward=way, on_step=part(1))
    return Pair(first.image, second.image, first.label, second.label, first.deformation, second.deformation)
