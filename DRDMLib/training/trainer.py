"""One step of Algorithm 1, and the state of a training run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..diffusion.fields import warp
from ..errors import FallbackWarning, SettingError
from ..models.metadata import ModelMetadata
from ..networks import build_network
from ..runtime.distributed import ProcessInfo
from ..runtime.fallback import DeviceLimit, device_limit, release_memory
from .augmentation import augment_images
from .config import TrainingConfig
from .field_sampler import FieldSampler, MicroBatchSampler
from .losses import LossTerms, RecoveryLoss, Residual


def training_step(
    network: nn.Module,
    images: Tensor,
    fields: FieldSampler,
    loss: RecoveryLoss | Residual,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    *,
    half: bool = False,
) -> LossTerms:
    """Compute the loss of a batch (Algorithm 1): deform images to random levels, predict the last steps, compare.

    With the loss :class:`Residual` the network predicts the whole deformation instead of its last step.

    Args:
        images: (N, 1, *S), 0..1.
        half: run the network in bfloat16. Fields and sampling positions need 32 bits.
    """
    originals = augment(images, fields.generator)
    t, (psi_all, psi_t) = fields.draw(len(originals))
    deformed = warp(originals, psi_all, padding=fields.model.image_padding)
    whole = isinstance(loss, Residual)
    with torch.autocast(deformed.device.type, dtype=torch.bfloat16, enabled=half):
        predicted = network(deformed, t, torch.full_like(t, -1)) if whole else network(deformed, t)
    return loss(predicted.float(), psi_all if whole else psi_t)


class Trainer:
    """The state of a run: everything that a checkpoint needs to continue as if there had been no interruption.

    With several processes, each one has the whole state, but only the random numbers of its own micro-batches.

    Args:
        weights: state of the network to start from; by default new random weights.

    Raises:
        SettingError: the batch cannot be shared equally among micro-batches or processes.
    """

    def __init__(
        self,
        metadata: ModelMetadata,
        config: TrainingConfig,
        device: torch.device,
        process: ProcessInfo | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.process = process or ProcessInfo()
        _require_equal_shares(config, self.process.world)
        torch.manual_seed(config.seed)
        self.metadata, self.config, self.device = metadata, config, device
        self.network = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        if weights is not None:
            self.network.load_state_dict(weights)
        self.network.to(device).train()
        self.average = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        self.average.to(device).eval()
        self.average.load_state_dict(self.network.state_dict())
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        # With several processes, averages the gradients while they are computed.
        self.trained: nn.Module = DistributedDataParallel(self.network) if self.process.world > 1 else self.network
        numbers = range(self.process.rank, config.micro_batches, self.process.world)
        self.samplers = [MicroBatchSampler(metadata, config, device, number) for number in numbers]
        self.loss = Residual() if metadata.options.get("whole") else RecoveryLoss(config.loss)
        on_gpu = device.type == "cuda"
        self.half = on_gpu if config.half_precision is None else config.half_precision
        # Images computed at a time; reduced when memory is short.
        self.chunk = config.batch // config.micro_batches
        self.step = 0
        self.seconds = 0.0

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        c = self.config
        return augment_images(
            images,
            generator,
            rotation=c.rotation,
            zoom=c.zoom,
            shift=c.shift,
            random_contrast=c.random_contrast,
            padding=self.metadata.image_padding,
            size=self.metadata.size,
            mirror_axes=c.mirror_axes,
            partial_views=c.partial_views,
            scanner_effects=c.scanner_effects,
        )

    def progress(self) -> float:
        """Return the progress of the run, from 0 at its start to 1 at its end."""
        if self.config.steps is not None:
            return self.step / max(1, self.config.steps)
        return self.seconds / max(1e-9, 60 * self.config.minutes)

    def learning_rate(self) -> float:
        """Return the learning rate: a linear warm-up, then with ``decay`` a cosine down to 1 % of the peak."""
        rise = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        fall = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress()))) if self.config.decay else 1.0
        return self.config.learning_rate * min(rise, fall)

    def advance(self, images: Tensor) -> LossTerms:
        """Take one optimizer step on a random batch of ``images``, in smaller parts when memory is short.

        Args:
            images: (M, 1, *S), uint8, all training images.

        Raises:
            SettingError: the memory does not hold one image; with several processes, it does not hold a micro-batch.

        Warns:
            FallbackWarning: memory is short.
        """
        while True:
            try:
                return self._advance(images)
            except Exception as error:
                if device_limit(error, self.device) is not DeviceLimit.MEMORY:
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            release_memory(self.device)
            if self.process.world > 1:
                # The other processes wait for this one in the middle of the step.
                raise SettingError(f"The memory of '{self.device}' is too small; use a smaller --batch.")
            if self.chunk == 1:
                raise SettingError(
                    f"The memory of '{self.device}' does not hold one image of this size; use a smaller size or model, "
                    "or another device."
                )
            self.chunk //= 2
            text = f"Memory is low on '{self.device}'; the images of a step are computed {self.chunk} at a time."
            warnings.warn(text, FallbackWarning, stacklevel=3)

    def _advance(self, images: Tensor) -> LossTerms:
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        means = torch.stack([self._micro_batch(images, sampler) for sampler in self.samplers]).mean(dim=0)
        if self.process.world > 1:
            distributed.all_reduce(means)
            means /= self.process.world
        if self.config.clip > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self._average_weights()
        return LossTerms(*means.unbind())

    def _micro_batch(self, images: Tensor, sampler: MicroBatchSampler) -> Tensor:
        """Add the gradients of one micro-batch and return its loss terms, (4,)."""
        chosen = sampler.choose(len(images), self.config.batch // self.config.micro_batches)
        batch = images[chosen].to(self.device).float() / 255.0
        parts = batch.split(self.chunk)
        means = []
        for number, part in enumerate(parts, start=1):
            last = sampler is self.samplers[-1] and number == len(parts)
            share = len(part) / len(batch)
            with self._gradient_exchange(last):
                terms = training_step(self.trained, part, sampler.fields, self.loss, self._augment, half=self.half)
                (terms.total * share / len(self.samplers)).backward()
            means.append(torch.stack([term.detach().float() for term in terms]) * share)
        return torch.stack(means).sum(dim=0)

    def _gradient_exchange(self, enabled: bool) -> AbstractContextManager[None]:
        """Enable the exchange of gradients between processes, or not; it is needed once per step, for the last part."""
        if not enabled and isinstance(self.trained, DistributedDataParallel):
            return self.trained.no_sync()
        return nullcontext()

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.ema, self.step / (self.step + 10.0))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint without the samplers.

        It has tensors and plain values only, so that reading it executes no code.
        """
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "metadata": asdict(self.metadata),
            "config": self.config.to_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; the samplers are restored separately.

        Raises:
            SettingError: the checkpoint belongs to another network or number of micro-batches.
        """
        ours, theirs = asdict(self.metadata), state["metadata"]
        for key in ("architecture", "options", "ndim", "size", "timesteps"):
            if ours[key] != theirs[key]:
                raise SettingError(
                    f"The run to resume has {key} {theirs[key]}, not {ours[key]}; use its settings or a new folder."
                )
        parts = state["config"]["portions"]
        if parts != self.config.micro_batches:
            raise SettingError(
                f"The run to resume shares each batch among {parts} processes or a divisor of {parts}, not among "
                f"{self.config.micro_batches}; start that number of processes."
            )
        # The description of the first session is kept, unless this one gives a new one.
        given = {k: v for k in ("anatomy", "modality", "training_data", "licence") if (v := ours[k])}
        self.metadata = replace(ModelMetadata.from_dict(theirs), **given)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    @torch.no_grad()
    def validation_loss(self, images: Tensor, most: int = 8) -> float:
        """Return the mean distance term of the averaged weights on held-out images (K, 1, *S), uint8.

        The random fields are the same at every call.
        """
        generator = torch.Generator(self.device).manual_seed(12345)
        fields = FieldSampler(self.metadata, generator)
        total, batches = 0.0, min(most, len(images))
        for index in range(batches):
            at = torch.arange(index * 2, index * 2 + 2) % len(images)
            batch = images[at.to(images.device)].to(self.device).float() / 255.0
            total += float(training_step(self.average, batch, fields, self.loss, lambda x, _: x).distance)
        return total / batches


def _require_equal_shares(config: TrainingConfig, processes: int) -> None:
    if config.micro_batches % processes:
        raise SettingError(
            f"{config.micro_batches} micro-batches cannot be shared by {processes} processes; use a multiple of "
            f"{processes}."
        )
    if config.batch % config.micro_batches:
        raise SettingError(
            f"A batch of {config.batch} images cannot be shared equally by {config.micro_batches} processes; use a "
            f"multiple of {config.micro_batches}."
        )
