"""A run over a dataset: opens its folder, does this process's share, writes beside it, and describes the result.

Reading the next case, making a sample, and compressing the last ones go on side by side; none of them changes what the
others give. A sample's record is written after its files, so that whatever stops the run, a task is either done or not.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .. import __version__, datasets, output
from ..catalogue import digest_of, find, resolve
from ..datasets import Case
from ..deformation import check_level, model_for, prepare
from ..device import choose_device
from ..distributed import Place
from ..errors import DRDMError, ImageError, ModelError, OutputError
from ..files import write_text
from ..images import read_image, read_label
from ..models import Model
from . import folder as run_folder
from . import records
from .layouts import consecutive, learn2reg_dataset, nnunet_dataset, nnunet_splits, subject_splits
from .limits import label_values
from .plan import AUGMENT, Plan, Settings, Task, make_plan
from .quality import write_quality_page
from .sampling import QUALITY, Product, failure, keep_original, make_sample, part_folder
from .sources import Source, read_source
from .subjects import split_subjects
from .throughput import Clock, GpuWatch

LOGS = "logs"
_WRITERS = 2
# Samples that may wait to be compressed; one at a time when an image is so large that memory matters.
_WAITING, _LARGE_VOXELS = 4, 2**25
# The report of a long run is large: writing it must not take more than this share of the time.
_REPORT_SHARE = 0.02


class Listener(Protocol):
    """What a run tells while it works."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """``done`` of ``total`` samples."""

    def item(self, **values: Any) -> None:
        """One sample is complete."""

    def message(self, text: str) -> None:
        """Something a person should know."""


@dataclass
class Run:
    """One process's part of a run.

    Attributes:
        plan: everything that is to be made.
        folder: where.
        place: which share.
        description: what ``run.json`` says.
        context: what every record repeats.
    """

    plan: Plan
    folder: Path
    place: Place
    model: Model
    description: dict[str, Any]
    context: dict[str, Any]
    listener: Listener
    sources: dict[int, Source] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _reported: float = 0.0
    _report_cost: float = 0.0

    @property
    def becomes(self) -> dict[int, int]:
        """What each value of a label becomes."""
        return {int(old): new for old, new in self.description["label_values"].items()}

    @property
    def parts(self) -> dict[str, str]:
        """Subject -> train, validation, test."""
        return dict(self.description["parts"])

    # The work

    def work(self) -> None:
        """Do this process's share.

        Raises:
            OutputError: the disk is full or the folder cannot be written to.
            ImageError: there is a single case, and it cannot be used.
        """
        tasks = self.plan.share(self.place)
        counted = [task for task in tasks if not task.original]
        for task in tasks:
            record = records.completed(self.folder, task.name)
            if record is not None:
                self.done[task.number] = record
        left: dict[int, list[Task]] = defaultdict(list)
        for task in tasks:
            if task.number not in self.done:
                left[task.case].append(task)
        self._total = len(counted)
        self._finished = sum(task.number in self.done for task in counted)
        self._show()
        with (
            GpuWatch(self.model.device) as watch,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(_WRITERS, "write") as writers,
        ):
            waiting: deque[tuple[Task, Product, Future[None]]] = deque()
            try:
                for number, source in self._read(list(left), reader):
                    for task in left[number]:
                        product = self._make(task, source)
                        waiting.append((task, product, writers.submit(product.write, self.folder)))
                        large = isinstance(source, Source) and source.image.GetNumberOfPixels() > _LARGE_VOXELS
                        self._collect(waiting, 0 if large else _WAITING)
                self._collect(waiting, 0)
            finally:
                reader.shutdown(cancel_futures=True)
                for _, _, future in waiting:
                    future.cancel()
        self._gpu_busy = watch.busy

    def _read(self, cases: list[int], reader: ThreadPoolExecutor) -> Iterator[tuple[int, Source | DRDMError]]:
        """Cases in order, the next one being read while this one is worked on."""

        def read(number: int) -> Source | DRDMError:
            if number in self.sources:
                return self.sources.pop(number)
            try:
                return _read_case(self.plan, number, self.becomes)
            except DRDMError as error:
                return error

        ahead: deque[tuple[int, Future[Source | DRDMError]]] = deque()
        for number in cases:
            ahead.append((number, reader.submit(read, number)))
            if len(ahead) > 1:
                yield self._waited(*ahead.popleft())
        while ahead:
            yield self._waited(*ahead.popleft())

    def _waited(self, number: int, future: Future[Source | DRDMError]) -> tuple[int, Source | DRDMError]:
        with self.clock.measuring("wait for reading"):
            return number, future.result()

    def _make(self, task: Task, source: Source | DRDMError) -> Product:
        try:
            if isinstance(source, DRDMError):
                raise source
            if task.original:
                return keep_original(self.plan, task, source, self.context)
            part = self.parts.get(self.plan.cases[task.case].subject, "train")
            return make_sample(self.plan, task, source, self.model, self.context, part=part, on_step=self._on_step)
        except OutputError:
            raise
        except DRDMError as error:
            if len(self.plan.cases) == 1 and not self.done:
                raise
            return failure(self.plan, task, self.context, error)

    def _collect(self, waiting: deque[tuple[Task, Product, Future[None]]], most: int) -> None:
        """Note what has been written, and wait until no more than ``most`` are being written."""
        while waiting and (len(waiting) > most or waiting[0][2].done()):
            task, product, future = waiting.popleft()
            with self.clock.measuring("wait for writing"):
                future.result()
            self.done[task.number] = product.record
            if task.original:
                continue
            self._finished += 1
            if product.record["status"] == records.DONE:
                self.clock.add({k: v for k, v in product.seconds.items() if k != "write"})
                self._log(product)
                if self.place.world == 1:
                    self._write_report()
                self.listener.item(**self._item(product.record))
            self._show()

    def _on_step(self, done: int, total: int) -> None:
        task = self.plan.settings.command
        self.listener.progress(task, round(min(self._finished + done / total, self._total), 3), self._total)

    def _show(self) -> None:
        self.listener.progress(self.plan.settings.command, self._finished, self._total)

    # What is said of it

    def _log(self, product: Product) -> None:
        """Times are no part of the result: they are kept apart, a line for each sample."""
        seconds = sum(v for k, v in product.seconds.items() if k != "write")
        self.seconds[product.record["name"]] = round(seconds, 3)
        line = {"name": product.record["name"], "seconds": round(seconds, 3)}
        line |= {part: round(value, 4) for part, value in product.seconds.items()}
        path = self.folder / LOGS / f"{self.place.rank + 1:03d}-of-{self.place.world:03d}.jsonl"
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _times(self) -> dict[str, float]:
        times: dict[str, float] = {}
        for path in sorted((self.folder / LOGS).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                # A line that was being written when the run was killed is no line.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    times[entry["name"]] = entry["seconds"]
        return times

    def _item(self, record: dict[str, Any]) -> dict[str, Any]:
        files = {kind: path for kind, path in record["files"].items() if kind not in ("thumbnail",)}
        item = record["item"]
        return {
            "name": record["name"],
            "source": record["case"],
            **({"levels": item["levels"]} if "levels" in item else {}),
            "image": files.pop("image"),
            "label": files.pop("label", None),
            "ddf": files.pop("ddf", None),
            **files,
            **{key: item[key] for key in ("seed", "level", "steps")},
            "seconds": self.seconds.get(record["name"]),
            "metrics": item["metrics"],
            "repair": item["repair"],
        }

    def _write_report(self, *, always: bool = False) -> None:
        now = time.monotonic()
        if not always and self._report_cost > _REPORT_SHARE * (now - self._reported):
            return
        done = [self.done[number] for number in sorted(self.done)]
        draws = [draw["reason"] for record in done for draw in record.get("redrawn", [])]
        output.write_report(
            self.folder,
            self.model.metadata.name,
            [self._item(r) for r in done if r["status"] == records.DONE and r["levels"]],
            settings=self.plan.settings.to_dict() | {"cases": [case.name for case in self.plan.cases]},
            failures=self.failures(),
            redrawn={
                "draws": len(draws),
                "samples": sum(bool(record.get("redrawn")) for record in done),
                "given_up": sum(record["status"] == records.REJECTED for record in done),
                "reasons": {reason: draws.count(reason) for reason in sorted(set(draws))},
            },
        )
        self._reported = time.monotonic()
        self._report_cost = self._reported - now

    def failures(self) -> list[str]:
        """One sentence for each case, or sample, that could not be used."""
        found = []
        for number in sorted(self.done):
            record = self.done[number]
            if record["status"] == records.FAILED:
                found.append(f"{record['case']}: {record['reason']}")
            elif record["status"] == records.REJECTED:
                found.append(f"{record['name']}: {record['reason']}")
        return list(dict.fromkeys(found))

    def close(self) -> bool:
        """Describe the result if all of it is there, whoever made it; says whether it is.

        Raises:
            ImageError: no case could be used.
            OutputError: the disk is full.
        """
        for task in self.plan.tasks:
            if task.number not in self.done:
                record = _record_of(self.folder, task.name)
                if record is not None:
                    self.done[task.number] = record
        self.seconds = self._times()
        self._write_report(always=True)
        if len(self.done) < len(self.plan.tasks):
            return False
        done = [self.done[task.number] for task in self.plan.tasks]
        done = [record for record in done if record["status"] == records.DONE]
        if not any(record["levels"] for record in done):
            failures = self.failures()
            raise ImageError(f"None of the {len(self.plan.cases)} cases can be used; the first: {failures[0]}")
        if self.plan.settings.command == AUGMENT:
            described = self.description["source_description"]
            labels = self.description["labels"]
            self._write_json("dataset.json", nnunet_dataset(self.plan, done, labels, self.becomes, described))
            splits = nnunet_splits(self.plan, done)
            if splits:
                self._write_json("splits_final.json", splits)
        else:
            set_ = learn2reg_dataset(self.plan, done, self.parts, self.folder.name, self.model)
            self._write_json("dataset.json", set_)
            self._write_json("splits.json", subject_splits(self.plan, done, self.parts))
        if self.plan.settings.quality:
            write_quality_page(self.folder, self.plan, [self.done[t.number] for t in self.plan.samples])
        run_folder.remove_locks(self.folder)
        return True

    def _write_json(self, name: str, value: Any) -> None:
        write_text(self.folder / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def interrupted(self) -> None:
        """Write what is known so far."""
        with contextlib.suppress(DRDMError, OSError):
            if self.place.world == 1:
                self.seconds = self._times()
                self._write_report(always=True)

    def summary(self) -> str:
        """The last sentence."""
        made = sum(r["status"] == records.DONE and bool(r["levels"]) for r in self.done.values())
        again = sum(len(r.get("redrawn", [])) for r in self.done.values())
        told = f" {again} draws broke the limits and were drawn again." if again else ""
        if self.plan.settings.command == AUGMENT:
            originals = sum(r["status"] == records.DONE and not r["levels"] for r in self.done.values())
            return f"{originals} originals and {made} new versions are in '{self.folder}'.{told}"
        return f"{made} pairs are in '{self.folder}'.{told}"


def produce(
    dataset: str | Path,
    folder: str | Path,
    settings: Settings,
    listener: Listener,
    *,
    model: str | None = None,
    device: str = "auto",
    place: Place | None = None,
    resume: bool = False,
    subject_pattern: str | None = None,
) -> Run:
    """Make what ``settings`` ask for from every case of a dataset, or go on with it.

    Args:
        dataset: as :func:`DRDMLib.datasets.find_cases` takes it.
        folder: new or empty, or that of an interrupted run with the same settings.
        listener: is told how it goes.
        model: name or path; by default the best one for the first image.
        place: this process among several.
        resume: go on with the run that the folder holds. Several processes join one run without it.

    Raises:
        DRDMError: nothing can be done with this input, these settings, or this folder; what is complete stays.
    """
    place, folder = place or Place(), Path(folder)
    plan = make_plan(settings, datasets.find_cases(dataset, subject_pattern))
    device = place.device(device)
    choose_device(device)
    with run_folder.opening(folder, place):
        run = _open(plan, Path(dataset), folder, model, device, place, resume, listener)
    with run_folder.holding(folder, place):
        try:
            run.work()
        except BaseException:
            run.interrupted()
            raise
    with run_folder.opening(folder, place):
        complete = run.close()
    for text in run.failures() if complete else []:
        listener.message(f"Left out: {text}")
    if run.clock.samples:
        listener.message(run.clock.sentence(run._gpu_busy))
    return run


def _record_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a task that another process has done, or tried."""
    with contextlib.suppress(OutputError):
        return records.read_record(records.record_path(folder, name))
    return None


