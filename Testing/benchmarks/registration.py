"""Registration learnt from synthetic pairs only: whose pairs teach a network to register real images best?

``python Testing/benchmarks/benchmark_registration.py DATASET --methods torchio MODEL [--seeds 3] [--json OUT.json]``

Pairs are made as in Algorithm 4 of the paper: a moving image from a subject, a fixed one from the moving, and the exact
field between them. All methods have the same subjects, number of pairs, network and iterations, and their fields move
the labelled structures as far on average. Tested on subjects that neither a model nor a network has seen, by the
overlap of their labels: in 3D between subjects (volumes as they are, centres of the crops together; of heads the deep
structures, their centres together), in 2D between the two phases of each heart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from benchmark_realism import CALIBRATION, LEVELS, length, structures
from deformers import Deformer, as_transform, deformer, is_elastic
from slices import Pair, View, by_person, load_pairs, seen, view_of
from torch import Tensor, nn

from DRDMLib.datasets import find_cases
from DRDMLib.fields import resize_field, self_compose, warp
from DRDMLib.metrics import folded_fraction

WINDOWS = {3: (40, 56, 40), 2: (96, 96)}
# Mean displacement of a pair's second field, as shares of the one asked for; the first field has the middle one.
STRENGTHS = (0.5, 1.0, 1.5)
PEAK_RATE = 3e-3
_SQUARINGS = 4

Example = tuple[Tensor, Tensor, Tensor]


class Registration(nn.Module):
    """As VoxelMorph: a U-Net on both images whose velocity, at half resolution, is exponentiated.

    With instance normalisation, without which a few hundred iterations teach it nothing.
    """

    def __init__(self, ndim: int, width: int = 12) -> None:
        super().__init__()
        conv = nn.Conv3d if ndim == 3 else nn.Conv2d

        norm = nn.InstanceNorm3d if ndim == 3 else nn.InstanceNorm2d

        def layer(a: int, b: int, stride: int) -> list[nn.Module]:
            return [conv(a, b, 3, stride, 1), norm(b, affine=True), nn.LeakyReLU(0.2)]

        def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(*layer(a, b, stride), *layer(b, b, 1))

        self.a, self.b = block(2, width, 2), block(width, 2 * width, 2)
        self.c = block(2 * width, 2 * width, 2)
        self.d, self.e = block(4 * width, 2 * width), block(3 * width, width)
        self.out = conv(width, ndim, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(N, 1, *S) twice -> (N, d, *S), fraction of the window: ``fixed(x) = moving(x + u(x))``."""
        a = self.a(torch.cat([moving, fixed], 1))
        b = self.b(a)
        c = self.d(torch.cat([b, _twice(self.c(b))], 1))
        velocity = self.out(self.e(torch.cat([a, _twice(c)], 1))).float() * 0.1
        return resize_field(self_compose(velocity / 2**_SQUARINGS, 2**_SQUARINGS), tuple(moving.shape[2:]))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def picture(image: sitk.Image, view: View) -> Tensor:
    """(1, *window), about 0 to 1."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = np.percentile(array, (1, 99))
    scaled = torch.from_numpy((array - low) / max(float(high - low), 1e-6)).float()
    return seen(scaled[None], view)


def in_window(field: np.ndarray, image: sitk.Image, view: View) -> Tensor:
    """A field in millimetres on the image's grid -> (d, *window), fraction of the window."""
    ndim = image.GetDimension()
    direction = np.asarray(image.GetDirection()).reshape(ndim, ndim)
    voxels = (field @ direction) / np.asarray(image.GetSpacing())
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels[..., ::-1], -1, 0))).float()
    return seen(tensor, view) / torch.tensor(view.window).view(-1, *[1] * ndim)


def moved(image: sitk.Image, field: np.ndarray) -> sitk.Image:
    """``image`` where ``field`` points to, on its own grid; its border is continued."""
    filter_ = sitk.ResampleImageFilter()
    filter_.SetReferenceImage(image)
    filter_.SetTransform(as_transform(field, image))
    filter_.SetUseNearestNeighborExtrapolator(True)
    return filter_.Execute(image)


class Maker:
    """Fields of one method with a mean displacement of the structures that is asked for."""

    def __init__(self, name: str, subjects: list[Pair], target: float) -> None:
        self.field: Deformer = deformer(name)
        self.elastic = is_elastic(name)
        levels = (0,) if self.elastic else LEVELS[::3]
        some = [(k, image, structures(label)) for k, (image, label) in enumerate(subjects[:CALIBRATION])]
        sizes = [np.mean([length(self.field(im, 77 + k, v), where) for k, im, where in some]) for v in levels]
        self.choices: list[tuple[int, float]] = []
        for share in STRENGTHS:
            best = int(np.argmin([abs(np.log(size / (share * target))) for size in sizes]))
            self.choices.append((levels[best], share * target / float(sizes[best])))

    def __call__(self, image: sitk.Image, seed: int, strength: int) -> np.ndarray:
        """A field, mm; ``strength`` counts ``STRENGTHS``."""
        level, factor = self.choices[strength]
        return self.field(image, seed, level) * factor


def make_pairs(maker: Maker, subjects: list[Pair], count: int, seed: int) -> list[Example]:
    """Algorithm 4: ``count`` times moving, fixed, and the field between them, subject after subject."""
    made = []
    for k in range(count):
        image, label = subjects[k % len(subjects)]
        view = view_of(label, WINDOWS)
        moving = moved(image, maker(image, 10_000 * seed + 2 * k, 1))
        field = maker(moving, 10_000 * seed + 2 * k + 1, k % len(STRENGTHS))
        made.append((picture(moving, view), picture(moved(moving, field), view), in_window(field, image, view)))
    return made


