"""Making one sample: drawn until it keeps to the limits, with what is to be written and what is to be said of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from .. import output
from ..algorithms import augment as algorithm3
from ..algorithms import synthesize as algorithm4
from ..deformation import Deformation, Progress
from ..errors import DRDMError, OutputError
from ..io.files import complete_or_absent
from ..models.model import Model
from . import records
from .limits import Limits
from .plan import AUGMENT, Plan, Task
from .sources import Source, digest_of_files
from .thumbnails import histograms, thumbnail, write_png

QUALITY = "quality"

Writer = Callable[[Path], Path]


@dataclass
class Product:
    """One finished task.

    Attributes:
        record: what is said of it.
        writers: kind of file -> writes it under the path that it is given; paths are in ``record["files"]``.
        finish: adds to the record what is costly and can be done beside the next sample.
        seconds: how long its parts took.
    """

    record: dict[str, Any]
    writers: dict[str, Writer] = field(default_factory=dict)
    finish: Callable[[dict[str, Any]], None] = lambda record: None
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files, then the record.

        Raises:
            OutputError: the disk is full or the folder cannot be written to.
        """
        self.finish(self.record)
        begin = time.perf_counter()
        for kind, writer in self.writers.items():
            path = writer(folder / self.record["files"][kind])
            try:
                self.record["digests"][kind] = digest_of_files([path])
            except OSError as error:
                raise OutputError(f"'{path}' cannot be read again ({error.strerror}); check the disk.") from error
        records.write_record(folder, self.record)
        self.seconds["write"] = time.perf_counter() - begin


def part_folder(kind: str, part: str) -> str:
    """Folder of images, labels or displacements: what is for testing lies apart."""
    return f"{kind}{'Ts' if part == 'test' else 'Tr'}"


def base_record(plan: Plan, task: Task, context: dict[str, Any]) -> dict[str, Any]:
    """What is known of a task before it is done.

    Args:
        context: model, device, software and the configuration's digest, the same for all samples of a run.
    """
    case = plan.cases[task.case]
    return {
        "name": task.name,
        "status": records.FAILED,
        "command": plan.settings.command,
        "case": case.name,
        "subject": case.subject,
        "levels": list(task.levels),
        "copy": task.copy,
        "run_seed": plan.settings.seed,
        "steps": plan.settings.steps,
        "pose": plan.settings.pose,
        "plane": plan.settings.plane,
        **context,
        "files": {},
        "digests": {},
    }


def failure(plan: Plan, task: Task, context: dict[str, Any], error: DRDMError) -> Product:
    """A task that cannot be done, and why."""
    return Product(base_record(plan, task, context) | {"reason": str(error)})


def keep_original(plan: Plan, task: Task, source: Source, context: dict[str, Any]) -> Product:
    """The undeformed image and label of an augmented set."""
    record = base_record(plan, task, context) | {"status": records.DONE, "source": _source(source)}
    product = Product(record)
    _add_image(product, "image", f"imagesTr/{task.name}_0000.nii.gz", source.image)
    for k, channel in enumerate(source.channels, start=1):
        _add_image(product, f"channel_{k:04d}", f"imagesTr/{task.name}_{k:04d}.nii.gz", channel)
    assert source.label is not None
    _add_image(product, "label", f"labelsTr/{task.name}.nii.gz", source.label)
    return product


def make_sample(
    plan: Plan,
    task: Task,
    source: Source,
    model: Model,
    context: dict[str, Any],
    *,
    part: str = "train",
    on_step: Progress | None = None,
    attempt: int | None = None,
) -> Product:
    """Draw a sample, and again until one keeps to the limits.

    Args:
        part: ``train``, ``validation`` or ``test``; decides the folder of a pair.
        attempt: make this draw, whatever the limits say.

    Raises:
        ImageError, ModelError, SettingError: the source cannot be used.
    """
    limits, turned_down = plan.settings.limits, []
    seconds = {"generate": 0.0, "warp": 0.0, "check": 0.0}
    for number in range(limits.draws) if attempt is None else [attempt]:
        seed = plan.seed(task, number)
        begin = time.perf_counter()
        made = _draw(plan, task, source, model, seed, on_step)
        generated = sum(part.seconds for part in made.deformations)
        seconds["generate"] += generated
        checking = time.perf_counter()
        seconds["warp"] += checking - begin - generated
        reason = "" if attempt is not None else _broken(limits, made)
        made.deformations[-1].metrics  # noqa: B018 (computed here, in its turn)
        seconds["check"] += time.perf_counter() - checking
        if not reason:
            break
        turned_down.append({"attempt": number, "seed": seed, "reason": reason})
    record = base_record(plan, task, context) | {"source": _source(source), "redrawn": turned_down}
    if reason:
        counts = {why: sum(draw["reason"] == why for draw in turned_down) for why in _unique(turned_down)}
        told = ", ".join(f"{why} {count} times" for why, count in counts.items())
        record |= {"status": records.REJECTED, "reason": f"None of {limits.draws} draws keeps to the limits ({told})."}
        return Product(record, seconds=seconds)
    record |= {"status": records.DONE, "seed": seed, "attempt": number}
    if model.device.type != "cpu" and all(one.device == "cpu" for one in made.deformations):
        # The GPU gave up: the sample can be made again there only.
        record["device"] = records.device_described(torch.device("cpu"))
    product = Product(record, seconds=seconds)
    made.lay_out(product, task, part)
    last = made.deformations[-1]
    item = output.item_of(last, {}, Path())
    item.pop("seconds")
    record["item"] = item | ({} if len(made.deformations) == 1 else {"levels": list(task.levels)})
    if plan.settings.quality:
        path = f"{QUALITY}/{task.name}.png"
        record["files"]["thumbnail"] = path
        pictures = [] if len(made.deformations) == 1 else [(made.images[0], made.labels[1])]
        pictures.append((made.images[-1], made.labels[-1]))
        product.writers["thumbnail"] = functools.partial(_write_thumbnail, pictures, last)
        product.finish = functools.partial(_add_histograms, last)
    return product


