"""Train a small network to predict the exact field between the pairs that ``drdm synthesize`` has made.

    drdm synthesize scans -o pairs --levels 40:24 --copies 10
    python Testing/examples/train_registration.py pairs --steps 200

Prints the error of the field, relative to predicting no displacement (1), in training and on subjects left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from small_unet import SmallUNet, to_multiple

from DRDMLib.loaders import PairDataset

SIDES = (40, 56, 48)


def to_common_size(item: dict) -> dict:
    """Images of mixed sizes on one grid, so that batches can be made; a fraction of the side stays what it is."""
    for key in ("moving", "fixed", "ddf"):
        item[key] = F.interpolate(item[key][None], SIDES, mode="trilinear", align_corners=True)[0]
    return {key: to_multiple(item[key]) for key in ("moving", "fixed", "ddf")}


def relative_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """Squared error over that of no displacement."""
    return (predicted - truth).square().mean() / truth.square().mean()


def main() -> None:
    """Train and print."""
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
    network = SmallUNet(2, 3, width=16)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    step, running = 0, 1.0
    while step < arguments.steps:
        for batch in loader:
            # The network thinks in hundredths of the side.
            predicted = network(torch.cat([batch["moving"], batch["fixed"]], dim=1)) / 100
            loss = relative_error(predicted, batch["ddf"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            running += 0.1 * (loss.item() - running)
            if step % 20 == 0 or step == arguments.steps:
                print(
                    f"step {step:4d}   training {running:.3f}   left out {validate(network, parts['validation']):.3f}"
                )
            if step == arguments.steps:
                break


@torch.no_grad()
def validate(network: SmallUNet, pairs: PairDataset) -> float:
    """Mean relative error."""
    errors = []
    for item in pairs:
        predicted = network(torch.cat([item["moving"], item["fixed"]])[None])[0] / 100
        errors.append(float(relative_error(predicted, item["ddf"])))
    return sum(errors) / max(1, len(errors))


if __name__ == "__main__":
    main()
