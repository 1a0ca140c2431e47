"""Train a MONAI network on few labeled images, each deformed anew every time by a dictionary transform.

    python Testing/examples/train_segmentation_monai.py DATASET BANK --train 4 --steps 200

DATASET is a folder with images/ and labels/; a bank of fields for the training images is made in BANK if
there is none. Prints the loss in training and the Dice overlap on held-out images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    LoadImaged,
    RandGaussianNoised,
    ScaleIntensityRangePercentilesd,
)

from DRDMLib.io import datasets
from DRDMLib.loaders import RandDRDMDeformationd, make_bank

KEYS = ["image", "label"]
SCALE = ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1)


def main() -> None:
    """Train, and print loss and overlap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--train", type=int, default=4, help="images to train on")
    parser.add_argument("--test", type=int, default=4, help="held-out images")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--levels", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--copies", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = datasets.find_cases(arguments.dataset)
    training = cases[: arguments.train]
    listed = arguments.bank.with_suffix(".txt")
    listed.write_text("\n".join(str(case.image.resolve()) for case in training), encoding="utf-8")
    bank = make_bank(listed, arguments.bank, levels=arguments.levels, copies=arguments.copies)

    load = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), SCALE]
    deform = RandDRDMDeformationd(KEYS, bank, mode=("bilinear", "nearest"), prob=0.9).set_random_state(0)
    pad = DivisiblePadd(KEYS, 8)
    files = [{"image": str(case.image), "label": str(case.label)} for case in cases]
    # The transforms before the first random one are applied once and cached.
    data = CacheDataset(
        files[: len(training)], Compose([*load, deform, RandGaussianNoised("image", std=0.02), pad]), progress=False
    )
    held_out = [Compose([*load, pad])(file) for file in files[arguments.train :][: arguments.test]]
    loader = DataLoader(data, batch_size=1, shuffle=True)
    classes = 1 + max(int(item["label"].max()) for item in held_out)
    network = UNet(3, 1, classes, channels=(12, 24, 48), strides=(2, 2), num_res_units=1)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    step, running = 0, None
    while step < arguments.steps:
        for batch in loader:
            loss = criterion(network(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            running = loss.item() if running is None else running + 0.1 * (loss.item() - running)
            if step % 20 == 0 or step == arguments.steps:
                print(f"step {step:4d}   loss {running:.3f}   Dice held out {validate(network, held_out):.3f}")
            if step == arguments.steps:
                break


@torch.no_grad()
def validate(network: UNet, items: list[dict]) -> float:
    """Return the mean Dice overlap of the foreground."""
    metric = DiceMetric()
    for item in items:
        metric(network(item["image"][None]).argmax(dim=1, keepdim=True) > 0, item["label"][None] > 0)
    return metric.aggregate().item()


if __name__ == "__main__":
    main()
