"""Realism: whether deformed subjects look like subjects, all methods at equal displacement.

    python -m benchmarks.realism DATASET --methods torchio monai MODEL MODEL:random [--json OUT.json]

Subjects (3D, labels 1 and 2) are split into two halves, A and B. *Frechet distance*: between the shape descriptors of
deformed A and real B (volumes, compactness, principal extents of each structure and of the whole, distance between the
first two), in units of the spread over real subjects. *Two-sample test*: a small network is trained to tell images and
labels of deformed A from real B and tested on other subjects of both; 50 % is chance. Real and deformed are both
resampled once, with a random small rigid motion.

Equal is the mean displacement of the labeled structures. With ``--equal image`` it is that of the whole image, which
favors a method that moves the border as much as the middle. With ``--equal beyond-affine`` it is what the best affine
map leaves in the structures: a rotated, shifted or scaled subject is still a subject, so a method that does more of
that has an advantage otherwise. All three are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.displacement import beyond_affine, deform_pair, mean_length, structures
from benchmarks.labeled_views import LabeledImage, load_case
from benchmarks.methods import Deformer, deformer, is_elastic
from benchmarks.networks import TwoSampleClassifier
from DRDMLib.io.datasets import find_cases

# Subjects whose fields are measured to choose the level of a model.
CALIBRATION = 6
LEVELS = (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 79)
WINDOW = (48, 56, 48)
EQUALS = ("structures", "image", "beyond-affine")
LEARNING_RATE = 1e-3
BATCH = 12

# Image and label (*S).
Arrays = tuple[np.ndarray, np.ndarray]


def displacement(field: np.ndarray, pair: LabeledImage, equal: str) -> float:
    """Return the displacement that is to be equal, one of ``EQUALS``, mm."""
    if equal == "image":
        return mean_length(field)
    inside = structures(pair.label)
    return mean_length(beyond_affine(field, inside)) if equal == "beyond-affine" else mean_length(field, inside)


def shape(mask: np.ndarray) -> list[float]:
    """Return the logarithms of a structure's volume, compactness and three principal extents."""
    points = np.argwhere(mask)
    volume = max(len(points), 1)
    faces = sum(np.abs(np.diff(np.pad(mask, 1).astype(np.int8), axis=a)).sum() for a in range(3))
    spread = np.cov(points.T) if len(points) > 3 else np.eye(3) * 1e-3
    extents = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 1e-6))
    return [np.log(volume), np.log(max(faces, 1) / volume ** (2 / 3)), *np.log(extents)]