def _read_case(plan: Plan, number: int, becomes: dict[int, int]) -> Source:
    return read_source(plan.cases[number], need_label=plan.settings.command == AUGMENT, values=becomes)


def _open(
    plan: Plan,
    dataset: Path,
    folder: Path,
    model_name: str | None,
    device: str,
    place: Place,
    resume: bool,
    listener: Listener,
) -> Run:
    """Make the folder ready, or find it so."""
    earlier = run_folder.earlier_run(folder, resume=resume or place.world > 1)
    if earlier is not None:
        run_folder.require_same(earlier, plan, choose_device(device).type, __version__, folder)
        model = _same_model(earlier["model"], model_name, device, folder)
        return _run(plan, folder, place, model, earlier, listener)

    described = datasets.nnunet_description(dataset)
    values = _survey(plan, listener) if plan.settings.command == AUGMENT else set()
    becomes, labels = consecutive(values, described) if plan.settings.command == AUGMENT else ({}, {})
    number, source, model = _first_usable(plan, model_name, device, becomes)
    for level in {level for levels in plan.settings.levels for level in levels}:
        check_level(model, level)
    subjects = [case.subject for case in plan.cases]
    description = {
        "settings": plan.settings.to_dict(),
        "cases": [{"name": case.name, "subject": case.subject} for case in plan.cases],
        "model": {"name": model.metadata.name, "digest": _digest(model_name or model.metadata.name)},
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": {str(old): new for old, new in becomes.items()},
        "labels": labels,
        "source_description": described if plan.settings.command == AUGMENT else {},
        "parts": split_subjects(subjects, plan.settings.split, plan.settings.seed),
    }
    output.prepare_folder(folder, besides=(".drdm",))
    for name in _folders(plan, description):
        (folder / name).mkdir(parents=True, exist_ok=True)
    run = _run(plan, folder, place, model, description, listener)
    run.sources[number] = source
    if model_name is None:
        listener.message(f"Model: {model.metadata.name} (the best one here for {model.ndim}D images of this size).")
    output.write_report(folder, model.metadata.name, [], settings=plan.settings.to_dict())
    # Last: a folder with this file is ready to be worked in.
    run_folder.write_run(folder, description)
    return run


