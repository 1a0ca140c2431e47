"""The small networks that the benchmarks train, made of MONAI's blocks.

The published figures are of these very networks and initial weights, so their layers stay in this order; MONAI's
``BasicUNet`` has five scales and would need all of them measured again.
"""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

from DRDMLib.diffusion.fields import resize_field, self_compose

# The velocity is squared as often: u = exp(v).
_SQUARINGS = 4


class UNet(nn.Module):
    """U-Net with three scales.

    Args:
        ndim: 2 or 3.
        inputs, outputs: channels.
        widths: channels of the three scales, finest first.
        slope: negative slope of the leaky ReLU.
        strided: halve the image by convolutions, before every scale, the first one too, instead of by max pooling
            between the scales. The output then has half the sides of the input.
    """

    def __init__(
        self, ndim: int, inputs: int, outputs: int, widths: tuple[int, int, int], slope: float, *, strided: bool = False
    ) -> None:
        super().__init__()
        act, norm = ("LeakyReLU", {"negative_slope": slope}), ("instance", {"affine": True})

        def down(a: int, b: int) -> nn.Module:
            if not strided:
                return Down(ndim, a, b, act, norm, bias=True)
            first = Convolution(ndim, a, b, strides=2, act=act, norm=norm, padding=1)
            return nn.Sequential(first, Convolution(ndim, b, b, act=act, norm=norm, padding=1))

        def up(a: int, b: int) -> nn.Module:
            how = {"upsample": "nontrainable", "pre_conv": None, "interp_mode": "nearest", "align_corners": None}
            return UpCat(ndim, a, b, b, act, norm, bias=True, is_pad=False, **how)  # type: ignore[arg-type]

        fine, middle, coarse = widths
        self.fine = down(inputs, fine) if strided else TwoConv(ndim, inputs, fine, act, norm, bias=True)
        self.middle, self.coarse = down(fine, middle), down(middle, coarse)
        self.up_middle, self.up_fine = up(coarse, middle), up(middle, fine)
        kernel = 3 if strided else 1
        self.out = Conv[Conv.CONV, ndim](fine, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, *S) -> (N, outputs, *S), or (N, outputs, *S / 2) if strided."""
        fine = self.fine(x)
        middle = self.middle(fine)
        return self.out(self.up_fine(self.up_middle(self.coarse(middle), middle), fine))


class RegistrationNetwork(nn.Module):
    """A network as VoxelMorph: a U-Net on both images predicts a velocity at half resolution, which is exponentiated.

    It has instance normalization, without which it learns nothing in a few hundred iterations.
    """

    def __init__(self, ndim: int, width: int = 12) -> None:
        super().__init__()
        self.unet = UNet(ndim, 2, ndim, (width, 2 * width, 2 * width), slope=0.2, strided=True)
        nn.init.normal_(self.unet.out.weight, std=1e-3)
        nn.init.zeros_(self.unet.out.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(N, 1, *S) twice -> (N, d, *S), fraction of the window: ``fixed(x) = moving(x + u(x))``."""
        velocity = self.unet(torch.cat([moving, fixed], 1)).float() * 0.1
        return resize_field(self_compose(velocity / 2**_SQUARINGS, 2**_SQUARINGS), tuple(moving.shape[2:]))


class TwoSampleClassifier(nn.Sequential):
    """A small convolutional network with one output: whether an image and its structures (3 channels) are deformed."""

    def __init__(self, width: int = 16) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for k in range(4):
            out = width * min(4, 2**k)
            layers += [nn.Conv3d(channels, out, 4, stride=2, padding=1), nn.BatchNorm3d(out), nn.ReLU()]
            channels = out
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(1))
