"""The commands ``drdm augment``, ``synthesize`` and ``regenerate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import OutputError, SettingError
from ..levels import AUTO_POSE, OWN_GRAY
from ..production.limits import Limits
from ..production.plan import AUGMENT, SYNTHESIZE, RunSettings, folder_toward, goes_toward
from ..production.regenerate import regenerate as regenerate_sample
from ..production.run import RunRequest, produce
from ..production.run_folder import earlier_run
from ..production.verify import verify as verify_run
from ..runtime.distributed import current_process
from ..runtime.reporter import Reporter
from ..settings import DeformationSettings
from .jobs import run_in_jobs
from .mirror import mirror_settings
from .region import region_settings


def augment(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm augment``."""
    levels = tuple((level,) for level in dict.fromkeys(options.levels))
    _produce(
        options, reporter, RunSettings(AUGMENT, levels, mirroring=mirror_settings(options), **common_settings(options))
    )


def synthesize(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm synthesize``."""
    pairs = tuple(dict.fromkeys(options.levels))
    more: dict[str, Any] = {"voxel_fields": options.voxel_fields, "split": tuple(options.split)}
    _produce(options, reporter, RunSettings(SYNTHESIZE, pairs, **common_settings(options), **more))


def common_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a run that both commands have, by their names in :class:`RunSettings`."""
    limits = Limits(
        folded=options.max_folded,
        least_mm=options.min_mm,
        most_mm=options.max_mm,
        inside=options.labels_inside,
        outside=options.max_outside,
        max_attempts=options.draws,
    )
    region = region_settings(options)
    pose = options.pose
    if pose is None:
        # A pose moves the whole scan.
        pose = AUTO_POSE if region is None else 0.0
    deformation = DeformationSettings(
        steps=options.steps,
        pose=pose,
        plane=options.plane,
        border=options.border,
        region=region,
        bones=options.bones,
    )
    return {
        "copies": options.copies,
        "seed": options.seed,
        "deformation": deformation,
        "limits": limits,
        "quality": options.quality,
        "label_geometry": options.label_geometry,
        "adapt": options.adapt,
        "toward": goes_toward(options.toward),
        "gray_values": getattr(options, "gray_values", OWN_GRAY),
        "file_format": options.format,
    }


def _produce(options: argparse.Namespace, reporter: Reporter, settings: RunSettings) -> None:
    if options.jobs > 1:
        if options.share is not None:
            raise SettingError("--jobs shares the work of this computer by itself; leave out --share.")
        # Checked here, since each of several processes would join a run that is already there.
        earlier_run(Path(options.output), resume=options.resume)
        run_in_jobs(options.command_line, options.jobs, reporter)
        # Nothing is left to make; this checks the folder and sums it up.
        options.resume = True
    process = current_process(options.share)
    request = RunRequest(
        dataset=Path(options.dataset),
        folder=Path(options.output),
        model=options.model,
        device=options.device,
        process=process,
        resume=options.resume or process.restarts > 0,
        subject_pattern=options.subject,
        toward=folder_toward(options.toward),
        any_pose=options.pose is None,
    )
    run = produce(request, settings, reporter)
    if len(run.done) == len(run.plan.tasks):
        reporter.message(run.summary())
    else:
        reporter.message(f"Share {process.rank + 1} of {process.world} is done; other shares are not finished yet.")


def regenerate(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm regenerate``."""
    made = regenerate_sample(
        options.record,
        options.output,
        model=options.model,
        image=options.image,
        label=options.label,
        images=options.images,
        device=options.device,
        on_step=lambda done, total: reporter.progress("regenerate", done, total),
    )
    for text in made.environment_differences:
        reporter.message(f"The record was made in another environment: {text}.")
    if made.differences:
        kinds = ", ".join(made.differences)
        raise OutputError(
            f"The new files differ from those of the record ({kinds}); use the software and device in the record."
        )
    unknown = [kind for kind in made.files if kind not in made.compared]
    if unknown:
        raise OutputError(
            f"The sample is in '{Path(options.output)}', but whether it is identical is not known: the record has no "
            f"digest of {', '.join(unknown)}; choose the unchanged record of the run."
        )
    reporter.message(f"{len(made.files)} files in '{Path(options.output)}' are identical to those of the record.")


def verify(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm verify``."""
    folder = Path(options.folder)
    damaged = verify_run(folder, on_sample=lambda done, total: reporter.progress("verify", done, total))
    for sentence in damaged:
        reporter.warning(sentence)
    if damaged:
        raise OutputError(
            f"{len(damaged)} of the files of the run in '{folder}' are not as they were written; run its command again "
            "with --resume to make them again."
        )
    reporter.message(f"All files of the run in '{folder}' are as they were written.")
