"""The commands ``drdm deform``, ``demo``, ``evaluate`` and ``models``."""

from __future__ import annotations

import argparse
import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

from .. import output
from ..deformation import Deformation, make_deformations, model_and_choice, prepare
from ..diffusion.seeds import PLAIN
from ..errors import ImageError, SettingError
from ..invertibility.metrics import measure_ddf
from ..io.datasets import Case
from ..io.files import file_name, finite, image_stem, shown
from ..io.images import read_field, read_image, read_label
from ..io.left_out import LeftOut
from ..models.catalogue import available_models, fetch, model_metadata, remove
from ..models.strength import with_level
from ..production.run_folder import locked_folder
from ..regions import find_target
from ..runtime.device import choose_device
from ..runtime.reporter import Reporter
from ..settings import DeformationSettings
from .region import region_settings


def deform(options: argparse.Namespace, reporter: Reporter) -> Deformation:
    """Run ``drdm deform`` and return the last version."""
    region = region_settings(options)
    settings = DeformationSettings(
        options.level,
        options.steps,
        options.pose,
        options.plane,
        border=options.border,
        region=region,
        bones=options.bones,
    )
    choose_device(options.device)
    image = read_image(options.image)
    label = read_label(options.label, image, geometry=options.label_geometry) if options.label else None
    target = None if region is None else find_target(image, region, label)
    place = image if target is None else target.largest
    model, choice = model_and_choice(place, options.model, options.device, plane=settings.plane)
    with_level(settings, model.metadata).schedule(model.timesteps)
    prepare(place, model, settings.plane)
    stem = file_name(image_stem(options.image))
    if stem != unicodedata.normalize("NFC", image_stem(options.image)):
        reporter.message(f"The results are called '{shown(stem)}', a name that is valid on every system.")
    with locked_folder(Path(options.output)) as folder:
        reporter.message(choice.message())
        if choice.warning():
            reporter.warning(choice.warning())
        items: list[dict[str, Any]] = []
        for number in range(options.count):

            def on_step(done: int, total: int, number: int = number) -> None:
                reporter.progress("deform", number * total + done, options.count * total)

            seeds = (options.seed + number,)
            result = next(make_deformations(image, model, settings, seeds, target=target, on_step=on_step))
            base, ending = folder / f"{stem}_{number:03d}", f".{options.format}"
            files: dict[str, Path | None] = {"image": None, "label": None, "ddf": None}
            if options.only_field:
                files["field"] = output.write_field(base.with_name(f"{base.name}_field{ending}"), result)
            else:
                files["image"] = output.write_warped(base.with_name(f"{base.name}_image{ending}"), image, result)
                files["ddf"] = output.write_ddf(base.with_name(f"{base.name}_ddf{ending}"), result)
            if options.inverse:
                files["inverse"] = output.write_inverse(base.with_name(f"{base.name}_inverse{ending}"), result)
            if label is not None and not options.only_field:
                path = base.with_name(f"{base.name}_label{ending}")
                files["label"] = output.write_image(path, result.warp_label(label))
            doubtful = choice.fit.doubtful(result.metrics.mean_percent / 100)
            items.append(output.report_entry(result, files, folder) | {"doubtful": doubtful})
            # After each version, so that an interrupted run leaves a valid result.
            written = {"source": Path(options.image).name, "fit": choice.fit.to_dict(), "seed_scheme": PLAIN}
            written |= {} if region is None else {"region": region.to_dict()}
            output.write_report(folder, model.metadata.name, items, **written)
            reporter.item(**items[-1])
    if any(item["doubtful"] for item in items) and not choice.fit.poor:
        reporter.warning(choice.doubt())
    if region is not None:
        reporter.message(movement_message(items))
    reporter.message(f"{len(items)} version(s) of '{options.image}' are in '{folder}'.")
    return result


def movement_message(items: list[dict[str, Any]]) -> str:
    """Say how far what should hardly move has moved, at most over all versions."""
    regions = [item["region"] for item in items]
    parts = [f"The field reaches up to {max(r['margin_mm'] for r in regions):.0f} mm beyond the region"]

    def most(*keys: str) -> float | None:
        found = []
        for entry in regions:
            for key in keys:
                entry = (entry or {}).get(key)
            found.append(entry)
        return max((one["max_mm"] for one in found if one), default=None)

    for text, keys in (("kept structures", ("kept",)), ("bone inside", ("bone", "inside"))):
        if (far := most(*keys)) is not None:
            parts.append(f"{text} moved by at most {far:.1f} mm")
    if (far := most("bone", "outside")) is not None:
        parts.append(f"bone outside by at most {far:.1f} mm")
    return "; ".join(parts) + "."


def demo(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm demo``."""
    from ..io.resources import resource
    from ..pictures import deformation_picture, require_matplotlib

    require_matplotlib()
    if options.output is None:
        names = itertools.chain(["drdm-demo"], (f"drdm-demo-{n}" for n in itertools.count(2)))
        options.output = next(name for name in names if not Path(name).exists())
    image_path, label_path = resource("Sample", "sample.nii.gz"), resource("Sample", "sample_label.nii.gz")
    options.image, options.label, options.count = str(image_path), str(label_path), 1
    options.only_field = options.inverse = False
    options.region = options.around = options.margin = None
    options.keep = []
    options.label_geometry, options.format = "file", "nii.gz"
    result = deform(options, reporter)
    picture = Path(options.output) / "demo.png"
    deformation_picture(result, picture, label=read_label(label_path, result.reference))
    reporter.message(f"The picture is '{picture}'.")


def evaluate(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm evaluate``; a field that cannot be read is left out."""
    bad, results = LeftOut(len(options.ddf)), []
    for path in options.ddf:
        try:
            results.append({"ddf": str(path), "metrics": measure_ddf(read_field(path)).to_dict()})
            bad.used()
        except ImageError as error:
            bad.add(Case(Path(path).name, Path(path)), error)
    bad.require_one()
    print(json.dumps(finite(results), indent=2))


def models(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm models``."""
    if options.action == "list":
        for entry in available_models():
            state = "available" if entry.available else f"download, {entry.megabytes:g} MB"
            print(f"{entry.name:24} {entry.ndim}D  {state:18} {entry.about}")
        return
    if not options.name:
        raise SettingError(f"Which model? Use 'drdm models {options.action} NAME'; 'drdm models' lists the names.")
    if options.action == "fetch":
        path = fetch(options.name, on_bytes=lambda got, total: reporter.progress("download", got, max(got, total)))
        reporter.message(f"The model '{options.name}' is in '{path}'.")
    elif options.action == "remove":
        reporter.message(f"Removed '{remove(options.name)}'.")
    else:
        metadata = model_metadata(options.name)
        print(json.dumps(finite({k: v for k, v in vars(metadata).items() if v not in ("", {}, None)}), indent=2))
