"""Filling a bank of fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import __version__
from ..deformation import check_level, deform, model_for
from ..errors import OutputError, SettingError
from ..io import datasets
from ..io.datasets import Case
from ..io.files import output_error, write_bytes
from ..models.catalogue import digest_of as digest_of_model
from ..models.catalogue import load_model, resolve
from ..models.model import Model
from ..production.plan import seed_of
from ..production.sources import Source, read_source
from ..runtime.distributed import Place
from ..runtime.threads import one_thread_each
from .bank import SUFFIX, TOLD, FieldBank
from .world import WorldField, world_field


def make_bank(
    dataset: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    levels: Sequence[int] = (20, 40, 60),
    copies: int = 4,
    seed: int = 0,
    steps: int | None = None,
    pose: float = 0.0,
    device: str = "auto",
    plane: str = "auto",
    place: Place | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> FieldBank:
    """Make ``copies`` fields of each level for every image of a dataset; what is there already is kept.

    Args:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` takes it.
        folder: new, empty, or a bank of the same settings.
        model: name or path; by default the best one for each image.
        place: this process among several that share the cases.
        on_case: called with (done, total) after each case.

    Raises:
        DRDMError: an image or the model cannot be used.
        SettingError: the bank was made with other settings.
        OutputError: the folder cannot be written to.
    """
    folder, place = Path(folder), place or Place()
    cases = datasets.find_cases(dataset)
    loaded = None if model is None else load_model(model, place.device(device))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    own = cases[place.rank :: place.world]
    for number, case in enumerate(own, start=1):
        source = read_source(case, need_label=False)
        used = loaded or model_for(source.image, None, place.device(device))
        told: dict[str, Any] = {
            "levels": list(levels),
            "copies": copies,
            "seed": seed,
            "steps": steps,
            "pose": pose,
            "plane": plane,
            "model": used.metadata.name,
            "model_digest": digest_of_model(resolve(model or used.metadata.name)[0], "sha256"),
            "image_digest": source.digests["image"],
            "drdm": __version__,
        }
        path = folder / f"{case.name}{SUFFIX}"
        if not _is_there(path, told):
            with one_thread_each(used.device):
                fields = _fields(case, source, used, levels, copies, seed, steps, pose, plane)
            told["affine"] = fields[0].affine.tolist()
            # In one entry: safetensors keeps no order of several, and the same fields are to be the same bytes.
            write_bytes(path, save({"fields": torch.stack([f.vectors for f in fields])}, {TOLD: json.dumps(told)}))
        if on_case is not None:
            on_case(number, len(own))
    return FieldBank(folder)


def _is_there(path: Path, told: dict[str, Any]) -> bool:
    """Raises SettingError if the file was made otherwise, OutputError if it is none."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as stream:
            written = json.loads(stream.metadata()[TOLD])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"'{path}' is damaged; delete it and make the bank again.") from error
    for key, value in told.items():
        if written.get(key) != value:
            raise SettingError(f"The fields in '{path}' were made with other {key}; name a new folder.")
    return True


def _fields(
    case: Case,
    source: Source,
    model: Model,
    levels: Sequence[int],
    copies: int,
    seed: int,
    steps: int | None,
    pose: float,
    plane: str,
) -> list[WorldField]:
    fields = []
    for level in levels:
        check_level(model, level)
        for copy in range(copies):
            drawn = seed_of(seed, case.name, (level,), copy, 0)
            made = deform(source.image, model, level, drawn, steps, pose=pose, plane=plane)
            fields.append(world_field(made.field, source.image))
    return fields
