"""Train a small 3D U-Net on an nnU-Net dataset, with and without its deformed versions, and test both on "strangers".

``python docs/examples/train_segmentation.py DATASET`` reads the output of ``drdm augment``. The strangers are the
originals, bent, rotated and given other gray values by SimpleITK, not by DRDM: shapes that neither network has seen.
The example is small, so that it takes two minutes on a laptop without a GPU; docs/results.md has the figures on real
patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROP = 32


class TinyUNet(nn.Module):
    """A U-Net with three resolutions, 8 to 32 channels and about 100,000 weights."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()

        def block(cin: int, cout: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(cin, cout, 3, padding=1),
                nn.InstanceNorm3d(cout, affine=True),
                nn.LeakyReLU(0.1),
                nn.Conv3d(cout, cout, 3, padding=1),
                nn.InstanceNorm3d(cout, affine=True),
                nn.LeakyReLU(0.1),
            )

        w = width
        self.down = nn.ModuleList([block(1, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.up = nn.ModuleList([block(4 * w + 2 * w, 2 * w), block(2 * w + w, w)])
        self.last = nn.Conv3d(w, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, *S), sides a multiple of 4, to scores (N, classes, *S)."""
        fine = self.down[0](x)
        middle = self.down[1](F.max_pool3d(fine, 2))
        x = self.down[2](F.max_pool3d(middle, 2))
        x = self.up[0](torch.cat([F.interpolate(x, scale_factor=2.0), middle], 1))
        x = self.up[1](torch.cat([F.interpolate(x, scale_factor=2.0), fine], 1))
        return self.last(x)


def tensors(image: sitk.Image, label: sitk.Image) -> tuple[Tensor, Tensor]:
    """Return the image (1, Z, Y, X) with mean 0 and deviation 1, and its classes (Z, Y, X), padded to a crop's size."""
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    values = (values - values.mean()) / (values.std() + 1e-6)
    classes = sitk.GetArrayFromImage(label).astype(np.int64)
    missing = [(0, max(0, CROP - side)) for side in values.shape]
    return torch.from_numpy(np.pad(values, missing, mode="edge"))[None], torch.from_numpy(np.pad(classes, missing))


def read(dataset: Path) -> dict[str, tuple[sitk.Image, sitk.Image]]:
    """Return the image and the label of each case."""
    cases = {}
    for path in sorted((dataset / "labelsTr").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        image = sitk.ReadImage(str(dataset / "imagesTr" / f"{name}_0000.nii.gz"), sitk.sitkFloat32)
        cases[name] = image, sitk.ReadImage(str(path), sitk.sitkUInt8)
    return cases


def train(cases: list[tuple[Tensor, Tensor]], classes: int, steps: int, seed: int = 0) -> TinyUNet:
    """Train on random crops with random brightness, by cross-entropy and Dice loss."""
    torch.manual_seed(seed)
    network = TinyUNet(classes)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        crops = []
        for _ in range(4):
            image, label = cases[int(torch.randint(len(cases), ()))]
            at = [int(torch.randint(side - CROP + 1, ())) for side in label.shape]
            box = tuple(slice(a, a + CROP) for a in at)
            shade = 1 + 0.2 * torch.randn(()), 0.2 * torch.randn(())
            crops.append((image[(slice(None), *box)] * shade[0] + shade[1], label[box]))
        images, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
        scores = network(images)
        chances = scores.softmax(1)[:, 1:]
        truth = F.one_hot(labels, classes).movedim(-1, 1)[:, 1:].float()
        overlap = (chances * truth).sum((0, 2, 3, 4)) / (chances + truth).sum((0, 2, 3, 4)).clamp_min(1)
        loss = F.cross_entropy(scores, labels) + 1 - 2 * overlap.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def dice(network: TinyUNet, image: Tensor, label: Tensor) -> float:
    """Return the mean Dice coefficient of the labels in ``label``."""
    pad = [n for side in reversed(label.shape) for n in (0, -side % 4)]
    found = network(F.pad(image[None], pad)).argmax(1)[0][tuple(slice(0, side) for side in label.shape)]
    values = [
        2 * float(((found == k) & (label == k)).sum()) / float((found == k).sum() + (label == k).sum())
        for k in label.unique().tolist()
        if k
    ]
    return sum(values) / len(values)


def stranger(image: sitk.Image, label: sitk.Image, seed: int) -> tuple[sitk.Image, sitk.Image]:
    """Make another "patient": rotated, scaled, bent by a B-spline, with other gray values."""
    random = np.random.default_rng(seed)
    center = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    affine = sitk.AffineTransform(3)
    affine.SetCenter(center)
    for axes in ((0, 1), (1, 2), (0, 2)):
        affine.Rotate(*axes, float(random.uniform(-0.35, 0.35)))
    affine.Scale([float(v) for v in random.uniform(0.85, 1.15, 3)])
    spline = sitk.BSplineTransformInitializer(image, [4, 4, 4])
    side = min(n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
    spline.SetParameters((0.08 * side * random.normal(size=len(spline.GetParameters()))).tolist())
    both = sitk.CompositeTransform([affine, spline])
    bent = sitk.Resample(image, image, both, sitk.sitkLinear, float(np.median(sitk.GetArrayViewFromImage(image))))
    values = sitk.GetArrayFromImage(bent)
    top = max(float(values.max()), 1e-6)
    shaded = sitk.GetImageFromArray((values.clip(0) / top) ** random.uniform(0.8, 1.25) * top)
    shaded.CopyInformation(image)
    return shaded, sitk.Resample(label, label, both, sitk.sitkNearestNeighbor)


def main() -> None:
    """Train and test two networks and print their scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=150, help="training steps of each network")
    parser.add_argument("--strangers", type=int, default=8, help="how many to test on")
    options = parser.parse_args()
    cases = read(options.dataset)
    classes = len(json.loads((options.dataset / "dataset.json").read_text(encoding="utf-8"))["labels"])
    # What drdm augment made carries its level in its name.
    originals = {name: case for name, case in cases.items() if "_t" not in name} or cases
    tests = [
        tensors(*stranger(*case, seed)) for seed in range(options.strangers) for case in list(originals.values())[:1]
    ]
    for name, chosen in (("the original alone", originals), ("with its new versions", cases)):
        network = train([tensors(*case) for case in chosen.values()], classes, options.steps)
        scores = [dice(network, *test) for test in tests]
        print(f"{name:22} {len(chosen):3} scans   Dice on strangers {np.mean(scores):.3f} (worst {min(scores):.3f})")


if __name__ == "__main__":
    main()
