"""What a GPU brings: versions alone and in batches, a batch of samples, training steps; agreement with the CPU.

    python -m benchmarks.gpu WORK [--device cuda] [--seeds 32] [--json OUT.json]

On a GPU it takes less than six minutes; parts that would begin after ``--minutes`` are left out, and the JSON file is
written after each part. ``benchmarks.speed --device cuda`` compares with other methods. Here:

    versions    each model deforms the phantom at level 48: seconds a version, of one alone and of many in batches.
                "field" is the random field and its recovery, "proof" brings it to the image and proves it, one after
                the other; "whole" is ``deform_all``, which proves those of a batch in threads while the next is drawn.
    samples     ``drdm augment`` of a few phantoms with labels: with batches, without them, and without them and with
                one sample at a time, as before there were batches.
    training    steps a second of the model of heads, once the pool of random fields is full.

It can be tried on a CPU, where it shows nothing:

    python -m benchmarks.gpu WORK --device cpu --side 32 --seeds 3 --cases 1 --copies 3 --batches 2 --steps 2
"""

from __future__ import annotations

import argparse
import json
import time
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
from DRDMLib.generation import prepare
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.production.plan import AUGMENT, RunSettings
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.runtime import batches, threads
from DRDMLib.runtime.device import choose_device
from DRDMLib.runtime.reporter import Reporter
from DRDMLib.settings import DeformationSettings
from DRDMLib.training import TrainingConfig
from DRDMLib.training.trainer import Trainer
from DRDMLib.versions import Drawn, PreparedScan

MODELS = ("hippocampus-mr-3d", "brain-t1-3d", "general-3d", "cardiac-mr-2d")
TRAINED = "brain-t1-3d"
LEVEL = 48
STEPS = 12
# Versions in a batch, where there are batches.
TOGETHER = 8


@contextmanager
def made_together(device: torch.device, versions: int, samples: int = threads.BESIDE_A_GPU) -> Iterator[None]:
    """Let a device make so many versions in a batch, and so many samples at the same time."""
    before, beside = dict(batches.MOST), threads.BESIDE_A_GPU
    batches.MOST[device.type], threads.BESIDE_A_GPU = versions, samples
    try:
        yield
    finally:
        batches.MOST.clear()
        batches.MOST.update(before)
        threads.BESIDE_A_GPU = beside


def seconds(call: Callable[[], Any], *, warm: bool = True) -> float:
    """Return the seconds of one call, after one that warms up; the call must wait for its result."""
    if warm:
        call()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def seconds_per_version(model: Model, image: sitk.Image, count: int, together: int) -> dict[str, float]:
    """Return the seconds a version of ``count``, in batches of ``together``."""
    seeds = tuple(range(count))
    scan = PreparedScan(image, model, DeformationSettings(LEVEL, STEPS))

    def draw() -> list[Drawn]:
        made = [one for group in batches.in_batches(seeds, together) for one in scan.draw(group)]
        made[-1].recovered.cpu()
        return made

    with made_together(model.device, together):
        whole = seconds(lambda: list(deform_all(image, model, LEVEL, seeds, STEPS)))
        field = seconds(draw)
        drawn = draw()
        proof = seconds(lambda: [finish(one) for one in drawn], warm=False)
    return {name: value / count for name, value in (("whole", whole), ("field", field), ("proof", proof))}


def agreement(model: Model, other: Model, image: sitk.Image) -> dict[str, float]:
    """Return the largest difference of two devices' recoveries of the same random fields, fraction of the side.

    And that of versions in a batch and alone, on the second device.
    """
    m = model.metadata
    start = ForwardProcess.of(m).ddf(LEVEL, torch.Generator().manual_seed(0), batch=4)
    tensor = prepare(image, model)[1].expand(4, *[-1] * (m.ndim + 1))
    on_cpu, on_device = (recover(x, tensor, start, level=LEVEL, steps=STEPS).cpu() for x in (model, other))
    single = [recover(other, tensor[:1], one[None], level=LEVEL, steps=STEPS).cpu() for one in start]
    return {
        "apart": float((on_cpu - on_device).abs().max()),
        "alone and in a batch": float((torch.cat(single) - on_device).abs().max()),
        "moves": float(on_cpu.abs().max()),
    }


def versions(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model."""
    on_cpu, on_device = load_model(name, "cpu"), load_model(name, device)
    image = sitk.GetImageFromArray(phantom(on_cpu.ndim, options.side))
    return {
        "one": seconds_per_version(on_device, image, 1, 1),
        f"{options.seeds} in batches of {TOGETHER}": seconds_per_version(on_device, image, options.seeds, TOGETHER),
        "from the processor": agreement(on_cpu, on_device, image),
    }


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

    warning = message

    def close(self) -> None: ...


def samples(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Measure ``drdm augment``: seconds a sample, files included, and the clock's figures."""
    data = write_dataset(options.work / "data", options.cases, options.side)
    deformation = DeformationSettings(steps=STEPS)
    settings = RunSettings(AUGMENT, ((LEVEL,),), copies=options.copies, deformation=deformation)
    count = options.cases * options.copies
    found: dict[str, Any] = {"samples": count}
    kinds = {"with batches": (TOGETHER, 8), "without batches": (1, 8), "one at a time": (1, 1)}
    for number, (kind, together) in enumerate(kinds.items()):
        request = RunRequest(data, options.work / f"run{number}", model="hippocampus-mr-3d", device=str(device))
        with made_together(device, *together):
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
    parser.add_argument("--batches", type=int, nargs="+", default=(4, 16, 32), help="images of a training step")
    parser.add_argument("--steps", type=int, default=40, help="training steps that are measured (40)")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which no other part begins (5)")
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
    parts: dict[str, Callable[[], Any]] = {}
    for name in options.models:
        parts[f"versions, {name}"] = lambda name=name: versions(name, device, options)
    parts["samples"] = lambda: samples(device, options)
    for batch in options.batches:
        parts[f"training steps a second, {TRAINED}, batch {batch}"] = lambda batch=batch: training_steps_per_second(
            batch, device, options.steps
        )
    for part, measure in parts.items():
        late = time.perf_counter() - begin > 60 * options.minutes
        found[part] = "left out: no time" if late else measure()
        found["seconds"] = round(time.perf_counter() - begin, 1)
        print(part, json.dumps(found[part]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
