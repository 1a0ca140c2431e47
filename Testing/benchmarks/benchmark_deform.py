"""Seconds and peak memory of one 2D 256^2 and one 3D 128^3 deformation: DRDM beside TorchIO and MONAI, in one run.

Each contender lives in a process of its own, so that the peak memory is its own; all work on the CPU. A process loads
what it needs, makes one call to warm up, and then waits to be told to make one timed call; the processes take turns,
so that a machine that slows down slows all of them. A call is timed from an image in memory to the warped image and,
where the contender hands it out, the field.

    python Testing/benchmarks/benchmark_deform.py [--repeats 3] [--threads N] [--published WEIGHTS] [--json OUT.json]
"""

from __future__ import annotations

import argparse
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
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

# The processes inherit this one's peak memory as the least they report (Linux), so nothing large is imported here.
if TYPE_CHECKING:
    import SimpleITK as sitk
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SIDES = {2: 256, 3: 128}
LEVEL = 48
RANDOM_LEVEL = 64
FAST_STEPS = 12
SEED = 0
# Standard deviation; the body is 500.
NOISE = 25.0
MEGABYTE = 1e6
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


# ---------------------------------------------------------------------------------------------------- contenders


@dataclass(frozen=True)
class Task:
    """What a contender does.

    Attributes:
        call: one deformation of the phantom.
        field: from what ``call`` returned to the displacement field, millimetres; neither timed nor counted as memory.
    """

    call: Callable[[], Any]
    field: Callable[[Any], sitk.Image]


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        key: names it to its process.
        label: names it to the reader.
        ndim: 2 or 3.
        module: imported before the baseline memory is read.
        prepare: builds the task; gets the path of the published weights, or ``None``.
    """

    key: str
    label: str
    ndim: int
    module: str
    prepare: Callable[[str | None], Task]


def phantom(ndim: int) -> np.ndarray:
    """A body with a rim, four organs, shading and a scanner's noise: (side,) * ndim, 32-bit, always the same.

    The noise matters: networks trained on scans find nothing to hold on to in areas that are perfectly smooth.
    """
    generator = np.random.default_rng(SEED)
    axes = np.meshgrid(*[np.linspace(-1, 1, SIDES[ndim], dtype=np.float32)] * ndim, indexing="ij", sparse=True)

    def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        squares = [((x - c) / r) ** 2 for x, c, r in zip(axes, centre.tolist(), radii.tolist(), strict=True)]
        return 1 / (1 + np.exp(np.clip((np.sqrt(sum(squares)) - 1) / 0.03, -60, 60)))

    image = 900 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.8)) - 400 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.72))
    for strength in (300, -200, 250, -300):
        image += strength * ellipsoid(generator.uniform(-0.4, 0.4, ndim), generator.uniform(0.1, 0.3, ndim))
    for _ in range(6):
        waves = [k * x for k, x in zip(generator.uniform(-12, 12, ndim).tolist(), axes, strict=True)]
        image += 15 * np.cos(sum(waves) + float(generator.uniform(0, 6)))
    image += generator.normal(0, NOISE, image.shape)
    return image.astype(np.float32)


def voxel_field(displacement: torch.Tensor) -> sitk.Image:
    """A field (d, *S) in voxels, channel k along axis k, as a displacement field on a grid of 1 mm."""
    import SimpleITK as sitk

    vectors = np.moveaxis(displacement.cpu().numpy().astype(np.float64)[::-1], 0, -1)
    return sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)


def drdm(published: str | None, *, model: str, ndim: int, steps: int | None = None) -> Task:
    """``DRDMLib.deform``, the warped image and the field; ``model=""`` takes the published weights."""
    import SimpleITK as sitk

    import DRDMLib

    image = sitk.GetImageFromArray(phantom(ndim))
    network = DRDMLib.load_model(model or published, "cpu")

    def call() -> tuple[sitk.Image, sitk.Image]:
        result = DRDMLib.deform(image, network, level=LEVEL, seed=SEED, steps=steps)
        return result.warp(image), result.ddf

    return Task(call, lambda output: output[1])


def drdm_random(published: str | None, *, ndim: int) -> Task:
    """The random field alone, without recovery and without an image."""
    import torch

    import DRDMLib

    def call() -> torch.Tensor:
        return DRDMLib.random_ddf(SIDES[ndim], ndim, RANDOM_LEVEL, torch.Generator().manual_seed(SEED))

    return Task(call, lambda ddf: voxel_field(ddf[0] * SIDES[ndim]))


def torchio_elastic(published: str | None, *, ndim: int) -> Task:
    """TorchIO's ``RandomElasticDeformation`` with its defaults; a 2D image is a volume of one slice to it."""
    import SimpleITK as sitk
    import torch
    import torchio

    tensor = torch.from_numpy(phantom(ndim)).reshape(1, *[SIDES[ndim]] * ndim, *[1] * (3 - ndim))
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=tensor))
    transform = torchio.RandomElasticDeformation()

    def call() -> torchio.Subject:
        torch.manual_seed(SEED)
        return transform(subject)

    def spline_field(warped: torchio.Subject) -> sitk.Image:
        grid = torchio.data.io.nib_to_sitk(warped.image.data, warped.image.affine, force_3d=True)
        spline = warped.history[-1].get_bspline_transform(grid)
        filled = sitk.TransformToDisplacementFieldFilter()
        filled.SetReferenceImage(grid)
        return filled.Execute(spline)

    return Task(call, spline_field)


