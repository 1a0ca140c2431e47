"""Train a MONAI network on few labelled images, each deformed anew every time it is seen, by a dictionary transform.

    python Testing/examples/train_segmentation_monai.py DATASET BANK --train 4 --steps 200

DATASET is a folder with images/ and labels/; BANK gets a bank of fields for the training images, if it is not there.
Prints the loss in training and the Dice overlap on images left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    LoadImaged,
    RandGaussianNoised,
    ScaleIntensityRangePercentilesd,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from DRDMLib.io import datasets
from DRDMLib.loaders import BankSettings, RandDRDMDeformationd, make_bank

KEYS = ["image", "label"]
SCALE = ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--train", type=int, default=4, help="images to train on")
    parser.add_argument("--test", type=int, default=4, help="images left out")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--levels", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--copies", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = datasets.find_cases(arguments.dataset)
    training, left_out = cases[: arguments.train], cases[arguments.train :][: arguments.test]
    listed = arguments.bank.with_suffix(".txt")
    listed.write_text("\n".join(str(case.image.resolve()) for case in training), encoding="utf-8")
    bank = make_bank(listed, arguments.bank, BankSettings(arguments.levels, arguments.copies))

    load = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), SCALE]
    deform = RandDRDMDeformationd(KEYS, bank, mode=("bilinear", "nearest"), prob=0.9).set_random_state(0)
    pad = DivisiblePadd(KEYS, 8)
    files = [{"image": str(case.image), "label": str(case.label)} for case in cases]
    # What comes before the first random transform is done once and kept.
    data = CacheDataset(
        files[: len(training)], Compose([*load, deform, RandGaussianNoised("image", std=0.02), pad]), progress=False
    )
    held_out = [Compose([*load, pad])(file) for file in files[len(training) :][: len(left_out)]]
    loader = DataLoader(data, batch_size=1, shuffle=True)
    classes = 1 + max(int(item["label"].max()) for item in held_out)
    network = UNet(3, 1, classes, channels=(12, 24, 48), strides=(2, 2), num_res_units=1)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    step, running = 0, None
    while step < arguments.steps:
        for batch in loader:
            loss = criterion(network(batch["image"]), batch["label"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            running = loss.item() if running is None else running + 0.1 * (loss.item() - running)
            if step % 20 == 0 or step == arguments.steps:
                print(f"step {step:4d}   loss {running:.3f}   Dice left out {validate(network, held_out):.3f}")
            if step == arguments.steps:
                break


@torch.no_grad()
def validate(network: UNet, items: list[dict]) -> float:
    """Mean Dice overlap of the foreground."""
    scores = []
    for item in items:
        predicted, truth = network(item["image"][None]).argmax(dim=1) > 0, item["label"] > 0
        scores.append(float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()).clamp(min=1)))
    return sum(scores) / max(1, len(scores))


if __name__ == "__main__":
    main()
