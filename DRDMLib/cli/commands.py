"""One function a command: read, work, write, report."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import datasets, output
from ..algorithms import augment as algorithm3
from ..algorithms import synthesize as algorithm4
from ..catalogue import available_models, fetch, load_model, model_metadata
from ..deformation import Deformation, check_level, effective_dimension, prepare
from ..deformation import deform as deform_image
from ..device import choose_device
from ..errors import ImageError, SettingError
from ..images import image_stem, read_field, read_image, read_label
from ..metrics import measure_ddf
from ..models import Model
from ..networks import build_network
from .progress import Reporter


def _announce(options: argparse.Namespace, model: Model, reporter: Reporter) -> None:
    if options.model is None:
        reporter.message(f"Model: {model.metadata.name} (the best shipped one for {model.ndim}D images).")


def deform(options: argparse.Namespace, reporter: Reporter) -> Deformation:
    """``drdm deform``; returns the last version made."""
    choose_device(options.device)
    image = read_image(options.image)
    label = read_label(options.label, image) if options.label else None
    model = load_model(options.model, options.device, ndim=effective_dimension(image))
    check_level(model, options.level)
    prepare(image, model, options.plane)
    folder = output.prepare_folder(options.output)
    _announce(options, model, reporter)
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
        items.append(output.item_of(result, files, folder))
        # After each item: what an interrupted run leaves is a valid result of its own.
        output.write_report(folder, model.metadata.name, items, source=Path(options.image).name)
        reporter.item(**items[-1])
    reporter.message(f"{len(items)} version(s) of '{options.image}' are in '{folder}'.")
    return result


def demo(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm demo``."""
    from ..pictures import deformation_picture, require_matplotlib
    from ..resources import resource

    require_matplotlib()
    if options.output is None:
        names = itertools.chain(["drdm-demo"], (f"drdm-demo-{n}" for n in itertools.count(2)))
        options.output = next(name for name in names if not Path(name).exists())
    image_path, label_path = resource("Sample", "sample.nii.gz"), resource("Sample", "sample_label.nii.gz")
    options.image, options.label, options.count = str(image_path), str(label_path), 1
    result = deform(options, reporter)
    picture = Path(options.output) / "demo.png"
    deformation_picture(result, picture, label=read_label(label_path, result.reference))
    reporter.message(f"The picture is '{picture}'.")


class _Batch:
    """Goes through the cases of a dataset: opens the output with the first that can be used, leaves bad ones out."""

    def __init__(self, options: argparse.Namespace, reporter: Reporter, levels: list[int], per_case: int) -> None:
        self.options, self.reporter, self.levels, self.per_case = options, reporter, levels, per_case
        self.task = options.command
        self.cases = datasets.find_cases(options.dataset)
        choose_device(options.device)
        output.check_folder(options.output)
        self.model: Model | None = None
        self.folder = Path(options.output)
        self.failures: list[str] = []
        self.items: list[dict[str, Any]] = []
        self.done = 0

    def usable(self, *, require_label: bool, folders: tuple[str, ...]) -> Iterator[tuple[int, str, Any, Any]]:
        """Number, name, image and label of each case that can be read."""
        for number, case in enumerate(self.cases):
            try:
                image, label = _read_case(case, require_label=require_label)
            except ImageError as error:
                if len(self.cases) == 1:
                    raise
                self.failures.append(f"{case.name}: {error}")
                self.done = (number + 1) * self.per_case
                if self.items:
                    self._show()
                continue
            if self.model is None:
                self._open(image, folders)
            yield number, case.name, image, label
        for failure in self.failures if self.items else []:
            self.reporter.message(f"Left out: {failure}")
        if not self.items:
            raise ImageError(f"None of the {len(self.cases)} cases can be used; the first: {self.failures[0]}")

    def _open(self, image: sitk.Image, folders: tuple[str, ...]) -> None:
        model = load_model(self.options.model, self.options.device, ndim=effective_dimension(image))
        for level in self.levels:
            check_level(model, level)
        prepare(image, model, self.options.plane)
        output.prepare_folder(self.folder)
        for name in folders:
            (self.folder / name).mkdir()
        _announce(self.options, model, self.reporter)
        self.model = model

    def seed(self, case: int, level: int, copy: int) -> int:
        """A seed that no other sample of the run has: the same noise at two levels would give two alike versions."""
        return self.options.seed + case * self.per_case + level * self.options.copies + copy

    def _show(self) -> None:
        self.reporter.progress(self.task, self.done, len(self.cases) * self.per_case)

    def add(self, item: dict[str, Any]) -> None:
        """One more result is complete."""
        self.items.append(item)
        self.done += 1
        self._show()

    def finish(self, description: dict[str, Any]) -> None:
        """Write dataset.json and the report."""
        assert self.model is not None
        output.write_text(self.folder / "dataset.json", json.dumps(description, indent=2) + "\n")
        output.write_report(self.folder, self.model.metadata.name, self.items, failures=self.failures)


