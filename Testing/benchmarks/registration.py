"""Registration learned from synthetic pairs only: whose pairs teach a network best to register real images.

    python -m benchmarks.registration DATASET --methods torchio MODEL [--seeds 3] [--json OUT.json]

Pairs are made as in Algorithm 4 of the paper: a moving image from a subject, a fixed image from the moving one, and the
exact field between them. All methods have the same subjects, number of pairs, network and iterations, and their fields
move the labeled structures as far on average. Beside the methods of ``methods.py``:

    motion           pairs of an image and the same on its way to another image of the same patient, such as the other
                     phase of a heart, without labels: real motion, as large as it is
    motion,NAME      every second pair of them, the others of the method NAME
    real             no pairs: a network that is trained only with ``--refine``, as long as the others in all
    demons, ways     no network: a classical registration of the test pairs themselves, by SimpleITK's demons or as
                     DRDM finds the way to another scan

With ``--refine N`` each network is trained on the real pairs of its subjects for N more iterations, without any truth.
Tested on subjects that neither a model nor a network has seen, by the
overlap of their labels: in 3D between subjects (volumes as they are, centers of the crops together; of heads the deep
structures, their centers together), in 2D between the two phases of each heart.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from benchmarks.displacement import as_transform, mean_length, resample, structures
from benchmarks.labeled_views import LabeledImage, View, crop_to_view, group_by_patient, load_views, view_of
from benchmarks.methods import deformer, is_elastic
from benchmarks.networks import RegistrationNetwork
from benchmarks.overlap import dice
from DRDMLib.diffusion.fields import warp
from DRDMLib.invertibility.metrics import folded_fraction
from DRDMLib.io.datasets import find_cases
from DRDMLib.toward import Way, find_way

WINDOWS = {3: (40, 56, 40), 2: (96, 96)}
# Mean displacement of a pair's second field, as a fraction of the requested one; the first field has the middle one.
STRENGTHS = (0.5, 1.0, 1.5)
# Subjects whose fields are measured to choose the level of a model for each strength.
CALIBRATION = 6
LEVELS = (8, 20, 32, 44, 56, 68, 79)
PEAK_RATE = 3e-3
BATCH = 4

# Training on real pairs: rate, and the weight of the squared slope of the field, in voxels.
REFINING_RATE, SMOOTHNESS = 1e-3, 0.05
MOTION, REAL, CLASSICAL = "motion", "real", ("demons", "ways")

# Moving, fixed (1, *window), and the field between them (d, *window), fraction of the window.
Example = tuple[Tensor, Tensor, Tensor]
# Moving and fixed.
TestPair = tuple[LabeledImage, LabeledImage]
# A pair and the views of both -> field (1, d, *window), fraction of the window.
Registrar = Callable[[TestPair, list[View]], Tensor]


def picture(image: sitk.Image, view: View) -> Tensor:
    """Normalize an image to about 0 to 1 and crop it: (1, *window)."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = np.percentile(array, (1, 99))
    scaled = torch.from_numpy((array - low) / max(float(high - low), 1e-6)).float()
    return crop_to_view(scaled[None], view)


def to_window(field: np.ndarray, image: sitk.Image, view: View) -> Tensor:
    """Convert a field on the image's grid, mm, to (d, *window), fraction of the window."""
    ndim = image.GetDimension()
    direction = np.asarray(image.GetDirection()).reshape(ndim, ndim)
    voxels = (field @ direction) / np.asarray(image.GetSpacing())
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels[..., ::-1], -1, 0))).float()
    return crop_to_view(tensor, view) / torch.tensor(view.window).view(-1, *[1] * ndim)


class ScaledMethod:
    """Draw fields of one method that move the structures by a given distance on average.

    Args:
        name: of the method.
        subjects: to measure its fields on.
        target: mean displacement of the structures, mm.
    """

    def __init__(self, name: str, subjects: list[LabeledImage], target: float) -> None:
        self.method = deformer(name)
        levels = (0,) if is_elastic(name) else LEVELS
        some = [(k, image, structures(label)) for k, (image, label) in enumerate(subjects[:CALIBRATION])]
        sizes = [np.mean([mean_length(self.method(im, 77 + k, v), mask) for k, im, mask in some]) for v in levels]
        # Level and factor of each strength.
        self.choices: list[tuple[int, float]] = []
        for share in STRENGTHS:
            best = int(np.argmin([abs(np.log(size / (share * target))) for size in sizes]))
            self.choices.append((levels[best], share * target / float(sizes[best])))

    def __call__(self, image: sitk.Image, seed: int, strength: int) -> np.ndarray:
        """Draw a field, mm; ``strength`` is an index of ``STRENGTHS``."""
        level, factor = self.choices[strength]
        return self.method(image, seed, level) * factor


