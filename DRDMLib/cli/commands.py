"""One function a command: read, work, write, report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import datasets, output
from ..algorithms import augment as algorithm3
from ..algorithms import synthesize as algorithm4
from ..catalogue import available_models, fetch, load_model, model_metadata
from ..deformation import check_level, effective_dimension, prepare
from ..deformation import deform as deform_image
from ..device import choose_device
from ..errors import ImageError, SettingError
from ..images import image_stem, read_image, read_label
from ..metrics import measure_ddf
from ..models import Model
from .progress import Reporter


def _load(options: argparse.Namespace, image: sitk.Image, reporter: Reporter) -> Model:
    model = load_model(options.model, options.device, ndim=effective_dimension(image))
    if options.model is None:
        reporter.message(f"Model: {model.metadata.name} (the best shipped one for {model.ndim}D images).")
    return model


def deform(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm deform``."""
    choose_device(options.device)
    image = read_image(options.image)
    label = read_label(options.label, image) if options.label else None
    model = _load(options, image, reporter)
    check_level(model, options.level)
    prepare(image, model, options.plane)
    folder = output.prepare_folder(options.output)
    stem = image_stem(options.image)
    items: list[dict[str, Any]] = []
    for number in range(options.count):

        def on_step(done: int, total: int, number: int = number) -> None:
            reporter.progress("deform", number * total + done, options.count * total)

        result = deform_image(
            image, model, options.level, options.seed + number, options.steps, plane=options.plane, on_step=on_step
        )
        base = folder / f"{stem}_{number:03d}"
        files: dict[str, Path | None] = {
            "image": output.write_warped(base.with_name(f"{base.name}_image.nii.gz"), image, result),
            "label": None,
            "ddf": output.write_ddf(base.with_name(f"{base.name}_ddf.nii.gz"), result),
        }
        if label is not None:
            path = base.with_name(f"{base.name}_label.nii.gz")
            files["label"] = output.write_image(path, result.warp_label(label))
        items.append(output.item_of(result, files))
        # After each item: what an interrupted run leaves is a valid result of its own.
        output.write_report(folder, model.metadata.name, items, source=Path(options.image).name)
        reporter.item(**items[-1])
    reporter.message(f"{len(items)} version(s) of '{options.image}' are in '{folder}'.")


def demo(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm demo``."""
    from ..pictures import deformation_picture, require_matplotlib
    from ..resources import resource

    require_matplotlib()
    image_path, label_path = resource("Sample", "sample.nii.gz"), resource("Sample", "sample_label.nii.gz")
    options.image, options.label, options.count = str(image_path), str(label_path), 1
    deform(options, reporter)
    image = read_image(image_path)
    model = load_model(options.model, options.device, ndim=3)
    result = deform_image(image, model, options.level, options.seed, options.steps)
    picture = Path(options.output) / "demo.png"
    deformation_picture(result, picture, label=read_label(label_path, image))
    reporter.message(f"The picture is '{picture}'.")


def _dataset(options: argparse.Namespace, reporter: Reporter) -> tuple[list[datasets.Case], Model]:
    cases = datasets.find_cases(options.dataset)
    model = _load(options, read_image(cases[0].image), reporter)
    return cases, model


def augment(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm augment``."""
    cases, model = _dataset(options, reporter)
    for level in options.levels:
        check_level(model, level)
    folder = output.prepare_folder(options.output)
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir()
    labels.mkdir()
    items: list[dict[str, Any]] = []
    values: set[int] = set()
    total = len(cases) * (1 + len(options.levels) * options.copies)
    done = 0
    failures = []
    for number, case in enumerate(cases):
        try:
            image, label = _read_case(case, require_label=True)
        except ImageError as error:
            failures.append(f"{case.name}: {error}")
            reporter.message(f"Left out: {error}")
            continue
        assert label is not None
        values |= {int(v) for v in _values(label)}
        output.write_image(images / f"{case.name}_0000.nii.gz", image)
        output.write_image(labels / f"{case.name}.nii.gz", label)
        done += 1
        for level in options.levels:
            for copy in range(options.copies):
                seed = options.seed + number * 10000 + copy
                made = algorithm3(image, label, model, level, seed, steps=options.steps, plane=options.plane)
                name = f"{case.name}_t{level:02d}_{copy:03d}"
                assert made.label is not None
                files: dict[str, Path | None] = {
                    "image": output.write_image(images / f"{name}_0000.nii.gz", made.image),
                    "label": output.write_image(labels / f"{name}.nii.gz", made.label),
                    "ddf": None,
                }
                items.append({"source": case.name} | output.item_of(made.deformation, files))
                done += 1
                reporter.progress("augment", done, total)
    if not items:
        raise ImageError(f"Nothing could be made of '{options.dataset}': {failures[0]}")
    described = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0} | {f"label_{v}": v for v in sorted(values - {0})},
        "numTraining": done,
        "file_ending": ".nii.gz",
    }
    output.write_text(folder / "dataset.json", json.dumps(described, indent=2) + "\n")
    output.write_report(folder, model.metadata.name, items, failures=failures)
    reporter.message(f"{done} cases are in '{folder}'.")