def _folders(plan: Plan, description: dict[str, Any]) -> list[str]:
    names = [records.RECORDS, LOGS, *([QUALITY] if plan.settings.quality else [])]
    if plan.settings.command == AUGMENT:
        return [*names, "imagesTr", "labelsTr"]
    kinds = ["images", "labels", "displacements", *(["displacementsVoxel"] if plan.settings.voxel_fields else [])]
    parts = sorted(set(description["parts"].values()))
    return [*names, *dict.fromkeys(part_folder(kind, part) for part in parts for kind in kinds)]


def _run(plan: Plan, folder: Path, place: Place, model: Model, description: dict[str, Any], listener: Listener) -> Run:
    context = {
        "model": description["model"],
        "configuration": run_folder.configuration_digest(description),
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": description["label_values"],
    }
    return Run(plan, folder, place, model, description, context, listener)


def _digest(name: str) -> str:
    return digest_of(resolve(name)[0], "sha256")


def _same_model(written: dict[str, str], name: str | None, device: str, folder: Path) -> Model:
    """The model of an earlier run."""
    if name is None and find(written["name"]) is None:
        raise ModelError(f"The run in '{folder}' uses the model '{written['name']}'; give its file with --model.")
    name = name or written["name"]
    path, called = resolve(name)
    if called != written["name"] or digest_of(path, "sha256") != written["digest"]:
        raise ModelError(
            f"The run in '{folder}' uses the model '{written['name']}' ({written['digest'][:19]}...); name that one."
        )
    from ..catalogue import load_model

    return load_model(name, device)


