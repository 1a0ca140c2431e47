"""The work of one process: reading the next case, making a sample and compressing the last ones go on side by side.

None of them changes what the others give. A sample's record is written after its files, so that whatever stops the
run, a task is either done or not.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import DRDMError, ImageError, OutputError
from . import records
from .opening import read_case
from .plan import Task
from .report import ReportKeeper, item_of, log_times
from .sampling import Product, failure, keep_original, make_sample
from .sources import Source
from .state import Run
from .throughput import GpuWatch

_WRITERS = 2
# Samples that may wait to be compressed; one at a time when an image is so large that memory matters.
_WAITING, _LARGE_VOXELS = 4, 2**25


class Work:
    """One process's share of a run, being done."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tasks = run.plan.share(run.place)
        self._report = ReportKeeper(run)
        self._waiting: deque[tuple[Task, Product, Future[None]]] = deque()
        self._total = sum(not task.original for task in self.tasks)
        self._finished = 0

    def do(self) -> None:
        """All of it that has not been done before.

        Raises:
            OutputError: the disk is full or the folder cannot be written to.
            ImageError: there is a single case, and it cannot be used.
        """
        left: dict[int, list[Task]] = defaultdict(list)
        for task in self.tasks:
            record = records.completed(self.run.folder, task.name)
            if record is None:
                left[task.case].append(task)
            else:
                self.run.done[task.number] = record
                self._finished += not task.original
        self._show()
        with (
            GpuWatch(self.run.model.device) as watch,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(_WRITERS, "write") as writers,
        ):
            try:
                for number, source in self._read(list(left), reader):
                    large = isinstance(source, Source) and source.image.GetNumberOfPixels() > _LARGE_VOXELS
                    for task in left[number]:
                        product = self._make(task, source)
                        writing = writers.submit(product.write, self.run.folder)
                        self._waiting.append((task, product, writing))
                        self._collect(0 if large else _WAITING)
                self._collect(0)
            finally:
                reader.shutdown(cancel_futures=True)
                for _, _, future in self._waiting:
                    future.cancel()
        self.run.gpu_busy = watch.busy

    def _read(self, cases: list[int], reader: ThreadPoolExecutor) -> Iterator[tuple[int, Source | DRDMError]]:
        """Cases in order, the next one being read while this one is worked on."""
        ahead: deque[tuple[int, Future[Source | DRDMError]]] = deque()
        for number in cases:
            ahead.append((number, reader.submit(self._case, number)))
            if len(ahead) > 1:
                yield self._waited(*ahead.popleft())
        while ahead:
            yield self._waited(*ahead.popleft())

    def _case(self, number: int) -> Source | DRDMError:
        try:
            source = self.run.sources.pop(number, None) or read_case(self.run.plan, number, self.run.becomes)
            self._require_unchanged(number, source)
        except DRDMError as error:
            return error
        return source

    def _require_unchanged(self, number: int, source: Source) -> None:
        """Samples of one case are made from the same files, however often the run is stopped."""
        for task in self.run.plan.tasks:
            record = self.run.done.get(task.number, {}) if task.case == number else {}
            if record.get("status") == records.DONE and record["source"]["digests"] != source.digests:
                raise ImageError(
                    f"The files of '{source.case.name}' have changed since the run began; put the old ones back, or "
                    "name a new folder."
                )

    def _waited(self, number: int, future: Future[Source | DRDMError]) -> tuple[int, Source | DRDMError]:
        with self.run.clock.measuring("wait for reading"):
            return number, future.result()

    def _make(self, task: Task, source: Source | DRDMError) -> Product:
        run = self.run
        try:
            if isinstance(source, DRDMError):
                raise source
            if task.original:
                return keep_original(run.plan, task, source, run.context)
            part = run.parts.get(run.plan.cases[task.case].subject, "train")
            return make_sample(run.plan, task, source, run.model, run.context, part=part, on_step=self._on_step)
        except OutputError:
            raise
        except DRDMError as error:
            if len(run.plan.cases) == 1 and not run.done:
                raise
            return failure(run.plan, task, run.context, error)

    def _collect(self, most: int) -> None:
        """Note what has been written, and wait until no more than ``most`` are being written."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][2].done()):
            task, product, future = self._waiting.popleft()
            with self.run.clock.measuring("wait for writing"):
                future.result()
            self.run.done[task.number] = product.record
            if task.original:
                continue
            self._finished += 1
            if product.record["status"] == records.DONE:
                self.run.clock.add({k: v for k, v in product.seconds.items() if k != "write"})
                log_times(self.run, product)
                self._report.update()
                self.run.listener.item(**item_of(self.run, product.record))
            self._show()

    def _on_step(self, done: int, total: int) -> None:
        now = round(min(self._finished + done / total, self._total), 3)
        self.run.listener.progress(self.run.plan.settings.command, now, self._total)

    def _show(self) -> None:
        self.run.listener.progress(self.run.plan.settings.command, self._finished, self._total)
