"""Train a small network to predict the exact field between the pairs that ``drdm synthesize`` made.

    drdm synthesize scans -o pairs --levels 40:24 --copies 10
    python Testing/examples/train_registration.py pairs --steps 200

Prints the error of the field in training and on held-out subjects; predicting no displacement has an error of 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor
from torch.utils.data import DataLoader

from DRDMLib.loaders import PairDataset

# Multiples of 4, as the network needs them.
SIDES = (40, 56, 48)


def to_common_size(item: dict) -> dict:
    """Resample images of mixed sizes to one grid for batches; fields are in fractions of the side and stay valid."""
    return {
        key: F.interpolate(item[key][None], SIDES, mode="trilinear", align_corners=True)[0]
        for key in ("moving", "fixed", "ddf")
    }


def relative_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error divided by that of no displacement."""
    return (predicted - truth).square().mean() / truth.square().mean()


def main() -> None:
    """Train, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    parts = {
        part: PairDataset(arguments.pairs, part, unit="fraction", labels=False, transform=to_common_size)
        for part in ("train", "validation")
    }
    loader = DataLoader(parts["train"], batch_size=arguments.batch, shuffle=True, drop_last=True)
    network = UNet(3, 2, 3, channels=(16, 32, 64), strides=(2, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    step, running = 0, 1.0
    while step < arguments.steps:
        for batch in loader:
            # The network predicts hundredths of the side.
            predicted = network(torch.cat([batch["moving"], batch["fixed"]], dim=1)) / 100
            loss = relative_error(predicted, batch["ddf"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            running += 0.1 * (loss.item() - running)
            if step % 20 == 0 or step == arguments.steps:
                print(
                    f"step {step:4d}   training {running:.3f}   held out {validate(network, parts['validation']):.3f}"
                )
            if step == arguments.steps:
                break


@torch.no_grad()
def validate(network: UNet, pairs: PairDataset) -> float:
    """Return the mean relative error."""
    errors = []
    for item in pairs:
        predicted = network(torch.cat([item["moving"], item["fixed"]])[None])[0] / 100
        errors.append(float(relative_error(predicted, item["ddf"])))
    return sum(errors) / max(1, len(errors))


if __name__ == "__main__":
    main()