def augment(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm augment``."""
    levels = list(dict.fromkeys(options.levels))
    batch = _Batch(options, reporter, levels, len(levels) * options.copies)
    images, labels = batch.folder / "imagesTr", batch.folder / "labelsTr"
    values: set[int] = set()
    originals = 0
    for number, name, image, label in batch.usable(require_label=True, folders=("imagesTr", "labelsTr")):
        assert batch.model is not None
        values |= set(_values(label))
        output.write_image(images / f"{name}_0000.nii.gz", image)
        output.write_image(labels / f"{name}.nii.gz", label)
        originals += 1
        for (at, level), copy in itertools.product(enumerate(levels), range(options.copies)):
            seed = batch.seed(number, at, copy)
            made = algorithm3(image, label, batch.model, level, seed, steps=options.steps, plane=options.plane)
            assert made.label is not None
            version = f"{name}_t{level:02d}_{copy:03d}"
            files: dict[str, Path | None] = {
                "image": output.write_image(images / f"{version}_0000.nii.gz", made.image),
                "label": output.write_image(labels / f"{version}.nii.gz", made.label),
                "ddf": None,
            }
            batch.add({"source": name} | output.item_of(made.deformation, files, batch.folder))
    batch.finish(
        {
            "channel_names": {"0": "image"},
            "labels": {"background": 0} | {f"label_{v}": v for v in sorted(values - {0})},
            "numTraining": originals + len(batch.items),
            "file_ending": ".nii.gz",
        }
    )
    reporter.message(f"{originals} originals and {len(batch.items)} new versions are in '{batch.folder}'.")


def synthesize(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm synthesize``."""
    pairs = list(dict.fromkeys(options.levels))
    batch = _Batch(options, reporter, [level for pair in pairs for level in pair], len(pairs) * options.copies)
    folders = ("imagesTr", "labelsTr", "displacementsTr")
    images, labels, fields = (batch.folder / name for name in folders)
    for number, name, image, label in batch.usable(require_label=False, folders=folders):
        assert batch.model is not None
        for (at, levels), copy in itertools.product(enumerate(pairs), range(options.copies)):
            seed = batch.seed(number, at, copy)
            pair = algorithm4(image, label, batch.model, levels, seed, steps=options.steps, plane=options.plane)
            version = f"{name}_t{levels[0]:02d}-{levels[1]:02d}_{copy:03d}"
            # As in every report, image, label and ddf belong together: here those of the fixed image.
            files: dict[str, Path | None] = {
                "image": output.write_image(images / f"{version}_fixed.nii.gz", pair.fixed),
                "label": None,
                "ddf": output.write_ddf(fields / f"{version}.nii.gz", pair.second),
                "moving": output.write_image(images / f"{version}_moving.nii.gz", pair.moving),
            }
            if pair.fixed_label is not None and pair.moving_label is not None:
                files["label"] = output.write_image(labels / f"{version}_fixed.nii.gz", pair.fixed_label)
                files["moving_label"] = output.write_image(labels / f"{version}_moving.nii.gz", pair.moving_label)
            item = output.item_of(pair.second, files, batch.folder)
            batch.add({"source": name, "levels": list(levels)} | item)
    kinds = {"image": "fixed", "moving": "moving", "ddf": "displacement", "label": "fixed_label"}
    kinds["moving_label"] = "moving_label"
    batch.finish(
        {
            "name": batch.folder.name,
            "tensorImageSize": f"{batch.model.ndim}D" if batch.model else "",
            "displacement_convention": "ITK: LPS millimetres on the fixed image's grid, fixed(x) = moving(x + u(x))",
            "numPairs": len(batch.items),
            "training_paired_images": [
                {name: f"./{item[kind]}" for kind, name in kinds.items() if item.get(kind)} for item in batch.items
            ],
        }
    )
    reporter.message(f"{len(batch.items)} pairs are in '{batch.folder}'.")


def _read_case(case: datasets.Case, *, require_label: bool) -> tuple[sitk.Image, sitk.Image | None]:
    image = read_image(case.image)
    if require_label and case.label is None:
        raise ImageError(f"The image '{case.image}' has no label of the same name; add it to the labels folder.")
    return image, None if case.label is None else read_label(case.label, image)


def _values(label: sitk.Image) -> list[int]:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.SetComputePerimeter(False)
    statistics.Execute(sitk.Cast(label, sitk.sitkInt32))
    return [int(v) for v in statistics.GetLabels()]


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
    from ..training.data import load_training_images, split
    from ..training.recipe import config_from, metadata_from

    run = Path(options.output)
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file() and not options.resume:
        raise SettingError(f"'{run}' holds a run already; add --resume to go on with it, or name a new folder.")
    if not options.resume:
        output.check_folder(run)
    choose_device(options.device)
    metadata, config = metadata_from(options, run), config_from(options)
    build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
    cases = datasets.find_cases(options.dataset)
    kept, left_out = split(cases, options.hold_out)
    images = load_training_images(
        kept, metadata, plane=options.plane, on_case=lambda d, n: reporter.progress("read", d, n)
    )
    held_out = load_training_images(left_out, metadata, plane=options.plane)
    if not options.resume:
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
            resume=options.resume,
            on_step=lambda step, share, figures: reporter.progress("train", round(share, 4), 1.0, step=step, **figures),
            on_checkpoint=on_checkpoint,
        )
    except OSError as error:
        raise output.output_error(run, error) from error
    reporter.message(f"The model is '{path}'; try it: drdm deform IMAGE -o OUT --model {path}")
