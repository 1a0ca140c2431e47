"""Fields of one seed at many levels, for a preview: they are neither repaired nor proven."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import SimpleITK as sitk

from .generation import Progress, generate
from .io.images import require_scalar_image
from .models.model import Model
from .models.population import with_pose
from .regions import Target, fields_in_regions, skeleton_held
from .runtime.threads import one_thread
from .settings import DeformationSettings
from .spatial.coordinates import thinned_grid
from .spatial.model_grid import field_image
from .versions import PreparedScan

# Finer grids are thinned out: a blend of larger fields could not follow a slider.
MOST_NODES = 400_000


def preview_fields(
    image: sitk.Image,
    model: Model,
    settings: DeformationSettings,
    seed: int,
    levels: Sequence[int],
    *,
    target: Target | None = None,
    on_step: Progress | None = None,
) -> Iterator[tuple[int, sitk.Image]]:
    """Make the field of a seed at each of several levels, as :func:`DRDMLib.deform` makes it before its proof.

    The fields need not be invertible. All are on the grid of the first one, which should be the strongest: it reaches
    farthest.

    Args:
        image: single-channel image, 2D or 3D.
        model: a loaded model.
        settings: how to deform; its level is not used.
        seed: as of :func:`DRDMLib.deform`.
        levels: T', in the order in which the fields are wanted.
        target: the regions of ``settings``, if it has any.
        on_step: called with (done, total) over all levels; may raise to cancel.

    Yields:
        The level, and the displacement field: vector image, millimeters, LPS.

    Raises:
        ImageError: the image cannot be used with the model.
        SettingError: the settings are not valid.
    """
    settings = with_pose(settings, model.metadata)
    field_at = _field_maker(require_scalar_image(image), model, settings, seed, target)
    grid: sitk.Image | None = None
    for number, level in enumerate(levels):

        def report(done: int, total: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(levels) * total)

        field = field_at(dataclasses.replace(settings, level=level), report)
        grid = grid or thinned_grid(field, MOST_NODES)
        # The fields of the levels do not end at the same places.
        yield level, sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32, True)


def _field_maker(
    image: sitk.Image, model: Model, settings: DeformationSettings, seed: int, target: Target | None
) -> Callable[[DeformationSettings, Progress], sitk.Image]:
    """Prepare the image, and return a function that makes the field for settings with a level."""
    if target is not None:
        skeleton = skeleton_held(image, settings, model.ndim)
        return lambda own, report: fields_in_regions(
            target, model, own, seed, generate, skeleton=skeleton, on_step=report
        )[0].field.image()
    scan = PreparedScan(image, model, settings)

    def whole(own: DeformationSettings, report: Progress) -> sitk.Image:
        (drawn,) = scan.draw((seed,), level=own.level, on_step=report)
        with one_thread():
            return field_image(drawn.recovered, scan.grid, posed=scan.moves_faces)

    return whole
