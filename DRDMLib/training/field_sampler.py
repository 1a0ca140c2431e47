"""Random fields for training, fresh or drawn from a bank that is renewed as it is used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..diffusion.forward import Diffusion, diffuse
from ..models.model import ModelMetadata


class FieldSource:
    """Draws (level, deformation, last step) for a batch.

    On a CPU a 3D field costs more than a training step of a small network. The noise has no preferred axis, so a
    field that is flipped and has its axes permuted is as good as another: the bank keeps ``bank`` fields, hands them
    out under random symmetries of the cube, and replaces one of them at every ``renew``-th draw. ``bank=0`` draws each
    afresh, as published.
    """

    def __init__(self, model: ModelMetadata, generator: torch.Generator, *, bank: int = 0, renew: int = 8) -> None:
        self.model = model
        self.generator = generator
        self.bank = bank
        self.renew = renew
        self.draws = 0
        self.levels = torch.empty(0, dtype=torch.long, device=generator.device)
        self.fields = Diffusion(torch.empty(0), torch.empty(0))

    def draw(self, batch: int) -> tuple[Tensor, Diffusion]:
        """Levels (batch,) and the fields that belong to them."""
        if self.bank == 0:
            return self._fresh(batch)
        if len(self.levels) < self.bank:
            return self._add(batch)
        self.draws += 1
        if self.draws % self.renew == 0:
            self._replace()
        chosen = torch.randint(self.bank, (batch,), generator=self.generator, device=self.generator.device)
        pairs = self._turned(chosen)
        fields = Diffusion(torch.stack([p.ddf for p in pairs]), torch.stack([p.step for p in pairs]))
        return self.levels[chosen], fields

    def _fresh(self, count: int) -> tuple[Tensor, Diffusion]:
        m = self.model
        levels = torch.randint(m.timesteps, (count,), generator=self.generator, device=self.generator.device)
        draw = partial(diffuse, control_size=m.control_size, noise_grids=m.noise_grids)
        fields = draw(m.size, m.ndim, levels, self.generator, velocity_scale=m.velocity_scale, amplitude=m.amplitude)
        return levels, fields

    def _add(self, batch: int) -> tuple[Tensor, Diffusion]:
        """While the bank is not full, what is drawn afresh is put into it."""
        levels, fresh = self._fresh(batch)
        space = self.bank - len(self.levels)
        if len(self.levels) == 0:
            self.levels, self.fields = levels[:space], Diffusion(fresh.ddf[:space], fresh.step[:space])
        else:
            self.levels = torch.cat([self.levels, levels[:space]])
            self.fields = Diffusion(
                torch.cat([self.fields.ddf, fresh.ddf[:space]]), torch.cat([self.fields.step, fresh.step[:space]])
            )
        return levels, fresh

    def _replace(self) -> None:
        at = (self.draws // self.renew) % self.bank
        levels, fields = self._fresh(1)
        self.levels[at] = levels[0]
        self.fields.ddf[at] = fields.ddf[0]
        self.fields.step[at] = fields.step[0]

    def _turned(self, chosen: Tensor) -> list[Diffusion]:
        """Each under a symmetry of its own; all of them are asked for at once, for a GPU's answers take time."""
        ndim, source = self.model.ndim, self.generator
        drawn = []
        for _ in range(len(chosen)):
            drawn.append(torch.randperm(ndim, generator=source, device=source.device))
            drawn.append(torch.randint(2, (ndim,), generator=source, device=source.device))
        asked = torch.stack(drawn).view(len(chosen), 2 * ndim).tolist()
        pairs = []
        for index, symmetry in zip(chosen.tolist(), asked, strict=True):
            order, flips = symmetry[:ndim], symmetry[ndim:]
            ddf, step = (turn(field[index], order, flips) for field in self.fields)
            pairs.append(Diffusion(ddf, step))
        return pairs


def turn(field: Tensor, order: Sequence[int], flips: Sequence[int | bool]) -> Tensor:
    """A field (d, *S) under a symmetry of the cube: axes in a new order, then mirrored along the chosen ones."""
    parts = [-field[axis] if mirror else field[axis] for axis, mirror in zip(order, flips, strict=True)]
    turned = torch.stack(parts).permute(0, *[axis + 1 for axis in order])
    return turned.flip([k + 1 for k, mirror in enumerate(flips) if mirror])
