"""A 3D convolution that takes the quick way on a processor, also for a single small image.

PyTorch hands a convolution to oneDNN only when it is large enough by a count that leaves out the last axis, so that a
batch of one at half resolution falls back to a loop five times slower. Asked directly, oneDNN takes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _one_dnn(image: Tensor) -> bool:
    """Whether oneDNN can be asked directly: it computes no gradients then."""
    return (
        image.device.type == "cpu"
        and image.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` with zeros outside."""

    def forward(self, image: Tensor) -> Tensor:
        if isinstance(self.padding, str) or not _one_dnn(image):
            return super().forward(image)
        where = (self.padding, self.stride, self.dilation)
        return torch.mkldnn_convolution(image, self.weight, self.bias, *where, self.groups)
