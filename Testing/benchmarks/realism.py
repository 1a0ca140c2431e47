"""Do deformed subjects look like subjects? Two tests on labelled images, all methods at equal displacement.

``python Testing/benchmarks/benchmark_realism.py DATASET --methods torchio monai MODEL MODEL:random [--json OUT.json]``

Subjects are parted in two halves, A and B. *Frechet distance*: between the shape descriptors of deformed A and real B
(volumes, compactness, principal extents of each structure and of the whole, distance between the first two), in units
of the spread over real subjects. *Two-sample test*: a small network is trained to tell images and labels of deformed A
from real B, and is tested on other subjects of both; 50 % is chance. Real and deformed are both resampled once, with a
random small rigid motion.

Equal is the mean displacement of the labelled structures, or with ``--equal image`` that of the whole image, which
favours a method that moves the border as much as the middle, or with ``--equal beyond-affine`` what is left in the
structures when the best affine map is taken out: turning, shifting and scaling a subject leaves it a subject, so a
method that does more of that has an advantage otherwise. All are printed. ``affine`` is a method too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from deformers import Deformer, as_transform, deformer, is_elastic
from torch import nn

from DRDMLib.datasets import find_cases
from DRDMLib.images import read_image, read_label

Pair = tuple[sitk.Image, sitk.Image]
CALIBRATION = 6
LEVELS = (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 79)
WINDOW = (48, 56, 48)
EQUALS = ("structures", "image", "beyond-affine")


def length(field: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Mean displacement, of the voxels ``inside`` if given, mm."""
    return float(np.linalg.norm(field if inside is None else field[inside], axis=-1).mean())


def structures(label: sitk.Image) -> np.ndarray:
    """Voxels of any structure; of a slice without one, all."""
    inside = sitk.GetArrayViewFromImage(label) > 0
    return inside if inside.any() else ~inside


def beyond_affine(field: np.ndarray, inside: np.ndarray) -> float:
    """Mean displacement of the voxels ``inside`` that no affine map explains, mm."""
    places = np.argwhere(inside).astype(float)
    vectors = field[inside]
    design = np.c_[np.ones(len(places)), places - places.mean(0)]
    explained = design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
    return float(np.linalg.norm(vectors - explained, axis=-1).mean())


def rigid(image: sitk.Image, rng: np.random.Generator) -> sitk.Transform:
    """Turns by up to 4 degrees, shifts by up to half a voxel."""
    ndim = image.GetDimension()
    angles = np.radians(rng.uniform(-4, 4, 3 if ndim == 3 else 1)).tolist()
    transform = sitk.Euler3DTransform() if ndim == 3 else sitk.Euler2DTransform()
    middle = [(n - 1) / 2 for n in image.GetSize()]
    transform.SetCenter(image.TransformContinuousIndexToPhysicalPoint(middle))
    if ndim == 3:
        transform.SetRotation(*angles)
    else:
        transform.SetAngle(*angles)
    transform.SetTranslation((rng.uniform(-0.5, 0.5, ndim) * image.GetSpacing()).tolist())
    return transform


