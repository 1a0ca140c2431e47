"""The command ``drdm train``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from pathlib import Path
from typing import Any

from .. import output
from ..errors import SettingError
from ..io import datasets
from ..io.files import output_error, require_no_links_out
from ..models.model import Model
from ..networks import build_network
from ..production import run_folder
from ..runtime.device import choose_device
from ..runtime.distributed import current_process, leave
from ..runtime.reporter import Reporter
from ..training import ModelDesign, TrainingConfig
from ..training import train as run_training
from ..training.checkpoint import CHECKPOINT, config_of
from ..training.config import FIELD_POOL, default_batch
from ..training.data import split, together, usable_images

_DESCRIBED = ("anatomy", "modality", "training_data", "licence")


def train(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm train``."""
    run, process = Path(options.output), current_process()
    # Processes that their launcher restarts after a failure continue from their last checkpoint.
    resume = options.resume or process.restarts > 0
    if process.first:
        run_folder.require_inactive(run)
    if process.first and not resume:
        if (run / CHECKPOINT).is_file():
            raise output.holds_a_run(run)
        output.require_empty_folder(run, besides=run_folder.BEGINNINGS)
    if resume:
        require_no_links_out(run)
    device = choose_device(options.device)
    earlier = config_of(run) if resume else None
    design = design_from(options, run)
    config = config_from(options, device.type, process.world, earlier)
    metadata = design.metadata()
    build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
    cases = datasets.find_cases(options.dataset)
    on_case = (lambda d, n: reporter.progress("read", d, n)) if process.first else None
    # Split after reading, so that images for training remain where some cases cannot be used.
    kept, left_out = split(usable_images(cases, metadata, plane=options.plane, on_case=on_case), options.hold_out)
    images, held_out = together(kept, metadata), together(left_out, metadata)

    def on_checkpoint(folder: Path, model: Model) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from ..pictures import training_picture

        training_picture(model, held_out if len(held_out) else images, folder / "preview.png")

    # The first process locks the folder for all.
    with run_folder.locked_folder(run, new=not resume) if process.first else contextlib.nullcontext():
        try:
            path = run_training(
                images,
                held_out,
                metadata,
                config,
                run,
                device=options.device,
                process=process,
                resume=resume,
                on_step=lambda step, share, figures: reporter.progress(
                    "train", round(share, 4), 1.0, step=step, **figures
                ),
                on_checkpoint=on_checkpoint,
            )
        except OSError as error:
            raise output_error(run, error) from error
    if process.first:
        reporter.message(f"The model is in '{path}'; try it with: drdm deform IMAGE -o OUT --model {path}")
    if process.world > 1:
        reporter.close()
        leave()


def design_from(options: argparse.Namespace, run: Path) -> ModelDesign:
    """Return the model to train, as given by the options.

    Raises:
        SettingError: the size is not a multiple of 8, or a description is not KEY=TEXT with a known key.
    """
    described = []
    for text in options.describe:
        key, separator, value = text.partition("=")
        if not separator or key not in _DESCRIBED:
            raise SettingError(f"--describe '{text}' is not valid; use KEY=TEXT with one of {', '.join(_DESCRIBED)}.")
        described.append((key, value))
    return ModelDesign(
        name=options.name or run.resolve().name,
        ndim=options.ndim,
        size=options.size,
        architecture=options.architecture,
        width=options.width,
        depth=options.depth,
        target=options.target,
        field=options.field,
        padding=options.outside,
        published=options.published,
        description=tuple(described),
    )


def config_from(
    options: argparse.Namespace, device: str, processes: int, earlier: dict[str, Any] | None = None
) -> TrainingConfig:
    """Return the settings of training, as given by the options.

    Args:
        device: type of the device; determines the default batch and learning rate.
        processes: number of processes that train together.
        earlier: settings of the run to resume.
    """
    # A resumed run keeps its micro-batches, so that it continues as if it had not been interrupted.
    kept = earlier["portions"] if earlier and earlier["portions"] % processes == 0 else processes
    batch, learning_rate = default_batch("cpu" if options.published else device, kept)
    defaults = {"batch": batch, "learning_rate": learning_rate} | (earlier or {})
    config = TrainingConfig(
        steps=options.iterations,
        minutes=options.minutes,
        batch=options.batch or defaults["batch"],
        micro_batches=kept,
        learning_rate=options.learning_rate or defaults["learning_rate"],
        ema=0.998,
        rotation=options.rotation,
        zoom=(options.zoom[0], options.zoom[1]),
        shift=options.shift,
        field_pool=FIELD_POOL,
        seed=options.seed,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    return config.published() if options.published else config