def _broken(limits: Limits, made: _Made) -> str:
    """Which limit any stage of a sample breaks, or nothing."""
    last = made.deformations[-1]
    stages = zip(made.deformations, made.labels[:-1], made.labels[1:], strict=True)
    reasons = (limits.broken(one, before, after, final=one is last) for one, before, after in stages)
    return next(filter(None, reasons), "")


def _unique(turned_down: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(draw["reason"] for draw in turned_down))


@dataclass
class _Made:
    """Images made, labels of all stages (the original's first), deformations between them, and where they go."""

    images: list[sitk.Image]
    labels: list[sitk.Image | None]
    deformations: list[Deformation]
    lay_out: Callable[[Product, Task, str], None]


def _draw(plan: Plan, task: Task, source: Source, model: Model, seed: int, on_step: Progress | None) -> _Made:
    settings = plan.settings
    how: Any = {"steps": settings.steps, "pose": settings.pose, "plane": settings.plane, "on_step": on_step}
    if settings.command == AUGMENT:
        made = algorithm3(source.image, source.label, model, task.levels[0], seed, **how)
        channels = [made.deformation.warp(channel) for channel in source.channels]

        def lay_out(product: Product, task: Task, part: str) -> None:
            for k, image in enumerate([made.image, *channels]):
                kind = f"channel_{k:04d}" if k else "image"
                _add_image(product, kind, f"imagesTr/{task.name}_{k:04d}.nii.gz", image)
            assert made.label is not None
            _add_image(product, "label", f"labelsTr/{task.name}.nii.gz", made.label)

        return _Made([made.image], [source.label, made.label], [made.deformation], lay_out)
    pair = algorithm4(source.image, source.label, model, (task.levels[0], task.levels[1]), seed, **how)

    def lay_out_pair(product: Product, task: Task, part: str) -> None:
        images, labels, fields = (part_folder(kind, part) for kind in ("images", "labels", "displacements"))
        # As in every report, image, label and ddf belong together: here those of the fixed image.
        _add_image(product, "image", f"{images}/{task.name}_fixed.nii.gz", pair.fixed)
        product.record["files"]["ddf"] = f"{fields}/{task.name}.nii.gz"
        product.writers["ddf"] = functools.partial(output.write_ddf, deformation=pair.second)
        if settings.voxel_fields:
            product.record["files"]["voxel_ddf"] = f"{part_folder('displacementsVoxel', part)}/{task.name}.nii.gz"
            product.writers["voxel_ddf"] = functools.partial(output.write_voxel_ddf, deformation=pair.second)
        _add_image(product, "moving", f"{images}/{task.name}_moving.nii.gz", pair.moving)
        if pair.fixed_label is not None and pair.moving_label is not None:
            _add_image(product, "label", f"{labels}/{task.name}_fixed.nii.gz", pair.fixed_label)
            _add_image(product, "moving_label", f"{labels}/{task.name}_moving.nii.gz", pair.moving_label)

    return _Made(
        [pair.moving, pair.fixed],
        [source.label, pair.moving_label, pair.fixed_label],
        [pair.first, pair.second],
        lay_out_pair,
    )


def _source(source: Source) -> dict[str, Any]:
    return {"files": source.files, "series": source.case.series, "digests": source.digests}


def _add_image(product: Product, kind: str, path: str, image: sitk.Image) -> None:
    product.record["files"][kind] = path
    product.writers[kind] = functools.partial(output.write_image, image=image)


def _write_thumbnail(
    pictures: list[tuple[sitk.Image, sitk.Image | None]], deformation: Deformation, path: Path
) -> Path:
    with complete_or_absent(path) as partial:
        write_png(partial, thumbnail(pictures, deformation.field))
    return path


def _add_histograms(deformation: Deformation, record: dict[str, Any]) -> None:
    record["histograms"] = histograms(deformation)
