"""A small recovery network for low resolutions: one pass, and a field at half resolution that is smooth by its making.

Where the published network spends most of its time on narrow layers at full resolution, this one halves the grid in
its first layer, keeps channels at multiples of 16, and lets the level scale and shift every block (FiLM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields import resize_field
from .convolution import Conv3d
from .recresacnet import sinusoidal_table

TIME_CHANNELS = 64


class FilmBlock(nn.Module):
    """Two normalised 3-convs with a skip connection; the time embedding scales and shifts between them."""

    def __init__(self, ndim: int, channels_in: int, channels_out: int, time_channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else Conv3d
        groups = max(1, channels_out // 8)
        self.ndim = ndim
        self.conv1 = conv(channels_in, channels_out, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels_out)
        self.film = nn.Linear(time_channels, 2 * channels_out)
        self.conv2 = conv(channels_out, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.skip = conv(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.activation = nn.SiLU()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.film(time).view(x.shape[0], -1, *[1] * self.ndim).chunk(2, dim=1)
        out = self.norm1(self.conv1(x)) * (1 + scale) + shift
        out = self.norm2(self.conv2(self.activation(out)))
        return self.activation(out + self.skip(x))


class CompactNet(nn.Module):
    """U-Net on the half, quarter and eighth grid; sides must be multiples of 8.

    Args:
        width: channels on the half grid; the quarter has twice, the eighth four times as many.
        depth: residual blocks on the eighth grid.
    """

    def __init__(self, ndim: int, timesteps: int = 80, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.ndim = ndim
        conv = nn.Conv2d if ndim == 2 else Conv3d
        hidden = 4 * width
        self.table: Tensor
        self.register_buffer("table", sinusoidal_table(timesteps, TIME_CHANNELS), persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.stem = conv(1, width, 4, 2, 1)
        self.enc1 = FilmBlock(ndim, width, width, hidden)
        self.down1 = conv(width, 2 * width, 2, 2)
        self.enc2 = FilmBlock(ndim, 2 * width, 2 * width, hidden)
        self.down2 = conv(2 * width, 4 * width, 2, 2)
        self.middle = nn.ModuleList(FilmBlock(ndim, 4 * width, 4 * width, hidden) for _ in range(depth))
        self.merge2 = conv(4 * width, 2 * width, 1)
        self.dec2 = FilmBlock(ndim, 4 * width, 2 * width, hidden)
        self.merge1 = conv(2 * width, width, 1)
        self.dec1 = FilmBlock(ndim, 2 * width, width, hidden)
        self.out = conv(width, ndim, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, image: Tensor, t: Tensor) -> Tensor:
        """(N, 1, *S) and t (N,) -> the step that undoes the last deformation, (N, d, *S), fraction of the side."""
        time = self.time(self.table[t])
        mode = "bilinear" if self.ndim == 2 else "trilinear"

        def double(x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)

        half = self.enc1(self.stem(image * 2 - 1), time)
        quarter = self.enc2(self.down1(half), time)
        out = self.down2(quarter)
        for block in self.middle:
            out = block(out, time)
        out = self.dec2(torch.cat([quarter, double(self.merge2(out))], 1), time)
        out = self.dec1(torch.cat([half, double(self.merge1(out))], 1), time)
        # Steps are about a hundredth of the side: the factor lets the last layer work with values near one.
        return resize_field(self.out(out).float() * 0.01, tuple(image.shape[2:]))
