"""The state and the speed of one process's part of a run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..io.datasets import unused_sentence
from ..io.files import counted
from ..models.model import Model
from ..runtime.distributed import ProcessInfo
from ..runtime.reporter import Reporter
from . import records
from .case_models import CaseModels
from .plan import AUGMENT, Plan
from .sources import Source

LOGS = "logs"
# A part of the work limits the speed if the threads wait for it longer than this fraction of the time.
_WAITING = 0.1
# Seconds.
_GPU_EVERY = 1.0


class Clock:
    """Add up the time that the threads spend on each part of the work: generate, warp, check, waits.

    Attributes:
        seconds: part -> seconds, summed over the threads.
        samples: number of finished samples.
        workers: number of threads that make samples.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples = 0
        self.workers = 1

    @contextlib.contextmanager
    def measuring(self, part: str, idle: float = 1.0) -> Iterator[None]:
        """Add the time of the block to ``part``, for the fraction ``idle`` of the threads."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += idle * self.workers * (time.perf_counter() - begin)

    def add(self, seconds: dict[str, float]) -> None:
        """Add one sample, with the seconds of its parts."""
        self.samples += 1
        for part, value in seconds.items():
            self.seconds[part] += value

    def figures(self) -> dict[str, float]:
        """Return the samples per hour, the seconds of each part and the time besides generating and warping."""
        elapsed = max(1e-9, time.perf_counter() - self.began)
        work = self.seconds["generate"] + self.seconds["warp"]
        return {
            "samples": self.samples,
            "seconds": round(elapsed, 2),
            "workers": self.workers,
            "samples_per_hour": round(3600 * self.samples / elapsed, 1),
            "overhead": round(elapsed * self.workers / work - 1, 3) if work else 0.0,
            **{f"{part}_seconds": round(value, 2) for part, value in sorted(self.seconds.items())},
        }

    def sentence(self, gpu_busy: float | None) -> str:
        """Describe the speed in one or two sentences.

        Args:
            gpu_busy: fraction of the time that the GPU was busy, if known.
        """
        f = self.figures()
        spent = f["seconds"] * self.workers or 1e-9
        waits = {
            "reading the images": self.seconds["wait for reading"] / spent,
            "compressing and writing": self.seconds["wait for writing"] / spent,
        }
        worst, share = max(waits.items(), key=lambda entry: entry[1])
        waited = f" {share:.0%} of the time was spent waiting for {worst}." if share > _WAITING else ""
        busy = "" if gpu_busy is None else f" The GPU was busy {gpu_busy:.0%} of the time."
        return f"{f['samples_per_hour']:.0f} samples per hour.{waited}{busy}"


class GpuWatch:
    """Measure the mean use of the GPU while the block runs (needs the package ``nvidia-ml-py``)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._values: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuWatch:
        if self.device.type == "cuda":
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_GPU_EVERY):
            try:
                self._values.append(torch.cuda.utilization(self.device) / 100)
            except Exception:
                # Without the driver's library the use is unknown, which does not matter.
                return

    @property
    def busy(self) -> float | None:
        """Mean fraction of the time, 0 to 1; ``None`` if unknown."""
        return sum(self._values) / len(self._values) if self._values else None


@dataclass
class Run:
    """One process's part of a run.

    Attributes:
        plan: all tasks of the run, also those of other processes.
        folder: the output folder.
        process: this process among those that share the run.
        model: the model that was named, or that of the first case.
        models: finds the model of each case.
        description: content of ``run.json``.
        context: values that every record repeats.
        reporter: receives progress and messages.
        sources: cases that have already been read.
        clock: times of the parts of the work.
        done: number of a task -> its record.
        seconds: name of a sample -> seconds that it took.
        gpu_busy: fraction of the time that the GPU was busy; ``None`` if unknown.
        unused: files of the dataset that are not used.
        notes: sentences about the dataset: missing labels, changed names, cases that cannot be used.
    """

    plan: Plan
    folder: Path
    process: ProcessInfo
    model: Model
    models: CaseModels
    description: dict[str, Any]
    context: dict[str, Any]
    reporter: Reporter
    sources: dict[int, Source] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def label_mapping(self) -> dict[int, int]:
        """The new number of each label value."""
        return {int(old): new for old, new in self.description["label_values"].items()}

    @property
    def parts(self) -> dict[str, str]:
        """The part of each subject: train, validation or test."""
        return dict(self.description["parts"])

    @property
    def complete(self) -> bool:
        """Whether every task of the plan has a record, from any process."""
        return len(self.done) == len(self.plan.tasks)

    def failures(self) -> list[str]:
        """Return one sentence for each case or sample that failed or was given up."""
        found = []
        for number in sorted(self.done):
            record = self.done[number]
            if record["status"] == records.FAILED:
                found.append(f"{record['case']}: {record['reason']}")
            elif record["status"] == records.REJECTED:
                found.append(f"{record['name']}: {record['reason']}")
        return list(dict.fromkeys(found))

    def summary(self) -> str:
        """Return a sentence about the finished run."""
        made = sum(r["status"] == records.DONE and bool(r["levels"]) for r in self.done.values())
        again = sum(len(r.get("redrawn", [])) for r in self.done.values())
        more = f" {counted(again, 'attempt')} broke the limits and had to be repeated." if again else ""
        more += f" {unused_sentence(self.unused)}" if self.unused else ""
        if self.plan.settings.command == AUGMENT:
            originals = sum(r["status"] == records.DONE and not r["levels"] for r in self.done.values())
            return f"{counted(originals, 'original')} and {counted(made, 'new version')} are in '{self.folder}'.{more}"
        return f"{counted(made, 'pair')} {'is' if made == 1 else 'are'} in '{self.folder}'.{more}"
