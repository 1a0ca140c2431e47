"""Algorithm 1, and what a run of it consists of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..diffusion.fields import warp
from ..errors import FallbackWarning, SettingError
from ..models.model import ModelMetadata
from ..networks import build_network
from ..runtime.distributed import Place
from ..runtime.fallback import Shortage, release_memory, shortage
from .augmentation import augment_images
from .config import TrainingConfig
from .field_sampler import FieldSource
from .losses import LossTerms, RecoveryLoss, Residual
from .streams import Stream


def training_step(
    network: nn.Module,
    images: Tensor,
    fields: FieldSource,
    loss: RecoveryLoss | Residual,
    augment: Callable[[Tensor, torch.Generator], Tensor],
) -> LossTerms:
    """Algorithm 1 of the paper, one step: deform a batch to random levels, predict the last small steps, compare.

    With the loss :class:`Residual` all of the deformation is to be predicted, not only its last step.

    Args:
        images: (N, 1, *S), 0..1.
    """
    originals = augment(images, fields.generator)
    t, (psi_all, psi_t) = fields.draw(len(originals))
    deformed = warp(originals, psi_all, padding=fields.model.image_padding)
    if isinstance(loss, Residual):
        return loss(network(deformed, t, torch.full_like(t, -1)).float(), psi_all)
    return loss(network(deformed, t).float(), psi_t)


class Training:
    """State of a run: everything that a checkpoint must hold to go on as if nothing had happened.

    Of several processes each has all of it but the random numbers: those of the portions that it works on.

    Raises:
        SettingError: the batch cannot be shared equally.
    """

    def __init__(
        self, metadata: ModelMetadata, config: TrainingConfig, device: torch.device, place: Place | None = None
    ) -> None:
        self.place = place or Place()
        _require_equal_shares(config, self.place.world)
        torch.manual_seed(config.seed)
        self.metadata, self.config, self.device = metadata, config, device
        self.network = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        self.network.to(device).train()
        self.average = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        self.average.to(device).eval()
        self.average.load_state_dict(self.network.state_dict())
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=config.learning_rate)
        # Adds up gradients over all processes while they are computed.
        self.trained: nn.Module = DistributedDataParallel(self.network) if self.place.world > 1 else self.network
        numbers = range(self.place.rank, config.portions, self.place.world)
        self.streams = [Stream(metadata, config, device, number) for number in numbers]
        self.loss = Residual() if metadata.options.get("whole") else RecoveryLoss(config.loss)
        on_gpu = device.type == "cuda"
        self.half = on_gpu if config.half_precision is None else config.half_precision
        self.batch = config.batch
        self.step = 0
        self.seconds = 0.0

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        c, padding = self.config, self.metadata.image_padding
        return augment_images(
            images, generator, rotation=c.rotation, zoom=c.zoom, shift=c.shift, tones=c.tones, padding=padding
        )

    def progress(self) -> float:
        """0 at the start, 1 at the end of the run."""
        if self.config.steps is not None:
            return self.step / max(1, self.config.steps)
        return self.seconds / max(1e-9, 60 * self.config.minutes)

    def learning_rate(self) -> float:
        """Linear rise, then a cosine fall to a hundredth, or none."""
        rise = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        fall = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress()))) if self.config.decay else 1.0
        return self.config.learning_rate * min(rise, fall)

    def advance(self, images: Tensor) -> LossTerms:
        """One optimiser step on a random batch of ``images`` (M, 1, *S); a smaller one from when memory is short.

        Raises:
            SettingError: there is not even memory for one image.
        """
        while True:
            try:
                return self._advance(images)
            except Exception as error:
                if shortage(error, self.device) is not Shortage.MEMORY:
                    raise
            self.optimiser.zero_grad(set_to_none=True)
            release_memory(self.device)
            if self.place.world > 1:
                # The others wait for this process in the middle of the step.
                raise SettingError(f"The memory of '{self.device}' is too small; use a higher --accumulate.")
            if self.batch == self.config.portions:
                raise SettingError(
                    f"The memory of '{self.device}' does not hold one image of this size; use a smaller size or model, "
                    "or another device."
                )
            self.batch = max(self.config.portions, self.batch // 2)
            told = f"Memory is short on '{self.device}'; training goes on with {self.batch} images a step."
            warnings.warn(told, FallbackWarning, stacklevel=3)

    def _advance(self, images: Tensor) -> LossTerms:
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        parts = []
        for stream in self.streams:
            with self._alone(stream is not self.streams[-1]):
                terms = self._portion(images, stream)
                (terms.total / len(self.streams)).backward()
            parts.append(torch.stack([term.detach().float() for term in terms]))
        means = torch.stack(parts).mean(dim=0)
        if self.place.world > 1:
            distributed.all_reduce(means)
            means /= self.place.world
        if self.config.clip > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimiser.step()
        self.step += 1
        self._average_weights()
        return LossTerms(*means.unbind())

    def _alone(self, yes: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, with the last portion."""
        return self.trained.no_sync() if yes and isinstance(self.trained, DistributedDataParallel) else nullcontext()

    def _portion(self, images: Tensor, stream: Stream) -> LossTerms:
        chosen = stream.choose(len(images), self.batch // self.config.portions)
        batch = images[chosen].to(self.device).float() / 255.0
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            return training_step(self.trained, batch, stream.fields, self.loss, self._augment)

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.ema, self.step / (self.step + 10.0))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint besides the streams: tensors and plain values, so that nothing is executed."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "metadata": asdict(self.metadata),
            "config": asdict(self.config),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; the streams have their own.

        Raises:
            SettingError: it belongs to another network, or its steps were portioned otherwise.
        """
        ours, theirs = asdict(self.metadata), state["metadata"]
        for key in ("architecture", "options", "ndim", "size", "timesteps"):
            if ours[key] != theirs[key]:
                raise SettingError(
                    f"The run to resume has {key} {theirs[key]}, not {ours[key]}; give its settings or a new folder."
                )
        if state["config"]["portions"] != self.config.portions:
            raise SettingError(
                f"The run to resume works on a step in {state['config']['portions']} portions, which "
                f"{self.place.world} processes with --accumulate {len(self.streams)} do not make; change these."
            )
        # What the first session said of the model holds, unless this one says it anew.
        said = {k: v for k in ("anatomy", "modality", "training_data", "licence") if (v := ours[k])}
        self.metadata = replace(ModelMetadata.from_dict(theirs), **said)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    @torch.no_grad()
    def validation_loss(self, images: Tensor, most: int = 8) -> float:
        """Distance term of the averaged weights on images left out of training; the same draws each time."""
        generator = torch.Generator(self.device).manual_seed(12345)
        fields = FieldSource(self.metadata, generator)
        total, batches = 0.0, min(most, len(images))
        for index in range(batches):
            at = torch.arange(index * 2, index * 2 + 2) % len(images)
            batch = images[at.to(images.device)].to(self.device).float() / 255.0
            total += float(training_step(self.average, batch, fields, self.loss, lambda x, _: x).distance)
        return total / batches


def _require_equal_shares(config: TrainingConfig, world: int) -> None:
    if config.portions % world:
        raise SettingError(f"{config.portions} portions cannot be shared by {world} processes; use a multiple of them.")
    if config.batch % config.portions:
        raise SettingError(
            f"A batch of {config.batch} cannot be worked on in {config.portions} equal portions (processes times "
            "--accumulate); use a multiple of them."
        )
