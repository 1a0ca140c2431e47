"""What a GPU brings: versions alone and in batches, a batch of samples, training steps; agreement with the CPU.

    python -m benchmarks.gpu WORK [--device cuda] [--seeds 32] [--json OUT.json]

On a GPU it takes less than three minutes; parts that would begin after ``--minutes`` are left out, a part that fails
leaves its traceback, and the JSON file is written after each part. ``benchmarks.speed --device cuda`` compares with
other methods. Everything is measured as it was ("before": without CUDA graphs, all of the proof on the processor), and
as it can be ("now"):

    versions    each model deforms the phantom at level 48: seconds a version, of one alone and of many in batches.
                "field" is the random field and its recovery, "proof" brings it to the image and proves it, one after
                the other; "whole" is ``deform_all``, which proves those of a batch in threads while the next is drawn.
    parts       milliseconds of one version, part by part, and of its warps.
    samples     ``drdm augment`` of a few phantoms with labels: seconds a sample, files included.
    training    steps a second of the model of heads, once the pool of random fields is full.

It can be tried on a CPU, where it shows nothing:

    python -m benchmarks.gpu WORK --device cpu --side 32 --seeds 3 --cases 1 --copies 3 --batches 2 --steps 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.phantom import phantom
from DRDMLib.deforming import deform_all, finish
from DRDMLib.diffusion.forward import ForwardProcess
from DRDMLib.diffusion.recovery import recover
from DRDMLib.diffusion.seeds import random_generator
from DRDMLib.generation import prepare
from DRDMLib.invertibility import device_bounds
from DRDMLib.invertibility.certificate import GAPS, failing_cells
from DRDMLib.invertibility.device_bounds import DeviceBounds
from DRDMLib.invertibility.repair import MARGIN
from DRDMLib.invertibility.sample_bounds import least_between_samples
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.production.plan import AUGMENT, RunSettings
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.runtime import batches, graphs
from DRDMLib.runtime.device import choose_device, full_precision
from DRDMLib.runtime.reporter import Reporter
from DRDMLib.runtime.threads import one_thread
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.field_grid import continued, positions
from DRDMLib.spatial.model_grid import physical_field
from DRDMLib.training import TrainingConfig
from DRDMLib.training.trainer import Trainer
from DRDMLib.versions import Drawn, PreparedScan

MODELS = ("hippocampus-mr-3d", "brain-t1-3d", "general-3d", "cardiac-mr-2d")
TRAINED = "brain-t1-3d"
LEVEL = 48
# Versions in a batch.
TOGETHER = (8, 32)
STATES = {"before": False, "now": True}


@contextmanager
def switched(on: bool, device: torch.device, versions: int) -> Iterator[None]:
    """Switch CUDA graphs and the bounds on the GPU on or off, and let a device make so many versions in a batch."""
    before = graphs.ENABLED, device_bounds.ENABLED, dict(batches.MOST)
    graphs.ENABLED, device_bounds.ENABLED, batches.MOST[device.type] = on, on, versions
    try:
        yield
    finally:
        graphs.ENABLED, device_bounds.ENABLED, most = before
        batches.MOST.clear()
        batches.MOST.update(most)


def seconds(call: Callable[[], Any], times: int = 1, device: torch.device | None = None) -> float:
    """Return the median seconds of some calls, each until the device is done."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def seconds_per_version(model: Model, image: sitk.Image, count: int, together: int) -> dict[str, float]:
    """Return the seconds a version of ``count``, in batches of ``together``."""
    scan = PreparedScan(image, model, DeformationSettings(LEVEL))

    def draw(seeds: range) -> list[Drawn]:
        return [one for group in batches.in_batches(seeds, together) for one in scan.draw(group)]

    # Graphs are made, and libraries loaded.
    for first in range(3):
        warm = draw(range(first, first + together))
    finish(warm[0])
    times = 7 if count == 1 else 1
    field = seconds(lambda: draw(range(count)), times, model.device)
    some = (warm if count == 1 else warm[:8]) * (times if count == 1 else 1)
    proof = seconds(lambda: [finish(one) for one in some]) / len(some)
    whole = seconds(lambda: list(deform_all(image, model, LEVEL, range(count))), times)
    return {"whole": round(whole / count, 5), "field": round(field / count, 5), "proof": round(proof, 5)}