def synthesize(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm synthesize``."""
    cases, model = _dataset(options, reporter)
    for pair in options.levels:
        for level in pair:
            check_level(model, level)
    folder = output.prepare_folder(options.output)
    parts = {name: folder / name for name in ("imagesTr", "labelsTr", "displacementsTr")}
    for path in parts.values():
        path.mkdir()
    total = len(cases) * len(options.levels) * options.copies
    items: list[dict[str, Any]] = []
    failures = []
    for number, case in enumerate(cases):
        try:
            image, label = _read_case(case, require_label=False)
        except ImageError as error:
            failures.append(f"{case.name}: {error}")
            reporter.message(f"Left out: {error}")
            continue
        for at, (first, second) in enumerate(options.levels):
            for copy in range(options.copies):
                seed = options.seed + number * 10000 + at * 1000 + copy
                pair = algorithm4(image, label, model, (first, second), seed, steps=options.steps, plane=options.plane)
                name = f"{case.name}_t{first:02d}-{second:02d}_{copy:03d}"
                entry = {
                    "fixed": output.write_image(parts["imagesTr"] / f"{name}_fixed.nii.gz", pair.fixed),
                    "moving": output.write_image(parts["imagesTr"] / f"{name}_moving.nii.gz", pair.moving),
                    "displacement": output.write_ddf(parts["displacementsTr"] / f"{name}.nii.gz", pair.second),
                }
                if pair.fixed_label is not None and pair.moving_label is not None:
                    entry["fixed_label"] = output.write_image(
                        parts["labelsTr"] / f"{name}_fixed.nii.gz", pair.fixed_label
                    )
                    entry["moving_label"] = output.write_image(
                        parts["labelsTr"] / f"{name}_moving.nii.gz", pair.moving_label
                    )
                record = output.item_of(
                    pair.second, {"image": entry["fixed"], "label": None, "ddf": entry["displacement"]}
                )
                relative = {k: f"./{p.relative_to(folder).as_posix()}" for k, p in entry.items()}
                items.append({"source": case.name, "levels": [first, second]} | record | {"files": relative})
                reporter.progress("synthesize", len(items), total)
    if not items:
        raise ImageError(f"Nothing could be made of '{options.dataset}': {failures[0]}")
    described = {
        "name": folder.name,
        "tensorImageSize": "3D" if model.ndim == 3 else "2D",
        "registration_direction": {"fixed": "fixed", "moving": "moving"},
        "displacement_convention": "ITK: LPS millimetres on the fixed image's grid, fixed(x) = moving(x + u(x))",
        "numPairs": len(items),
        "training_paired_images": [item["files"] for item in items],
    }
    output.write_text(folder / "dataset.json", json.dumps(described, indent=2) + "\n")
    output.write_report(folder, model.metadata.name, items, failures=failures)
    reporter.message(f"{len(items)} pairs are in '{folder}'.")


def _read_case(case: datasets.Case, *, require_label: bool) -> tuple[sitk.Image, sitk.Image | None]:
    if require_label and case.label is None:
        raise ImageError(f"The image '{case.image}' has no label of the same name; add it to the labels folder.")
    image = read_image(case.image)
    return image, None if case.label is None else read_label(case.label, image)


def _values(label: sitk.Image) -> list[int]:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.SetComputePerimeter(False)
    statistics.Execute(sitk.Cast(label, sitk.sitkInt32))
    return list(statistics.GetLabels())


def evaluate(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm evaluate``."""
    results = []
    for path in options.ddf:
        try:
            ddf = sitk.ReadImage(path)
        except RuntimeError as error:
            raise ImageError(f"The field '{path}' is missing or cannot be read; check the path.") from error
        if ddf.GetNumberOfComponentsPerPixel() != ddf.GetDimension():
            raise ImageError(
                f"'{path}' is not a displacement field: it has {ddf.GetNumberOfComponentsPerPixel()} value(s) "
                f"per voxel in {ddf.GetDimension()} dimensions."
            )
        results.append({"ddf": str(path), "metrics": measure_ddf(ddf).to_dict()})
    print(json.dumps(results, indent=2))


def models(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm models``."""
    if options.action == "list":
        for entry in available_models():
            state = "here" if entry.available else f"download, {entry.megabytes:g} MB"
            print(f"{entry.name:24} {entry.ndim}D  {state:18} {entry.about}")
        return
    if not options.name:
        raise SettingError(f"Which model? Write 'drdm models {options.action} NAME'; 'drdm models' lists the names.")
    if options.action == "fetch":
        path = fetch(options.name, on_bytes=lambda got, total: reporter.progress("download", got, max(got, total)))
        reporter.message(f"'{options.name}' is here: '{path}'.")
    else:
        metadata = model_metadata(options.name)
        print(json.dumps({k: v for k, v in vars(metadata).items() if v not in ("", {}, None)}, indent=2))


def train(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm train``."""
    from ..training import train as run_training
    from ..training.data import load_training_images, split
    from ..training.recipe import config_from, metadata_from

    run = Path(options.output)
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file() and not options.resume:
        raise SettingError(f"'{run}' holds a run already; add --resume to go on with it, or name a new folder.")
    if not options.resume:
        output.prepare_folder(run)
    choose_device(options.device)
    metadata, config = metadata_from(options, run), config_from(options)
    cases = datasets.find_cases(options.dataset)
    kept, left_out = split(cases, options.hold_out)
    images = load_training_images(
        kept, metadata, plane=options.plane, on_case=lambda d, n: reporter.progress("read", d, n)
    )
    held_out = load_training_images(left_out, metadata, plane=options.plane)

    def on_checkpoint(folder: Path, model: Model) -> None:
        try:
            from ..pictures import training_picture
        except ImportError:
            return
        training_picture(model, held_out if len(held_out) else images, folder / "preview.png")

    try:
        path = run_training(
            images,
            held_out,
            metadata,
            config,
            run,
            device=options.device,
            resume=options.resume,
            on_step=lambda step, share, figures: reporter.progress("train", round(share, 4), 1.0, step=step, **figures),
            on_checkpoint=on_checkpoint,
        )
    except OSError as error:
        raise output.output_error(run, error) from error
    reporter.message(f"The model is '{path}'; try it: drdm deform IMAGE -o OUT --model {path}")
