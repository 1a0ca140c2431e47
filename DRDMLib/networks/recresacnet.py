"""The published recovery network, "recresacnet" (paper, section 3.3); layers are named as in the authors' weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.fields import compose, warp
from .convolution import Conv3d

TIME_CHANNELS = 100


def sinusoidal_table(timesteps: int, channels: int) -> Tensor:
    """Make the time embedding, (timesteps, channels).

    Columns 2p and 2p+1 are the sine and the cosine of ``t / 10000^(4p / channels)``.
    """
    # On the CPU also where only shapes are asked for: on the meta device, these functions load PyTorch's compiler.
    t = torch.arange(timesteps, dtype=torch.float32, device="cpu")[:, None]
    p = torch.arange((channels + 1) // 2, dtype=torch.float32, device="cpu")[None]
    angle = t / 10000.0 ** (4.0 * p / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]


class AtrousBlock(nn.Module):
    """Residual block of atrous (dilated) convolutions of size 3: (N, channels_in, *S) -> (N, channels_out, *S).

    A convolution and an optional InstanceNorm, then two convolutions in sequence with dilation 1 and 3, whose result is
    added to their input.
    """

    def __init__(self, ndim: int, channels_in: int, channels_out: int, *, normalize: bool) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else Conv3d
        norm = nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d
        self.conv0 = conv(channels_in, channels_out, 3, padding=1)
        self.ln = norm(channels_out, affine=True) if normalize else nn.Identity()
        self.convs = nn.ModuleList(conv(channels_out, channels_out, 3, padding=rate, dilation=rate) for rate in (1, 3))
        self.activation = nn.LeakyReLU(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        start = self.ln(self.conv0(x))
        out = start
        for conv in self.convs:
            out = conv(self.activation(out))
        if torch.is_grad_enabled():
            result: Tensor = self.activation(out + start)
            return result
        # The same arithmetic in place, which saves two arrays of this size.
        return nn.functional.leaky_relu_(out.add_(start), self.activation.negative_slope)


class RecResACNet(nn.Module):
    """The published encoder-decoder network. It sees the deformed image, and then the image after its own correction.

    Args:
        ndim: dimension of the images, 2 or 3.
        timesteps: number of levels T.
        passes: how often the network processes the image, 2 as published.
    """

    default_steps = 24

    def __init__(self, ndim: int, timesteps: int = 80, passes: int = 2) -> None:
        super().__init__()
        self.ndim = ndim
        self.passes = passes
        conv = nn.Conv2d if ndim == 2 else Conv3d
        deconv = nn.ConvTranspose2d if ndim == 2 else nn.ConvTranspose3d

        def stage(widths: list[int], *, normalize: bool) -> nn.Sequential:
            pairs = zip(widths[:-1], widths[1:], strict=True)
            return nn.Sequential(*(AtrousBlock(ndim, a, b, normalize=normalize) for a, b in pairs))

        def time(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(TIME_CHANNELS, channels), nn.ReLU(), nn.Linear(channels, channels))

        self.time_embed = nn.Embedding(timesteps, TIME_CHANNELS)
        self.time_embed.weight = nn.Parameter(sinusoidal_table(timesteps, TIME_CHANNELS), requires_grad=False)

        self.te1, self.b1 = time(1), stage([1, 10, 10, 10], normalize=True)
        self.down1 = conv(10, 10, 4, 2, 1)
        self.te2, self.b2 = time(10), stage([10, 20, 20, 20], normalize=True)
        self.down2 = conv(20, 20, 4, 2, 1)
        self.te3, self.b3 = time(20), stage([20, 40, 40, 40], normalize=True)
        self.down3 = conv(40, 40, 4, 2, 1)
        self.te_mid, self.b_mid = time(40), stage([40, 20, 20, 40], normalize=True)
        self.up1 = deconv(40, 40, 4, 2, 1)
        self.te4, self.b4 = time(80), stage([80, 40, 20, 20], normalize=False)
        self.up2 = deconv(20, 20, 4, 2, 1)
        self.te5, self.b5 = time(40), stage([40, 20, 10, 10], normalize=False)
        self.up3 = deconv(10, 10, 4, 2, 1)
        self.te_out, self.b_out = time(20), stage([20, 10, 10, 10], normalize=False)
        self.conv_out = conv(10, ndim, 3, padding=1)

    def _single_pass(self, x: Tensor, time: Tensor) -> Tensor:
        def embed(layer: nn.Module) -> Tensor:
            result: Tensor = layer(time).reshape(time.shape[0], -1, *[1] * self.ndim)
            return result

        out1 = self.b1(x + embed(self.te1))
        out2 = self.b2(self.down1(out1) + embed(self.te2))
        out3 = self.b3(self.down2(out2) + embed(self.te3))
        middle = self.b_mid(self.down3(out3) * embed(self.te_mid))
        out = self.b4(torch.cat([out3, self.up1(middle)], 1) + embed(self.te4))
        out = self.b5(torch.cat([out2, self.up2(out)], 1) + embed(self.te5))
        out = self.b_out(torch.cat([out1, self.up3(out)], 1) + embed(self.te_out))
        limit = 1.0 - 1.0 / x.shape[2]
        result: Tensor = self.conv_out(out).clamp(-limit, limit)
        return result

    def forward(self, image: Tensor, t: Tensor, *, passes: int | None = None) -> Tensor:
        """Predict the step that undoes the last small deformation.

        Args:
            image: (N, 1, *S), intensities 0..1.
            t: (N,), level of each image.
            passes: number of passes, by default as in training.

        Returns:
            (N, d, *S), fraction of the side.
        """
        time = self.time_embed(t)
        ddf = self._single_pass(image, time)
        for _ in range((passes or self.passes) - 1):
            corrected = warp(image, ddf, padding="zeros")
            ddf = compose(ddf, self._single_pass(corrected, time))
        return ddf
