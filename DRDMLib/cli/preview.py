"""The command ``drdm preview``: fields of one seed at many levels, without a proof."""

from __future__ import annotations

import argparse
from typing import Any

from ..deforming import model_and_choice
from ..errors import OutputError
from ..io.images import read_image, read_label
from ..io.volumes import write_itk
from ..output import make_output_folder
from ..previews import preview_fields
from ..regions import find_target
from ..runtime.device import choose_device
from ..runtime.reporter import Reporter
from ..settings import DeformationSettings
from .region import region_settings


def preview(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm preview``: write a field for each level, and report it at once.

    Raises:
        DRDMError: the image, the model or a setting cannot be used, or a file cannot be written.
    """
    region = region_settings(options)
    settings = DeformationSettings(
        steps=options.steps,
        pose=options.pose,
        plane=options.plane,
        border=options.border,
        region=region,
        bones=options.bones,
    )
    choose_device(options.device)
    image = read_image(options.image)
    label = None if options.label is None else read_label(options.label, image)
    target = None if region is None else find_target(image, region, label)
    place = image if target is None else target.largest
    model, choice = model_and_choice(place, options.model, options.device, plane=settings.plane)
    folder = make_output_folder(options.output)
    reporter.message(choice.message())

    def on_step(done: int, total: int) -> None:
        reporter.progress("preview", done, total)

    how: Any = {"target": target, "on_step": on_step}
    for level, field in preview_fields(image, model, settings, options.seed, options.levels, **how):
        path = folder / f"level_{level:02d}.nrrd"
        write_itk(path, field, OutputError(f"'{path}' cannot be written; choose another folder, or free some space."))
        reporter.item(level=level, seed=options.seed, field=path.name, model=model.metadata.name)
