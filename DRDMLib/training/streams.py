"""Random numbers of a training run, apart for each portion of a step, whichever process works on it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..diffusion.forward import Diffusion
from ..models.model import ModelMetadata
from .config import TrainingConfig
from .field_sampler import FieldSource


class Stream:
    """What one portion of every step is drawn from.

    Attributes:
        number: of the portion, 0 to ``config.portions`` - 1.
        generator: draws images, their augmentation, levels and fields.
        fields: the random fields, with a bank of their own.
    """

    def __init__(self, metadata: ModelMetadata, config: TrainingConfig, device: torch.device, number: int) -> None:
        self.number = number
        self.generator = torch.Generator(device).manual_seed(_seed(config.seed, number))
        self.fields = FieldSource(metadata, self.generator, bank=-(-config.bank // config.portions))

    def choose(self, images: int, count: int) -> Tensor:
        """Numbers of ``count`` of so many images."""
        return torch.randint(images, (count,), generator=self.generator, device=self.generator.device)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "generator": self.generator.get_state(),
            "bank": [self.fields.levels, *self.fields.fields],
            "draws": self.fields.draws,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on as if nothing had happened."""
        self.generator.set_state(state["generator"].cpu())
        levels, ddf, step = state["bank"]
        self.fields.levels, self.fields.draws = levels, state["draws"]
        self.fields.fields = Diffusion(ddf, step)


def _seed(run_seed: int, number: int) -> int:
    if number == 0:
        return run_seed
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{number}".encode()).digest()[:8], "big") >> 1
