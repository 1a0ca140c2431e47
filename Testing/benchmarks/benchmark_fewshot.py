"""Few-shot segmentation in 3D: how much do deformed copies of few labelled subjects help a small U-Net?

``python Testing/benchmarks/benchmark_fewshot.py DATASET --methods none torchio MODEL all [--shots 5 20] [--seeds 3]``

Test subjects are those that ``drdm train`` leaves out (every K-th), which no model has seen. ``all`` trains on every
other subject, undeformed: the ceiling. Every arm gets the same number of iterations, the deformed arms as many
copies. Nothing is tuned on the test subjects. All arms turn and shift the images a little.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from benchmark_realism import Pair, resample
from deformers import deformer
from torch import Tensor, nn

from DRDMLib.datasets import find_cases
from DRDMLib.images import read_image, read_label
from DRDMLib.training.data import split

LEVELS = (16, 32, 48)
WINDOW = (40, 52, 40)


class UNet(nn.Module):
    """A vanilla U-Net with three scales."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(a, b, 3, padding=1),
                nn.InstanceNorm3d(b, affine=True),
                nn.LeakyReLU(0.01),
                nn.Conv3d(b, b, 3, padding=1),
                nn.InstanceNorm3d(b, affine=True),
                nn.LeakyReLU(0.01),
            )

        self.a, self.b, self.c = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.d, self.e = block(6 * width, 2 * width), block(3 * width, width)
        self.out = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, *S) -> scores (N, classes, *S)."""
        a = self.a(x)
        b = self.b(F.max_pool3d(a, 2))
        c = self.c(F.max_pool3d(b, 2))
        d = self.d(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        return self.out(self.e(torch.cat([a, F.interpolate(d, scale_factor=2)], 1)))


def example(image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image in units of its spread and label, in a window about the middle."""
    arrays = [((image - image.mean()) / (image.std() + 1e-6)).astype(np.float32), label.astype(np.int64)]
    for axis, side in enumerate(WINDOW):
        lack = max(0, side - arrays[0].shape[axis])
        pad = [(0, 0)] * 3
        pad[axis] = (lack // 2, lack - lack // 2)
        start = max(0, (arrays[0].shape[axis] - side) // 2)
        arrays = [np.take(np.pad(a, pad), range(start, start + side), axis=axis) for a in arrays]
    return torch.from_numpy(arrays[0])[None], torch.from_numpy(arrays[1])


def overlap_loss(scores: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy and soft Dice."""
    share = scores.softmax(1)
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1).float()
    dims = (0, 2, 3, 4)
    dice = (2 * (share * truth).sum(dims) + 1) / (share.sum(dims) + truth.sum(dims) + 1)
    return F.cross_entropy(scores, label) + 1 - dice[1:].mean()


def fit(train: list[tuple[Tensor, Tensor]], classes: int, seed: int, iterations: int) -> UNet:
    """A network trained on what is given."""
    torch.manual_seed(seed)
    network = UNet(classes)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / iterations) ** 0.9
        chosen = torch.randint(len(train), (2,)).tolist()
        image = torch.stack([train[i][0] for i in chosen])
        label = torch.stack([train[i][1] for i in chosen])
        shifts = torch.randint(-3, 4, (3,)).tolist()
        image, label = torch.roll(image, shifts, (2, 3, 4)), torch.roll(label, shifts, (1, 2, 3))
        image = image * (1 + 0.1 * torch.randn(2, 1, 1, 1, 1)) + 0.1 * torch.randn(2, 1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = network(image)
        loss = overlap_loss(scores.float(), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@torch.no_grad()
def mean_dice(network: UNet, test: list[tuple[Tensor, Tensor]], classes: int) -> float:
    """Over subjects and structures."""
    found = []
    for image, label in test:
        answer = network(image[None]).argmax(1)[0]
        for c in range(1, classes):
            both = float(((answer == c) & (label == c)).sum())
            found.append(2 * both / max(1.0, float((answer == c).sum() + (label == c).sum())))
    return float(np.mean(found))


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--shots", type=int, nargs="+", default=[5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=18, help="deformed copies of each subject")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def load(case: object) -> Pair:
        image = read_image(case.image)  # type: ignore[attr-defined]
        return sitk.Cast(image, sitk.sitkFloat32), read_label(case.label, image)  # type: ignore[attr-defined]

    kept, left_out = split([case for case in find_cases(options.dataset) if case.label], options.hold_out)
    pool = [load(case) for case in kept]
    test = [example(*(sitk.GetArrayFromImage(x) for x in load(case))) for case in left_out]
    classes = 1 + max(int(label.max()) for _, label in test)
    makers = {name: deformer(name) for name in options.methods if name not in ("none", "all")}
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        for shots in options.shots:
            few = np.random.default_rng(seed).permutation(len(pool))[:shots]
            for name in options.methods:
                if name == "all" and shots != options.shots[0]:
                    continue
                rng = np.random.default_rng(seed)
                subjects = pool if name == "all" else [pool[i] for i in few]
                train = [
                    example(*resample(pair, rng, None)) for pair in subjects for _ in range(1 if name == "all" else 6)
                ]
                if name in makers:
                    for k, pair in enumerate(subjects):
                        for copy in range(options.copies):
                            field = makers[name](pair[0], 1000 * k + copy, LEVELS[copy % len(LEVELS)])
                            train.append(example(*resample(pair, rng, field)))
                dice = mean_dice(fit(train, classes, seed, options.iterations), test, classes)
                rows.append({"method": name, "shots": 0 if name == "all" else shots, "seed": seed, "dice": dice})
                print(rows[-1], flush=True)
                if options.json:
                    facts = {"test": len(test), "iterations": options.iterations, "copies": options.copies}
                    options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
