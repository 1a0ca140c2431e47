"""One function a command: read, work, write, report."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

from .. import output
from ..deformation import Deformation, check_level, check_pose, model_for, prepare
from ..deformation import deform as deform_image
from ..errors import SettingError
from ..invertibility.metrics import measure_ddf
from ..io import datasets
from ..io.images import image_stem, read_field, read_image, read_label
from ..models.catalogue import available_models, fetch, model_metadata
from ..models.model import Model
from ..networks import build_network
from ..runtime.device import choose_device
from ..runtime.distributed import leave, place_here
from .batch import augment as augment
from .batch import regenerate as regenerate
from .batch import synthesize as synthesize
from .progress import Reporter


def announce(options: argparse.Namespace, model: Model, reporter: Reporter) -> None:
    """Say which model was taken, if none was named."""
    if options.model is None:
        reporter.message(f"Model: {model.metadata.name} (the best one here for {model.ndim}D images of this size).")


def deform(options: argparse.Namespace, reporter: Reporter) -> Deformation:
    """``drdm deform``; returns the last version made."""
    choose_device(options.device)
    image = read_image(options.image)
    label = read_label(options.label, image) if options.label else None
    model = model_for(image, options.model, options.device)
    check_level(model, options.level)
    check_pose(options.pose)
    prepare(image, model, options.plane)
    folder = output.prepare_folder(options.output)
    announce(options, model, reporter)
    stem = image_stem(options.image)
    items: list[dict[str, Any]] = []
    for number in range(options.count):

        def on_step(done: int, total: int, number: int = number) -> None:
            reporter.progress("deform", number * total + done, options.count * total)

        result = deform_image(
            image,
            model,
            options.level,
            options.seed + number,
            options.steps,
            pose=options.pose,
            plane=options.plane,
            on_step=on_step,
        )
        base = folder / f"{stem}_{number:03d}"
        files: dict[str, Path | None] = {"image": None, "label": None, "ddf": None}
        if options.only_field:
            files["field"] = output.write_field(base.with_name(f"{base.name}_field.nii.gz"), result)
        else:
            files["image"] = output.write_warped(base.with_name(f"{base.name}_image.nii.gz"), image, result)
            files["ddf"] = output.write_ddf(base.with_name(f"{base.name}_ddf.nii.gz"), result)
        if options.inverse:
            files["inverse"] = output.write_inverse(base.with_name(f"{base.name}_inverse.nii.gz"), result)
        if label is not None and not options.only_field:
            path = base.with_name(f"{base.name}_label.nii.gz")
            files["label"] = output.write_image(path, result.warp_label(label))
        items.append(output.item_of(result, files, folder))
        # After each item: what an interrupted run leaves is a valid result of its own.
        output.write_report(folder, model.metadata.name, items, source=Path(options.image).name)
        reporter.item(**items[-1])
    reporter.message(f"{len(items)} version(s) of '{options.image}' are in '{folder}'.")
    return result


def demo(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm demo``."""
    from ..io.resources import resource
    from ..pictures import deformation_picture, require_matplotlib

    require_matplotlib()
    if options.output is None:
        names = itertools.chain(["drdm-demo"], (f"drdm-demo-{n}" for n in itertools.count(2)))
        options.output = next(name for name in names if not Path(name).exists())
    image_path, label_path = resource("Sample", "sample.nii.gz"), resource("Sample", "sample_label.nii.gz")
    options.image, options.label, options.count = str(image_path), str(label_path), 1
    options.only_field = options.inverse = False
    result = deform(options, reporter)
    picture = Path(options.output) / "demo.png"
    deformation_picture(result, picture, label=read_label(label_path, result.reference))
    reporter.message(f"The picture is '{picture}'.")


def evaluate(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm evaluate``."""
    results = [{"ddf": str(path), "metrics": measure_ddf(read_field(path)).to_dict()} for path in options.ddf]
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
    from ..training.checkpoint import config_of
    from ..training.data import load_training_images, split
    from ..training.recipe import config_from, metadata_from

    run, place = Path(options.output), place_here()
    checkpoint = run / "checkpoint.pt"
    # Processes that the engine has started again after a failure go on from their last checkpoint.
    resume = options.resume or place.restarts > 0
    if place.first and checkpoint.is_file() and not resume:
        raise SettingError(f"'{run}' holds a run already; add --resume to go on with it, or name a new folder.")
    if place.first and not resume:
        output.check_folder(run)
    device = choose_device(options.device)
    earlier = config_of(run) if resume else None
    kept_portions = earlier["portions"] if earlier and earlier["portions"] % place.world == 0 else 0
    portions = kept_portions or options.accumulate * place.world
    metadata = metadata_from(options, run)
    config = config_from(options, device=device.type, portions=portions, earlier=earlier)
    build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
    cases = datasets.find_cases(options.dataset)
    kept, left_out = split(cases, options.hold_out)
    on_case = (lambda d, n: reporter.progress("read", d, n)) if place.first else None
    images = load_training_images(kept, metadata, plane=options.plane, on_case=on_case)
    held_out = load_training_images(left_out, metadata, plane=options.plane)
    if place.first and not resume:
        output.prepare_folder(run)

    def on_checkpoint(folder: Path, model: Model) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from ..pictures import training_picture

        training_picture(model, held_out if len(held_out) else images, folder / "preview.png")

    try:
        path = run_training(
            images,
            held_out,
            metadata,
            config,
            run,
            device=options.device,
            place=place,
            resume=resume,
            on_step=lambda step, share, figures: reporter.progress("train", round(share, 4), 1.0, step=step, **figures),
            on_checkpoint=on_checkpoint,
        )
    except OSError as error:
        raise output.output_error(run, error) from error
    if place.first:
        reporter.message(f"The model is '{path}'; try it: drdm deform IMAGE -o OUT --model {path}")
    if place.world > 1:
        reporter.close()
        leave()
