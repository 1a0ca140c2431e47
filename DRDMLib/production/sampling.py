"""Make one sample: try until it is within the limits or the attempts are used up, and collect its files and record."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
import torch

from .. import output
from ..deformation import Deformation
from ..errors import DRDMError, OutputError
from ..generation import Progress
from ..io.datasets import Case
from ..io.files import atomic_write, digest_of_files
from ..levels import AUTO_POSE, OTHERS_GRAY
from ..models.model import Model
from ..pages import write_png
from ..samples import augment, synthesize
from ..settings import pose_entry
from . import records
from .batches import FieldBatches, FromBatch
from .limits import Limits
from .mirroring import Mirroring
from .plan import AUGMENT, PHASES, Plan, RunSettings, Task
from .quality import histograms, layers, thumbnail
from .sources import Source, SourceChanged, relative_paths
from .toward import Chosen, candidates, choose

QUALITY = "quality"
_Pictures: TypeAlias = list[tuple[sitk.Image, sitk.Image | None]]

Writer = Callable[[Path], Path]


@dataclass
class Product:
    """The result of one task.

    Attributes:
        record: its record.
        writers: kind of file -> function that writes it to a path; the paths are in ``record["files"]``.
        finish: adds the histograms to the record; it runs with the writing, while the next sample is made.
        seconds: part of the work -> seconds.
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
                self.record["sizes"][kind] = path.stat().st_size
            except OSError as error:
                raise OutputError(f"'{path}' cannot be read again ({error.strerror}); check the disk.") from error
        records.write_record(folder, self.record)
        self.seconds["write"] = time.perf_counter() - begin


def part_folder(kind: str, part: str) -> str:
    """Return the folder of images, labels or displacements: ...Ts for testing, ...Tr for training and validation."""
    return f"{kind}{'Ts' if part == 'test' else 'Tr'}"


@dataclass
class _Attempt:
    """The result of one attempt.

    Attributes:
        images: new images.
        labels: label before the first deformation, then the label after each one.
        deformations: one, or two for a pair.
        add_files: adds the files and their names to a product, for a task and a part of the dataset.
    """

    images: list[sitk.Image]
    labels: list[sitk.Image | None]
    deformations: list[Deformation]
    add_files: Callable[[Product, Task, str], None]

    def violation(self, limits: Limits) -> str:
        """Return the first limit that one of the deformations breaks, or an empty string."""
        last = self.deformations[-1]
        steps = zip(self.deformations, self.labels[:-1], self.labels[1:], strict=True)
        reasons = (limits.violation(one, before, after, final=one is last) for one, before, after in steps)
        return next(filter(None, reasons), "")


def _rejection(reasons: list[str]) -> str:
    counts = ", ".join(f"{reason} {reasons.count(reason)} times" for reason in dict.fromkeys(reasons))
    return f"None of {len(reasons)} draws keeps to the limits ({counts})."


