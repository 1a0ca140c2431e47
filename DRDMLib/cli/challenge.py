"""The commands ``drdm challenge`` and ``drdm score``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..challenge.cases import Scan, make_cases
from ..challenge.changes import RECIPES
from ..challenge.landmarks import require_inside
from ..challenge.page import report, text_table, write_score
from ..challenge.score import score as measure_score
from ..challenge.transforms import read_result
from ..challenge.truth import read_truth
from ..deforming import model_and_choice
from ..errors import SettingError
from ..io.files import counted, digest_of_files, file_name, image_stem, write_bytes
from ..io.images import image_files, read_image, read_label
from ..io.points import read_points
from ..io.resources import resource
from ..models.catalogue import digest_of, resolve
from ..output import make_output_folder
from ..production.run_folder import locked_folder
from ..runtime.device import choose_device
from ..runtime.reporter import FIT, Reporter
from ..settings import DeformationSettings

# Name of the shipped sample, of which everybody can make the same cases.
PHANTOM = "phantom"
# Name of the shipped case, which is the same for everybody.
REFERENCE = "reference"
# Options that replace what the recipe says.
_CHANGES = ("pose", "noise", "blur", "bias", "contrast", "resample", "crop")


def challenge(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm challenge``."""
    if options.scan == REFERENCE and not Path(REFERENCE).exists():
        _copy_reference(options, reporter)
        return
    choose_device(options.device)
    given: dict[str, Any] = {name: getattr(options, name) for name in _CHANGES if getattr(options, name) is not None}
    if options.levels:
        given["levels"] = tuple(options.levels)
    recipe = dataclasses.replace(RECIPES[options.recipe], **given)
    settings = DeformationSettings(
        recipe.levels[0], options.steps, recipe.pose, options.plane, border=options.border, bones=options.bones
    )
    name = image_stem(options.scan)
    if options.scan == PHANTOM and not Path(PHANTOM).exists():
        options.scan = str(resource("Sample", "sample.nii.gz"))
        options.label = options.label or str(resource("Sample", "sample_label.nii.gz"))
    image = read_image(options.scan)
    label = read_label(options.label, image, geometry=options.label_geometry) if options.label else None
    points = None
    if options.points:
        points = read_points(Path(options.points), image.GetDimension())
        require_inside(points, image, options.points)
    model, choice = model_and_choice(image, options.model, options.device, plane=options.plane)
    for level in recipe.levels:
        dataclasses.replace(settings, level=level).schedule(model.timesteps)
    if options.model is None:
        reporter.message(choice.message())
    if choice.warning():
        reporter.warning(choice.warning(), FIT)
    sources = {"image": options.scan, "label": options.label, "points": options.points}
    scan = Scan(
        file_name(name),
        image,
        label,
        points,
        {
            kind: {
                "file": Path(path).name,
                "digest": digest_of_files([Path(path)] if kind == "points" else image_files(path)),
            }
            for kind, path in sources.items()
            if path
        },
    )
    digest = digest_of(resolve(options.model or model.metadata.name)[0], "sha256")

    def on_case(case: dict[str, Any]) -> None:
        share = case["not_counted"]
        reporter.item(name=case["name"], **case["files"], not_counted=share)
        if max(share.values()) > 0:
            reporter.message(
                f"{case['name']}: {share['voxels']:.1%} of the body and {share['landmarks']:.1%} of the landmarks "
                "lie outside of one of the images and do not count."
            )

    with locked_folder(Path(options.output)) as folder:
        cases = make_cases(
            folder,
            scan,
            model,
            digest,
            recipe,
            settings,
            recipe_name=options.recipe,
            count=options.count,
            seed=options.seed,
            on_case=on_case,
            on_step=lambda done, total: reporter.progress("challenge", done, total),
        )
    reporter.message(
        f"{counted(len(cases), 'case')} made in '{options.output}'. Register 'pairs/NAME/moving.nii.gz' to "
        "'pairs/NAME/fixed.nii.gz', then run 'drdm score TRANSFORM --truth "
        f"{Path(options.output) / 'truth' / cases[0]['name']}'."
    )


def _copy_reference(options: argparse.Namespace, reporter: Reporter) -> None:
    """Copy the shipped case, which no option changes."""
    given = [
        name
        for name in ("label", "points", "levels", "model", "steps", *_CHANGES)
        if getattr(options, name) is not None
    ]
    usual = {"count": 1, "seed": 0, "recipe": "medium", "plane": "auto", "border": "auto", "bones": "auto"}
    given += [name for name, value in usual.items() if getattr(options, name) != value]
    if given:
        raise SettingError(f"The case '{REFERENCE}' is always the same; leave out '--{given[0]}', or use '{PHANTOM}'.")
    source = resource("Challenge")
    with locked_folder(Path(options.output)) as folder:
        for part in ("pairs", "truth"):
            make_output_folder(folder / part / REFERENCE)
            for path in sorted((source / part / REFERENCE).iterdir()):
                write_bytes(folder / part / REFERENCE / path.name, path.read_bytes())
    case = read_truth(folder / "truth" / REFERENCE).record
    reporter.item(name=case["name"], **case["files"], not_counted=case["not_counted"])
    reporter.message(
        f"The case is in '{options.output}'. Register 'pairs/{REFERENCE}/moving.nii.gz' to "
        f"'pairs/{REFERENCE}/fixed.nii.gz', then run 'drdm score TRANSFORM --truth "
        f"{Path(options.output) / 'truth' / REFERENCE}'."
    )


def score(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm score``."""
    truth = read_truth(Path(options.truth))
    result = read_result([Path(path) for path in options.result], truth.fixed, options.convention, truth.moving)
    backward = None
    if options.backward:
        backward = read_result([Path(path) for path in options.backward], truth.moving, options.convention, truth.fixed)
    found = measure_score(result, truth, options.convention, backward)
    if options.output:
        with locked_folder(Path(options.output)) as folder:
            names = [Path(path).name for path in options.result]
            page = write_score(folder, found, truth, report(found, truth, names, options.convention))
        reporter.message(f"Open '{page}' in a browser. Its pictures are as confidential as the scan.")
    if options.progress != "json":
        print(text_table(found))
    if found.looks_like is not None:
        reporter.warning(f"{found.looks_like.text} The score is that of the file as it was given.")