def fit(pairs: list[Example], seed: int, iterations: int, batch: int = 4) -> Registration:
    """A network trained to find the exact fields, and to make the images alike."""
    torch.manual_seed(seed)
    ndim = pairs[0][2].shape[0]
    network = Registration(ndim)
    optimiser = torch.optim.Adam(network.parameters(), lr=PEAK_RATE)
    axes = list(range(2, ndim + 2))
    sides = torch.tensor(pairs[0][2].shape[1:]).view(-1, *[1] * ndim)
    far = torch.stack([(u * sides).square().mean() for _, _, u in pairs]).mean()
    unlike = torch.stack([(a - b).square().mean() for a, b, _ in pairs]).mean()
    for step in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20) * (1 - step / iterations) ** 0.9
        chosen = torch.randint(len(pairs), (batch,)).tolist()
        shifts = torch.randint(-3, 4, (ndim,)).tolist()
        moving, fixed, truth = (torch.roll(torch.stack([pairs[i][k] for i in chosen]), shifts, axes) for k in range(3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(*(_another_scan(x) for x in (moving, fixed)))
        error = ((found - truth) * sides).square().mean() / far
        loss = error + (warp(moving, found) - fixed).square().mean() / unlike
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def _another_scan(x: Tensor) -> Tensor:
    """Other grey values and noise: two scans of two people never have quite the same."""
    ones = (len(x), *[1] * (x.ndim - 1))
    return x * (1 + 0.15 * torch.randn(ones)) + 0.1 * torch.randn(ones) + 0.03 * torch.randn_like(x)


def dice(a: Tensor, b: Tensor, classes: int) -> list[float]:
    """Of each structure."""
    both = [float(((a == c) & (b == c)).sum()) for c in range(1, classes)]
    sizes = [float((a == c).sum() + (b == c).sum()) for c in range(1, classes)]
    return [2 * x / y for x, y in zip(both, sizes, strict=True) if y > 0]


@torch.no_grad()
def judge(network: Registration | None, tests: list[tuple[Pair, Pair]], classes: int) -> dict[str, float]:
    """Mean overlap, worst tenth and folds; without a network, of the images as they lie."""
    found, folds = [], []
    for moving, fixed in tests:
        views = [view_of(p[1], WINDOWS) for p in (moving, fixed)]
        labels = [
            seen(torch.from_numpy(sitk.GetArrayFromImage(p[1]).astype(np.int16))[None], view)
            for p, view in zip((moving, fixed), views, strict=True)
        ]
        result = labels[0]
        if network is not None:
            u = network(*(picture(p[0], view)[None] for p, view in zip((moving, fixed), views, strict=True)))
            result = warp(labels[0][None].float(), u, mode="nearest")[0].round().to(torch.int16)
            folds.append(float(folded_fraction(u).mean()))
        found.append(float(np.mean(dice(result, labels[1], classes))))
    worst = np.sort(found)[: max(1, len(found) // 10)]
    return {
        "dice": float(np.mean(found)),
        "worst_tenth": float(worst.mean()),
        "folded": float(np.mean(folds)) if folds else 0.0,
    }


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--subjects", type=int, default=20, help="whose images pairs are made of")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--tests", type=int, default=46, help="pairs of real images")
    parser.add_argument("--displacement", type=float, default=1.5, help="mean displacement of the structures, mm")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--choose", type=int, metavar="N", help="test on N subjects of the pool: to choose settings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    people = by_person([case for case in find_cases(options.dataset) if case.label])
    loaded = [[load_pairs(case) for case in person] for person in people]
    pool = [person for i, person in enumerate(loaded) if i % options.hold_out]
    left_out = loaded[:: options.hold_out]
    if options.choose:
        pool, left_out = pool[: -options.choose], pool[-options.choose :]
    if len(people[0]) == 2:
        tests = [pair for diastole, systole in left_out for pair in zip(diastole, systole, strict=True)]
    else:
        alone, count = [person[0][0] for person in left_out], len(left_out)
        tests = [(alone[i], alone[(i + d) % count]) for d in (1, 5, 9, 13) for i in range(count)]
    tests = tests[: options.tests]
    classes = 1 + max(int(sitk.GetArrayViewFromImage(p[1]).max()) for pair in tests for p in pair)
    rows: list[dict[str, object]] = [{"method": "unregistered", **judge(None, tests, classes)}]
    print(rows[0], flush=True)
    makers: dict[str, Maker] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        chosen = np.random.default_rng(seed).permutation(len(pool))[: options.subjects]
        few = [pair for i in chosen for case in pool[i] for pair in case]
        order = np.random.default_rng(seed).permutation(len(few))
        few = [few[i] for i in order]
        for name in options.methods:
            if name not in makers:
                makers[name] = Maker(name, few, options.displacement)
            pairs = make_pairs(makers[name], few, options.pairs, seed)
            network = fit(pairs, seed, options.iterations)
            rows.append({"method": name, "seed": seed, **judge(network, tests, classes)})
            print(rows[-1], flush=True)
            if options.json:
                facts = {k: v for k, v in vars(options).items() if k not in ("json", "dataset", "methods")}
                options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
