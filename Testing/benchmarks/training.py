"""Trainer steps a second: DRDM's loop and, given a checkout of their repository, the authors', at equal size.

    python -m benchmarks.training [--authors CHECKOUT] [--json OUT.json]

A step is what Algorithm 1 needs: a random field, the warp, the network, the losses, the gradient, the optimizer. The
authors' loop runs without its random rotation of the images (it needs more packages), which favors it. All take turns
in one process: a step of one, a step of the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import reference_implementation
from benchmarks.phantom import phantom
from benchmarks.tables import markdown
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.training.loop import Trainer, TrainingConfig

# Dimension, side, batch: the authors' 2D settings; in 3D half their side, so that it fits into a laptop's memory.
SETTINGS = ((2, 256, 4), (3, 64, 1))
AUTHORS = "The authors' loop"


def drdm_step(
    ndim: int, side: int, batch: int, architecture: str, options: dict[str, Any], config: dict[str, Any], device: str
) -> Callable[[], float]:
    """Return one step of ``drdm train``."""
    metadata = ModelMetadata("benchmark", architecture, ndim, side, options=options, amplitude=2.0)
    training = Trainer(metadata, TrainingConfig(steps=10**6, batch=batch, **config), torch.device(device))
    image = torch.from_numpy(phantom(ndim, side))
    image = ((image - image.min()) / (image.max() - image.min()) * 255).to(torch.uint8)[None, None]
    image = image.to(device)
    # A GPU has done its work only when the result is read.
    return lambda: float(training.advance(image).total)


def authors_step(source: str, ndim: int, side: int, batch: int) -> Callable[[], None]:
    """Return one step as in ``DRDM_train.py``."""
    model = reference_implementation.load_model(source, ndim, side, batch, training=True)
    networks = reference_implementation.load_module(source, "Diffusion.networks")
    losses = reference_implementation.load_module(source, "Diffusion.losses")
    padding = "zeros" if ndim == 2 else "border"
    warp = networks.STN(img_sz=side, ndims=ndim, padding_mode=padding, device="cpu")
    regularity = losses.Grad(penalty=["l1", "negdetj"], ndims=ndim)
    distance, angle = losses.MRSE(img_sz=side), losses.NCC(img_sz=side)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = reference_implementation.normalized_phantom(ndim, side).repeat(batch, *[1] * (ndim + 1))

    def step() -> None:
        levels = torch.randint(0, reference_implementation.TIMESTEPS, (batch,))
        deformed, dvf, _ = model(images, levels.numpy())
        predicted = model.backward(deformed, levels)
        left = warp(predicted, dvf)
        total = distance(pred=left, inv_lab=dvf, ddf_stn=None) + angle(pred=left, inv_lab=dvf, ddf_stn=None)
        total = total + 10 * regularity(predicted)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def seconds_per_step(loops: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the mean seconds of a step of each loop, in turns; the mean, since random levels differ in cost."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(repeats + 1):
        for name, step in loops.items():
            begin = time.perf_counter()
            step()
            elapsed = time.perf_counter() - begin
            if number:
                seconds[name].append(elapsed)
            print(f"{number}/{repeats} {name}: {elapsed:.2f} s", file=sys.stderr, flush=True)
    return {name: statistics.mean(values) for name, values in seconds.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    cells = [
        {
            "image": row["image"],
            "batch": row["batch"],
            "loop": row["loop"],
            "steps a second": 1 / row["seconds"],
            "times the authors'": row["times"],
        }
        for row in rows
    ]
    return markdown(cells, {"steps a second": ".3g", "times the authors'": ".1f"})


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--authors", metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu", help="of our loop (cpu); the authors' stays on the processor")
    options = parser.parse_args()
    device = options.device
    rows = []
    for ndim, side, batch in SETTINGS:
        compact = {"width": 16, "depth": 2, "whole": True}
        half = {"bank": 256, "half_precision": True}
        loops: dict[str, Callable[[], Any]] = {
            "DRDM, compact network": drdm_step(ndim, side, batch, "compact", compact, {"bank": 256}, device),
            "DRDM, compact network, bfloat16": drdm_step(ndim, side, batch, "compact", compact, half, device),
            "DRDM, published network and losses": drdm_step(ndim, side, batch, "recresacnet", {}, {}, device),
        }
        if options.authors:
            loops[AUTHORS] = authors_step(options.authors, ndim, side, batch)
        means = seconds_per_step(loops, options.repeats)
        authors = means.get(AUTHORS)
        for name, seconds in means.items():
            times = None if authors is None else authors / seconds
            rows.append({"image": f"{side}^{ndim}", "batch": batch, "loop": name, "seconds": seconds, "times": times})
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
