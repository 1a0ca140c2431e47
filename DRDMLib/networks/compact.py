"""A small recovery network for low resolutions: a single pass, and a smooth field at half resolution or less.

The published network spends most of its time on layers with few channels at full resolution. This one halves the grid
in its first layer, uses channels in multiples of 16, and scales and shifts every block according to the level (FiLM).

It predicts either the last small step, as published, or (``whole=True``) the complete deformation that is left to undo.
The latter is the conditional mean of the deformation. A step from level t to level s then takes the fraction
``1 - strength(s)/strength(t)`` of it. This is the probability-flow step of diffusion models (Karras et al., NeurIPS
2022, section 2), with the deformation in the place of the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.fields import resize_field, self_compose
from ..diffusion.forward import strength
from .convolution import Conv3d
from .recresacnet import sinusoidal_table

TIME_CHANNELS = 64
# Typical size of a step, and of a complete deformation divided by its strength, as a fraction of the side. With these
# factors the values in the last layer are near one.
_STEP_SIZE = 0.01
_WHOLE_SIZE = 0.0005
# Number of squarings that turn a velocity field into a displacement field.
_SQUARINGS = 4


class FilmBlock(nn.Module):
    """Residual block of two normalized convolutions of size 3; the time embedding scales and shifts between them.

    (N, channels_in, *S) and time (N, time_channels) -> (N, channels_out, *S).
    """

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
        if torch.is_grad_enabled():
            out = self.norm1(self.conv1(x)) * (1 + scale) + shift
            out = self.norm2(self.conv2(self.activation(out)))
            result: Tensor = self.activation(out + self.skip(x))
            return result
        # The same arithmetic in place, which saves five arrays of this size.
        out = nn.functional.silu(self.norm1(self.conv1(x)).mul_(1 + scale).add_(shift), inplace=True)
        out = self.norm2(self.conv2(out)).add_(self.skip(x))
        return nn.functional.silu(out, inplace=True)


class CompactNet(nn.Module):
    """U-Net on grids of half, a quarter and an eighth of the image's size; sides must be multiples of 8.

    Args:
        ndim: dimension of the images, 2 or 3.
        timesteps: number of levels T.
        width: channels on the half-size grid; the quarter-size grid has twice as many, the eighth-size grid four times.
        depth: number of residual blocks on the eighth-size grid.
        whole: predict the complete deformation that is left to undo, as a velocity field, instead of the last step.
        coarse: predict on the quarter-size grid and upsample with quadratic B-splines, so that uncertain predictions do
            not make the field rough.
        places: give the network the coordinates of each voxel; convolutions alone hardly detect that a whole subject
            has moved.
    """

    default_steps = 6

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
        """Predict the field that takes an image from level ``t`` to level ``to``.

        Args:
            image: (N, 1, *S), intensities 0..1.
            t: (N,), level of each image.
            to: (N,), below ``t``; -1 stands for no deformation at all. By default the level just below ``t``, which is
                also what a network with ``whole=False`` always predicts.

        Returns:
            (N, d, *S), fraction of the side.
        """
        raw = self._decode(image * 2 - 1, self.time(self.table[t])).float()
        shape = tuple(image.shape[2:])
        if not self.whole:
            return resize_field(raw * _STEP_SIZE, shape)
        size = strength(t).to(raw) * _WHOLE_SIZE
        fraction = 1 - strength(t - 1 if to is None else to).to(raw) / strength(t).to(raw)
        velocity = raw * (size * fraction).view(-1, *[1] * (self.ndim + 1))
        return resize_field(self_compose(velocity / 2**_SQUARINGS, 2**_SQUARINGS), shape)

    def _decode(self, image: Tensor, time: Tensor) -> Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"

        def double(x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)

        features = self.stem(image)
        if self.places is not None:
            features = features + self.places(_coordinates(features))
        half = self.enc1(features, time)
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
    """Return the coordinates of the voxels of ``image`` (N, C, *S), -1 to 1 along each axis: (1, d, *S)."""
    axes = [torch.linspace(-1, 1, side, device=image.device, dtype=image.dtype) for side in image.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