def _survey(plan: Plan, listener: Listener) -> set[int]:
    """All values of all labels: nnU-Net wants to know them before the first file is written."""

    def values(case: Case) -> set[int]:
        if case.label is None:
            return set()
        with contextlib.suppress(DRDMError):
            return set(label_values(read_label(case.label, read_image(case.image, case.series))))
        return set()

    return _gathered(values, plan.cases, listener)


def _gathered(values: Callable[[Case], set[int]], cases: list[Case], listener: Listener) -> set[int]:
    found: set[int] = set()
    with ThreadPoolExecutor(_WRITERS) as pool:
        for number, some in enumerate(pool.map(values, cases), start=1):
            found |= some
            if number == len(cases) or number % 10 == 0:
                listener.progress("read", number, len(cases))
    return found


def _first_usable(plan: Plan, name: str | None, device: str, becomes: dict[int, int]) -> tuple[int, Source, Model]:
    """The first case that can be read and seen by the model; without a name it chooses the model."""
    from ..catalogue import load_model

    model = None if name is None else load_model(name, device)
    first: DRDMError | None = None
    for number in range(len(plan.cases)):
        try:
            source = _read_case(plan, number, becomes)
            chosen = model or model_for(source.image, None, device)
            prepare(source.image, chosen, plan.settings.plane)
            return number, source, chosen
        except (ImageError, ModelError) as error:
            if len(plan.cases) == 1:
                raise
            first = first or type(error)(f"{plan.cases[number].name}: {error}")
    raise ImageError(f"None of the {len(plan.cases)} cases can be used; the first: {first}")
