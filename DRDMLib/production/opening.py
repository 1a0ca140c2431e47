"""The start of a run: a folder is made ready for it, or found to be that of the same run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import __version__, output
from ..deformation import check_level, check_pose, model_for, prepare
from ..errors import DRDMError, ImageError, ModelError
from ..io import datasets
from ..io.datasets import Case
from ..io.images import read_image, read_label
from ..models.catalogue import digest_of, find, load_model, resolve
from ..models.model import Model
from ..runtime.device import choose_device
from ..runtime.distributed import Place
from . import records, run_folder
from .layouts import consecutive
from .limits import label_values
from .plan import AUGMENT, Plan
from .run_state import LOGS, Listener, Run
from .sampling import QUALITY, part_folder
from .sources import Source, read_source
from .subjects import split_subjects

_READERS = 2


def open_run(
    plan: Plan,
    dataset: Path,
    folder: Path,
    model_name: str | None,
    device: str,
    place: Place,
    resume: bool,
    listener: Listener,
) -> Run:
    """Make the folder ready, or find it so.

    Raises:
        DRDMError: as :func:`DRDMLib.production.run.produce`.
    """
    earlier = run_folder.earlier_run(folder, resume=resume or place.world > 1)
    if earlier is not None:
        run_folder.require_same(earlier, plan, choose_device(device).type, __version__, folder)
        model = _same_model(earlier["model"], model_name, device, folder)
        run = _run(plan, folder, place, model, earlier, listener)
    else:
        run = _new_run(plan, dataset, folder, model_name, device, place, listener)
    # Each time: the run may have been killed before all of them were there.
    run_folder.make_folders(folder, _folders(plan, run.description))
    return run


def _new_run(
    plan: Plan, dataset: Path, folder: Path, model_name: str | None, device: str, place: Place, listener: Listener
) -> Run:
    described = datasets.nnunet_description(dataset)
    augments = plan.settings.command == AUGMENT
    becomes, labels = consecutive(_survey(plan, listener), described) if augments else ({}, {})
    number, source, model = _first_usable(plan, model_name, device, becomes)
    for level in {level for levels in plan.settings.levels for level in levels}:
        check_level(model, level)
    check_pose(plan.settings.pose)
    subjects = [case.subject for case in plan.cases]
    description = {
        "settings": plan.settings.to_dict(),
        "cases": [{"name": case.name, "subject": case.subject} for case in plan.cases],
        "model": {
            "name": model.metadata.name,
            "digest": digest_of(resolve(model_name or model.metadata.name)[0], "sha256"),
        },
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": {str(old): new for old, new in becomes.items()},
        "labels": labels,
        "source_description": described if augments else {},
        "parts": split_subjects(subjects, plan.settings.split, plan.settings.seed),
    }
    output.prepare_folder(folder, besides=run_folder.BEGINNINGS)
    # First of all: from here on, whatever stops the run, the folder says which run it belongs to.
    run_folder.write_run(folder, description)
    if model_name is None:
        listener.message(f"Model: {model.metadata.name} (the best one here for {model.ndim}D images of this size).")
    run = _run(plan, folder, place, model, description, listener)
    run.sources[number] = source
    return run


def _folders(plan: Plan, description: dict[str, Any]) -> list[str]:
    names = [records.RECORDS, LOGS, *([QUALITY] if plan.settings.quality else [])]
    if plan.settings.command == AUGMENT:
        return [*names, "imagesTr", "labelsTr"]
    kinds = ["images", "labels", "displacements", *(["displacementsVoxel"] if plan.settings.voxel_fields else [])]
    parts = sorted(set(description["parts"].values()))
    return [*names, *dict.fromkeys(part_folder(kind, part) for part in parts for kind in kinds)]


def _run(plan: Plan, folder: Path, place: Place, model: Model, description: dict[str, Any], listener: Listener) -> Run:
    context = {
        "model": description["model"],
        "configuration": run_folder.configuration_digest(description),
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": description["label_values"],
    }
    return Run(plan, folder, place, model, description, context, listener)


def _same_model(written: dict[str, str], name: str | None, device: str, folder: Path) -> Model:
    """The model of an earlier run."""
    if name is None and find(written["name"]) is None:
        raise ModelError(f"The run in '{folder}' uses the model '{written['name']}'; give its file with --model.")
    name = name or written["name"]
    path, called = resolve(name)
    if called != written["name"] or digest_of(path, "sha256") != written["digest"]:
        raise ModelError(
            f"The run in '{folder}' uses the model '{written['name']}' ({written['digest'][:19]}...); name that one."
        )
    return load_model(name, device)


def read_case(plan: Plan, number: int, becomes: dict[int, int]) -> Source:
    """A case of the plan.

    Raises:
        ImageError: it cannot be used.
    """
    return read_source(plan.cases[number], need_label=plan.settings.command == AUGMENT, values=becomes)


def _survey(plan: Plan, listener: Listener) -> set[int]:
    """All values of all labels: nnU-Net wants to know them before the first file is written."""

    def values(case: Case) -> set[int]:
        if case.label is None:
            return set()
        with contextlib.suppress(DRDMError):
            return set(label_values(read_label(case.label, read_image(case.image, case.series))))
        return set()

    return _gathered(values, plan.cases, listener)


def _gathered(values: Callable[[Case], set[int]], cases: list[Case], listener: Listener) -> set[int]:
    found: set[int] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        for number, some in enumerate(pool.map(values, cases), start=1):
            found |= some
            if number == len(cases) or number % 10 == 0:
                listener.progress("read", number, len(cases))
    return found


def _first_usable(plan: Plan, name: str | None, device: str, becomes: dict[int, int]) -> tuple[int, Source, Model]:
    """The first case that can be read and seen by the model; without a name it chooses the model."""
    model = None if name is None else load_model(name, device)
    first: DRDMError | None = None
    for number in range(len(plan.cases)):
        try:
            source = read_case(plan, number, becomes)
            chosen = model or model_for(source.image, None, device)
            prepare(source.image, chosen, plan.settings.plane)
            return number, source, chosen
        except (ImageError, ModelError) as error:
            if len(plan.cases) == 1:
                raise
            first = first or type(error)(f"{plan.cases[number].name}: {error}")
    raise ImageError(f"None of the {len(plan.cases)} cases can be used; the first: {first}")
