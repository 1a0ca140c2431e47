"""Draw the random fields and all other random numbers of training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.forward import Diffusion, ForwardProcess
from ..errors import SettingError
from ..models.metadata import ModelMetadata
from .config import TrainingConfig


class FieldSampler:
    """Draw levels, deformations and their last steps for batches.

    On a CPU, generating a 3D field takes longer than a training step of a small network. The noise has no preferred
    axis, so a field with flipped and permuted axes is as good as a new one. The sampler therefore keeps ``pool``
    fields, returns them under random symmetries of the cube, and replaces one of them at every ``renew``-th draw. With
    ``pool=0`` every field is new, as published.
    """

    def __init__(self, model: ModelMetadata, generator: torch.Generator, *, pool: int = 0, renew: int = 8) -> None:
        self.model = model
        self.process = ForwardProcess.of(model)
        self.generator = generator
        self.pool = pool
        self.renew = renew
        self.draws = 0
        # How each field of the pool was generated: the state of the generator before, how many fields it then
        # generated, and which of them it is. A checkpoint has this instead of the fields, which are large.
        self._made: list[tuple[Tensor, int, int]] = []
        self.levels = torch.empty(0, dtype=torch.long, device=generator.device)
        self.fields = Diffusion(torch.empty(0), torch.empty(0))

    def draw(self, batch: int) -> tuple[Tensor, Diffusion]:
        """Draw levels (batch,) and their fields, each (batch, d, *S) in fractions of the side."""
        if self.pool == 0:
            return self._fresh(batch)
        if len(self.levels) < self.pool:
            return self._add(batch)
        self.draws += 1
        if self.draws % self.renew == 0:
            self._replace()
        chosen = torch.randint(self.pool, (batch,), generator=self.generator, device=self.generator.device)
        return self.levels[chosen], self._under_symmetries(chosen)

    def _fresh(self, count: int) -> tuple[Tensor, Diffusion]:
        levels = torch.randint(self.model.timesteps, (count,), generator=self.generator, device=self.generator.device)
        return levels, self.process.step(levels, self.generator)

    def _add(self, batch: int) -> tuple[Tensor, Diffusion]:
        """Generate new fields and add them to the pool, which is not full yet."""
        before = self.generator.get_state()
        levels, fresh = self._fresh(batch)
        space = self.pool - len(self.levels)
        self._made += [(before, batch, number) for number in range(min(batch, space))]
        if len(self.levels) == 0:
            self.levels, self.fields = levels[:space], Diffusion(fresh.ddf[:space], fresh.step[:space])
        else:
            self.levels = torch.cat([self.levels, levels[:space]])
            self.fields = Diffusion(
                torch.cat([self.fields.ddf, fresh.ddf[:space]]), torch.cat([self.fields.step, fresh.step[:space]])
            )
        return levels, fresh

    def _replace(self) -> None:
        at = (self.draws // self.renew) % self.pool
        self._made[at] = (self.generator.get_state(), 1, 0)
        levels, fields = self._fresh(1)
        self.levels[at] = levels[0]
        self.fields.ddf[at] = fields.ddf[0]
        self.fields.step[at] = fields.step[0]

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, without the fields: they can be generated again."""
        states = {id(before): before for before, _, _ in self._made}
        number = {key: k for k, key in enumerate(states)}
        rows = [(number[id(before)], count, index) for before, count, index in self._made]
        return {
            "draws": self.draws,
            "states": torch.stack(list(states.values())) if states else torch.empty(0, dtype=torch.uint8),
            "made": torch.tensor(rows, dtype=torch.long).view(-1, 3),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; the state of the generator is restored separately."""
        self.draws = state["draws"]
        rows = state["made"].tolist()
        states = state["states"].cpu()
        befores = [states[k].clone() for k in range(len(states))]
        self._made = [(befores[k], count, index) for k, count, index in rows]
        generated: dict[int, tuple[Tensor, Diffusion]] = {}
        for k, count, _ in rows:
            if k not in generated:
                self.generator.set_state(befores[k])
                generated[k] = self._fresh(count)
        if rows:
            self.levels = torch.stack([generated[k][0][index] for k, _, index in rows])
            self.fields = Diffusion(
                *(torch.stack([generated[k][1][part][index] for k, _, index in rows]) for part in (0, 1))
            )

    def _under_symmetries(self, chosen: Tensor) -> Diffusion:
        """Apply a random symmetry of the cube to each chosen field."""
        count, ndim, source = len(chosen), self.model.ndim, self.generator
        drawn = []
        for _ in range(count):
            drawn.append(torch.randperm(ndim, generator=source, device=source.device))
            drawn.append(torch.randint(2, (ndim,), generator=source, device=source.device))
        orders, flips = torch.stack(drawn).view(count, 2, ndim).unbind(dim=1)
        # Copies of slices are faster on a CPU, one indexing of all fields on a GPU.
        apply = _apply_one_by_one if source.device.type == "cpu" else apply_symmetries
        return Diffusion(*(apply(fields, chosen, orders, flips) for fields in self.fields))


def _apply_one_by_one(fields: Tensor, chosen: Tensor, orders: Tensor, flips: Tensor) -> Tensor:
    settings = zip(chosen.tolist(), orders.tolist(), flips.tolist(), strict=True)
    return torch.stack([apply_symmetry(fields[index], order, mirrors) for index, order, mirrors in settings])


def apply_symmetries(fields: Tensor, chosen: Tensor, orders: Tensor, flips: Tensor) -> Tensor:
    """Apply :func:`apply_symmetry` to several fields at once.

    Args:
        fields: (M, d, *S), with equal sides.
        chosen: (N,) indices of fields.
        orders, flips: (N, d), the permutation of axes for each, and 1 for the axes to mirror.

    Returns:
        (N, d, *S).
    """
    (count, ndim), side = orders.shape, fields.shape[-1]
    ones = [1] * ndim
    voxel = torch.arange(side, device=orders.device)
    # Positions of the values in the flat pool.
    positions = (chosen * fields[0].numel()).view(-1, 1, *ones) + (orders * side**ndim).view(count, ndim, *ones)
    for axis in range(ndim):
        stride = side ** (ndim - 1 - orders[:, axis, None])
        along = torch.where(flips[:, axis, None] > 0, side - 1 - voxel, voxel) * stride
        positions = positions + along.view(count, 1, *ones[:axis], side, *ones[axis + 1 :])
    return fields.take(positions) * (1 - 2 * flips).view(count, ndim, *ones)


def apply_symmetry(field: Tensor, order: Sequence[int], flips: Sequence[int | bool]) -> Tensor:
    """Apply a symmetry of the cube to a field (d, *S): permute its axes, then mirror the chosen ones."""
    parts = [-field[axis] if mirror else field[axis] for axis, mirror in zip(order, flips, strict=True)]
    permuted = torch.stack(parts).permute(0, *[axis + 1 for axis in order])
    return permuted.flip([k + 1 for k, mirror in enumerate(flips) if mirror])


class MicroBatchSampler:
    """Draw the random numbers of one micro-batch; they do not depend on the process that computes it.

    Attributes:
        number: number of the micro-batch, 0 to ``config.micro_batches`` - 1.
        generator: source of the random numbers for images, augmentation, levels and fields.
        fields: sampler of random fields, with its own pool.
    """

    def __init__(self, metadata: ModelMetadata, config: TrainingConfig, device: torch.device, number: int) -> None:
        self.number = number
        self.generator = torch.Generator(device).manual_seed(_seed(config.seed, number))
        self.fields = FieldSampler(metadata, self.generator, pool=-(-config.field_pool // config.micro_batches))

    def choose(self, images: int, count: int) -> Tensor:
        """Draw the indices of ``count`` of ``images`` images; an image may be drawn twice."""
        return torch.randint(images, (count,), generator=self.generator, device=self.generator.device)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as tensors and plain values."""
        return {
            "generator": self.generator.get_state(),
            "fields": self.fields.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            SettingError: an older version has written it.
        """
        if "fields" not in state:
            raise SettingError(
                "The checkpoint was made by an older version of DRDM; start a new run in another folder."
            )
        self.fields.load_state(state["fields"])
        self.generator.set_state(state["generator"].cpu())


def _seed(run_seed: int, number: int) -> int:
    if number == 0:
        return run_seed
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{number}".encode()).digest()[:8], "big") >> 1