def versions(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model."""
    model = load_model(name, device)
    image = sitk.GetImageFromArray(phantom(model.ndim, options.side))
    found: dict[str, Any] = {}
    for count, together in ((1, 1), *((options.seeds, most) for most in TOGETHER if most <= max(8, options.seeds))):
        for state, on in STATES.items():
            if together > TOGETHER[0] and not on:
                continue
            key = f"{count} in batches of {together}, {state}"
            with switched(on, device, together):
                found[key] = seconds_per_version(model, image, count, together)
    return {**found, "graphs": len(model.graphs), "agreement": agreement(model, image)}


def agreement(model: Model, image: sitk.Image) -> dict[str, Any]:
    """Compare recoveries of the same random fields: with graphs and without, alone and in a batch, on the CPU.

    Differences are fractions of the side.
    """
    m, device = model.metadata, model.device
    start = ForwardProcess.of(m).ddf(LEVEL, torch.Generator().manual_seed(0), batch=4)
    tensor = prepare(image, model)[1].expand(4, *[-1] * (m.ndim + 1))

    def recovered(model: Model, on: bool, count: int = 4) -> torch.Tensor:
        with switched(on, device, 1), full_precision(device):
            parts = zip(tensor.split(count), start.split(count), strict=True)
            return torch.cat([recover(model, *part, level=LEVEL, steps=model.default_steps).cpu() for part in parts])

    plain, on_cpu = recovered(model, False), recovered(model.on("cpu"), False)
    graphed = [recovered(model, True) for _ in range(4)]
    return {
        "graphs give the same bits": all(torch.equal(one, plain) for one in graphed),
        "alone and in a batch": float((recovered(model, False, 1) - plain).abs().max()),
        "from the processor": float((on_cpu - plain).abs().max()),
        "moves": float(on_cpu.abs().max()),
    }


def parts(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds of the parts of one version."""
    model = load_model(name, device)
    image = sitk.GetImageFromArray(phantom(model.ndim, options.side))
    label = sitk.Cast(image > 300, sitk.sitkUInt8)
    scan = PreparedScan(image, model, DeformationSettings(LEVEL))
    process = ForwardProcess.of(model.metadata).invertible()
    tensor, found = prepare(image, model)[1].to(device), {}
    how: dict[str, Any] = {"level": LEVEL, "steps": model.default_steps}

    def measure(words: str, call: Callable[[], Any]) -> Any:
        call()
        found[words] = round(1000 * seconds(call, 5, device), 2)
        return call()

    with one_thread(), full_precision(device):
        start = measure("random field", lambda: process.ddf(LEVEL, random_generator(1, device)))
        many = [random_generator(seed, device) for seed in range(8)]
        measure("random fields of 8, together", lambda: process.ddf(LEVEL, many, batch=8))
        for state, on in STATES.items():
            with switched(on, device, 1):
                for _ in range(3):
                    recover(model, tensor, start, **how)
                ddf = measure(f"recovery, {state}", lambda: recover(model, tensor, start, **how))
        field = measure("field on the image", lambda: physical_field(ddf, scan.grid, refine=scan.refined))
        inside = positions(field, image)
        assert inside is not None
        grid = continued(field, inside, GAPS[0])
        measure("field's cells, processor", lambda: failing_cells(field, MARGIN))
        measure("between samples, processor", lambda: least_between_samples(grid))
        bounds = DeviceBounds(field, device)
        measure("upload for the bounds", lambda: DeviceBounds(field, device)._values)
        own = measure("field's cells, device", lambda: bounds.least(field))
        between = measure("between samples, device", lambda: bounds.least(grid))
        if own is not None and between is not None:
            found["undecided cells and groups"] = [int((~(x.least > MARGIN)).sum()) for x in (own, between)]
            apart = np.abs(between.least - least_between_samples(grid).least).max()
            found["bounds differ by"] = float(apart)
        measure("copy of the field for the user", field.image)
        (drawn,) = scan.draw([1])
        for state, on in STATES.items():
            with switched(on, device, 1):
                made = measure(f"all of finish, {state}", lambda: finish(drawn))
        measure("warp of the image", lambda: made.warp(image))
        measure("warp of a label", lambda: made.warp_label(label))
    return {"milliseconds": found, "nodes": list(field.vectors.shape[:-1])}


def write_dataset(folder: Path, cases: int, side: int | None) -> Path:
    """Write phantoms with a label each, whose values are bands of brightness."""
    for number in range(cases):
        voxels = phantom(3, side)[::-1] if number % 2 else phantom(3, side)
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels).astype(np.int16))
        label = sitk.Cast(sitk.DiscreteGaussian(image, 2.0) / 250, sitk.sitkUInt8)
        for kind, one in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(one, str(folder / kind / f"{number}.nii.gz"))
    return folder


