"""What a GPU brings: seconds a version, alone and many seeds together; agreement with the CPU; training steps.

    python -m benchmarks.gpu [--device cuda] [--seeds 32] [--json OUT.json]

``benchmarks.speed --device cuda`` compares with other methods. Here each shipped model deforms the phantom at level 48;
"field alone" is the random field and its recovery, without the certificate and without resampling to the image's grid.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from benchmarks.phantom import phantom
from DRDMLib.deformation import deform_all, generate, prepare
from DRDMLib.diffusion.forward import ForwardProcess
from DRDMLib.diffusion.recovery import recover
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.runtime.device import choose_device
from DRDMLib.settings import DeformationSettings
from DRDMLib.training import TrainingConfig
from DRDMLib.training.trainer import Trainer

MODELS = ("hippocampus-mr-3d", "brain-t1-3d", "general-3d", "general-2d", "cardiac-mr-2d")
LEVEL = 48
BATCHES = (4, 16, 64)
STEPS = 12


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of one call, after one that warms up; the call must wait for its result."""
    call()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def seconds_per_version(model: Model, image: sitk.Image, count: int) -> dict[str, float]:
    """Return the seconds a version of ``count`` together: to the certified field, and to the model's field alone."""
    seeds = tuple(range(count))
    _, tensor = prepare(image, model)
    whole = seconds(lambda: list(deform_all(image, model, LEVEL, seeds)))
    field = seconds(lambda: generate(tensor, model, DeformationSettings(LEVEL, STEPS), seeds).recovered.cpu())
    return {"certified": whole / count, "field alone": field / count}


def agreement(model: Model, other: Model, image: sitk.Image) -> dict[str, float]:
    """Return the largest difference of two devices' recoveries of the same random fields, fraction of the side."""
    m = model.metadata
    source = torch.Generator().manual_seed(0)
    start = ForwardProcess.of(m).ddf(LEVEL, source, batch=4)
    tensor = prepare(image, model)[1].expand(4, *[-1] * (m.ndim + 1))
    on_cpu, on_device = (recover(x, tensor, start, level=LEVEL, steps=STEPS).cpu() for x in (model, other))
    return {"apart": float((on_cpu - on_device).abs().max()), "moves": float(on_cpu.abs().max())}


def training_steps_per_second(model: Model, batch: int, device: torch.device, count: int = 40) -> float:
    """Return the training steps a second, once the pool of random fields is full."""
    m = model.metadata
    trainer = Trainer(m, TrainingConfig(steps=10**6, batch=batch, field_pool=256, rotation=15.0), device)
    images = torch.randint(0, 255, (8, 1, *[m.size] * m.ndim), dtype=torch.uint8).to(device)
    for _ in range(256 // batch + 3):
        float(trainer.advance(images).total)
    begin = time.perf_counter()
    for _ in range(count):
        last = trainer.advance(images).total
    float(last)
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Measure every model; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, default=32, help="computed together (32)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
    found |= {"torch": torch.__version__, "models": {}}
    for name in MODELS:
        on_cpu, on_device = load_model(name, "cpu"), load_model(name, device)
        image = sitk.GetImageFromArray(phantom(on_cpu.ndim))
        row: dict[str, Any] = {f"{n} together": seconds_per_version(on_device, image, n) for n in (1, options.seeds)}
        row["from the processor"] = agreement(on_cpu, on_device, image)
        row["training steps a second"] = {b: training_steps_per_second(on_cpu, b, device) for b in BATCHES}
        found["models"][name] = row
        print(name, json.dumps(row), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
