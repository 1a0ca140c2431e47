"""Time methods fairly: each lives in a process of its own, and the processes take turns.

A process loads what it needs, makes one call to warm up, and then makes one timed call whenever it is asked to. A
machine that slows down thus slows all methods, and the peak memory of each is its own.

On Linux a process reports at least the peak memory of the process that started it, so nothing large is imported here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import SimpleITK as sitk

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class Method:
    """A method to time, described by plain values that can be sent to its process.

    Attributes:
        kind: one of ``timed_methods.KINDS``.
        label: name in the table.
        ndim, side: the image is (side,) * ndim.
        model: catalogue name or path; DRDM only.
        level, steps: DRDM only.
        source: path of a checkout of the authors' repository; the authors' program only.
        threads: of its process; 0 is what the libraries choose.
        device: where DRDM computes.
    """

    kind: str
    label: str
    ndim: int
    side: int
    model: str = ""
    level: int = 48
    steps: int | None = None
    source: str = ""
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """What the process of a method does.

    Attributes:
        call: one deformation of the phantom.
        field: from the result of ``call`` to the displacement field, mm; neither timed nor counted as memory.
        seconds: from the result of ``call`` to the time of a whole deformation, where only a part of one was computed.
    """

    call: Callable[[], Any]
    field: Callable[[Any], sitk.Image]
    seconds: Callable[[Any], float] | None = None


@dataclass
class Row:
    """The measurements of one method; ``problem`` says why there are none."""

    method: Method
    problem: str = ""
    seconds: list[float] = field(default_factory=list)
    threads: int = 0
    baseline_bytes: int = 0
    peak_bytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds of the timed calls."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the report, without the folders of this machine."""
        values = asdict(self)
        method = {k: Path(v).name if k in ("model", "source") else v for k, v in values.pop("method").items()}
        # The key's name is that of the published reports.
        return {"contender": method, **values} | ({} if self.problem else {"median": self.median})


class Worker:
    """The process of a method, as the driver sees it."""

    def __init__(self, method: Method) -> None:
        self.row = Row(method)
        environment = dict(os.environ)
        if method.threads:
            environment.update(dict.fromkeys(THREAD_VARIABLES, str(method.threads)))
        command = [sys.executable, "-m", "benchmarks.timed_methods", json.dumps(asdict(method))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def listen(self) -> dict[str, Any]:
        """Wait for the next message; return nothing and note the problem in the row if there is none."""
        line = self._pipe(self.process.stdout).readline()
        message: dict[str, Any] = json.loads(line) if line else {}
        if not line:
            self.row.problem = f"its process ended with status {self.process.wait()}"
        elif "problem" in message:
            self.row.problem = message["problem"]
            message = {}
        return message

    def start(self) -> None:
        """Wait for the end of the warm-up."""
        message = self.listen()
        self.row.baseline_bytes = message.get("baseline_bytes", 0)
        self.row.threads = message.get("threads", 0)

    def run(self) -> None:
        """Make one timed call."""
        stdin = self._pipe(self.process.stdin)
        try:
            stdin.write("run\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # listen says what happened
        message = self.listen()
        if message:
            self.row.seconds.append(message["seconds"])

    def finish(self) -> None:
        """Get memory and the field's figures, and end the process."""
        self._pipe(self.process.stdin).close()
        message = self.listen()
        self.row.peak_bytes = message.get("peak_bytes", 0)
        self.row.figures = message.get("figures", {})
        self.process.wait()

    def kill(self) -> None:
        """End the process whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def note(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def killed_at_end(workers: list[Worker]) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()


def time_in_turns(methods: list[Method], repeats: int) -> list[Row]:
    """Warm up one method after the other, then time them in turns."""
    workers: list[Worker] = []
    with killed_at_end(workers):
        for method in methods:
            note(f"warming up: {method.label}")
            workers.append(Worker(method))
            workers[-1].start()
        for number in range(1, repeats + 1):
            for worker in workers:
                if not worker.row.problem:
                    worker.run()
                    result = worker.row.problem or f"{worker.row.seconds[-1]:.2f} s"
                    note(f"{number}/{repeats} {worker.row.method.label}: {result}")
        for worker in workers:
            if not worker.row.problem:
                worker.finish()
    return [worker.row for worker in workers]


def machine(rows: list[Row]) -> dict[str, Any]:
    """Return what the figures depend on."""
    packages: dict[str, str | None] = {}
    for name in ("torch", "torchio", "monai", "SimpleITK"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": max((row.threads for row in rows), default=0),
        "python": platform.python_version(),
        **packages,
    }


def processor() -> str:
    """Return the processor's name, as far as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
