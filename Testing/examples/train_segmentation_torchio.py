"""Train a small segmentation network on few labeled images, each deformed anew every time by TorchIO.

    python Testing/examples/train_segmentation_torchio.py DATASET BANK --train 4 --steps 200

DATASET is a folder with images/ and labels/; a bank of fields for the training images is made in BANK if
there is none. Prints the loss in training and the Dice overlap on held-out images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchio as tio
from monai.metrics import DiceMetric
from monai.networks.nets import UNet

from DRDMLib.io import datasets
from DRDMLib.loaders import FieldBank, RandomDRDMDeformation, make_bank


def subjects_of(cases: list[datasets.Case]) -> list[tio.Subject]:
    """Return one subject for each case."""
    return [
        tio.Subject(name=case.name, scan=tio.ScalarImage(case.image), organs=tio.LabelMap(case.label)) for case in cases
    ]


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
    training, left_out = cases[: arguments.train], cases[arguments.train :][: arguments.test]
    listed = arguments.bank.with_suffix(".txt")
    listed.write_text("\n".join(str(case.image.resolve()) for case in training), encoding="utf-8")
    bank = make_bank(listed, arguments.bank, levels=arguments.levels, copies=arguments.copies)
    fit = tio.Compose([tio.RescaleIntensity((0, 1), (0.5, 99.5)), tio.EnsureShapeMultiple(4)])
    transform = tio.Compose([RandomDRDMDeformation(FieldBank(bank.folder), p=0.9), fit])
    # In memory, so that only the transform is measured below.
    subjects = [subject for subject in subjects_of(training) if subject.load() is None]
    begin = time.perf_counter()
    for _ in range(5):
        RandomDRDMDeformation(bank)(subjects[0])
    shape = subjects[0].spatial_shape
    print(f"One deformation of image and label, {shape}: {(time.perf_counter() - begin) / 5 * 1000:.0f} ms")
    classes = 1 + max(int(subject["organs"].data.max()) for subject in subjects)
    network = UNet(3, 1, classes, channels=(12, 24, 48), strides=(2, 2), num_res_units=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    running = None
    for step in range(1, arguments.steps + 1):
        subject = transform(subjects[int(torch.randint(len(subjects), ()))])
        loss = F.cross_entropy(network(subject["scan"].data[None].float()), subject["organs"].data.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = loss.item() if running is None else running + 0.1 * (loss.item() - running)
        if step % 20 == 0 or step == arguments.steps:
            print(f"step {step:4d}   loss {running:.3f}   Dice held out {validate(network, left_out, fit):.3f}")


@torch.no_grad()
def validate(network: UNet, cases: list[datasets.Case], fit: tio.Transform) -> float:
    """Return the mean Dice overlap of the foreground."""
    metric = DiceMetric()
    for subject in map(fit, subjects_of(cases)):
        predicted = network(subject["scan"].data[None].float()).argmax(dim=1, keepdim=True)
        metric(predicted > 0, subject["organs"].data[None] > 0)
    return metric.aggregate().item()


if __name__ == "__main__":
    main()
