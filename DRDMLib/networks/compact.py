"""A small recovery network for low resolutions: one pass, and a field at half resolution that is smooth by its making.

Where the published network spends most of its time on narrow layers at full resolution, this one halves the grid in
its first layer, keeps channels at multiples of 16, and lets the level scale and shift every block (FiLM).

It predicts either the last small step, as published, or (``whole=True``) all that is left to undo. The latter is the
conditional mean of the deformation, and a step from level t to level s takes the share ``1 - strength(s)/strength(t)``
of it: the probability-flow step of diffusion models (Karras et al., NeurIPS 2022, section 2, with the deformation as
the noise).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.fields import resize_field, self_compose
from ..diffusion.forward import strength
from .convolution import Conv3d
from .recresacnet import sinusoidal_table

TIME_CHANNELS = 64
# Steps are about a hundredth of the side, whole deformations about this times their strength: with these factors the
# last layer works with values near one.
_STEP_SIZE = 0.01
_WHOLE_SIZE = 0.0005
# Doublings by which a velocity becomes a displacement.
_SQUARINGS = 4


class FilmBlock(nn.Module):
    """Two normalized 3-convs with a skip connection; the time embedding scales and shifts between them."""

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
        result: Tensor = self.activation(out + self.skip(x))
        return result


class CompactNet(nn.Module):
    """U-Net on the half, quarter and eighth grid; sides must be multiples of 8.

    Args:
        width: channels on the half grid; the quarter has twice, the eighth four times as many.
        depth: residual blocks on the eighth grid.
        whole: predict all that is left to undo, as a velocity field, instead of the last step.
        coarse: predict on the quarter grid, from which quadratic B-splines lead on: what the network does not know for
            sure then never shows as a field that is rough.
        places: tell the network where each voxel lies in the image; convolutions alone hardly see that a whole subject
            has moved.
    """

    default_steps = 12

    def __init__(
        self,
        ndim: int,
        timesteps: int = 80,
        width: int = 16,
        depth: int = 2,
        whole: bool = False,
        coarse: bool = False,
        places: bool = False,
    ) -> None:
        super().__init__()
        self.coarse = coarse
        self.ndim = ndim
        self.whole = whole
        conv = nn.Conv2d if ndim == 2 else Conv3d
        hidden = 4 * width
        self.table: Tensor
        self.register_buffer("table", sinusoidal_table(timesteps, TIME_CHANNELS), persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.stem = conv(1, width, 4, 2, 1)
        self.places = conv(ndim, width, 1) if places else None
        self.enc1 = FilmBlock(ndim, width, width, hidden)
        self.down1 = conv(width, 2 * width, 2, 2)
        self.enc2 = FilmBlock(ndim, 2 * width, 2 * width, hidden)
        self.down2 = conv(2 * width, 4 * width, 2, 2)
        self.middle = nn.ModuleList(FilmBlock(ndim, 4 * width, 4 * width, hidden) for _ in range(depth))
        self.merge2 = conv(4 * width, 2 * width, 1)
        self.dec2 = FilmBlock(ndim, 4 * width, 2 * width, hidden)
        if not coarse:
            self.merge1 = conv(2 * width, width, 1)
            self.dec1 = FilmBlock(ndim, 2 * width, width, hidden)
        self.out = conv(2 * width if coarse else width, ndim, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, image: Tensor, t: Tensor, to: Tensor | None = None) -> Tensor:
        """The field that takes an image from level ``t`` to level ``to``.

        Args:
            image: (N, 1, *S).
            t: (N,).
            to: (N,), below ``t``; -1 stands for no deformation at all. By default the level below ``t``. A network
                that predicts steps knows no other.

        Returns:
            (N, d, *S), fraction of the side.
        """
        raw = self._decode(image * 2 - 1, self.time(self.table[t])).float()
        shape = tuple(image.shape[2:])
        if not self.whole:
            return resize_field(raw * _STEP_SIZE, shape)
        size = strength(t).to(raw) * _WHOLE_SIZE
        share = 1 - strength(t - 1 if to is None else to).to(raw) / strength(t).to(raw)
        velocity = raw * (size * share).view(-1, *[1] * (self.ndim + 1))
        return resize_field(self_compose(velocity / 2**_SQUARINGS, 2**_SQUARINGS), shape)

    def _decode(self, image: Tensor, time: Tensor) -> Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"

        def double(x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)

        seen = self.stem(image)
        if self.places is not None:
            seen = seen + self.places(_coordinates(seen))
        half = self.enc1(seen, time)
        quarter = self.enc2(self.down1(half), time)
        out = self.down2(quarter)
        for block in self.middle:
            out = block(out, time)
        out = self.dec2(torch.cat([quarter, double(self.merge2(out))], 1), time)
        if self.coarse:
            return double(self.out(out))
        out = self.dec1(torch.cat([half, double(self.merge1(out))], 1), time)
        result: Tensor = self.out(out)
        return result


def _coordinates(image: Tensor) -> Tensor:
    """(1, d, *S): where the voxels of ``image`` (N, C, *S) lie, -1 to 1 along each axis."""
    axes = [torch.linspace(-1, 1, side, device=image.device, dtype=image.dtype) for side in image.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
