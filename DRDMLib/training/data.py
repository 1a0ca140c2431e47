"""Load training images onto the model's grid and keep them in memory as bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ImageError, ModelError
from ..io.datasets import Case
from ..io.files import digest_of_files
from ..io.images import image_files, read_image
from ..io.left_out import LeftOut
from ..models.metadata import ModelMetadata
from ..spatial.model_grid import effective_dimension, model_grid, sample_image

# Slices with less mean intensity than this fraction of the volume's brightest slice show no anatomy.
_EMPTY_SLICE = 0.1


T = TypeVar("T")


def split(cases: list[T], every: int) -> tuple[list[T], list[T]]:
    """Split cases into training cases and held-out cases, which are every ``every``-th one."""
    if len(cases) < every:
        return cases, []
    return [c for i, c in enumerate(cases) if i % every], cases[::every]


def load_training_images(
    cases: list[Case],
    metadata: ModelMetadata,
    *,
    plane: str = "auto",
    on_case: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Load the images of all cases onto the model's grid.

    Arguments, errors and warnings as :func:`usable_images`.

    Returns:
        (M, 1, *S) uint8: one image for each volume, or for a 2D model one for each slice that shows anatomy.
    """
    return together([images for _, images in usable_images(cases, metadata, plane=plane, on_case=on_case)], metadata)


def usable_images(
    cases: list[Case],
    metadata: ModelMetadata,
    *,
    plane: str = "auto",
    on_case: Callable[[int, int], None] | None = None,
) -> list[tuple[Case, Tensor]]:
    """Load the images of each case that can be used onto the model's grid.

    Args:
        plane: of the slices that a 2D model takes from a volume, see :class:`DRDMLib.settings.DeformationSettings`.
        on_case: called with (done, total) after each case.

    Returns:
        The cases, each with its images, (M, 1, *S) uint8.

    Raises:
        ImageError, ModelError: no case can be used.

    Warns:
        FallbackWarning: a case cannot be used and is left out.
    """
    found: list[tuple[Case, Tensor]] = []
    bad = LeftOut(len(cases))
    for number, case in enumerate(cases, start=1):
        try:
            found.append((case, _training_images(case, metadata, plane)))
            bad.used()
        except (ImageError, ModelError) as error:
            bad.add(case, error)
        if on_case is not None:
            on_case(number, len(cases))
    bad.require_one()
    return found


def scan_digests(cases: list[Case]) -> dict[str, str]:
    """Return the name of each case with a digest of its image's files; it is empty if they cannot be read."""
    found = dict.fromkeys((case.name for case in cases), "")
    for case in cases:
        with contextlib.suppress(OSError, ImageError):
            found[case.name] = digest_of_files(image_files(case.image, case.series))
    return found


def together(parts: list[Tensor], metadata: ModelMetadata) -> Tensor:
    """Put the images of several cases into one tensor (M, 1, *S); M is 0 if there are none."""
    if not parts:
        return torch.empty((0, 1, *[metadata.size] * metadata.ndim), dtype=torch.uint8)
    return torch.cat(parts)


def _training_images(case: Case, metadata: ModelMetadata, plane: str) -> Tensor:
    image = read_image(case.image, case.series)
    if metadata.ndim == 3 and effective_dimension(image) == 2:
        raise ModelError(f"'{case.image}' is a single slice; train a 2D model with --ndim 2.")
    grid = model_grid(image, metadata, plane=plane)
    tensor = sample_image(image, grid, metadata.intensity, metadata.image_padding)
    if len(tensor) > 1:
        brightness = tensor.flatten(1).mean(dim=1)
        tensor = tensor[brightness > _EMPTY_SLICE * brightness.max()]
    return (tensor * 255).round().to(torch.uint8)


def load_subjects(
    cases: list[Case],
    metadata: ModelMetadata,
    *,
    plane: str = "auto",
    on_case: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Load the images of each subject onto the model's grid.

    Arguments, errors and warnings as :func:`usable_images`.

    Returns:
        One tensor (M, 1, *S) uint8 for each subject, in the order of their first cases.
    """
    subjects: dict[str, list[Tensor]] = {}
    for case, images in usable_images(cases, metadata, plane=plane, on_case=on_case):
        subjects.setdefault(case.subject or case.name, []).append(images)
    return [torch.cat(images) for images in subjects.values()]
