"""Run a training: checkpoints, resuming, log and pictures, with one process or several."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import SettingError
from ..io.files import sync
from ..models.metadata import ModelMetadata
from ..models.model import Model, save_model
from ..runtime.device import choose_device
from ..runtime.distributed import ProcessInfo, process_group
from .checkpoint import earlier_training, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .losses import LossTerms
from .run_file import (
    MODEL,
    described,
    digests_of,
    has_checkpoint,
    read_run_file,
    require_own_folder,
    require_same_training,
    write_run_file,
)
from .stopping import StopAfterStep
from .trainer import Trainer

__all__ = ["Trainer", "TrainingConfig", "train"]

LOG_COLUMNS = ["step", "seconds", "loss", "distance", "angle", "regularity", "validation", "learning_rate"]

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
    process: ProcessInfo | None = None,
    resume: bool = False,
    data: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    on_step: StepReport | None = None,
    on_checkpoint: CheckpointReport | None = None,
) -> Path:
    """Train a model and write it to a folder. Training can be canceled and resumed at any time.

    Args:
        images: (M, 1, *S), uint8, training images on the model's grid, or on a finer grid of the same extent.
        held_out: (K, 1, *S), uint8, images for the validation loss; may be empty.
        metadata: the model to train; its ``training`` is filled in.
        run: folder for ``train.json``, ``checkpoint.pt``, ``model.safetensors``, ``log.csv`` and TensorBoard's events;
            new, empty, or that of a training.
        process: this process among several that train one model together; all of them need the same images.
        resume: continue from the checkpoint if the folder has one; model, settings and data must be the same.
        data: describes the images in the run file, as plain values, see :func:`DRDMLib.training.run_file.described`; by
            default digests of both tensors.
        weights: state of the network to start from; by default new random weights.
        on_step: called with (step, progress 0..1, figures); may raise an exception to cancel. One process then writes a
            checkpoint before it stops; several processes keep their last common one. Ctrl-C and a termination also stop
            one process after the step that it is in.
        on_checkpoint: called with the folder and the current model, e.g. to draw a picture.

    Returns:
        Path of ``model.safetensors``.

    Raises:
        SettingError: the device is not available, the batch cannot be shared equally, the run to resume has another
            network, other settings or other data, the folder has a training and ``resume`` is false, or the training
            diverges.
        OutputError: the folder has files of something else.
    """
    run, process = Path(run), process or ProcessInfo()
    require_own_folder(run)
    if not resume and has_checkpoint(run):
        raise SettingError(f"'{run}' already contains a training; resume it, or choose a new folder.")
    run.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(process.device(str(device)))
    content = described(metadata, config, digests_of(images, held_out) if data is None else data)
    with process_group(process, chosen):
        trainer = Trainer(metadata, config, chosen, process, weights=weights)
        written = read_run_file(run)
        if has_checkpoint(run):
            load_checkpoint(run, trainer)
            require_same_training(run, content, written or earlier_training(run) or {})
        if process.first and (trainer.step == 0 or written is None):
            write_run_file(run, content)
        session = _Session(trainer, images.to(chosen), held_out, run, on_step, on_checkpoint)
        session.run_to_end()
    return run / MODEL


class _Session:
    """One session of a run, from its start to its end or interruption."""

    def __init__(
        self,
        trainer: Trainer,
        images: Tensor,
        held_out: Tensor,
        run: Path,
        on_step: StepReport | None,
        on_checkpoint: CheckpointReport | None,
    ) -> None:
        self.trainer, self.images, self.held_out, self.run = trainer, images, held_out, run
        self.first, self.alone = trainer.process.first, trainer.process.world == 1
        self.on_step = on_step if self.first else None
        self.on_checkpoint = on_checkpoint
        self.log = RunLog(run, resumed_at=trainer.step) if self.first else None
        self.saved = time.monotonic()

    def run_to_end(self) -> None:
        """Train to the end and write a checkpoint at regular intervals."""
        with StopAfterStep(self.alone) as stop:
            # Whether there are steps without a checkpoint, and all of the state belongs to the same step.
            self.unsaved: LossTerms | None = None
            try:
                self._take_steps(stop)
            finally:
                if self.unsaved is not None:
                    self.save(self.unsaved)

    def _take_steps(self, stop: StopAfterStep) -> None:
        trainer = self.trainer
        while trainer.progress() < 1:
            begin = time.monotonic()
            # Whatever ends the training in the middle of a step, the last checkpoint remains.
            self.unsaved = None
            terms = trainer.advance(self.images)
            if not torch.isfinite(terms.total):
                raise SettingError("The training diverged (its loss is not finite); resume with a lower learning rate.")
            if trainer.device.type == "cuda" and trainer.step % 20 == 0:
                torch.cuda.synchronize()
            due = self._agree(time.monotonic() - begin)
            if self.alone or trainer.progress() >= 1:
                # Several processes may be stopped at different steps; their last common checkpoint remains.
                self.unsaved = terms
            if self.on_step is not None and trainer.step % 10 == 0:
                self.on_step(trainer.step, trainer.progress(), {"loss": float(terms.total)})
            if due:
                self.save(terms)
                self.saved = time.monotonic()
            if stop.requested:
                return

    def _agree(self, seconds: float) -> bool:
        """Add the time of a step and return whether a checkpoint is due; all processes use the first one's clock."""
        due = time.monotonic() - self.saved > 60 * self.trainer.config.checkpoint_minutes
        if not self.alone:
            shared = torch.tensor([seconds, float(due)], dtype=torch.float64, device=self.trainer.device)
            distributed.broadcast(shared, 0)
            seconds, due = float(shared[0]), bool(shared[1])
        self.trainer.seconds += seconds
        return due

    def save(self, terms: LossTerms) -> None:
        """Write log and checkpoint. All processes must call this after the same step."""
        trainer = self.trainer
        if self.log is not None:
            row = {
                "loss": terms.total,
                "distance": terms.distance,
                "angle": terms.angle,
                "regularity": terms.regularity,
            }
            figures = {name: float(value) for name, value in row.items()}
            figures["validation"] = trainer.validation_loss(self.held_out) if len(self.held_out) else math.nan
            figures["learning_rate"] = trainer.learning_rate()
            self.log.write(trainer.step, trainer.seconds, figures)
        save_checkpoint(self.run, trainer, trainer.process)
        self.unsaved = None
        if not self.first:
            return
        described = replace(trainer.metadata, training=_provenance(trainer, len(self.images)))
        save_model(self.run / MODEL, trainer.average, described)
        if self.on_checkpoint is not None:
            self.on_checkpoint(self.run, Model(trainer.average, described, trainer.device))


def _provenance(trainer: Trainer, images: int) -> dict[str, Any]:
    return trainer.config.to_dict() | {
        "images": images,
        "batch": trainer.config.batch,
        "processes": trainer.process.world,
        "steps_done": trainer.step,
        "minutes_done": round(trainer.seconds / 60, 2),
        "device": str(trainer.device),
    }


def last_validation(run: Path) -> float | None:
    """Return the last validation loss in the log of a run, or ``None`` if there is none."""
    try:
        with (run / "log.csv").open(newline="", encoding="utf-8") as stream:
            losses = [float(row["validation"]) for row in csv.DictReader(stream)]
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


class RunLog:
    """The log of a run: ``log.csv``, and TensorBoard's events if tensorboard is installed."""

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
        """Write one row of the table and one point of each curve."""
        values = {"step": step, "seconds": round(seconds, 1), **figures}
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, LOG_COLUMNS).writerow(values)
            stream.flush()
            sync(stream.fileno())
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