def monai_elastic(published: str | None, *, ndim: int) -> Task:
    """MONAI's ``Rand2DElastic`` or ``Rand3DElastic``, elastic part only: MONAI has no defaults for its strength."""
    import torch
    from monai.transforms import Rand2DElastic, Rand3DElastic

    image = torch.from_numpy(phantom(ndim))[None]
    common: dict[str, Any] = {"prob": 1.0, "mode": "bilinear", "padding_mode": "border"}
    transform: Any
    if ndim == 2:
        transform = Rand2DElastic(spacing=(30, 30), magnitude_range=(5, 6), **common)
    else:
        transform = Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 150), **common)

    def call() -> torch.Tensor:
        return transform.set_random_state(SEED)(image)

    return Task(call, lambda _: monai_field(transform, call, image))


def monai_field(transform: Any, call: Callable[[], Any], image: torch.Tensor) -> sitk.Image:
    """The field of one more call: MONAI does not hand it out, so its resampler is watched."""
    from monai.transforms.utils import create_grid

    resampler = transform.resampler
    seen = []

    def watch(img: torch.Tensor, grid: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(grid.clone())
        return resampler(img, grid, **options)

    transform.resampler = watch
    call()
    ndim = image.ndim - 1
    still: Any = create_grid(image.shape[1:], backend="torch")
    return voxel_field((seen[0] - still)[:ndim])


def contenders(published: str | None) -> list[Contender]:
    """Every row of the table, in its order."""
    library = "DRDMLib.deformation"
    hippocampus = partial(drdm, model="hippocampus-mr-3d", ndim=3)
    rows = [
        Contender("drdm-3d", f"DRDM hippocampus-mr-3d, level {LEVEL}", 3, library, hippocampus),
        Contender(
            "drdm-3d-fast",
            f"DRDM hippocampus-mr-3d, level {LEVEL}, {FAST_STEPS} steps",
            3,
            library,
            partial(hippocampus, steps=FAST_STEPS),
        ),
        Contender(
            "random-3d", f"DRDM random field alone, level {RANDOM_LEVEL}", 3, library, partial(drdm_random, ndim=3)
        ),
    ]
    for ndim in (3, 2):
        if ndim == 2:
            shipped = partial(drdm, model="cardiac-mr-2d", ndim=2)
            rows.append(Contender("drdm-2d", f"DRDM cardiac-mr-2d, level {LEVEL}", 2, library, shipped))
            if published:
                weights = partial(drdm, model="", ndim=2)
                rows.append(
                    Contender("published-2d", f"DRDM published cardiac weights, level {LEVEL}", 2, library, weights)
                )
        elastic = partial(torchio_elastic, ndim=ndim)
        rows.append(Contender(f"torchio-{ndim}d", "TorchIO RandomElasticDeformation", ndim, "torchio", elastic))
        elastic = partial(monai_elastic, ndim=ndim)
        rows.append(Contender(f"monai-{ndim}d", f"MONAI Rand{ndim}DElastic", ndim, "monai.transforms", elastic))
    return rows


# ------------------------------------------------------------------------------------- the process of a contender


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(contender: Contender, published: str | None, say: Callable[..., None]) -> None:
    """Warm up, then one timed call for each line read; at the end of the input the memory and the field's figures."""
    importlib.import_module(contender.module)
    # Loaded by the first call at the latest; here, so that the baseline of all contenders means the same.
    import SimpleITK  # noqa: F401
    import torch

    # TorchIO turns warnings on when it is imported, and then gives one for each 2D image.
    warnings.simplefilter("ignore")
    baseline = peak_bytes()
    task = contender.prepare(published)
    task.call()
    say(baseline_bytes=baseline, threads=torch.get_num_threads())
    output: Any = None
    while sys.stdin.readline().strip() == "run":
        # The output of the call before must not lie beside that of the next one.
        output = None
        begin = time.perf_counter()
        output = task.call()
        say(seconds=time.perf_counter() - begin)
    peak = peak_bytes()
    from DRDMLib.metrics import measure_ddf

    say(peak_bytes=peak, figures=measure_ddf(task.field(output)).to_dict())


def run_worker(key: str, published: str | None) -> None:
    """Be the process of one contender; what goes wrong is told to the driver in one line."""
    # Ctrl-C reaches the driver, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, sys.stdout = sys.stdout, sys.stderr

    def say(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    contender = next(c for c in contenders(published) if c.key == key)
    try:
        work(contender, published, say)
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

    label: str
    ndim: int
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


class Worker:
    """The process of a contender, seen from the driver."""

    def __init__(self, contender: Contender, published: str | None, threads: int | None) -> None:
        self.row = Row(contender.label, contender.ndim)
        self.key = contender.key
        environment = dict(os.environ)
        if threads is not None:
            environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", contender.key]
        if published:
            command += ["--published", published]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def listen(self) -> dict[str, Any]:
        """Wait for the next message; empty, with the problem noted in the row, when there is none."""
        stdout = self._pipe(self.process.stdout)
        line = stdout.readline()
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


def measure(published: str | None, repeats: int, threads: int | None) -> list[Row]:
    """Warm up one contender after the other, then time them in turns."""
    workers: list[Worker] = []
    with ended(workers):
        for contender in contenders(published):
            note(f"warming up {contender.key}")
            workers.append(Worker(contender, published, threads))
            workers[-1].start()
        for number in range(1, repeats + 1):
            for worker in workers:
                if not worker.row.problem:
                    worker.run()
                    note(f"{number}/{repeats} {worker.key}: {worker.row.problem or f'{worker.row.seconds[-1]:.2f} s'}")
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


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    heads = ["Contender", "Image", "Seconds", "x TorchIO", "Peak MB", "Baseline MB", "Over baseline MB"]
    heads += ["Mean displacement, % of the side", "Folded, % of voxels"]
    lines = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    yardsticks = {row.ndim: row.median for row in rows if row.label.startswith("TorchIO") and not row.problem}
    lines += [cells(row, yardsticks.get(row.ndim)) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(row: Row, yardstick: float | None) -> list[str]:
    """One row of the table; ``yardstick`` is TorchIO's time."""
    start = [row.label, f"{SIDES[row.ndim]}^{row.ndim}"]
    if row.problem:
        return [*start, row.problem.replace("|", "/"), *["-"] * 6]
    baseline, peak = row.baseline_bytes / MEGABYTE, row.peak_bytes / MEGABYTE
    return [
        *start,
        f"{row.median:.3g}",
        f"{row.median / yardstick:.3g}" if yardstick else "-",
        f"{peak:.0f}",
        f"{baseline:.0f}",
        f"{peak - baseline:.0f}",
        f"{row.figures['mean_percent']:.2f}",
        f"{100 * row.figures['folded_fraction']:.3f}",
    ]


def headline(facts: dict[str, Any], repeats: int) -> str:
    """The line above the table."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "torchio", "monai") if facts[name])
    return (
        f"{facts['processor'] or facts['system']}, {facts['cpus']} CPUs, {facts['threads']} threads, {versions}, "
        f"Python {facts['python']}; median of {repeats}, one warm-up before."
    )


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory of DRDM's, TorchIO's and MONAI's deformations.")
    parser.add_argument("--repeats", type=positive, default=3, help="timed calls of each contender (3)")
    parser.add_argument("--threads", type=positive, help="threads of each contender (what torch and ITK choose)")
    parser.add_argument("--published", metavar="WEIGHTS", help="the authors' 2D weights (.pth), to time them as well")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.published and not Path(arguments.published).is_file():
        parser.error(f"there is no file '{arguments.published}'")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"there is no folder for '{arguments.json}'")
    return arguments


def main() -> None:
    """Measure everything and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        run_worker(arguments.worker, arguments.published)
        return
    try:
        rows = measure(arguments.published, arguments.repeats, arguments.threads)
    except KeyboardInterrupt:
        sys.exit("stopped")
    facts = machine(rows)
    print(headline(facts, arguments.repeats), table(rows), sep="\n\n")
    if arguments.json:
        report = {"machine": facts, "repeats": arguments.repeats, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
