"""Algorithm 1, and the run around it: checkpoints, resuming, log and pictures."""

from __future__ import annotations

import csv
import io
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device import choose_device
from ..errors import FallbackWarning, SettingError
from ..fallback import Shortage, release_memory, shortage
from ..fields import warp
from ..files import write_bytes
from ..losses import LossTerms, RecoveryLoss, Residual
from ..models import Model, ModelMetadata, save_model
from ..networks import build_network
from .augmentation import augment_images
from .fields import FieldSource

LOG_COLUMNS = ["step", "seconds", "loss", "distance", "angle", "regularity", "validation", "learning_rate"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: number of optimiser steps; ``None`` trains for ``minutes`` instead.
        minutes: time budget of all sessions together.
        batch: images a step.
        learning_rate: peak; rises over ``warmup`` steps and, with ``decay``, falls along a cosine to a hundredth.
        ema: decay of the running mean of the weights that is saved; 0 saves the weights themselves.
        rotation: largest random rotation, degrees (180 as published).
        zoom, shift: least and greatest share of the side that is seen, and how far it moves (shares of half a side).
        tones: change contrasts at random, see ``augment_images``.
        loss: ``"published"`` or ``"energy"``, see ``DRDMLib.losses``; a network that predicts whole deformations has
            its own.
        clip: largest norm of the gradient; 0 leaves it as it is, as published.
        bank: number of random fields kept for reuse, see ``FieldSource``; 0 draws each afresh, as published.
        checkpoint_minutes: how often to save, and to log a validation loss and a picture.
    """

    steps: int | None = None
    minutes: float = 60.0
    batch: int = 4
    learning_rate: float = 1e-4
    warmup: int = 100
    ema: float = 0.0
    rotation: float = 180.0
    zoom: tuple[float, float] = (0.6, 1.0)
    shift: float = 0.25
    tones: bool = False
    loss: str = "published"
    bank: int = 0
    clip: float = 1.0
    decay: bool = True
    seed: int = 0
    half_precision: bool | None = None
    checkpoint_minutes: float = 5.0


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
    """State of a run: everything that a checkpoint must hold to go on as if nothing had happened."""

    def __init__(self, metadata: ModelMetadata, config: TrainingConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.metadata, self.config, self.device = metadata, config, device
        self.network = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        self.network.to(device).train()
        self.average = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
        self.average.to(device).eval()
        self.average.load_state_dict(self.network.state_dict())
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=config.learning_rate)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.fields = FieldSource(metadata, self.generator, bank=config.bank)
        self.loss = Residual() if metadata.options.get("whole") else RecoveryLoss(config.loss)
        on_gpu = device.type == "cuda"
        self.half = on_gpu if config.half_precision is None else config.half_precision
        self.batch = config.batch
        self.step = 0
        self.seconds = 0.0

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        c = self.config
        return augment_images(images, generator, rotation=c.rotation, zoom=c.zoom, shift=c.shift, tones=c.tones)

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
            if self.batch == 1:
                raise SettingError(
                    f"The memory of '{self.device}' does not hold one image of this size; use a smaller size or model, "
                    "or another device."
                )
            self.batch //= 2
            told = f"Memory is short on '{self.device}'; training goes on with {self.batch} images a step."
            warnings.warn(told, FallbackWarning, stacklevel=3)

    def _advance(self, images: Tensor) -> LossTerms:
        chosen = torch.randint(len(images), (self.batch,), generator=self.generator, device=self.device)
        batch = images[chosen].to(self.device).float() / 255.0
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            terms = training_step(self.network, batch, self.fields, self.loss, self._augment)
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        if self.config.clip > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimiser.step()
        self.step += 1
        self._average_weights()
        return LossTerms(*(term.detach() for term in terms))

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.ema, self.step / (self.step + 10.0))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint: tensors and plain values only, so that it loads without executing anything."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "bank": [self.fields.levels, *self.fields.fields],
            "draws": self.fields.draws,
            "step": self.step,
            "seconds": self.seconds,
            "metadata": asdict(self.metadata),
            "config": asdict(self.config),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            SettingError: it belongs to another network.
        """
        ours, theirs = asdict(self.metadata), state["metadata"]
        for key in ("architecture", "options", "ndim", "size", "timesteps"):
            if ours[key] != theirs[key]:
                raise SettingError(
                    f"The run to resume has {key} {theirs[key]}, not {ours[key]}; give its settings or a new folder."
                )
        # What the first session said of the model holds, unless this one says it anew.
        said = {k: v for k in ("anatomy", "modality", "training_data", "licence") if (v := ours[k])}
        self.metadata = replace(ModelMetadata.from_dict(theirs), **said)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        levels, ddf, step = state["bank"]
        self.fields.levels, self.fields.draws = levels, state["draws"]
        self.fields.fields = type(self.fields.fields)(ddf, step)
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


def train(
    images: Tensor,
    held_out: Tensor,
    metadata: ModelMetadata,
    config: TrainingConfig,
    run: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    resume: bool = False,
    on_step: Callable[[int, float, dict[str, float]], None] | None = None,
    on_checkpoint: Callable[[Path, Model], None] | None = None,
) -> Path:
    """Train a model and write it to a folder; can be cancelled and resumed at any time.

    Args:
        images: (M, 1, *S), uint8, training images on the model's grid.
        held_out: (K, 1, *S), uint8, images for the validation loss; may be empty.
        metadata: the model to train; its ``training`` is filled in.
        run: folder that gets ``checkpoint.pt``, ``model.safetensors``, ``log.csv`` and TensorBoard's events.
        resume: go on from ``checkpoint.pt`` if it is there.
        on_step: called with (step, progress 0..1, figures); may raise to cancel, the last checkpoint remains.
        on_checkpoint: called with the folder and the model so far, e.g. to draw a picture.

    Returns:
        Path of ``model.safetensors``.

    Raises:
        SettingError: the device is not there, or the run to resume has another network.
    """
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    training = Training(metadata, config, choose_device(device))
    checkpoint = run / "checkpoint.pt"
    if resume and checkpoint.is_file():
        training.load_state(_read_checkpoint(checkpoint, training.device))
        metadata = training.metadata
    log = RunLog(run, resumed_at=training.step)
    images = images.to(training.device)

    def save(terms: LossTerms) -> None:
        figures = {"loss": terms.total, "distance": terms.distance, "angle": terms.angle}
        row = {k: float(v) for k, v in figures.items()} | {"regularity": float(terms.regularity)}
        row["validation"] = training.validation_loss(held_out) if len(held_out) else math.nan
        log.write(training.step, training.seconds, row | {"learning_rate": training.learning_rate()})
        buffer = io.BytesIO()
        torch.save(training.state(), buffer)
        write_bytes(checkpoint, buffer.getvalue())
        described = replace(metadata, training=_provenance(training, len(images)))
        save_model(run / "model.safetensors", training.average, described)
        if on_checkpoint is not None:
            on_checkpoint(run, Model(training.average, described, training.device))

    saved = time.monotonic()
    terms: LossTerms | None = None
    try:
        while training.progress() < 1:
            begin = time.monotonic()
            terms = training.advance(images)
            if not torch.isfinite(terms.total):
                terms = None
                raise SettingError("The training diverged (its loss is not finite); resume with a lower learning rate.")
            if training.device.type == "cuda" and training.step % 20 == 0:
                torch.cuda.synchronize()
            training.seconds += time.monotonic() - begin
            if on_step is not None and training.step % 10 == 0:
                on_step(training.step, training.progress(), {"loss": float(terms.total)})
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(terms)
                saved = time.monotonic()
    finally:
        if terms is not None:
            save(terms)
    return run / "model.safetensors"


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or "optimiser" not in state:
            raise ValueError
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise SettingError(f"The checkpoint '{path}' is damaged; start the run anew in another folder.") from error
    return state


def _provenance(training: Training, images: int) -> dict[str, Any]:
    return asdict(training.config) | {
        "images": images,
        "batch": training.batch,
        "steps_done": training.step,
        "minutes_done": round(training.seconds / 60, 2),
        "device": str(training.device),
    }


class RunLog:
    """``log.csv``, and TensorBoard's events where tensorboard is installed."""

    def __init__(self, run: Path, *, resumed_at: int) -> None:
        self.path = run / "log.csv"
        if resumed_at == 0 or not self.path.is_file():
            with self.path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(LOG_COLUMNS)
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"))
        except ImportError:
            pass

    def write(self, step: int, seconds: float, figures: dict[str, float]) -> None:
        """One row, one point on each curve."""
        values = {"step": step, "seconds": round(seconds, 1), **figures}
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, LOG_COLUMNS).writerow(values)
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
