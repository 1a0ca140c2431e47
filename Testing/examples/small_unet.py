"""A U-Net that is small enough for an example on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallUNet(nn.Module):
    """Two levels down and up again; any side that is a multiple of 4."""

    def __init__(self, inputs: int, outputs: int, width: int = 12) -> None:
        super().__init__()
        self.fine, self.middle = _block(inputs, width), _block(width, 2 * width)
        self.coarse = _block(2 * width, 4 * width)
        self.up_middle, self.up_fine = _block(6 * width, 2 * width), _block(3 * width, width)
        self.out = nn.Conv3d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, inputs, *S) -> (N, outputs, *S)."""
        fine = self.fine(image)
        middle = self.middle(F.avg_pool3d(fine, 2))
        coarse = self.coarse(F.avg_pool3d(middle, 2))
        middle = self.up_middle(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], dim=1))
        return self.out(self.up_fine(torch.cat([F.interpolate(middle, scale_factor=2.0), fine], dim=1)))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.1, inplace=True)
    )


def to_multiple(tensor: Tensor, multiple: int = 4) -> Tensor:
    """(C, *S) padded at the far ends, by its border values, to sides that the network takes."""
    missing = [-side % multiple for side in tensor.shape[1:]]
    padding = [n for side in reversed(missing) for n in (0, side)]
    kind = tensor.dtype
    return F.pad(tensor.float()[None], padding, mode="replicate")[0].to(kind)
