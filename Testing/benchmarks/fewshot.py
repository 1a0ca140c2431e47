"""Few-shot segmentation: how much deformed copies of few labeled subjects help a small U-Net.

    python -m benchmarks.fewshot DATASET --methods none torchio MODEL all [--shots 5 20] [--seeds 3]

Works in 3D, or in 2D on the middle slices of stacks (hearts: both phases of a patient stay together). Test subjects are
those that ``drdm train`` leaves out (every K-th), which no model has seen. Beside the methods of ``methods.py``:

    none     no copies
    all      no copies, but every other subject to train on: the ceiling
    oracle   copies with the shapes of all other subjects: the ceiling for deformations
    toward[:MODEL][+AMOUNT]   copies that go part of the way toward the images of all other subjects, whose labels are
             not used; then deformed by a model, and with a random pose

Every method has the same number of iterations, and those that deform as many copies. All rotate and shift the images a
little. Nothing is tuned on the test subjects: settings are chosen with ``--choose N``, on N subjects that are neither
trained nor tested on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from benchmarks.displacement import deform_pair
from benchmarks.labeled_views import LabeledImage, View, crop_to_view, group_by_patient, load_views, view_of
from benchmarks.methods import deformer
from benchmarks.networks import UNet
from benchmarks.oracle import Oracle
from benchmarks.overlap import dice, dice_cross_entropy
from DRDMLib.deforming import make_deformations
from DRDMLib.io.datasets import find_cases
from DRDMLib.models.catalogue import load_model
from DRDMLib.production.toward import TRIES
from DRDMLib.settings import DeformationSettings
from DRDMLib.toward import find_way

LEVELS = (16, 32, 48)
WINDOWS = {3: (40, 52, 40), 2: (96, 96)}
WIDTH = {3: 8, 2: 16}
BATCH = {3: 2, 2: 8}
LEARNING_RATE = 2e-3
# Images to train on at least; few subjects are repeated.
IMAGES = 30

# All images of a subject.
Subject = list[LabeledImage]
# A labeled image, its index among those of its subject, a seed and a level -> field, mm.
CopyMaker = Callable[[LabeledImage, int, int, int], np.ndarray]
# Image in units of its standard deviation (1, *window), and label (*window).
Example = tuple[Tensor, Tensor]


def make_example(image: np.ndarray, label: np.ndarray, view: View) -> Example:
    """Normalize an image and crop it and its label."""
    scaled = ((image - image.mean()) / (image.std() + 1e-6)).astype(np.float32)
    picture, truth = (torch.from_numpy(x)[None] for x in (scaled, label.astype(np.int64)))
    return crop_to_view(picture, view), crop_to_view(truth, view)[0]


def class_weights(train: list[Example], classes: int) -> Tensor:
    """Return weights (classes,) of mean 1 that grow with rarity; without, small structures may never be found."""
    counts = torch.stack([torch.bincount(label.flatten(), minlength=classes) for _, label in train]).sum(0)
    rarity = counts.clamp(min=1).float() ** -0.75
    return rarity / rarity.mean()


def fit(train: list[Example], classes: int, seed: int, iterations: int, weight: Tensor | None, device: str) -> UNet:
    """Train a network; images, shifts and noise are the same on any device."""
    torch.manual_seed(seed)
    ndim = train[0][1].ndim
    width = WIDTH[ndim]
    network = UNet(ndim, 1, classes, (width, 2 * width, 4 * width), slope=0.01).to(device)
    weight = None if weight is None else weight.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    ones = (BATCH[ndim], *[1] * (ndim + 1))
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / iterations) ** 0.9
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
        loss = dice_cross_entropy(scores.float(), label, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def mean_dice(network: UNet, test: list[Example], classes: int) -> list[float]:
    """Return the mean overlap of each structure over the images that show it."""
    device = next(network.parameters()).device
    found: list[list[float]] = [[] for _ in range(1, classes)]
    for image, label in test:
        predicted = network(image[None].to(device)).argmax(1)[0].cpu()
        for c, overlap in enumerate(dice(predicted, label, classes), start=1):
            if bool((label == c).any()):
                found[c - 1].append(overlap)
    return [float(np.mean(values)) for values in found]


def copy_maker(name: str, pool: list[Subject], device: str) -> CopyMaker:
    """Find what makes the copies: a method by name, those toward others, or the oracle."""
    if name == "oracle":
        oracle = Oracle(pool)
        return lambda pair, index, seed, level: oracle.field(pair, index, seed)
    if name.partition("+")[0].partition(":")[0] == "toward":
        return toward_others(name, pool, device)
    method = deformer(name, device)
    return lambda pair, index, seed, level: method(pair.image, seed, level)


def toward_others(name: str, pool: list[Subject], device: str) -> CopyMaker:
    """Return the maker of ``toward[:MODEL][+AMOUNT]``; a copy goes toward an image of the same phase."""
    plain, _, amount = name.partition("+")
    model = load_model(plain.partition(":")[2] or "general-2d", device)

    def field(pair: LabeledImage, index: int, seed: int, level: int) -> np.ndarray:
        others = [subject[index % len(subject)] for subject in pool if subject[index % len(subject)] is not pair]
        order = np.random.default_rng(seed).permutation(len(others))[:TRIES]
        way = next(filter(None, (find_way(pair.image, others[number].image) for number in order)), None)
        settings = DeformationSettings(level if ":" in plain else 0, pose=float(amount or 0))
        made = next(make_deformations(pair.image, model, settings, (seed,), toward=way))
        return sitk.GetArrayFromImage(made.ddf)

    return field


def training_set(
    subjects: list[Subject], maker: CopyMaker | None, copies: int, levels: list[int], seed: int
) -> list[Example]:
    """Return every image several times, each slightly rotated, and then the deformed copies of all in turn."""
    rng = np.random.default_rng(seed)
    images = [(pair, index, view_of(pair.label, WINDOWS)) for subject in subjects for index, pair in enumerate(subject)]
    repeats = max(1, IMAGES // len(images))
    train = [make_example(*deform_pair(pair, rng, None), view) for pair, _, view in images for _ in range(repeats)]
    if maker is None:
        return train
    for k in range(copies):
        pair, index, view = images[k % len(images)]
        field = maker(pair, index, 1000 * seed + k, levels[k // len(images) % len(levels)])
        train.append(make_example(*deform_pair(pair, rng, field), view))
    return train


def load_subjects(dataset: str, hold_out: int, choose: int | None) -> tuple[list[Subject], list[LabeledImage]]:
    """Return the subjects to train on, and the images to test on."""
    patients = group_by_patient([case for case in find_cases(dataset) if case.label])
    pool = [
        [pair for case in patient for pair in load_views(case)] for i, patient in enumerate(patients) if i % hold_out
    ]
    if choose:
        return pool[:-choose], [pair for subject in pool[-choose:] for pair in subject]
    return pool, [pair for patient in patients[::hold_out] for case in patient for pair in load_views(case)]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--shots", type=int, nargs="+", default=[5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=90, help="deformed copies of all subjects together")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), help="of the models, in turn")
    parser.add_argument("--weighted", action="store_true", help="give rare structures more weight in the cross-entropy")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--choose", type=int, metavar="N", help="test on N subjects of the pool, to choose settings")
    parser.add_argument("--device", default="cpu", help="of the networks, ours and the U-Net (cpu)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train and test every method with every seed; print and write the overlaps."""
    options = parse_arguments()
    torch.set_num_threads(1)
    pool, left_out = load_subjects(options.dataset, options.hold_out, options.choose)
    test = [
        make_example(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label), view_of(label, WINDOWS))
        for image, label in left_out
    ]
    classes = 1 + max(int(label.max()) for _, label in test)
    makers = {name: copy_maker(name, pool, options.device) for name in options.methods if name not in ("none", "all")}
    facts = {key: getattr(options, key) for key in ("iterations", "copies", "levels", "weighted")}
    rows: list[dict[str, object]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for shots in options.shots:
            few = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:shots]]
            for name in options.methods:
                if name == "all" and shots != options.shots[0]:
                    continue
                subjects = pool if name == "all" else few
                train = training_set(subjects, makers.get(name), options.copies, options.levels, seed)
                weight = class_weights(train, classes) if options.weighted else None
                network = fit(train, classes, seed, options.iterations, weight, options.device)
                scores = mean_dice(network, test, classes)
                row = {"method": name, "shots": 0 if name == "all" else shots, "seed": seed}
                rows.append(row | {"dice": float(np.mean(scores)), "structures": scores})
                print(rows[-1], flush=True)
                if options.json:
                    report = {"test": len(test), **facts, "rows": rows}
                    options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
