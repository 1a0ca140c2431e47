"""What networks are trained on: images and labels of a few subjects, of their copies, or augmented as nnU-Net does.

Stacks of thick slices become their slices. Values are in standard deviations of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.coverage import Maker, maker
from benchmarks.labeled_views import LabeledImage, crop_to_view, load_structures, view_of
from DRDMLib.diffusion.poses import PoseSpread
from DRDMLib.io.datasets import Case
from DRDMLib.io.files import atomic_write
from DRDMLib.levels import STRENGTHS
from DRDMLib.production.poses import poses_of_cases

# Examples of a set that is augmented as nnU-Net does it, by dimension; each is seen a few times.
AUGMENTED = {2: 6400, 3: 800}


class Examples(NamedTuple):
    """Images (N, *S), float16, and labels (N, *S), uint8; those of the subjects come first.

    Attributes:
        originals: how many are of the subjects themselves.
    """

    images: np.ndarray
    labels: np.ndarray
    originals: int


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        subjects: labeled cases.
        others: cases of other people, whose labels are not used.
        method: one of :func:`benchmarks.coverage.maker`; ``none`` makes no copies.
        nnunet: augment originals and copies, half of each, as nnU-Net does.
        copies: of each subject.
        window: shape in voxels of what the network sees, array order; 2D for stacks.
        pixel: side of its pixels in the slices of stacks, millimeters.
        seed: of copies and augmentation.
    """

    subjects: tuple[Case, ...]
    others: tuple[Case, ...]
    method: str
    nnunet: bool
    copies: int
    window: tuple[int, ...]
    pixel: float
    seed: int


def with_pixels(image: sitk.Image, side: float, interpolator: int) -> sitk.Image:
    """Resample the slices of a stack to pixels of ``side`` millimeters; the middle stays where it is."""
    spacing = np.asarray([side, side, image.GetSpacing()[2]])
    size = np.rint(np.asarray(image.GetSize()) * image.GetSpacing() / spacing).astype(int)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size.tolist())
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputDirection(image.GetDirection())
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    resampler.SetOutputOrigin((np.asarray(middle) - direction @ (spacing * (size - 1) / 2)).tolist())
    resampler.SetInterpolator(interpolator)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return resampler.Execute(image)


def arrays_of(pair: LabeledImage, window: tuple[int, ...], pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume or the slices of a stack as examples: images (n, *window), float16, and labels, uint8."""
    if len(window) == 2:
        kinds = (sitk.sitkLinear, sitk.sitkNearestNeighbor)
        pair = LabeledImage(*(with_pixels(x, pixel, kind) for x, kind in zip(pair, kinds, strict=True)))
    image, label = (sitk.GetArrayFromImage(x) for x in pair)
    scaled = ((image - image.mean()) / (image.std() + 1e-6)).astype(np.float32)
    both = [torch.from_numpy(x) for x in (scaled, label.astype(np.uint8))]
    if len(window) == 3:
        both = [x[None] for x in both]
    view = view_of(pair.label, {3: window})
    cropped = [crop_to_view(x, view).numpy() for x in both]
    return cropped[0].astype(np.float16), cropped[1]


@lru_cache(maxsize=8)
def spread_of(others: tuple[Case, ...]) -> PoseSpread | None:
    """Return the spread of the poses of other people, as ``drdm augment`` estimates it."""
    return poses_of_cases(others)


# Reads a case once.
read_subject = lru_cache(maxsize=256)(load_structures)


def examples_of(
    subjects: Sequence[LabeledImage], make: Maker | None, copies: int, window: tuple[int, ...], pixel: float, seed: int
) -> Examples:
    """Return the volumes or slices of subjects and of their copies; without ``make``, there are no copies."""
    made = [arrays_of(subject, window, pixel) for subject in subjects]
    originals = sum(len(labels) for _, labels in made)
    if make is not None:
        for number, subject in enumerate(subjects):
            for copy in range(copies):
                one = make(subject, copy, 100_000 * seed + 1000 * number + copy)
                made.append(arrays_of(LabeledImage(one.image(), one.label), window, pixel))
    return Examples(*(np.concatenate(arrays) for arrays in zip(*made, strict=True)), originals)


def make_examples(recipe: Recipe) -> Examples:
    """Make the examples of a recipe."""
    make = None
    if recipe.method != "none":
        spread = spread_of(recipe.others) if recipe.method.endswith("+auto") else None
        make = maker(recipe.method, STRENGTHS, "cpu", spread, recipe.others)
    subjects = [read_subject(case) for case in recipe.subjects]
    found = examples_of(subjects, make, recipe.copies, recipe.window, recipe.pixel, recipe.seed)
    return augmented(found, recipe.seed) if recipe.nnunet else found


def write_examples(recipe: Recipe, path: Path) -> Path:
    """Make the examples of a recipe and write them, unless the file is there."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if not path.exists():
        write(make_examples(recipe), path)
    return path


def write(examples: Examples, path: Path) -> None:
    """Write examples."""
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, **examples._asdict())


