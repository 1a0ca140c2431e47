"""A run over the cases of a dataset: leaves bad ones out, goes on where it was stopped."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import datasets, output
from ..catalogue import resolve
from ..deformation import check_level, model_for, prepare
from ..device import choose_device
from ..errors import ImageError, ModelError, SettingError
from ..images import read_image, read_label
from ..models import Model
from .progress import Reporter


def announce(options: argparse.Namespace, model: Model, reporter: Reporter) -> None:
    """Say which model was taken, if none was named."""
    if options.model is None:
        reporter.message(f"Model: {model.metadata.name} (the best one here for {model.ndim}D images of this size).")


class Batch:
    """Goes through the cases of a dataset: opens the output with the first that can be used, leaves bad ones out."""

    def __init__(self, options: argparse.Namespace, reporter: Reporter, levels: list[int], per_case: int) -> None:
        self.options, self.reporter, self.levels, self.per_case = options, reporter, levels, per_case
        self.task = options.command
        self.cases = datasets.find_cases(options.dataset)
        choose_device(options.device)
        self.folder = Path(options.output)
        self.model: Model | None = None
        self.failures: list[str] = []
        self.items: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {
            "command": options.command,
            "cases": [case.name for case in self.cases],
            "levels": [list(level) if isinstance(level, tuple) else level for level in options.levels],
            **{name: getattr(options, name) for name in ("copies", "seed", "steps", "plane")},
        }
        self.earlier = self._earlier_items()
        self.done = 0

    def _earlier_items(self) -> dict[str, dict[str, Any]]:
        """What an interrupted run with the same settings has completed, by name."""
        report = self.folder / output.REPORT
        if not (self.options.resume and report.is_file()):
            if report.is_file():
                raise SettingError(f"'{self.folder}' holds a run already; add --resume to go on, or name a new folder.")
            output.check_folder(self.folder)
            return {}
        written = output.read_report(self.folder)
        for key, value in self.settings.items():
            if written.get("settings", {}).get(key) != value:
                raise SettingError(
                    f"The run in '{self.folder}' was made with other {key}; repeat its settings, or name a new folder."
                )
        if self.options.model is not None and resolve(self.options.model)[1] != written["model"]:
            raise SettingError(f"The run in '{self.folder}' uses the model '{written['model']}'; name that one.")
        files = ("image", "label", "ddf", "moving", "moving_label")
        return {
            item["name"]: item
            for item in written["items"]
            if all((self.folder / item[kind]).is_file() for kind in files if item.get(kind))
        }

    def usable(self, *, require_label: bool, folders: tuple[str, ...]) -> Iterator[tuple[int, str, Any, Any]]:
        """Number, name, image and label of each case that can be read."""
        for number, case in enumerate(self.cases):
            read = None
            with self.leaving_out(case.name):
                read = _read_case(case, require_label=require_label)
                if self.model is None:
                    self._open(read[0], folders)
            if read is not None:
                yield number, case.name, *read
            self.done = (number + 1) * self.per_case
            if self.items:
                self._show()
        for failure in self.failures if self.items else []:
            self.reporter.message(f"Left out: {failure}")
        if not self.items:
            raise ImageError(f"None of the {len(self.cases)} cases can be used; the first: {self.failures[0]}")

    @contextlib.contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """A case that cannot be used is noted, and the run goes on; if it is the only one, that ends the run."""
        try:
            yield
        except (ImageError, ModelError) as error:
            # Without a model that works at all there is nothing to go on with.
            if len(self.cases) == 1 or (isinstance(error, ModelError) and self.model is None):
                raise
            self.failures.append(f"{name}: {error}")

    def _open(self, image: sitk.Image, folders: tuple[str, ...]) -> None:
        model = model_for(image, self.options.model, self.options.device)
        for level in self.levels:
            check_level(model, level)
        prepare(image, model, self.options.plane)
        if not (self.folder / output.REPORT).is_file():
            output.prepare_folder(self.folder)
        for name in folders:
            (self.folder / name).mkdir(exist_ok=True)
        self.model = model
        announce(self.options, model, self.reporter)
        self._report()

    def _report(self) -> None:
        assert self.model is not None
        items = list({**self.earlier, **{item["name"]: item for item in self.items}}.values())
        name, settings = self.model.metadata.name, self.settings
        output.write_report(self.folder, name, items, settings=settings, failures=self.failures)

    def seed(self, case: int, level: int, copy: int) -> int:
        """A seed that no other sample of the run has: the same noise at two levels would give two alike versions."""
        return self.options.seed + case * self.per_case + level * self.options.copies + copy

    def _show(self) -> None:
        self.reporter.progress(self.task, self.done, len(self.cases) * self.per_case)

    def has(self, name: str) -> bool:
        """Whether an earlier run completed this result; it is then counted."""
        if name not in self.earlier:
            return False
        self.items.append(self.earlier[name])
        self.done += 1
        return True

    def on_step(self, done: int, total: int) -> None:
        """Progress within one result."""
        self.reporter.progress(self.task, round(self.done + done / total, 3), len(self.cases) * self.per_case)

    def add(self, item: dict[str, Any]) -> None:
        """One more result is complete."""
        self.items.append(item)
        self.done += 1
        self._report()
        self.reporter.item(**item)
        self._show()

    def finish(self, description: dict[str, Any]) -> None:
        """Write dataset.json and the report."""
        output.write_text(self.folder / "dataset.json", json.dumps(description, indent=2) + "\n")
        self._report()


def _read_case(case: datasets.Case, *, require_label: bool) -> tuple[sitk.Image, sitk.Image | None]:
    image = read_image(case.image)
    if require_label and case.label is None:
        raise ImageError(f"The image '{case.image}' has no label of the same name; add it to the labels folder.")
    return image, None if case.label is None else read_label(case.label, image)
