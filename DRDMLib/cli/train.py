"""The command ``drdm train``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from dataclasses import replace
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
from ..training.adaptation import (
    DEFAULT_MINUTES,
    STATE,
    adapt,
    adaptation_config,
    adapted_metadata,
    load_source,
    require_subjects,
)
from ..training.checkpoint import earlier_training
from ..training.config import FIELD_POOL, default_batch
from ..training.data import load_subjects, scan_digests, split, together, usable_images
from ..training.loop import last_validation
from ..training.run_file import has_checkpoint, is_training, require_own_folder

_DESCRIBED = ("anatomy", "modality", "training_data", "licence")
# Options that describe a new model; by default they are those of ModelDesign.
_DESIGN = ("ndim", "size", "architecture", "width", "depth", "target", "field", "outside")
_MINUTES = 60.0


def train(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm train``."""
    if options.source is not None:
        adapt_model(options, reporter)
        return
    run, process = Path(options.output), current_process()
    # Processes that their launcher restarts after a failure continue from their last checkpoint.
    resume = options.resume or process.restarts > 0
    if process.first:
        run_folder.require_inactive(run)
    if (run / STATE).is_file():
        raise output.holds_a_run(run) if not resume else SettingError(f"The run in '{run}' adapts a model; add --from.")
    if process.first and not resume:
        if has_checkpoint(run):
            raise output.holds_a_run(run)
        # A training that was killed before its first checkpoint starts again in its folder.
        if not is_training(run):
            output.require_empty_folder(run, besides=run_folder.BEGINNINGS)
    require_own_folder(run)
    require_no_links_out(run)
    device = choose_device(options.device)
    written = earlier_training(run) if resume else None
    earlier = written and written["settings"]
    design = design_from(options, run)
    config = config_from(options, device.type, process.world, earlier)
    metadata = design.metadata()
    build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
    cases = datasets.find_cases(options.dataset, labels=False)
    on_case = (lambda d, n: reporter.progress("read", d, n)) if process.first else None
    # Before reading, so that a file that changes meanwhile is noticed when the training is resumed.
    digests = scan_digests(cases)
    usable = usable_images(cases, metadata, plane=options.plane, on_case=on_case)
    # After reading, so that images for training remain where some cases cannot be used.
    kept, left_out = split([images for _, images in usable], options.hold_out)
    scans = {case.name: digests[case.name] for case, _ in usable}
    images, held_out = together(kept, metadata), together(left_out, metadata)
    if process.first and len(kept) + len(left_out) == 1:
        reporter.warning("There is only one scan to train on, so the model will fit no other scan; add more scans.")

    def on_checkpoint(folder: Path, model: Model) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from ..pictures import training_picture

        training_picture(model, held_out if len(held_out) else images, folder / "preview.png")

    # The first process locks the folder for all.
    with run_folder.locked_folder(run, new=not is_training(run)) if process.first else contextlib.nullcontext():
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
                data={"plane": options.plane, "hold_out": options.hold_out, "scans": scans},
                on_step=lambda step, share, figures: reporter.progress(
                    "train", round(share, 4), 1.0, step=step, **figures
                ),
                on_checkpoint=on_checkpoint,
            )
        except OSError as error:
            raise output_error(run, error) from error
    if process.first:
        _report_result(path, reporter)
    if process.world > 1:
        reporter.close()
        leave()


def _report_result(path: Path, reporter: Reporter) -> None:
    """Say where the trained model is, and whether it has learned anything."""
    loss = last_validation(path.parent)
    if loss is not None and loss >= 1:
        reporter.warning(
            f"The model has not learned anything yet: on scans left out of the training its error is {loss:.2f} of the "
            "deformation (below 1 is needed); train longer with --resume and more --minutes, or on more scans."
        )
        reporter.message(f"The model is in '{path}'.")
        return
    reporter.message(f"The model is in '{path}'; try it with: drdm deform IMAGE -o OUT --model {path}")


def adapt_model(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm train --from MODEL``.

    Raises:
        DRDMError: the model cannot be adapted, the scans do not fit it, or the folder cannot be used.
    """
    run = Path(options.output)
    if current_process().world > 1:
        raise SettingError("Adapting a model takes one process; start it without torchrun or srun.")
    run_folder.require_inactive(run)
    if not options.resume:
        if (run / STATE).is_file() or has_checkpoint(run):
            raise output.holds_a_run(run)
        output.require_empty_folder(run, besides=run_folder.BEGINNINGS)
    elif is_training(run):
        raise SettingError(f"The run in '{run}' trains a new model; resume it without --from.")
    require_no_links_out(run)
    source = load_source(options.source, options.device)
    metadata = source.model.metadata
    given = next((key for key in _DESIGN if getattr(options, key) not in (None, getattr(metadata, key, None))), None)
    if given or options.published:
        raise SettingError(
            f"--{given or 'published'} is for new models; leave it out, or choose another model to start from, because "
            f"'{metadata.name}' has {metadata.ndim} dimensions and {metadata.size} voxels along each side."
        )
    described = dict(_described(options))
    cases = datasets.find_cases(options.dataset, options.subject, labels=False)
    subjects = load_subjects(
        cases, metadata, plane=options.plane, on_case=lambda done, total: reporter.progress("read", done, total)
    )
    require_subjects(len(subjects))
    options.minutes = options.minutes or DEFAULT_MINUTES
    config = config_from(options, source.model.device.type, 1)
    if options.learning_rate is None:
        config = replace(config, learning_rate=adaptation_config(source.model.device.type).learning_rate)
    name = options.name or run.resolve().name
    with run_folder.locked_folder(run, new=not (run / STATE).is_file()):
        try:
            made = adapt(
                source,
                subjects,
                adapted_metadata(metadata, name, len(cases), **described),
                config,
                run,
                device=source.model.device,
                resume=options.resume,
                on_step=lambda step, share, figures: reporter.progress(
                    "train", round(share, 4), 1.0, step=step, **figures
                ),
            )
        except OSError as error:
            raise output_error(run, error) from error
    reporter.message(made.sentence())
    reporter.message(f"The model is in '{made.path}'; try it with: drdm deform IMAGE -o OUT --model {made.path}")


def design_from(options: argparse.Namespace, run: Path) -> ModelDesign:
    """Return the model to train, as given by the options.

    Raises:
        SettingError: the size is not a multiple of 8, or a description is not KEY=TEXT with a known key.
    """
    given = {key: getattr(options, key) for key in _DESIGN if getattr(options, key) is not None}
    return ModelDesign(
        name=options.name or run.resolve().name,
        published=options.published,
        description=tuple(_described(options)),
        **({"padding": given.pop("outside")} if "outside" in given else {}),
        **given,
    )


def _described(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the keys and texts of ``--describe``.

    Raises:
        SettingError: one is not KEY=TEXT with a known key.
    """
    described = []
    for text in options.describe:
        key, separator, value = text.partition("=")
        if not separator or key not in _DESCRIBED:
            raise SettingError(f"--describe '{text}' is not valid; use KEY=TEXT with one of {', '.join(_DESCRIBED)}.")
        described.append((key, value))
    return described


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
        minutes=options.minutes or _MINUTES,
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