def descriptors(label: np.ndarray) -> list[float]:
    """Return the shapes of the whole and of the structures 1 and 2, and the distance between these two."""
    parts = [label > 0, label == 1, label == 2]
    centers = [np.argwhere(p).mean(axis=0) if p.any() else np.zeros(3) for p in parts[1:]]
    return [value for p in parts for value in shape(p)] + [float(np.linalg.norm(centers[0] - centers[1]))]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance between two Gaussians fitted to (N, k) descriptors."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    # The trace of the root of a product of two covariances from its eigenvalues, which are real and not negative.
    root = np.sqrt(np.clip(np.linalg.eigvals(ca @ cb).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root)


def window(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the normalized image and the two structures, cropped or padded about the middle: (3, *WINDOW)."""
    image = (image - image.mean()) / (image.std() + 1e-6)
    stacked = np.stack([image, label == 1, label == 2]).astype(np.float32)
    for axis, side in enumerate(WINDOW, start=1):
        missing = max(0, side - stacked.shape[axis])
        pad = [(0, 0)] * 4
        pad[axis] = (missing // 2, missing - missing // 2)
        stacked = np.pad(stacked, pad, mode="constant")
        start = (stacked.shape[axis] - side) // 2
        stacked = np.take(stacked, range(start, start + side), axis=axis)
    return stacked


def two_sample(real: list[np.ndarray], deformed: list[np.ndarray], seed: int, iterations: int) -> float:
    """Train a classifier on two thirds of the subjects and return its accuracy on the last third.

    Args:
        real, deformed: versions of each subject, (versions, 3, *WINDOW); the two lists are of different subjects.
        seed: of the split and the training.
        iterations: of the training.
    """
    torch.manual_seed(seed)
    order = torch.randperm(len(real)).tolist()
    cut = 2 * len(order) // 3
    x = torch.tensor(np.concatenate([*(real[i] for i in order), *(deformed[i] for i in order)]))
    versions = len(real[0])
    cut, count = cut * versions, len(order) * versions
    y = torch.cat([torch.zeros(count), torch.ones(count)])
    train = torch.tensor([*range(cut), *range(count, count + cut)])
    test = torch.tensor([*range(cut, count), *range(count + cut, 2 * count)])
    network = TwoSampleClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / iterations)
        chosen = train[torch.randint(len(train), (BATCH,))]
        # Shifts of a few voxels: the position of the subject in its crop must not count.
        batch = torch.roll(x[chosen], torch.randint(-2, 3, (3,)).tolist(), dims=(2, 3, 4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = network(batch)[:, 0].float()
        loss = nn.functional.binary_cross_entropy_with_logits(answer, y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part)[:, 0] for part in x[test].split(16)])
        return float(((answers > 0).float() == y[test]).float().mean())


def calibrate(name: str, field: Deformer, subjects: list[LabeledImage], target: float, equal: str) -> int:
    """Return the level whose displacement comes nearest to the target; 0 for a method without levels."""
    if is_elastic(name):
        return 0

    def mean(level: int) -> float:
        some = enumerate(subjects[:CALIBRATION])
        return float(np.mean([displacement(field(pair.image, seed, level), pair, equal) for seed, pair in some]))

    low, high = 0, len(LEVELS) - 1
    known: dict[int, float] = {}
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = mean(LEVELS[middle])
        low, high = (middle, high) if known[middle] < target else (low, middle)
    for k in (low, high):
        known.setdefault(k, mean(LEVELS[k]))
    return LEVELS[min((low, high), key=lambda k: abs(np.log(known[k] / target)))]


class Comparison:
    """Compare versions of the subjects A with the real subjects B.

    Args:
        a, b: equally many subjects.
        versions: of each subject, for the two-sample test.
        seeds: networks of the two-sample test; 0 leaves it out.
        iterations: of their training.
    """

    def __init__(
        self, a: list[LabeledImage], b: list[LabeledImage], versions: int, seeds: int, iterations: int
    ) -> None:
        self.a, self.versions, self.seeds, self.iterations = a, versions, seeds, iterations
        rng = np.random.default_rng(0)
        self.real_a, real_b = ([deform_pair(pair, rng, None) for pair in half] for half in (a, b))
        self.shapes = np.array([descriptors(label) for _, label in real_b])
        self.rng = np.random.default_rng(2)
        self.windows = self.windows_of(b, self.rng, lambda number: [None] * len(b))

    def windows_of(
        self,
        subjects: list[LabeledImage],
        rng: np.random.Generator,
        fields: Callable[[int], Sequence[np.ndarray | None]],
    ) -> list[np.ndarray]:
        """Return versions of each subject for the two-sample test.

        Args:
            subjects: to deform.
            rng: of the rigid motions.
            fields: from the number of a version to the fields of all subjects.
        """
        if not self.seeds:
            return []
        rounds = [
            [window(*deform_pair(pair, rng, field)) for pair, field in zip(subjects, fields(number), strict=True)]
            for number in range(self.versions)
        ]
        return [np.stack(versions) for versions in zip(*rounds, strict=True)]

    def judge(self, versions: list[Arrays], windows: list[np.ndarray]) -> dict[str, float]:
        """Return the Frechet distance and the accuracy of the two-sample test."""
        shapes = np.array([descriptors(label) for _, label in versions])
        middle, spread = self.shapes.mean(0), self.shapes.std(0)
        found = {"frechet": frechet((shapes - middle) / spread, (self.shapes - middle) / spread)}
        if self.seeds:
            right = [two_sample(self.windows, windows, seed, self.iterations) for seed in range(self.seeds)]
            found |= {"accuracy": float(np.mean(right)), "accuracy_spread": float(np.std(right))}
        return found

    def judge_real(self) -> dict[str, float]:
        """Compare the real subjects A."""
        return self.judge(self.real_a, self.windows_of(self.a, self.rng, lambda number: [None] * len(self.a)))

    def judge_method(self, name: str, target: float, equal: str) -> dict[str, object]:
        """Compare the subjects A deformed by a method, its fields scaled to the mean displacement ``target``, mm."""
        method = deformer(name)
        level = calibrate(name, method, self.a, target, equal)

        def draw(number: int) -> list[np.ndarray]:
            return [method(pair.image, 1000 * (number + 1) + k, level) for k, pair in enumerate(self.a)]

        fields = draw(0)
        factor = target / float(np.mean([displacement(f, p, equal) for f, p in zip(fields, self.a, strict=True)]))
        fields = [f * factor for f in fields]
        rng = np.random.default_rng(1)
        versions = [deform_pair(pair, rng, f) for pair, f in zip(self.a, fields, strict=True)]
        row: dict[str, object] = {"method": name, "level": level, "factor": round(factor, 3)}
        for kind in EQUALS:
            sizes = [displacement(f, pair, kind) for f, pair in zip(fields, self.a, strict=True)]
            row[f"{kind.replace('-', '_')}_mm"] = float(np.mean(sizes))
        windows = self.windows_of(self.a, rng, lambda number: [f * factor for f in draw(number)])
        return row | self.judge(versions, windows)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--subjects", type=int, default=0, help="only this many of each half")
    parser.add_argument("--displacement", type=float, default=1.5, help="of every method, mm")
    parser.add_argument("--equal", choices=EQUALS, default="structures", help="which displacement is equal")
    parser.add_argument("--seeds", type=int, default=3, help="networks of the two-sample test; 0 leaves it out")
    parser.add_argument("--iterations", type=int, default=200, help="of the two-sample test's network")
    parser.add_argument("--versions", type=int, default=1, help="of each subject, for the two-sample test")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Compare the real subjects and every method; print and write the figures."""
    options = parse_arguments()
    torch.set_num_threads(1)
    cases = [case for case in find_cases(options.dataset) if case.label]
    halves = [[load_case(case) for case in half[: options.subjects or None]] for half in (cases[::2], cases[1::2])]
    count = min(map(len, halves))
    a, b = (half[:count] for half in halves)
    comparison = Comparison(a, b, options.versions, options.seeds, options.iterations)
    rows: list[dict[str, object]] = [{"method": "real", **comparison.judge_real()}]
    print(rows[-1], flush=True)
    for name in options.methods:
        rows.append(comparison.judge_method(name, options.displacement, options.equal))
        print(rows[-1], flush=True)
        if options.json:
            facts = {
                "equal": options.equal,
                "displacement": options.displacement,
                "subjects": count,
                "iterations": options.iterations,
                "versions": options.versions,
                "seeds": options.seeds,
                "rows": rows,
            }
            options.json.write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
