"""The state of one process's part of a run, and how fast it is."""

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

from ..models.model import Model
from ..runtime.distributed import ProcessInfo
from ..runtime.reporter import Reporter
from . import records
from .plan import AUGMENT, Plan
from .sources import Source

LOGS = "logs"
# The threads are held up by another part when they wait for it this share of the time.
_WAITING = 0.1
_GPU_EVERY = 1.0


class Clock:
    """Adds up where the time of the threads that make samples goes: generate, warp, check, waits.

    Attributes:
        workers: how many such threads there are.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples = 0
        self.workers = 1

    @contextlib.contextmanager
    def measuring(self, part: str, idle: float = 1.0) -> Iterator[None]:
        """Time spent in here belongs to ``part`` for the given share of the threads."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += idle * self.workers * (time.perf_counter() - begin)

    def add(self, seconds: dict[str, float]) -> None:
        """One more sample, with the times of its parts."""
        self.samples += 1
        for part, value in seconds.items():
            self.seconds[part] += value

    def figures(self) -> dict[str, float]:
        """Samples an hour, what the threads spend beyond generating and warping, and on what."""
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
        """For a person."""
        f = self.figures()
        spent = f["seconds"] * self.workers or 1e-9
        waits = {
            "reading the images": self.seconds["wait for reading"] / spent,
            "compressing and writing": self.seconds["wait for writing"] / spent,
        }
        worst, share = max(waits.items(), key=lambda entry: entry[1])
        bound = worst if share > _WAITING else "generating and warping"
        busy = "" if gpu_busy is None else f" The GPU was busy {gpu_busy:.0%} of the time."
        return (
            f"{f['samples_per_hour']:.0f} samples an hour, bound by {bound} "
            f"({max(0.0, f['overhead']):.0%} beyond generating and warping).{busy}"
        )


class GpuWatch:
    """Mean utilisation of the GPU while the block runs, where the driver tells (package ``nvidia-ml-py``)."""

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
                # Without the driver's library there is no figure, and no harm.
                return

    @property
    def busy(self) -> float | None:
        """0 to 1, or nothing where it is not known."""
        return sum(self._values) / len(self._values) if self._values else None


@dataclass
class Run:
    """One process's part of a run.

    Attributes:
        plan: everything that is to be made.
        folder: where.
        process: which share.
        description: what ``run.json`` says.
        context: what every record repeats.
        sources: cases that have been read already.
        done: number of a task -> its record.
        seconds: name of a sample -> how long it took.
        gpu_busy: share of the time that the GPU was busy, where it is known.
    """

    plan: Plan
    folder: Path
    process: ProcessInfo
    model: Model
    description: dict[str, Any]
    context: dict[str, Any]
    reporter: Reporter
    sources: dict[int, Source] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None

    @property
    def label_mapping(self) -> dict[int, int]:
        """What each value of a label becomes."""
        return {int(old): new for old, new in self.description["label_values"].items()}

    @property
    def parts(self) -> dict[str, str]:
        """Subject -> train, validation, test."""
        return dict(self.description["parts"])

    @property
    def complete(self) -> bool:
        """Whether every task of the plan has been tried, by whichever process."""
        return len(self.done) == len(self.plan.tasks)

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

    def summary(self) -> str:
        """The last sentence."""
        made = sum(r["status"] == records.DONE and bool(r["levels"]) for r in self.done.values())
        again = sum(len(r.get("redrawn", [])) for r in self.done.values())
        told = f" {again} draws broke the limits and were drawn again." if again else ""
        if self.plan.settings.command == AUGMENT:
            originals = sum(r["status"] == records.DONE and not r["levels"] for r in self.done.values())
            return f"{originals} originals and {made} new versions are in '{self.folder}'.{told}"
        return f"{made} pairs are in '{self.folder}'.{told}"
