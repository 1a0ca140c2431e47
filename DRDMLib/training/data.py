"""Load training images onto the model's grid and keep them in memory as bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..deformation import effective_dimension
from ..errors import DRDMError, FallbackWarning, ImageError, ModelError
from ..io.datasets import Case
from ..io.images import read_image
from ..models.metadata import ModelMetadata
from ..spatial.model_grid import model_grid, sample_image

# Slices with less mean intensity than this fraction of the volume's brightest slice show no anatomy.
_EMPTY_SLICE = 0.1


def split(cases: list[Case], every: int) -> tuple[list[Case], list[Case]]:
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

    Args:
        plane: of the slices that a 2D model takes from a volume, see :class:`DRDMLib.settings.DeformationSettings`.
        on_case: called with (done, total) after each case.

    Returns:
        (M, 1, *S) uint8: one image for each volume, or for a 2D model one for each slice that shows anatomy.

    Raises:
        ImageError, ModelError: an image cannot be used.
    """
    parts = []
    for number, case in enumerate(cases):
        image = read_image(case.image, case.series)
        if metadata.ndim == 3 and effective_dimension(image) == 2:
            raise ModelError(f"'{case.image}' is a single slice; train a 2D model with --ndim 2.")
        grid = model_grid(image, metadata, plane=plane)
        tensor = sample_image(image, grid, metadata.intensity, metadata.image_padding)
        if len(tensor) > 1:
            brightness = tensor.flatten(1).mean(dim=1)
            tensor = tensor[brightness > _EMPTY_SLICE * brightness.max()]
        parts.append((tensor * 255).round().to(torch.uint8))
        if on_case is not None:
            on_case(number + 1, len(cases))
    if not parts:
        return torch.empty((0, 1, *[metadata.size] * metadata.ndim), dtype=torch.uint8)
    return torch.cat(parts)


def load_subjects(
    cases: list[Case],
    metadata: ModelMetadata,
    *,
    plane: str = "auto",
    on_case: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Load the images of each subject onto the model's grid; arguments as for :func:`load_training_images`.

    Cases that cannot be used are left out with a warning.

    Returns:
        One tensor (M, 1, *S) uint8 for each subject, in the order of their first cases.

    Raises:
        ImageError: no case can be used.

    Warns:
        FallbackWarning: a case is left out.
    """
    subjects: dict[str, list[Tensor]] = {}
    problem: DRDMError | None = None
    for number, case in enumerate(cases):
        try:
            images = load_training_images([case], metadata, plane=plane)
        except (ImageError, ModelError) as error:
            problem = problem or error
            warnings.warn(f"{case.name} is left out: {error}", FallbackWarning, stacklevel=2)
        else:
            subjects.setdefault(case.subject or case.name, []).append(images)
        if on_case is not None:
            on_case(number + 1, len(cases))
    if not subjects:
        raise ImageError(f"None of the {len(cases)} scans can be used; the first problem: {problem}")
    return [torch.cat(images) for images in subjects.values()]
