"""The commands ``drdm deform``, ``demo``, ``evaluate`` and ``models``."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import output
from ..deformation import Deformation
from ..deforming import make_deformations, model_and_choice
from ..diffusion.seeds import PLAIN
from ..errors import ImageError, SettingError
from ..generation import prepare
from ..invertibility.metrics import measure_ddf, measure_saved
from ..io.datasets import Case
from ..io.files import counted, file_name, file_names, finite, image_stem, shown
from ..io.images import LEAST_OVERLAP, read_field, read_image, read_label
from ..io.left_out import LeftOut
from ..models.catalogue import available_models, fetch, model_metadata, remove
from ..models.strength import with_level
from ..pictures import version_picture
from ..production.run_folder import locked_folder
from ..regions import find_target
from ..runtime.device import choose_device
from ..runtime.reporter import FIT, Reporter
from ..settings import DeformationSettings
from ..spatial.model_grid import overlap
from ..spatial.resampling import warp_image
from ..toward import WHOLE_SCANS, Way, find_way
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
    if options.only_field and options.full_field:
        raise SettingError("--only-field writes no full field; leave out one of --only-field and --full-field.")
    choose_device(options.device)
    image = read_image(options.image)
    labels = {
        name: read_label(path, image, geometry=options.label_geometry)
        for name, path in _named("label", options.label, many=len(options.label) > 1).items()
    }
    channels = {name: _read_channel(path, image) for name, path in _named("channel", options.channel).items()}
    label = next(iter(labels.values()), None)
    if options.toward is not None and region is not None:
        raise SettingError(WHOLE_SCANS)
    target = None if region is None else find_target(image, region, label)
    place = image if target is None else target.largest
    model, choice = model_and_choice(place, options.model, options.device, plane=settings.plane)
    with_level(settings, model.metadata).schedule(model.timesteps)
    prepare(place, model, settings.plane)
    way = None if options.toward is None else _way(image, options.toward, reporter)
    stem = file_name(image_stem(options.image))
    if stem != unicodedata.normalize("NFC", image_stem(options.image)):
        reporter.message(f"The results are called '{shown(stem)}', a name that is valid on every system.")
    with locked_folder(Path(options.output)) as folder:
        reporter.message(choice.message())
        if choice.warning():
            reporter.warning(choice.warning(), FIT)
        items: list[dict[str, Any]] = []
        seeds = range(options.seed, options.seed + options.count)
        on_step = functools.partial(reporter.progress, "deform")
        for number, result in enumerate(
            make_deformations(image, model, settings, seeds, target=target, toward=way, on_step=on_step)
        ):
            base, ending = folder / f"{stem}_{number:03d}", f".{options.format}"
            files: dict[str, Path | None] = {"image": None, "label": None, "ddf": None}
            if not options.only_field:
                files["image"] = output.write_warped(_file(base, "image", ending), image, result, fast=True)
            files |= _write_fields(base, ending, result, options)
            if options.inverse:
                files["inverse"] = output.write_inverse(_file(base, "inverse", ending), result, fast=True)
            more: dict[str, list[str]] = {}
            if not options.only_field:
                made = {name: result.warp_label(one) for name, one in labels.items()}
                more = _write_others(base, ending, made, channels, result)
                files["label"] = folder / more["labels"][0] if made else None
                if options.picture:
                    pair = None if label is None else (label, next(iter(made.values())))
                    path = base.with_name(f"{base.name}.png")
                    files["picture"] = version_picture(
                        image, result.field, path, pair, where_it_moves=target is not None
                    )
            more = {kind: names for kind, names in more.items() if kind == "channels" or len(names) > 1}
            # Who waits for the version need not wait for its figures.
            made_with: dict[str, Any] = {"model": model.metadata.name, "fit": choice.fit.to_dict()}
            made_with |= {"certified_invertible": result.certified}
            reporter.version(**output.version_entry(result, files, folder), **more, **made_with)
            doubtful = choice.fit.doubtful(result.model_fraction)
            entry = output.report_entry(result, files, folder) | {"doubtful": doubtful}
            items.append(entry | more)
            # After each version, so that an interrupted run leaves a valid result.
            written = {"source": Path(options.image).name, "fit": choice.fit.to_dict(), "seed_scheme": PLAIN}
            written |= output.about_fields(files)
            written |= {} if region is None else {"region": region.to_dict()}
            written |= {} if way is None else {"toward": {"file": Path(options.toward).name} | way.to_dict()}
            output.write_report(folder, model.metadata.name, items, **written)
            reporter.item(**items[-1])
    if any(item["doubtful"] for item in items) and not choice.fit.poor:
        reporter.warning(choice.doubt(), FIT)
    if region is not None:
        reporter.message(movement_message(items))
    if options.full_field is None and not options.only_field and output.is_large(image):
        reporter.message(
            "The scan is large, so its displacement field was saved on the coarse grid (_field), which is the same "
            "map; --full-field also saves it with a vector for each voxel (_ddf)."
        )
    verb = "is" if len(items) == 1 else "are"
    reporter.message(f"{counted(len(items), 'version')} of '{options.image}' {verb} in '{folder}'.")
    return result


def _file(base: Path, kind: str, ending: str) -> Path:
    """Return the path of one kind of file of a version."""
    return base.with_name(f"{base.name}_{kind}{ending}")


def _write_fields(base: Path, ending: str, result: Deformation, options: argparse.Namespace) -> dict[str, Path]:
    """Write the field of a version: for each voxel, on its coarse grid, or both; return the files."""
    large = output.is_large(result.reference)
    full = not large if options.full_field is None else options.full_field
    files: dict[str, Path] = {}
    if full and not options.only_field:
        files["ddf"] = output.write_ddf(_file(base, "ddf", ending), result, fast=True)
    if large or "ddf" not in files:
        files["field"] = output.write_field(_file(base, "field", ending), result, compress=not options.uncompressed)
    return files


def _way(image: sitk.Image, path: str, reporter: Reporter) -> Way:
    """Find the way to another scan.

    Raises:
        ImageError: it cannot be registered to the image.
    """
    way = find_way(image, read_image(path))
    if way is None:
        raise ImageError(f"The scan '{path}' cannot be registered to the image; choose another scan of the same kind.")
    reporter.message(f"The scans correlate by {way.before:.2f}, and registered by {way.after:.2f}.")
    return way


def _named(kind: str, paths: list[str], *, many: bool = True) -> dict[str, str]:
    """Return the paths of labels or channels by the names that their results get."""
    if not many:
        return {kind: paths[0]} if paths else {}
    stems = file_names([image_stem(path) for path in paths])
    return {f"{kind}_{stem}": path for stem, path in zip(stems, paths, strict=True)}


def _read_channel(path: str, image: sitk.Image) -> sitk.Image:
    """Read another channel of an image; it keeps its own grid.

    Raises:
        ImageError: it cannot be used, or lies elsewhere.
    """
    channel = read_image(path, need_contrast=False)
    if channel.GetDimension() != image.GetDimension() or overlap(channel, image) < LEAST_OVERLAP:
        raise ImageError(f"The channel '{path}' does not lie where the image is; choose a channel of the same scan.")
    return channel


def _write_others(
    base: Path, ending: str, labels: dict[str, sitk.Image], channels: dict[str, sitk.Image], result: Deformation
) -> dict[str, list[str]]:
    """Write the labels and channels of a version; return the names of their files."""
    names: dict[str, list[str]] = {"labels": [], "channels": []}
    for name, label in labels.items():
        names["labels"].append(output.write_image(_file(base, name, ending), label, fast=True).name)
    for name, channel in channels.items():
        warped = warp_image(channel, channel, result.transform_on(channel))
        names["channels"].append(output.write_image(_file(base, name, ending), warped, fast=True).name)
    return {kind: found for kind, found in names.items() if found}


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
    if options.image is None:
        options.image = str(resource("Sample", "chest.nii.gz"))
        options.label = options.label or [str(resource("Sample", "chest.seg.nrrd"))]
    options.count, options.channel = 1, []
    options.only_field = options.uncompressed = options.inverse = options.picture = False
    options.full_field = None
    options.region = options.around = options.margin = options.toward = None
    options.keep = []
    options.format = "nii.gz"
    result = deform(options, reporter)
    picture = Path(options.output) / "demo.png"
    label = read_label(options.label[0], result.reference, geometry=options.label_geometry) if options.label else None
    deformation_picture(result, picture, label=label)
    reporter.message(f"The picture is '{picture}'.")


def evaluate(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm evaluate``; a field that cannot be read is left out."""
    scan = None if options.on is None else read_image(options.on, need_contrast=False)
    bad, results = LeftOut(len(options.ddf)), []
    for path in options.ddf:
        try:
            field = read_field(path)
            figures = measure_ddf(field) if scan is None else measure_saved(field, scan)
            results.append({"ddf": str(path), "metrics": figures.to_dict()})
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