class _Quiet(Reporter):
    """Reports nothing."""

    def progress(self, *_: Any, **__: Any) -> None: ...

    def version(self, **_: Any) -> None: ...

    def item(self, **_: Any) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str, about: str = "") -> None: ...

    def close(self) -> None: ...


def samples(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Measure ``drdm augment``: seconds a sample, files included, and the clock's figures."""
    data = write_dataset(options.work / "data", options.cases, options.side)
    settings = RunSettings(AUGMENT, ((LEVEL,),), copies=options.copies, deformation=DeformationSettings())
    count = options.cases * options.copies
    found: dict[str, Any] = {"samples": count}
    for state, together in (("before", TOGETHER[0]), *(("now", most) for most in TOGETHER)):
        kind = f"{state}, batches of {together}"
        request = RunRequest(data, options.work / kind, model="hippocampus-mr-3d", device=str(device))
        with switched(STATES[state], device, together):
            begin = time.perf_counter()
            run = produce(request, settings, _Quiet())
            found[kind] = {"seconds a sample": (time.perf_counter() - begin) / count, **run.clock.figures()}
        found[kind]["gpu busy"] = run.gpu_busy
    return found


def training_steps_per_second(batch: int, device: torch.device, count: int) -> float:
    """Return the training steps a second, once the pool of random fields is full."""
    m = load_model(TRAINED, "cpu").metadata
    pool = min(256, 8 * batch * count)
    trainer = Trainer(m, TrainingConfig(steps=10**6, batch=batch, field_pool=pool, rotation=15.0), device)
    images = torch.randint(0, 255, (8, 1, *[m.size] * m.ndim), dtype=torch.uint8).to(device)
    for _ in range(pool // batch + 3):
        float(trainer.advance(images).total)
    begin = time.perf_counter()
    for _ in range(count):
        last = trainer.advance(images).total
    float(last)
    return count / (time.perf_counter() - begin)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="new folder for the samples")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--side", type=int, help="voxels along each side of the phantom (128, in 2D 256)")
    parser.add_argument("--seeds", type=int, default=32, help="versions that are made in batches (32)")
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--copies", type=int, default=16, help="samples of each case (16)")
    parser.add_argument("--batches", type=int, nargs="+", default=(4, 16), help="images of a training step")
    parser.add_argument("--steps", type=int, default=20, help="training steps that are measured (20)")
    parser.add_argument("--minutes", type=float, default=2.5, help="after which no other part begins (2.5)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure part by part; print and write the figures."""
    options = parse_arguments()
    options.work.mkdir(parents=True)
    device = choose_device(options.device)
    begin = time.perf_counter()
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
    found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    work: dict[str, Callable[[], Any]] = {}
    for name in options.models:
        work[f"versions, {name}"] = lambda name=name: versions(name, device, options)
        work[f"parts, {name}"] = lambda name=name: parts(name, device, options)
    first, *others = work.items()
    after = {"samples": lambda: samples(device, options)}
    for batch in options.batches:
        after[f"training steps a second, {TRAINED}, batch {batch}"] = lambda batch=batch: training_steps_per_second(
            batch, device, options.steps
        )
    # What matters most comes first.
    for part, measure in (first, *others[:3], *after.items(), *others[3:]):
        if time.perf_counter() - begin > 60 * options.minutes:
            found[part] = "left out: no time"
        else:
            try:
                found[part] = measure()
            except Exception:
                found[part] = traceback.format_exc().splitlines()
        found["seconds"] = round(time.perf_counter() - begin, 1)
        print(part, json.dumps(found[part]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
