"""The model of a run that adapts one to its own images first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, SettingError
from ..models.catalogue import digest_of, resolve
from ..models.model import Model, load_model_file
from ..runtime.reporter import Reporter
from ..training.adaptation import (
    DEFAULT_MINUTES,
    adapt,
    adaptation_config,
    adapted_metadata,
    load_source,
    require_subjects,
)
from ..training.data import load_subjects
from .plan import Plan
from .run_folder import ADAPTED

# Path of the model, relative to the folder of the run.
FILE = f"{ADAPTED}/model.safetensors"


def adapt_to_cases(
    folder: Path, plan: Plan, name: str, device: str, reporter: Reporter, *, resume: bool
) -> tuple[Model, dict[str, Any]]:
    """Adapt a model to the images of a run, or continue an interrupted adaptation.

    Args:
        folder: of the run; the model is written to its folder ``adapted``.
        name: name or path of the model to start from.

    Returns:
        The adapted model and its entry in ``run.json`` and the records; the source itself if adapting did not help.

    Raises:
        DRDMError: the model cannot be adapted, or too few images fit it.
    """
    source = load_source(name, device)
    metadata = source.model.metadata
    kind = source.model.device.type
    subjects = load_subjects(
        plan.scans,
        metadata,
        plane=plan.settings.deformation.plane,
        on_case=lambda done, total: reporter.progress("read", done, total),
    )
    require_subjects(len(subjects))
    made = adapt(
        source,
        subjects,
        adapted_metadata(metadata, f"{metadata.name}-adapted", len(plan.scans)),
        adaptation_config(kind, minutes=plan.settings.adapt or DEFAULT_MINUTES, seed=plan.settings.seed),
        folder / ADAPTED,
        device=source.model.device,
        resume=resume,
        on_step=lambda step, share, figures: reporter.progress("adapt", round(share, 4), 1.0, step=step, **figures),
    )
    reporter.message(made.sentence())
    if not made.helped:
        return source.model, {"name": metadata.name, "digest": source.digest, "adaptation": made.summary}
    model = load_model_file(made.path, device)
    entry = {"name": model.metadata.name, "digest": digest_of(made.path, "sha256"), "file": FILE}
    return model, entry | {"adaptation": made.summary}


def same_adapted_model(written: dict[str, Any], name: str | None, device: str, folder: Path) -> Model:
    """Load the model that an earlier run has adapted.

    Args:
        written: entry of the model in ``run.json``.
        name: the model that was given to start from, if any.

    Raises:
        ModelError: the file is missing or has changed.
        SettingError: the run started from another model.
    """
    path, adaptation = folder / FILE, written["adaptation"]
    if name is not None and digest_of(resolve(name)[0], "sha256") != adaptation["source_digest"]:
        raise SettingError(
            f"The run in '{folder}' adapted '{adaptation['source']}', not '{name}'; give that model with --model."
        )
    if not path.is_file() or digest_of(path, "sha256") != written["digest"]:
        raise ModelError(
            f"The adapted model '{path}' is missing or has changed; restore it, or start again in a new folder."
        )
    model = load_model_file(path, device)
    model.metadata = replace(model.metadata, name=written["name"])
    return model