def read_examples(path: Path) -> Examples:
    """Read what :func:`write_examples` has written."""
    with np.load(path) as file:
        return Examples(file["images"], file["labels"], int(file["originals"]))


# ---------------------------------------------------------------------------------------------------------- nnU-Net


def augmented(examples: Examples, seed: int) -> Examples:
    """Draw examples, half of them originals where there are copies, and augment each as nnU-Net v2 does."""
    np.random.seed(seed)  # noqa: NPY002 - it draws from NumPy's own generator.
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape = examples.images.shape[1:]
    transform = nnunet_augmentation(shape)
    count = AUGMENTED[len(shape)]
    images = np.empty((count, *shape), np.float16)
    labels = np.empty((count, *shape), np.uint8)
    for k in range(count):
        low, high = (0, examples.originals) if k % 2 else (examples.originals, len(examples.images))
        chosen = int(rng.integers(low, high)) if low < high else int(rng.integers(examples.originals))
        image = torch.from_numpy(examples.images[chosen].astype(np.float32))[None]
        label = torch.from_numpy(examples.labels[chosen].astype(np.int16))[None]
        done = transform(image=image, segmentation=label)
        images[k], labels[k] = done["image"][0].numpy(), done["segmentation"][0].clamp(min=0).numpy()
    return Examples(images, labels, count)


def nnunet_augmentation(shape: Sequence[int]) -> Callable[..., dict[str, Any]]:
    """Return nnU-Net v2's own augmentation for patches of a shape, with its probabilities and ranges.

    https://github.com/MIC-DKFZ/nnUNet, ``nnUNetTrainer.get_training_transforms``; needs ``batchgeneratorsv2``.
    """
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    d = len(shape)
    most = np.pi / 6 if d == 3 else (np.pi / 12 if max(shape) / min(shape) > 1.5 else np.pi)
    place = SpatialTransform(
        tuple(shape),
        0,
        False,
        p_rotation=0.2,
        rotation=(-most, most),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    narrow, wide = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
    one = {"synchronize_channels": False, "p_per_channel": 1}
    blur = GaussianBlurTransform((0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5)
    coarse = SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5)
    values = [
        (GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        (blur, 0.2),
        (MultiplicativeBrightnessTransform(narrow, **one), 0.15),
        (ContrastTransform(narrow, preserve_range=True, **one), 0.15),
        (coarse, 0.25),
        (GammaTransform(wide, p_invert_image=1, p_retain_stats=1, **one), 0.1),
        (GammaTransform(wide, p_invert_image=0, p_retain_stats=1, **one), 0.3),
    ]
    changes = [RandomTransform(transform, apply_probability=p) for transform, p in values]
    composed: Callable[..., dict[str, Any]] = ComposeTransforms(
        [place, *changes, MirrorTransform(allowed_axes=tuple(range(d)))]
    )
    return composed
