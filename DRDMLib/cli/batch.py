"""``drdm augment``, ``synthesize`` and ``regenerate``: from options to a run over a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..production.limits import Limits
from ..production.plan import AUGMENT, SYNTHESIZE, Settings
from ..production.regenerate import regenerate as regenerate_sample
from ..production.run import produce
from ..runtime.distributed import place_here
from .progress import Reporter


def augment(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm augment``."""
    levels = tuple((level,) for level in dict.fromkeys(options.levels))
    _produce(options, reporter, Settings(AUGMENT, levels, **_common(options)))


def synthesize(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm synthesize``."""
    pairs = tuple(dict.fromkeys(options.levels))
    more: dict[str, Any] = {"voxel_fields": options.voxel_fields, "split": tuple(options.split)}
    _produce(options, reporter, Settings(SYNTHESIZE, pairs, **_common(options), **more))


def _common(options: argparse.Namespace) -> dict[str, Any]:
    limits = Limits(
        folded=options.max_folded,
        least_mm=options.min_mm,
        most_mm=options.max_mm,
        inside=options.labels_inside,
        draws=options.draws,
    )
    names = ("copies", "seed", "steps", "pose", "plane", "quality")
    return {name: getattr(options, name) for name in names} | {"limits": limits}


def _produce(options: argparse.Namespace, reporter: Reporter, settings: Settings) -> None:
    place = place_here(options.share)
    run = produce(
        options.dataset,
        options.output,
        settings,
        reporter,
        model=options.model,
        device=options.device,
        place=place,
        resume=options.resume or place.restarts > 0,
        subject_pattern=options.subject,
    )
    if len(run.done) == len(run.plan.tasks):
        reporter.message(run.summary())
    else:
        reporter.message(f"Share {place.rank + 1} of {place.world} is done; others are still at work.")


def regenerate(options: argparse.Namespace, reporter: Reporter) -> None:
    """``drdm regenerate``."""
    made = regenerate_sample(
        options.record,
        options.output,
        model=options.model,
        image=options.image,
        label=options.label,
        device=options.device,
        on_step=lambda done, total: reporter.progress("regenerate", done, total),
    )
    for text in made.elsewhere:
        reporter.message(f"Not as it was then: {text}.")
    if made.differing:
        kinds = ", ".join(made.differing)
        raise OutputError(
            f"Made again, but not the same to the bit ({kinds}); use the software and device of the record."
        )
    reporter.message(f"Made again, the same to the bit: {len(made.files)} files in '{Path(options.output)}'.")
