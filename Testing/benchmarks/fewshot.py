"""Few-shot segmentation: how much do deformed copies of few labelled subjects help a small U-Net?

``python Testing/benchmarks/benchmark_fewshot.py DATASET --methods none torchio MODEL all [--shots 5 20] [--seeds 3]``

In 3D, or on the middle slices of stacks in 2D (hearts: both phases of a patient stay together). Test subjects are those
that ``drdm train`` leaves out (every K-th), which no model has seen. ``all`` trains on every other subject, undeformed:
the ceiling. ``oracle`` deforms the few subjects to the shapes of all others: the ceiling for deformations. Every arm
gets the same number of iterations, the deformed arms as many copies. Nothing is tuned on the test subjects: settings
are chosen with ``--choose N``, on N subjects that are neither trained nor tested on. All arms turn and shift the images
a little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from benchmark_realism import resample
from deformers import deformer
from oracle import Oracle
from slices import Pair, View, by_person, load_pairs, seen, view_of
from torch import Tensor, nn

from DRDMLib.datasets import find_cases

LEVELS = (16, 32, 48)
# A labelled image, its place among its subject's, a seed and a level -> field, mm.
Maker = Callable[[Pair, int, int, int], np.ndarray]
WINDOWS = {3: (40, 52, 40), 2: (96, 96)}
WIDTH = {3: 8, 2: 16}
BATCH = {3: 2, 2: 8}


class UNet(nn.Module):
    """A vanilla U-Net with three scales."""

    def __init__(self, ndim: int, classes: int) -> None:
        super().__init__()
        width = WIDTH[ndim]
        conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        self.pool = F.max_pool3d if ndim == 3 else F.max_pool2d

        def layer(a: int, b: int) -> list[nn.Module]:
            return [conv(a, b, 3, padding=1), norm(b, affine=True), nn.LeakyReLU(0.01)]

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(*layer(a, b), *layer(b, b))

        self.a, self.b, self.c = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.d, self.e = block(6 * width, 2 * width), block(3 * width, width)
        self.out = conv(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, *S) -> scores (N, classes, *S)."""
        a = self.a(x)
        b = self.b(self.pool(a, 2))
        c = self.c(self.pool(b, 2))
        d = self.d(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        return self.out(self.e(torch.cat([a, F.interpolate(d, scale_factor=2)], 1)))


def example(image: np.ndarray, label: np.ndarray, view: View) -> tuple[Tensor, Tensor]:
    """Image in units of its spread (1, *window) and label (*window)."""
    scaled = ((image - image.mean()) / (image.std() + 1e-6)).astype(np.float32)
    picture, truth = (torch.from_numpy(x)[None] for x in (scaled, label.astype(np.int64)))
    return seen(picture, view), seen(truth, view)[0]


def overlap_loss(scores: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy, its classes with ``weight``, and soft Dice."""
    share = scores.softmax(1)
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1).float()
    dims = (0, *range(2, truth.ndim))
    dice = (2 * (share * truth).sum(dims) + 1) / (share.sum(dims) + truth.sum(dims) + 1)
    return F.cross_entropy(scores, label, weight) + 1 - dice[1:].mean()


def rarity(train: list[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Weights (classes,): how rare each is, mean 1. Without them small structures are at times never found."""
    counts = torch.stack([torch.bincount(label.flatten(), minlength=classes) for _, label in train]).sum(0)
    rare = counts.clamp(min=1).float() ** -0.75
    return rare / rare.mean()


def fit(
    train: list[tuple[Tensor, Tensor]], classes: int, seed: int, iterations: int, weight: Tensor | None, device: str
) -> UNet:
    """A network trained on what is given; the same images, shifts and noise on any device."""
    torch.manual_seed(seed)
    ndim = train[0][1].ndim
    network = UNet(ndim, classes).to(device)
    weight = None if weight is None else weight.to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    ones = (BATCH[ndim], *[1] * (ndim + 1))
    for step in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / iterations) ** 0.9
        chosen = torch.randint(len(train), (BATCH[ndim],)).tolist()
        image = torch.stack([train[i][0] for i in chosen])
        label = torch.stack([train[i][1] for i in chosen])
        shifts = torch.randint(-3, 4, (ndim,)).tolist()
        axes = list(range(1, ndim + 1))
        image, label = torch.roll(image, shifts, [k + 1 for k in axes]), torch.roll(label, shifts, axes)
        image = image * (1 + 0.1 * torch.randn(ones)) + 0.1 * torch.randn(ones)
        image, label = image.to(device), label.to(device)
        with torch.autocast(image.device.type, dtype=torch.bfloat16):
            scores = network(image)
        loss = overlap_loss(scores.float(), label, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@torch.no_grad()
def mean_dice(network: UNet, test: list[tuple[Tensor, Tensor]], classes: int) -> list[float]:
    """Of each structure, over the subjects or slices that show it."""
    found: list[list[float]] = [[] for _ in range(1, classes)]
    device = next(network.parameters()).device
    for image, label in test:
        answer = network(image[None].to(device)).argmax(1)[0].cpu()
        for c in range(1, classes):
            if bool((label == c).any()):
                both = float(((answer == c) & (label == c)).sum())
                found[c - 1].append(2 * both / float((answer == c).sum() + (label == c).sum()))
    return [float(np.mean(values)) for values in found]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--shots", type=int, nargs="+", default=[5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=90, help="deformed copies of all subjects together")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), help="of the models, in turn")
    parser.add_argument("--weighted", action="store_true", help="rare structures count more in the cross-entropy")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--choose", type=int, metavar="N", help="judge on N subjects of the pool: to choose settings")
    parser.add_argument("--device", default="cpu", help="of the networks, ours and the U-Net (cpu)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    people = by_person([case for case in find_cases(options.dataset) if case.label])
    pool = [
        [pair for case in person for pair in load_pairs(case)]
        for i, person in enumerate(people)
        if i % options.hold_out
    ]
    if options.choose:
        left_out = [pair for person in pool[-options.choose :] for pair in person]
        pool = pool[: -options.choose]
    else:
        left_out = [pair for person in people[:: options.hold_out] for case in person for pair in load_pairs(case)]
    test = [example(*(sitk.GetArrayFromImage(x) for x in pair), view_of(pair[1], WINDOWS)) for pair in left_out]
    classes = 1 + max(int(label.max()) for _, label in test)
    makers = {name: maker_of(name, pool, options.device) for name in options.methods if name not in ("none", "all")}
    rows: list[dict[str, object]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for shots in options.shots:
            few = np.random.default_rng(seed).permutation(len(pool))[:shots]
            for name in options.methods:
                if name == "all" and shots != options.shots[0]:
                    continue
                train = training_set(pool if name == "all" else [pool[i] for i in few], makers.get(name), options, seed)
                weight = rarity(train, classes) if options.weighted else None
                scores = mean_dice(fit(train, classes, seed, options.iterations, weight, options.device), test, classes)
                row = {"method": name, "shots": 0 if name == "all" else shots, "seed": seed}
                rows.append(row | {"dice": float(np.mean(scores)), "structures": scores})
                print(rows[-1], flush=True)
                if options.json:
                    facts = {
                        "test": len(test),
                        "iterations": options.iterations,
                        "copies": options.copies,
                        "levels": options.levels,
                        "weighted": options.weighted,
                    }
                    options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2), encoding="utf-8")


def maker_of(name: str, pool: list[list[Pair]], device: str = "cpu") -> Maker:
    """Of a method of ``deformers`` or of the oracle."""
    if name == "oracle":
        oracle = Oracle(pool)
        return lambda pair, place, seed, level: oracle.field(pair, place, seed)
    made = deformer(name, device)
    return lambda pair, place, seed, level: made(pair[0], seed, level)


def training_set(
    subjects: list[list[Pair]], maker: Maker | None, options: argparse.Namespace, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Every image several times, each time turned a little, and the deformed copies, which go round the images."""
    rng = np.random.default_rng(seed)
    images, places = zip(*((pair, place) for subject in subjects for place, pair in enumerate(subject)), strict=True)
    repeats = max(1, 30 // len(images))
    views = [view_of(label, WINDOWS) for _, label in images]
    train = [
        example(*resample(pair, rng, None), view)
        for pair, view in zip(images, views, strict=True)
        for _ in range(repeats)
    ]
    if maker is None:
        return train
    for k in range(options.copies):
        which, level = k % len(images), options.levels[k // len(images) % len(options.levels)]
        field = maker(images[which], places[which], 1000 * seed + k, level)
        train.append(example(*resample(images[which], rng, field), views[which]))
    return train


if __name__ == "__main__":
    main()
