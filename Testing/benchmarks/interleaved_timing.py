"""Times contenders fairly: each lives in a process of its own, and they take turns.

A process loads what it needs, makes one call to warm up, and then waits to be told to make one timed call, so that a
machine that slows down slows all of them, and the peak memory of each is its own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from contenders import KINDS, Contender

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


# ------------------------------------------------------------------------------------- the process of a contender


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(contender: Contender, say: Callable[..., None]) -> None:
    """Warm up, then one timed call for each line read; at the end of the input the memory and the field's figures."""
    prepare, module = KINDS[contender.kind]
    importlib.import_module(module)
    # Loaded by the first call at the latest; here, so that the baseline of all contenders means the same.
    import SimpleITK  # noqa: F401
    import torch

    # TorchIO turns warnings on when it is imported, and then gives one for each 2D image.
    warnings.simplefilter("ignore")
    baseline = peak_bytes()
    task = prepare(contender)
    task.call()
    say(baseline_bytes=baseline, threads=torch.get_num_threads())
    output: Any = None
    while sys.stdin.readline().strip() == "run":
        # The output of the call before must not lie beside that of the next one.
        output = None
        begin = time.perf_counter()
        output = task.call()
        seconds = time.perf_counter() - begin
        say(seconds=seconds if task.seconds is None else task.seconds(output))
    peak = peak_bytes()
    from DRDMLib.metrics import measure_ddf

    say(peak_bytes=peak, figures={} if output is None else measure_ddf(task.field(output)).to_dict())


def be_worker(described: str) -> None:
    """Be the process of the contender ``described`` in JSON; what goes wrong is told to the driver in one line."""
    # Ctrl-C reaches the driver, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, sys.stdout = sys.stdout, sys.stderr

    def say(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    try:
        work(Contender(**json.loads(described)), say)
    except ModuleNotFoundError as error:
        say(problem=f"{error.name} is not installed")
    except Exception as error:
        # DRDM's own messages are made for people; what to do about it comes after the semicolon.
        mine = type(error).__module__.startswith("DRDMLib")
        say(problem=str(error).partition(";")[0] if mine else f"failed: {type(error).__name__}: {error}")


# ----------------------------------------------------------------------------------------------------- the driver


@dataclass
class Row:
    """What was measured of one contender; ``problem`` says why nothing was."""

    contender: Contender
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
        """Plain values; the paths of this machine stay here."""
        values = asdict(self)
        values["contender"] = {
            k: Path(v).name if k in ("model", "source") else v for k, v in values["contender"].items()
        }
        return values | ({} if self.problem else {"median": self.median})


class Worker:
    """The process of a contender, seen from the driver."""

    def __init__(self, contender: Contender) -> None:
        self.row = Row(contender)
        environment = dict(os.environ)
        if contender.threads:
            environment.update(dict.fromkeys(THREAD_VARIABLES, str(contender.threads)))
        script = Path(__file__).resolve()
        command = [sys.executable, str(script), json.dumps(asdict(contender))]
        search = [str(script.parents[2]), str(script.parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def listen(self) -> dict[str, Any]:
        """Wait for the next message; empty, with the problem noted in the row, when there is none."""
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
        """One timed call."""
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
        """Memory and the field's figures; ends the process."""
        self._pipe(self.process.stdin).close()
        message = self.listen()
        self.row.peak_bytes = message.get("peak_bytes", 0)
        self.row.figures = message.get("figures", {})
        self.process.wait()

    def end(self) -> None:
        """End the process, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def note(text: str) -> None:
    """What is going on, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def ended(workers: list[Worker]) -> Iterator[None]:
    """No process is left behind."""
    try:
        yield
    finally:
        for worker in workers:
            worker.end()


def measure(contenders: list[Contender], repeats: int) -> list[Row]:
    """Warm up one contender after the other, then time them in turns."""
    workers: list[Worker] = []
    with ended(workers):
        for contender in contenders:
            note(f"warming up: {contender.label}")
            workers.append(Worker(contender))
            workers[-1].start()
        for number in range(1, repeats + 1):
            for worker in workers:
                if not worker.row.problem:
                    worker.run()
                    told = worker.row.problem or f"{worker.row.seconds[-1]:.2f} s"
                    note(f"{number}/{repeats} {worker.row.contender.label}: {told}")
        for worker in workers:
            if not worker.row.problem:
                worker.finish()
    return [worker.row for worker in workers]


def machine(rows: list[Row]) -> dict[str, Any]:
    """What the figures depend on."""
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
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    be_worker(sys.argv[1])