def _add_quality(product: Product, task: Task, made: _Attempt, original: sitk.Image) -> None:
    """Add the thumbnail, the layers of the quality page, and the histograms of the last deformation."""
    last = made.deformations[-1]
    pictures = [] if len(made.deformations) == 1 else [(made.images[0], made.labels[1])]
    pictures.append((made.images[-1], made.labels[-1]))
    product.record["files"]["thumbnail"] = f"{QUALITY}/{task.name}.png"
    product.writers["thumbnail"] = functools.partial(_write_picture, thumbnail, pictures, last)
    product.record["files"]["layers"] = f"{QUALITY}/{task.name}_layers.png"
    shown = list(zip([original, *made.images], made.labels, strict=True))
    product.writers["layers"] = functools.partial(_write_picture, layers, shown, last)
    product.finish = functools.partial(_add_histograms, last)


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of a plan.

    Attributes:
        plan: the plan.
        context: values that all records of a run share: model, device, software and digest of the configuration.
        folder: folder of the run; records have the paths of the sources relative to it, besides absolute ones.
        levels: levels of the sample that is made again, instead of those that its strengths mean now.
        others: the scans that may be gone toward, instead of those of the plan.
        turn: angle by which these are turned, degrees, if it is known.
        batches: draws the fields of several samples together, where the device does so.
    """

    plan: Plan
    context: dict[str, Any]
    folder: Path
    levels: tuple[int, ...] = ()
    others: list[Case] | None = None
    turn: float | None = None
    batches: FieldBatches | None = None

    def failure(self, task: Task, error: DRDMError) -> Product:
        """Return the product of a task that failed, with the reason in its record."""
        changed = {"changed": True} if isinstance(error, SourceChanged) else {}
        return Product(self._record(task) | {"reason": str(error)} | changed)

    def original(self, task: Task, source: Source) -> Product:
        """Return the product of an undeformed image and its label, for an augmented dataset."""
        record = self._record(task) | {"status": records.DONE, "source": _source_entry(source, self.folder)}
        product = Product(record)
        ending = self._ending
        _add_image(product, "image", f"imagesTr/{task.name}_0000{ending}", source.image)
        for k, channel in enumerate(source.channels, start=1):
            _add_image(product, f"channel_{k:04d}", f"imagesTr/{task.name}_{k:04d}{ending}", channel)
        assert source.label is not None
        _add_image(product, "label", f"labelsTr/{task.name}{ending}", source.label)
        return product

    def make(
        self,
        task: Task,
        source: Source,
        model: Model,
        *,
        part: str = "train",
        attempt: int | None = None,
        on_step: Progress | None = None,
    ) -> Product:
        """Generate a sample; if it breaks a limit, try again with another seed, at most ``max_attempts`` times.

        If every attempt breaks a limit, the product has the status REJECTED, the reasons, and no files.

        Args:
            part: ``train``, ``validation`` or ``test``; determines the folder of a pair, is not used for augmentation.
            attempt: make only this attempt, without checking the limits.
            on_step: called with (done, total) after each recovery step; may raise an exception to cancel.

        Raises:
            ImageError, ModelError, SettingError: the source cannot be used.
        """
        limits = self.plan.settings.limits
        rejected: list[dict[str, Any]] = []
        seconds = {"generate": 0.0, "warp": 0.0, "check": 0.0}
        begin = time.perf_counter()
        chosen = self._toward(task, source)
        if self.plan.settings.toward:
            seconds["register"] = time.perf_counter() - begin
        for number in range(limits.max_attempts) if attempt is None else [attempt]:
            seed = self.plan.seed(task, number)
            batch = self._from_batch(task, source, model, number, on_step)
            begin = time.perf_counter()
            made = self._generate(task, source, model, seed, chosen, batch, on_step)
            generated = sum(one.seconds for one in made.deformations)
            seconds["generate"] += generated
            checking = time.perf_counter()
            seconds["warp"] += checking - begin - generated + (0.0 if batch is None else batch.drawn.seconds)
            reason = "" if attempt is not None else made.violation(limits)
            # This measures the field; its time counts as checking.
            item = output.report_entry(made.deformations[-1], {}, Path())
            seconds["check"] += time.perf_counter() - checking
            if not reason:
                break
            rejected.append({"attempt": number, "seed": seed, "reason": reason})
        record = self._record(task) | {"source": _source_entry(source, self.folder), "redrawn": rejected}
        if reason:
            record |= {"status": records.REJECTED, "reason": _rejection([entry["reason"] for entry in rejected])}
            return Product(record, seconds=seconds)
        record |= {"status": records.DONE, "seed": seed, "attempt": number}
        if self.plan.settings.toward:
            record["toward"] = chosen.entry_of(seed, gray=self.plan.settings.gray_values == OTHERS_GRAY)
        if self.plan.settings.mirroring is not None:
            # With the values that labels have in the source.
            record["mirror"] = self.plan.settings.mirroring.drawn(seed).to_dict()
        record |= {} if batch is None else {"batch": batch.entry()}
        if model.device.type != "cpu" and all(one.device == "cpu" for one in made.deformations):
            # The GPU failed, so the sample was made on the CPU and can only be made again there.
            record["device"] = records.device_described(torch.device("cpu"))
        item.pop("seconds")
        # What the poses were drawn from: it may be a population that the model knows.
        record["pose"] = item["pose"]
        item["pose"] = AUTO_POSE if isinstance(item["pose"], dict) else item["pose"]
        levels = [one.level for one in made.deformations]
        record["item"] = item | ({} if len(levels) == 1 else {"levels": levels})
        product = Product(record, seconds=seconds)
        made.add_files(product, task, part)
        if self.plan.settings.quality:
            _add_quality(product, task, made, source.image)
        return product

    @property
    def _ending(self) -> str:
        return f".{self.plan.settings.file_format}"

    def _record(self, task: Task) -> dict[str, Any]:
        """Return the values of a record that are known before its task is done."""
        case, settings = self.plan.cases[task.case], self.plan.settings
        return {
            "name": task.name,
            "status": records.FAILED,
            "command": settings.command,
            "case": case.name,
            "subject": case.subject,
            "levels": list(task.levels),
            "copy": task.copy,
            "run_seed": settings.seed,
            **({"seed_scheme": settings.seed_scheme} if settings.seed_scheme else {}),
            "steps": settings.deformation.steps,
            "pose": pose_entry(settings.deformation.pose),
            "plane": settings.deformation.plane,
            "border": settings.deformation.border,
            **settings.deformation.region_entry(),
            **settings.deformation.bones_entry(),
            **self.context,
            "files": {},
            "digests": {},
            "sizes": {},
        }

    def _toward(self, task: Task, source: Source) -> Chosen:
        """Find what a sample goes toward."""
        if not self.plan.settings.toward:
            return Chosen()
        others = candidates(self.plan, task) if self.others is None else self.others
        return choose(source, others, self.folder, in_place=self.plan.settings.toward == PHASES, turn=self.turn)

    def _settings(self) -> RunSettings:
        """Return the settings with the values of labels as they are in the new dataset."""
        return self.plan.settings.for_labels({int(k): v for k, v in self.context["label_values"].items()})

    def _from_batch(
        self, task: Task, source: Source, model: Model, attempt: int, on_step: Progress | None
    ) -> FromBatch | None:
        """Return the fields of the first deformation, if several samples are drawn together."""
        if self.batches is None:
            return None
        settings = self._settings().at_level((self.levels or task.levels)[0])
        count = len(task.levels)
        part = None if on_step is None else lambda done, total: on_step(done, count * total)
        return self.batches.draw(task, attempt, source.image, model, settings, part)

    def _generate(
        self,
        task: Task,
        source: Source,
        model: Model,
        seed: int,
        chosen: Chosen,
        batch: FromBatch | None,
        on_step: Progress | None,
    ) -> _Attempt:
        settings = self._settings()
        drawn = None if batch is None else batch.drawn
        levels = self.levels or task.levels
        ending = self._ending
        if settings.command == AUGMENT:
            mirrored = (settings.mirroring or Mirroring(())).drawn(seed)
            deformation = settings.at_level(levels[0])
            gray = settings.gray_values == OTHERS_GRAY
            made = augment(
                source.image,
                source.label,
                model,
                deformation,
                seed,
                channels=source.channels,
                toward=chosen.way,
                gray=gray,
                drawn=drawn,
                on_step=on_step,
            )

            def add_files(product: Product, task: Task, part: str) -> None:
                for k, image in enumerate([made.image, *made.channels]):
                    kind = f"channel_{k:04d}" if k else "image"
                    _add_image(product, kind, f"imagesTr/{task.name}_{k:04d}{ending}", mirrored.image(image))
                assert made.label is not None
                _add_image(product, "label", f"labelsTr/{task.name}{ending}", mirrored.label(made.label))

            return _Attempt([made.image], [source.label, made.label], [made.deformation], add_files)
        both = settings.at_level(levels[0]), settings.at_level(levels[1])
        way = chosen.from_version if chosen.way is not None else None
        pair = synthesize(source.image, source.label, model, both, seed, toward=way, drawn=drawn, on_step=on_step)

        def add_files_pair(product: Product, task: Task, part: str) -> None:
            images, labels, fields = (part_folder(kind, part) for kind in ("images", "labels", "displacements"))
            # In every report, image, label and ddf belong together; for a pair they are those of the fixed image.
            _add_image(product, "image", f"{images}/{task.name}_fixed{ending}", pair.fixed)
            product.record["files"]["ddf"] = f"{fields}/{task.name}{ending}"
            product.writers["ddf"] = functools.partial(output.write_ddf, deformation=pair.second)
            # Where the fixed image does not show what lies outside of the moving one.
            _add_image(product, "mask", f"{part_folder('masks', part)}/{task.name}{ending}", pair.second.inside)
            if settings.voxel_fields:
                product.record["files"]["voxel_ddf"] = f"{part_folder('displacementsVoxel', part)}/{task.name}.nii.gz"
                product.writers["voxel_ddf"] = functools.partial(output.write_voxel_ddf, deformation=pair.second)
            _add_image(product, "moving", f"{images}/{task.name}_moving{ending}", pair.moving)
            if pair.fixed_label is not None and pair.moving_label is not None:
                _add_image(product, "label", f"{labels}/{task.name}_fixed{ending}", pair.fixed_label)
                _add_image(product, "moving_label", f"{labels}/{task.name}_moving{ending}", pair.moving_label)

        return _Attempt(
            [pair.moving, pair.fixed],
            [source.label, pair.moving_label, pair.fixed_label],
            [pair.first, pair.second],
            add_files_pair,
        )


def _source_entry(source: Source, folder: Path) -> dict[str, Any]:
    entry = {
        "files": source.files,
        "relative": relative_paths(source.files, folder),
        "series": source.case.series,
        "digests": source.digests,
    }
    return entry if source.label_geometry == "file" else entry | {"label_geometry": source.label_geometry}


def _add_image(product: Product, kind: str, path: str, image: sitk.Image) -> None:
    product.record["files"][kind] = path
    product.writers[kind] = functools.partial(output.write_image, image=image)


def _write_picture(
    draw: Callable[[_Pictures, sitk.Image], np.ndarray], pictures: _Pictures, deformation: Deformation, path: Path
) -> Path:
    with atomic_write(path) as partial:
        write_png(partial, draw(pictures, deformation.field))
    return path


def _add_histograms(deformation: Deformation, record: dict[str, Any]) -> None:
    record["histograms"] = histograms(deformation)
