"""How fast a run is, and what it waits for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

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
