"""Do the work of one process: read the next case, make samples and compress finished ones, all at the same time.

These parts do not affect each other's results. The record of a sample is written after its files. However a run is
interrupted, a task is therefore either done or not done.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import Cancelled, DRDMError, OutputError
from ..io.files import digest_of_files, listed
from ..runtime.threads import at_once, one_thread_for_each_sample, share_of_cores, share_threads
from . import records
from .batches import FieldBatches
from .case_models import CaseModel
from .plan import Task
from .report import ReportKeeper, log_times, report_entry, written_digests
from .run_state import GpuWatch, Run
from .sampling import Product, SampleMaker
from .sources import Source, SourceChanged, read_case

_WRITERS = 2
# Largest number of samples that wait to be compressed.
_WAITING = 4
# Seconds.
_SHOW_EVERY = 0.2


@dataclass
class _Job:
    """A task whose sample is being made or written."""

    task: Task
    voxels: int
    making: Future[Product]
    writing: Future[None] | None = None


class Work:
    """The work of one process on its share of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tasks = run.plan.share(run.process)
        self._batches = FieldBatches(run.plan, ())
        self._maker = SampleMaker(run.plan, run.context, run.folder)
        self._report = ReportKeeper(run)
        self._jobs: list[_Job] = []
        self._total = sum(not task.original for task in self.tasks)
        self._finished = 0
        # Number of an unfinished task -> fraction done.
        self._begun: dict[int, float] = {}
        self._models: dict[int, CaseModel] = {}
        self._stopped = threading.Event()

    def do(self) -> None:
        """Do all tasks of the share that are not done yet.

        Raises:
            OutputError: the disk is full or the folder cannot be written to.
            ImageError: the only case cannot be used.
        """
        left: dict[int, list[Task]] = defaultdict(list)
        for task, record in zip(self.tasks, self._finished_samples(), strict=True):
            if record is None:
                left[task.case].append(task)
            else:
                self.run.done[task.number] = record
                self._finished += not task.original
        self._batches = FieldBatches(self.run.plan, [task for tasks in left.values() for task in tasks])
        self._maker = replace(self._maker, batches=self._batches)
        self._show()
        device = self.run.model.device
        with GpuWatch(device) as watch, one_thread_for_each_sample(device) as workers:
            self._workers = self.run.clock.workers = workers
            # By default torch uses one thread per core inside each new thread.
            one_thread = torch.set_num_threads, (1,)
            with (
                ThreadPoolExecutor(1, "read") as reader,
                ThreadPoolExecutor(_WRITERS, "write") as writers,
                ThreadPoolExecutor(workers, "make", *one_thread) as makers,
            ):
                try:
                    for number, source in self._read(list(left), reader):
                        voxels = source.image.GetNumberOfPixels() if isinstance(source, Source) else 0
                        share_threads(workers, voxels)
                        for task in left[number]:
                            self._collect(writers, voxels)
                            self._jobs.append(_Job(task, voxels, makers.submit(self._make, task, source, voxels)))
                    self._collect(writers, None)
                finally:
                    self._stopped.set()
                    for pool in (reader, makers):
                        pool.shutdown(wait=False, cancel_futures=True)
        self.run.gpu_busy = watch.busy

    def _read(self, cases: list[int], reader: ThreadPoolExecutor) -> Iterator[tuple[int, Source | DRDMError]]:
        """Yield cases in order; the next one is read while samples of this one are made."""
        ahead: deque[tuple[int, Future[Source | DRDMError]]] = deque()
        for number in cases:
            ahead.append((number, reader.submit(self._case, number)))
            if len(ahead) > 1:
                yield self._waited(*ahead.popleft())
        while ahead:
            yield self._waited(*ahead.popleft())

    def _case(self, number: int) -> Source | DRDMError:
        try:
            source = self.run.sources.pop(number, None) or read_case(self.run.plan, number, self.run.label_mapping)
            self._require_unchanged(number, source)
            recorded = self.run.models.recorded(self.run.plan, self.run.folder, number)
            region = self.run.plan.settings.for_labels(self.run.label_mapping).deformation.region
            self._models[number] = recorded or self.run.models.of(source.place(region))
        except DRDMError as error:
            return error
        return source

    def _require_unchanged(self, number: int, source: Source) -> None:
        """Raise an error if the files of a case are not those of the plan or of its finished samples."""
        tasks = [task for task in self.run.plan.tasks if task.case == number]
        done = [self.run.done.get(task.number, {}) for task in tasks]
        expected = [record["source"]["digests"] for record in done if record.get("status") == records.DONE]
        # Runs of older versions have no digests in their plan.
        planned = self.run.description["cases"][number].get("digests")
        if planned and not expected and not self._failed_before(tasks):
            expected.append(planned)
        if any(digests != source.digests for digests in expected):
            raise SourceChanged(
                f"The files of '{source.case.name}' have changed since the run began; restore the old files, or "
                "choose a new folder."
            )

    def _failed_before(self, tasks: list[Task]) -> bool:
        """Whether a case could not be used before, so that its files may have been repaired meanwhile."""
        for task in tasks:
            with contextlib.suppress(OutputError):
                record = records.read_record(records.record_path(self.run.folder, task.name))
                if record["status"] == records.FAILED and "changed" not in record:
                    return True
        return False

    def _finished_samples(self) -> list[dict[str, Any] | None]:
        """Return the record of each task that is done, and ``None`` for those to do.

        Samples with files that are not as they were written are made again, and a warning says so.
        """
        folder = self.run.folder
        known = written_digests(folder)
        found: list[dict[str, Any] | None] = []
        changed: list[str] = []
        # Reading and hashing takes 0.3 % of the time in which samples are made, if all cores do it.
        with ThreadPoolExecutor(thread_name_prefix="check") as pool:
            checked = pool.map(lambda task: _finished(folder, task.name, known), self.tasks)
            try:
                for number, (record, differ) in enumerate(checked, start=1):
                    changed += differ
                    found.append(None if differ else record)
                    if record is not None and number % 100 == 0:
                        self.run.reporter.progress("read", number, len(self.tasks))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if changed:
            self.run.reporter.warning(
                f"Not as they were written, or missing: {listed(changed)}; the samples are made again."
            )
        return found

    def _waited(self, number: int, future: Future[Source | DRDMError]) -> tuple[int, Source | DRDMError]:
        with self.run.clock.measuring("wait for reading", self._idle()):
            return number, future.result()

    def _make(self, task: Task, source: Source | DRDMError, voxels: int) -> Product:
        try:
            # Beside a GPU there are fewer threads than cores.
            on_cpu = self.run.model.device.type == "cpu"
            with contextlib.nullcontext() if on_cpu else share_of_cores(at_once(self._workers, voxels)):
                return self._make_apart(task, source)
        finally:
            self._batches.ended(task)

    def _make_apart(self, task: Task, source: Source | DRDMError) -> Product:
        run = self.run

        def on_step(done: int, total: int) -> None:
            if self._stopped.is_set():
                raise Cancelled
            self._begun[task.number] = done / total

        try:
            if isinstance(source, DRDMError):
                raise source
            source = source.apart()
            chosen = self._models[task.case]
            maker = replace(self._maker, context=self._maker.context | chosen.entries())
            if task.original:
                return maker.original(task, source)
            part = run.parts.get(run.plan.cases[task.case].subject, "train")
            return maker.make(task, source, chosen.model, part=part, on_step=on_step)
        except OutputError:
            raise
        except DRDMError as error:
            if len(run.plan.cases) == 1 and not run.done:
                raise
            return self._maker.failure(task, error)

    def _collect(self, writers: ThreadPoolExecutor, voxels: int | None) -> None:
        """Pass finished samples to the writers and record written ones, until there is room for another sample.

        Args:
            voxels: size of the next sample's image; ``None`` waits for all samples.
        """
        while True:
            for job in self._jobs:
                if job.writing is None and job.making.done():
                    job.writing = writers.submit(job.making.result().write, self.run.folder)
            for job in [job for job in self._jobs if job.writing is not None and job.writing.done()]:
                job.writing.result()  # type: ignore[union-attr]
                self._jobs.remove(job)
                self._note(job.task, job.making.result())
            making = [job for job in self._jobs if job.writing is None]
            if not self._jobs if voxels is None else self._has_room(making, voxels):
                return
            waited_for: list[Future[Any]] = [job.writing or job.making for job in self._jobs]
            with self.run.clock.measuring("wait for writing", self._idle() if voxels is not None else 0):
                wait(waited_for, timeout=_SHOW_EVERY, return_when=FIRST_COMPLETED)
            self._show()

    def _has_room(self, making: list[_Job], voxels: int) -> bool:
        largest = max([voxels, *(job.voxels for job in making)])
        allowed = at_once(self._workers, largest)
        return len(making) < allowed and len(self._jobs) - len(making) < (_WAITING if allowed == self._workers else 1)

    def _idle(self) -> float:
        """Return the fraction of the threads that are idle."""
        return 1 - min(1.0, sum(not job.making.done() for job in self._jobs) / self._workers)

    def _note(self, task: Task, product: Product) -> None:
        self.run.done[task.number] = product.record
        self._begun.pop(task.number, None)
        if task.original:
            return
        self._finished += 1
        if product.record["status"] == records.DONE:
            self.run.clock.add({k: v for k, v in product.seconds.items() if k != "write"})
            log_times(self.run, product)
            self._report.update()
            self.run.reporter.item(**report_entry(product.record, self.run.seconds.get(task.name)))
        self._show()

    def _show(self) -> None:
        now = min(self._finished + sum(list(self._begun.values())), self._total)
        whole = now == int(now)
        self.run.reporter.progress(self.run.plan.settings.command, int(now) if whole else round(now, 3), self._total)


def _finished(folder: Path, name: str, known: dict[str, str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Look for a finished sample in the folder of a run.

    Args:
        known: digests of records, see :func:`DRDMLib.production.report.written_digests`.

    Returns:
        Its record, or ``None`` if it must be made; and its files that are missing or not as they were written.
    """
    path = records.record_path(folder, name)
    record = records.completed(folder, name)
    if not path.is_file():
        return None, []
    relative = path.relative_to(folder).as_posix()
    try:
        written = records.read_record(path) if record is None else record
        if relative in known and digest_of_files([path]) != known[relative]:
            return record, [relative]
    except (OutputError, OSError):
        return None, [relative]
    if written["status"] != records.DONE:
        return record, []
    # A record is written after the files of its sample, also in a run that is killed.
    differ = list(records.changed_files(folder, written))
    return record, differ if differ or record is not None else [relative]