def resample(pair: Pair, rng: np.random.Generator, field: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Image and label after the field, if there is one, and a small rigid motion, in one resampling."""
    image, label = pair
    motion = rigid(image, rng)
    if field is not None:
        motion = sitk.CompositeTransform([as_transform(field, image), motion])
    made = []
    for what, how in ((image, sitk.sitkLinear), (label, sitk.sitkNearestNeighbor)):
        filter_ = sitk.ResampleImageFilter()
        filter_.SetReferenceImage(image)
        filter_.SetTransform(motion)
        filter_.SetInterpolator(how)
        filter_.SetUseNearestNeighborExtrapolator(True)
        made.append(sitk.GetArrayFromImage(filter_.Execute(what)))
    return made[0], made[1]


def shape(mask: np.ndarray) -> list[float]:
    """Volume, compactness and principal extents of one structure."""
    points = np.argwhere(mask)
    volume = max(len(points), 1)
    faces = sum(np.abs(np.diff(np.pad(mask, 1).astype(np.int8), axis=a)).sum() for a in range(3))
    spread = np.cov(points.T) if len(points) > 3 else np.eye(3) * 1e-3
    extents = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 1e-6))
    return [np.log(volume), np.log(max(faces, 1) / volume ** (2 / 3)), *np.log(extents)]


def descriptors(label: np.ndarray) -> list[float]:
    """Of the whole and of structures 1 and 2, and how far those are apart."""
    parts = [label > 0, label == 1, label == 2]
    centres = [np.argwhere(p).mean(axis=0) if p.any() else np.zeros(3) for p in parts[1:]]
    return [value for p in parts for value in shape(p)] + [float(np.linalg.norm(centres[0] - centres[1]))]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between two Gaussians fitted to (N, k) descriptors."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    # The trace of the root of a product of two covariances from its eigenvalues, which are real and not negative.
    root = np.sqrt(np.clip(np.linalg.eigvals(ca @ cb).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root)


class Judge(nn.Sequential):
    """A small convolutional network with one output: deformed or not."""

    def __init__(self, width: int = 16) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for k in range(4):
            out = width * min(4, 2**k)
            layers += [nn.Conv3d(channels, out, 4, stride=2, padding=1), nn.BatchNorm3d(out), nn.ReLU()]
            channels = out
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(1))


def window(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(3, *WINDOW): the image in units of its spread, and the two structures, cropped or padded about the middle."""
    image = (image - image.mean()) / (image.std() + 1e-6)
    stacked = np.stack([image, label == 1, label == 2]).astype(np.float32)
    for axis, side in enumerate(WINDOW):
        lack = max(0, side - stacked.shape[axis + 1])
        pad = [(0, 0)] * 4
        pad[axis + 1] = (lack // 2, lack - lack // 2)
        stacked = np.pad(stacked, pad, mode="constant")
        start = (stacked.shape[axis + 1] - side) // 2
        stacked = np.take(stacked, range(start, start + side), axis=axis + 1)
    return stacked


def two_sample(real: list[np.ndarray], made: list[np.ndarray], seed: int, iterations: int) -> float:
    """Accuracy on the last third of the subjects of either.

    Args:
        real, made: (versions, 3, *WINDOW) of each subject; those of ``real[i]`` and ``made[i]`` are different ones.
    """
    torch.manual_seed(seed)
    order = torch.randperm(len(real)).tolist()
    cut = 2 * len(order) // 3
    x = torch.tensor(np.concatenate([*(real[i] for i in order), *(made[i] for i in order)]))
    each = len(real[0])
    cut, count = cut * each, len(order) * each
    y = torch.cat([torch.zeros(count), torch.ones(count)])
    train = torch.tensor([*range(cut), *range(count, count + cut)])
    test = torch.tensor([*range(cut, count), *range(count + cut, 2 * count)])
    network = Judge()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    for step in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - step / iterations)
        chosen = train[torch.randint(len(train), (12,))]
        batch = x[chosen]
        # Shifts of a few voxels: where the subject lies in its crop is not what is asked.
        batch = torch.roll(batch, torch.randint(-2, 3, (3,)).tolist(), dims=(2, 3, 4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = network(batch)[:, 0].float()
        loss = nn.functional.binary_cross_entropy_with_logits(answer, y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part)[:, 0] for part in x[test].split(16)])
        return float(((answers > 0).float() == y[test]).float().mean())


def measure(field: np.ndarray, pair: Pair, equal: str) -> float:
    """What is to be equal among methods, mm."""
    if equal == "image":
        return length(field)
    return (length if equal == "structures" else beyond_affine)(field, structures(pair[1]))


def calibrate(name: str, field: Deformer, subjects: list[Pair], target: float, equal: str) -> int:
    """Level whose displacement comes nearest to the target."""
    if is_elastic(name):
        return 0

    def mean(level: int) -> float:
        some = enumerate(subjects[:CALIBRATION])
        return float(np.mean([measure(field(pair[0], seed, level), pair, equal) for seed, pair in some]))

    low, high = 0, len(LEVELS) - 1
    seen: dict[int, float] = {}
    while high - low > 1:
        middle = (low + high) // 2
        seen[middle] = mean(LEVELS[middle])
        low, high = (middle, high) if seen[middle] < target else (low, middle)
    for k in (low, high):
        seen.setdefault(k, mean(LEVELS[k]))
    return LEVELS[min((low, high), key=lambda k: abs(np.log(seen[k] / target)))]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--subjects", type=int, default=0, help="only so many of each half")
    parser.add_argument("--displacement", type=float, default=1.5, help="of every method, mm")
    parser.add_argument("--equal", choices=EQUALS, default="structures", help="which displacement is equal")
    parser.add_argument("--seeds", type=int, default=3, help="networks of the two-sample test; 0 leaves it out")
    parser.add_argument("--iterations", type=int, default=200, help="of the two-sample test's network")
    parser.add_argument("--versions", type=int, default=1, help="of each subject, for the two-sample test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    cases = [case for case in find_cases(options.dataset) if case.label]
    halves: list[list[Pair]] = []
    for half in (cases[::2], cases[1::2]):
        pairs = []
        for case in half[: options.subjects or None]:
            image = read_image(case.image)
            assert case.label is not None
            pairs.append((sitk.Cast(image, sitk.sitkFloat32), read_label(case.label, image)))
        halves.append(pairs)
    count = min(len(h) for h in halves)
    a, b = (h[:count] for h in halves)
    rng = np.random.default_rng(0)
    real_a, real_b = ([resample(p, rng, None) for p in half] for half in (a, b))
    shapes_b = np.array([descriptors(label) for _, label in real_b])
    middle, spread = shapes_b.mean(0), shapes_b.std(0)

    def shown(half: list[Pair], fields: Callable[[int], list[np.ndarray] | list[None]]) -> list[np.ndarray]:
        """Versions of each subject for the two-sample test, from the fields of each round."""
        if not options.seeds:
            return []
        rounds = [
            [window(*resample(pair, rng, field)) for pair, field in zip(half, fields(number), strict=True)]
            for number in range(options.versions)
        ]
        return [np.stack(versions) for versions in zip(*rounds, strict=True)]

    rng = np.random.default_rng(2)
    still: list[None] = [None] * count
    windows_b = shown(b, lambda _: still)

    def judged(made: list[tuple[np.ndarray, np.ndarray]], windows: list[np.ndarray]) -> dict[str, float]:
        shapes = np.array([descriptors(label) for _, label in made])
        found = {"frechet": frechet((shapes - middle) / spread, (shapes_b - middle) / spread)}
        if options.seeds:
            right = [two_sample(windows_b, windows, seed, options.iterations) for seed in range(options.seeds)]
            found |= {"accuracy": float(np.mean(right)), "accuracy_spread": float(np.std(right))}
        return found

    rows: list[dict[str, object]] = [{"method": "real", **judged(real_a, shown(a, lambda _: still))}]
    print(rows[-1], flush=True)
    for name in options.methods:
        field = deformer(name)
        level = calibrate(name, field, a, options.displacement, options.equal)

        def drawn(number: int, field: Deformer = field, level: int = level) -> list[np.ndarray]:
            return [field(image, 1000 * (number + 1) + k, level) for k, (image, _) in enumerate(a)]

        fields = drawn(0)
        sizes = [measure(f, pair, options.equal) for f, pair in zip(fields, a, strict=True)]
        factor = options.displacement / float(np.mean(sizes))
        fields = [f * factor for f in fields]
        rng = np.random.default_rng(1)
        made = [resample(pair, rng, f) for pair, f in zip(a, fields, strict=True)]
        row: dict[str, object] = {"method": name, "level": level, "factor": round(factor, 3)}
        for equal in EQUALS:
            row[f"{equal.replace('-', '_')}_mm"] = float(
                np.mean([measure(f, pair, equal) for f, pair in zip(fields, a, strict=True)])
            )
        windows = shown(a, lambda number, drawn=drawn, factor=factor: [f * factor for f in drawn(number)])  # type: ignore[misc]
        rows.append(row | judged(made, windows))
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