class Motion:
    """Draw fields of the motion between two images of the same patient, which are registered without their labels."""

    def __init__(self, partners: list[TestPair]) -> None:
        self._partners = {id(one.image): other.image for pair in partners for one, other in (pair, pair[::-1])}
        self._ways: dict[int, Way | None] = {}

    def __call__(self, image: sitk.Image, seed: int) -> np.ndarray:
        """Return a share of the motion from an image to the other one of the patient, mm."""
        if id(image) not in self._ways:
            self._ways[id(image)] = find_way(image, self._partners[id(image)], in_place=True)
        way = self._ways[id(image)]
        if way is None:
            return np.zeros((*sitk.GetArrayViewFromImage(image).shape, image.GetDimension()))
        field = sitk.Resample(way.field, image, sitk.Transform(), sitk.sitkLinear, 0.0, way.field.GetPixelID(), True)
        return sitk.GetArrayFromImage(field) * way.share(seed)


def make_pairs(
    method: ScaledMethod | None, motion: Motion | None, subjects: list[LabeledImage], count: int, seed: int
) -> list[Example]:
    """Make ``count`` pairs by Algorithm 4, subject after subject; with ``motion``, half of them or all by that."""
    pairs = []
    for k in range(count):
        image, label = subjects[k % len(subjects)]
        view = view_of(label, WINDOWS)
        moves = motion is not None and (method is None or (k + k // len(subjects)) % 2 == 0)
        if moves:
            moving, field = image, motion(image, 10_000 * seed + k)
        else:
            moving = resample(image, as_transform(method(image, 10_000 * seed + 2 * k, 1), image))
            field = method(moving, 10_000 * seed + 2 * k + 1, k % len(STRENGTHS))
        fixed = resample(moving, as_transform(field, moving))
        pairs.append((picture(moving, view), picture(fixed, view), to_window(field, image, view)))
    return pairs


def refine(network: RegistrationNetwork, pairs: list[TestPair], seed: int, iterations: int) -> RegistrationNetwork:
    """Train a network further on real pairs, without any truth: images become alike, and the field stays smooth."""
    torch.manual_seed(seed + 1)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=REFINING_RATE)
    images = [[picture(one.image, view_of(one.label, WINDOWS)) for one in pair] for pair in pairs]
    scale = torch.stack([(a - b).square().mean() for a, b in images]).mean()
    ndim = images[0][0].ndim - 1
    sides = torch.tensor(images[0][0].shape[1:]).view(-1, *[1] * ndim)
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = REFINING_RATE * (1 - step / iterations) ** 0.9
        chosen = torch.randint(len(images), (BATCH,)).tolist()
        moving, fixed = (torch.stack([images[i][k] for i in chosen]) for k in range(2))
        if bool(torch.rand(()) < 0.5):
            moving, fixed = fixed, moving
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(moving, fixed)
        found = found.float()
        slopes = torch.stack([(found * sides).diff(dim=k + 2).square().mean() for k in range(ndim)]).sum()
        loss = (warp(moving, found) - fixed).square().mean() / scale + SMOOTHNESS * slopes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def fit(pairs: list[Example], seed: int, iterations: int) -> RegistrationNetwork:
    """Train a network to find the exact fields and to make the images alike."""
    torch.manual_seed(seed)
    ndim = pairs[0][2].shape[0]
    network = RegistrationNetwork(ndim)
    optimizer = torch.optim.Adam(network.parameters(), lr=PEAK_RATE)
    axes = list(range(2, ndim + 2))
    sides = torch.tensor(pairs[0][2].shape[1:]).view(-1, *[1] * ndim)
    field_scale = torch.stack([(u * sides).square().mean() for _, _, u in pairs]).mean()
    image_scale = torch.stack([(a - b).square().mean() for a, b, _ in pairs]).mean()
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20) * (1 - step / iterations) ** 0.9
        chosen = torch.randint(len(pairs), (BATCH,)).tolist()
        shifts = torch.randint(-3, 4, (ndim,)).tolist()
        moving, fixed, truth = (torch.roll(torch.stack([pairs[i][k] for i in chosen]), shifts, axes) for k in range(3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(*(_change_intensities(x) for x in (moving, fixed)))
        error = ((found - truth) * sides).square().mean() / field_scale
        loss = error + (warp(moving, found) - fixed).square().mean() / image_scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _change_intensities(x: Tensor) -> Tensor:
    """Scale and shift the intensities and add noise: no two scans of two people are alike in these."""
    ones = (len(x), *[1] * (x.ndim - 1))
    return x * (1 + 0.15 * torch.randn(ones)) + 0.1 * torch.randn(ones) + 0.03 * torch.randn_like(x)


def by_network(network: RegistrationNetwork) -> Registrar:
    """Register with a network."""

    def found(pair: TestPair, views: list[View]) -> Tensor:
        field: Tensor = network(*(picture(one.image, view)[None] for one, view in zip(pair, views, strict=True)))
        return field

    return found


def classical(name: str) -> Registrar:
    """Register without a network: ``demons`` of SimpleITK, or as DRDM finds the way to another scan (``ways``)."""

    def found(pair: TestPair, views: list[View]) -> Tensor:
        moving, fixed = (one.image for one in pair)
        if name == "demons":
            demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
            demons.SetNumberOfIterations(100)
            demons.SetStandardDeviations(2.0 * min(fixed.GetSpacing()))
            placed = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, 0.0)
            field = demons.Execute(fixed, sitk.HistogramMatching(placed, fixed))
        else:
            way = find_way(moving, fixed, in_place=True)
            if way is None:
                return torch.zeros(1, fixed.GetDimension(), *views[1].window)
            field = sitk.Resample(way.field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0)
        return to_window(sitk.GetArrayFromImage(field), fixed, views[1])[None]

    return found


@torch.no_grad()
def judge(registrar: Registrar | None, tests: list[TestPair], classes: int) -> dict[str, float]:
    """Return mean overlap, mean of the worst tenth, and folded fraction; of unregistered images without a registrar."""
    overlaps, folds = [], []
    for pair in tests:
        views = [view_of(one.label, WINDOWS) for one in pair]
        labels = [
            crop_to_view(torch.from_numpy(sitk.GetArrayFromImage(one.label).astype(np.int16))[None], view)
            for one, view in zip(pair, views, strict=True)
        ]
        result = labels[0]
        if registrar is not None:
            u = registrar(pair, views)
            result = warp(labels[0][None].float(), u, mode="nearest")[0].round().to(torch.int16)
            folds.append(float(folded_fraction(u).mean()))
        shown = [value for value in dice(result, labels[1], classes) if not math.isnan(value)]
        overlaps.append(float(np.mean(shown)))
    worst = np.sort(overlaps)[: max(1, len(overlaps) // 10)]
    return {
        "dice": float(np.mean(overlaps)),
        "worst_tenth": float(worst.mean()),
        "folded": float(np.mean(folds)) if folds else 0.0,
    }


def load_subjects(
    dataset: str, hold_out: int, choose: int | None
) -> tuple[list[list[list[LabeledImage]]], list[TestPair]]:
    """Return the images of each subject to train on, by case, and the pairs to test on."""
    patients = group_by_patient([case for case in find_cases(dataset) if case.label])
    loaded = [[load_views(case) for case in patient] for patient in patients]
    pool = [patient for i, patient in enumerate(loaded) if i % hold_out]
    left_out = loaded[::hold_out]
    if choose:
        pool, left_out = pool[:-choose], pool[-choose:]
    if len(patients[0]) == 2:
        return pool, [pair for diastole, systole in left_out for pair in zip(diastole, systole, strict=True)]
    alone, count = [patient[0][0] for patient in left_out], len(left_out)
    return pool, [(alone[i], alone[(i + d) % count]) for d in (1, 5, 9, 13) for i in range(count)]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--subjects", type=int, default=20, help="to make pairs of")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--tests", type=int, default=46, help="pairs of real images")
    parser.add_argument("--displacement", type=float, default=1.5, help="mean displacement of the structures, mm")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--refine", type=int, default=0, help="iterations on real pairs without truth, afterwards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--choose", type=int, metavar="N", help="test on N subjects of the pool, to choose settings")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train and test every method with every seed; print and write the overlaps."""
    options = parse_arguments()
    torch.set_num_threads(1)
    pool, tests = load_subjects(options.dataset, options.hold_out, options.choose)
    tests = tests[: options.tests]
    classes = 1 + max(int(sitk.GetArrayViewFromImage(one.label).max()) for pair in tests for one in pair)
    rows: list[dict[str, object]] = []

    def add(row: dict[str, object]) -> None:
        rows.append(row)
        print(row, flush=True)
        if options.json:
            facts = {k: v for k, v in vars(options).items() if k not in ("json", "dataset", "methods")}
            options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2), encoding="utf-8")

    add({"method": "unregistered", **judge(None, tests, classes)})
    for name in CLASSICAL:
        if name in options.methods:
            add({"method": name, **judge(classical(name), tests, classes)})
    methods: dict[str, ScaledMethod] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        chosen = np.random.default_rng(seed).permutation(len(pool))[: options.subjects]
        few = [pair for i in chosen for case in pool[i] for pair in case]
        # Both phases of a heart, slice by slice.
        real = [pair for i in chosen if len(pool[i]) == 2 for pair in zip(*pool[i], strict=True)]
        few = [few[i] for i in np.random.default_rng(seed).permutation(len(few))]
        for name in options.methods:
            if name in CLASSICAL:
                continue
            if name == REAL:
                torch.manual_seed(seed)
                network = refine(
                    RegistrationNetwork(tests[0][0].image.GetDimension()),
                    real,
                    seed,
                    options.iterations + options.refine,
                )
                add({"method": name, "seed": seed, **judge(by_network(network), tests, classes)})
                continue
            first, *others = name.split(",")
            motion = Motion(real) if first == MOTION else None
            plain = "".join(others) if motion else name
            if plain and plain not in methods:
                methods[plain] = ScaledMethod(plain, few, options.displacement)
            pairs = make_pairs(methods.get(plain), motion, few, options.pairs, seed)
            network = fit(pairs, seed, options.iterations)
            add({"method": name, "seed": seed, **judge(by_network(network), tests, classes)})
            if options.refine:
                network = refine(network, real, seed, options.refine)
                add({"method": f"{name}, refined", "seed": seed, **judge(by_network(network), tests, classes)})


if __name__ == "__main__":
    main()
