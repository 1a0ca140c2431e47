"""A training run: checkpoints, resuming, log and pictures, by one process or several."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import SettingError
from ..models.model import Model, ModelMetadata, save_model
from ..runtime.device import choose_device
from ..runtime.distributed import Place, process_group
from .checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .log import RunLog
from .losses import LossTerms
from .trainer import Training

__all__ = ["Training", "TrainingConfig", "train"]

StepReport = Callable[[int, float, dict[str, float]], None]
CheckpointReport = Callable[[Path, Model], None]


def train(
    images: Tensor,
    held_out: Tensor,
    metadata: ModelMetadata,
    config: TrainingConfig,
    run: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    place: Place | None = None,
    resume: bool = False,
    on_step: StepReport | None = None,
    on_checkpoint: CheckpointReport | None = None,
) -> Path:
    """Train a model and write it to a folder; can be cancelled and resumed at any time.

    Args:
        images: (M, 1, *S), uint8, training images on the model's grid.
        held_out: (K, 1, *S), uint8, images for the validation loss; may be empty.
        metadata: the model to train; its ``training`` is filled in.
        run: folder that gets ``checkpoint.pt``, ``model.safetensors``, ``log.csv`` and TensorBoard's events.
        place: this process among several that train one model together; all are given the same images.
        resume: go on from ``checkpoint.pt`` if it is there.
        on_step: called with (step, progress 0..1, figures); may raise to cancel. With one process a checkpoint is
            written then; with several the last one remains.
        on_checkpoint: called with the folder and the model so far, e.g. to draw a picture.

    Returns:
        Path of ``model.safetensors``.

    Raises:
        SettingError: the device is not there, the batch cannot be shared equally, or the run to resume has another
            network.
    """
    run, place = Path(run), place or Place()
    run.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(place.device(str(device)))
    with process_group(place, chosen):
        training = Training(metadata, config, chosen, place)
        if resume and (run / CHECKPOINT).is_file():
            load_checkpoint(run, training)
        session = _Session(training, images.to(chosen), held_out, run, on_step, on_checkpoint)
        session.go_on()
    return run / "model.safetensors"


class _Session:
    """From one start of a run to its end, or to where it is stopped."""

    def __init__(
        self,
        training: Training,
        images: Tensor,
        held_out: Tensor,
        run: Path,
        on_step: StepReport | None,
        on_checkpoint: CheckpointReport | None,
    ) -> None:
        self.training, self.images, self.held_out, self.run = training, images, held_out, run
        self.first, self.alone = training.place.first, training.place.world == 1
        self.on_step = on_step if self.first else None
        self.on_checkpoint = on_checkpoint
        self.log = RunLog(run, resumed_at=training.step) if self.first else None
        self.saved = time.monotonic()

    def go_on(self) -> None:
        """Train to the end, with a checkpoint now and then."""
        training = self.training
        terms: LossTerms | None = None
        try:
            while training.progress() < 1:
                begin = time.monotonic()
                terms = training.advance(self.images)
                if not torch.isfinite(terms.total):
                    terms = None
                    raise SettingError(
                        "The training diverged (its loss is not finite); resume with a lower learning rate."
                    )
                if training.device.type == "cuda" and training.step % 20 == 0:
                    torch.cuda.synchronize()
                due = self._agree(time.monotonic() - begin)
                if self.on_step is not None and training.step % 10 == 0:
                    self.on_step(training.step, training.progress(), {"loss": float(terms.total)})
                if due:
                    self.save(terms)
                    self.saved = time.monotonic()
        except BaseException:
            # Several processes are not at the same step then: their last common checkpoint remains.
            if not self.alone:
                terms = None
            raise
        finally:
            if terms is not None:
                self.save(terms)

    def _agree(self, seconds: float) -> bool:
        """Add up the time, and say whether a checkpoint is due; of several processes the first one's clock counts."""
        due = time.monotonic() - self.saved > 60 * self.training.config.checkpoint_minutes
        if not self.alone:
            told = torch.tensor([seconds, float(due)], dtype=torch.float64, device=self.training.device)
            distributed.broadcast(told, 0)
            seconds, due = float(told[0]), bool(told[1])
        self.training.seconds += seconds
        return due

    def save(self, terms: LossTerms) -> None:
        """Log and checkpoint; all processes come here after the same step."""
        training = self.training
        if self.log is not None:
            row = {
                "loss": terms.total,
                "distance": terms.distance,
                "angle": terms.angle,
                "regularity": terms.regularity,
            }
            figures = {name: float(value) for name, value in row.items()}
            figures["validation"] = training.validation_loss(self.held_out) if len(self.held_out) else math.nan
            figures["learning_rate"] = training.learning_rate()
            self.log.write(training.step, training.seconds, figures)
        save_checkpoint(self.run, training, training.place)
        if not self.first:
            return
        described = replace(training.metadata, training=_provenance(training, len(self.images)))
        save_model(self.run / "model.safetensors", training.average, described)
        if self.on_checkpoint is not None:
            self.on_checkpoint(self.run, Model(training.average, described, training.device))


def _provenance(training: Training, images: int) -> dict[str, Any]:
    return asdict(training.config) | {
        "images": images,
        "batch": training.batch,
        "processes": training.place.world,
        "steps_done": training.step,
        "minutes_done": round(training.seconds / 60, 2),
        "device": str(training.device),
    }
