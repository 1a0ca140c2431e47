"""Training steps a second: DRDM's loop and, given a checkout of their repository, the authors', at equal size.

    python Testing/benchmarks/benchmark_training.py [--authors CHECKOUT] [--json OUT.json]

A step is what Algorithm 1 needs: a random field, the warp, the network, the losses, the gradient, the optimiser. Of the
authors' loop the random rotation of the images is left out (it needs more packages), which favours it. All in turns on
the CPU, in one process: a step of ours, a step of theirs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from contenders import phantom

from DRDMLib.metadata import ModelMetadata
from DRDMLib.training.trainer import Training, TrainingConfig

# Dimension, side, batch: the authors' 2D settings; in 3D half their side, so that it fits into a laptop's memory.
SETTINGS = ((2, 256, 4), (3, 64, 1))


def ours(
    ndim: int, side: int, batch: int, architecture: str, options: dict[str, Any], config: dict[str, Any], device: str
) -> Any:
    """One step of ``drdm train``."""
    metadata = ModelMetadata("benchmark", architecture, ndim, side, options=options, amplitude=2.0)
    training = Training(metadata, TrainingConfig(steps=10**6, batch=batch, **config), torch.device(device))
    image = torch.from_numpy(phantom(ndim, side))
    image = ((image - image.min()) / (image.max() - image.min()) * 255).to(torch.uint8)[None, None]
    image = image.to(device)
    # What a GPU has been asked for is done only when its answer is looked at.
    return lambda: float(training.advance(image).total)


def theirs(source: str, ndim: int, side: int, batch: int) -> Callable[[], None]:
    """One step as in ``DRDM_train.py``."""
    import authors

    made = authors.model(source, ndim, side, batch, training=True)
    networks = importlib.import_module("Diffusion.networks")
    losses = importlib.import_module("Diffusion.losses")
    padding = "zeros" if ndim == 2 else "border"
    warp = networks.STN(img_sz=side, ndims=ndim, padding_mode=padding, device="cpu")
    regularity = losses.Grad(penalty=["l1", "negdetj"], ndims=ndim)
    distance, angle = losses.MRSE(img_sz=side), losses.NCC(img_sz=side)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-4)
    image = torch.from_numpy(phantom(ndim, side))
    images = ((image - image.min()) / (image.max() - image.min()))[None, None].repeat(batch, *[1] * (ndim + 1))

    def step() -> None:
        levels = torch.randint(0, authors.TIMESTEPS, (batch,))
        deformed, dvf, _ = made(images, levels.numpy())
        predicted = made.backward(deformed, levels)
        left = warp(predicted, dvf)
        total = distance(pred=left, inv_lab=dvf, ddf_stn=None) + angle(pred=left, inv_lab=dvf, ddf_stn=None)
        total = total + 10 * regularity(predicted)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    return step


def measure(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of a step of each, in turns; random levels cost differently, so several steps are taken."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, step in contenders.items():
            begin = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
            print(f"{turn}/{repeats} {name}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)
    return {name: statistics.mean(values) for name, values in seconds.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--authors", metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu", help="of our loop (cpu); the authors' stays on the processor")
    options = parser.parse_args()
    device = options.device
    rows = []
    for ndim, side, batch in SETTINGS:
        whole = {"width": 16, "depth": 2, "whole": True}
        contenders: dict[str, Callable[[], Any]] = {
            "DRDM, compact network": ours(ndim, side, batch, "compact", whole, {"bank": 256}, device),
            "DRDM, compact network, bfloat16": ours(
                ndim, side, batch, "compact", whole, {"bank": 256, "half_precision": True}, device
            ),
            "DRDM, published network and losses": ours(ndim, side, batch, "recresacnet", {}, {}, device),
        }
        if options.authors:
            contenders["The authors' loop"] = theirs(options.authors, ndim, side, batch)
        means = measure(contenders, options.repeats)
        yardstick = means.get("The authors' loop")
        for name, seconds in means.items():
            times = None if yardstick is None else yardstick / seconds
            rows.append({"image": f"{side}^{ndim}", "batch": batch, "loop": name, "seconds": seconds, "times": times})
    print("| image | batch | loop | steps a second | times the authors' |\n| --- | ---: | --- | ---: | ---: |")
    for r in rows:
        told = "-" if r["times"] is None else f"{r['times']:.1f}"
        print(f"| {r['image']} | {r['batch']} | {r['loop']} | {1 / float(r['seconds']):.3g} | {told} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
