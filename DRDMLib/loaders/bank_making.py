"""Make banks: fields for every image of a dataset, one file for each case."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..deforming import make_deformations
from ..diffusion.poses import PoseSpread
from ..errors import DRDMError, FallbackWarning, ImageError, ModelError, SettingError
from ..io import datasets, schema
from ..io.datasets import Case
from ..io.files import write_bytes
from ..io.geometry import other_affines
from ..io.left_out import LeftOut
from ..levels import AUTO_POSE, AUTO_TOWARD, STRENGTHS, Level
from ..models.catalogue import digest_of, find, load_model, resolve
from ..models.choice import choose_model, named_choice
from ..models.model import Model
from ..production.plan import PHASES, UNLABELED, folder_toward, goes_toward, seed_of
from ..production.poses import poses_of_cases
from ..production.run_folder import clean_up, run_lock, share_of_folder
from ..production.sources import Source, read_source
from ..production.toward import TRIES, drawn_order, first_way, other_scans, require_phases
from ..runtime.distributed import ProcessInfo
from ..runtime.threads import one_thread_each
from ..settings import DeformationSettings, Pose, RegionSettings, pose_entry, pose_of
from ..toward import WHOLE_SCANS
from .bank import METADATA_KEY, SUFFIX, FieldBank, damaged
from .packing import pack
from .placement import FileGeometry
from .world import WorldField, ras_affine, world_field

# What the header of a file says about how its fields were made.
_WRITTEN: dict[str, schema.Check] = {
    **dict.fromkeys(("model", "model_digest", "image_digest", "plane", "border", "toward", "drdm"), schema.text()),
    **dict.fromkeys(("copies", "seed"), schema.whole()),
    **dict.fromkeys(("levels", "steps", "pose", "region", "bones", "fit"), schema.anything),
}


@dataclass(frozen=True)
class BankSettings:
    """Settings of the fields in a bank.

    Attributes:
        levels: strengths of the fields: T', or words, see :class:`DRDMLib.DeformationSettings`.
        copies: number of fields per level and case.
        seed: seed of the bank; the seed of every field is computed from it.
        deformation: settings of every field, except for the level.
        toward: name of the folder with the scans that fields lead toward, ``"others"`` or ``"phases"``; empty for none.
    """

    levels: Sequence[Level] = STRENGTHS
    copies: int = 4
    seed: int = 0
    deformation: DeformationSettings = field(default_factory=DeformationSettings)
    toward: str = ""


def make_bank(
    dataset: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    levels: Sequence[Level] = STRENGTHS,
    copies: int = 4,
    seed: int = 0,
    steps: int | None = None,
    pose: Pose = 0.0,
    device: str = "auto",
    plane: str = "auto",
    border: str = "auto",
    region: RegionSettings | None = None,
    bones: str = "auto",
    toward: str | Path | None = None,
    subject_pattern: str | None = None,
    process: ProcessInfo | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> FieldBank:
    """Make ``copies`` fields of each level for every image of a dataset. Complete files of an earlier call are kept.

    An image that cannot be used is left out.

    Args:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` accepts it.
        folder: new folder, empty folder, or a bank with the same settings.
        model: name or path; by default the one that fits each image best.
        levels, copies, seed: see :class:`BankSettings`.
        steps, pose, plane, border, region, bones: see :class:`DRDMLib.DeformationSettings`. A pose ``"auto"`` is that
            of the dataset's scans, as in a batch; an earlier call's is kept.
        toward: ``"others"``, ``"phases"`` or another dataset: each field leads part of the way toward another scan of
            this dataset, another scan of the same subject, or one of that dataset, which needs no labels; see
            :mod:`DRDMLib.toward`.
        subject_pattern: which scans are of one subject, see :func:`DRDMLib.io.datasets.find_cases`.
        process: this process among several that share the cases.
        on_case: called with (done, total) after each case.

    Warns:
        FallbackWarning: a model does not fit an image well.

    Raises:
        DRDMError: no image, or not the model, can be used.
        SettingError: the bank was made with other settings, or another process makes it now.
        OutputError: the folder cannot be written to.

    Warns:
        FallbackWarning: an image cannot be used and is left out.
    """
    folder, process = Path(folder), process or ProcessInfo()
    cases = datasets.find_cases(dataset, subject_pattern)
    if toward == PHASES:
        require_phases(cases)
    if pose == AUTO_POSE:
        pose = _pose_in(folder, cases) or poses_of_cases(cases) or AUTO_POSE
    deformation = DeformationSettings(steps=steps, pose=pose, plane=plane, border=border, region=region, bones=bones)
    settings = BankSettings(tuple(levels), copies, seed, deformation, goes_toward(toward))
    if settings.toward in (AUTO_TOWARD, UNLABELED):
        raise SettingError(f"A bank cannot go toward '{settings.toward}'; use others, phases, or a folder with scans.")
    if settings.toward and region is not None:
        raise SettingError(WHOLE_SCANS)
    others_folder = folder_toward(toward)
    scans = None if others_folder is None else datasets.find_cases(others_folder, labels=False)
    loaded = {} if model is None else {model: load_model(model, process.device(device))}
    own = cases[process.rank :: process.world]
    bad = LeftOut(len(cases))
    with contextlib.ExitStack() as kept:
        lock = _BankLock(folder, process, kept)
        for number, case in enumerate(own, start=1):
            try:
                source = read_source(case, need_label=False)
                path = folder / f"{case.name}{SUFFIX}"
                name = model or _model_in(path) or choose_model(source.place(region), plane=plane).name
                if name not in loaded:
                    loaded[name] = load_model(name, process.device(device))
                others = other_scans(case, cases, scans, phases=toward == PHASES) if settings.toward else []
                _make_file(path, source, name, loaded[name], settings, lock, others)
                bad.used()
            except (ImageError, ModelError) as error:
                bad.add(case, error)
            if on_case is not None:
                on_case(number, len(own))
    bad.require_one()
    bad.warn()
    return FieldBank(folder)


class _BankLock:
    """Keep other processes from writing into a bank, from the first field that has to be made.

    Several processes can therefore use a complete bank at once.
    """

    def __init__(self, folder: Path, process: ProcessInfo, kept: contextlib.ExitStack) -> None:
        self._folder, self._process, self._kept = folder, process, kept
        self._held = False

    def acquire(self) -> None:
        """Lock the bank until the stack of contexts is left.

        Raises:
            SettingError: another process writes into the bank.
            OutputError: the folder cannot be written to.
        """
        if not self._held:
            self._kept.callback(_remove_locks, self._folder)
            self._kept.enter_context(share_of_folder(self._folder, self._process, lambda: None))
            self._held = True


def _remove_locks(folder: Path) -> None:
    if folder.is_dir():
        with contextlib.suppress(DRDMError), run_lock(folder):
            clean_up(folder)


def _make_file(
    path: Path,
    source: Source,
    name: str,
    used: Model,
    settings: BankSettings,
    lock: _BankLock,
    others: Sequence[Case],
) -> None:
    """Make and write the fields of a case, unless they are there.

    Args:
        name, used: name or path of the model, and the model.
        others: the scans that fields may lead toward.
    """
    metadata: dict[str, Any] = {
        "levels": list(settings.levels),
        "copies": settings.copies,
        "seed": settings.seed,
        "steps": settings.deformation.steps,
        "pose": pose_entry(settings.deformation.pose),
        "plane": settings.deformation.plane,
        "border": settings.deformation.border,
        **settings.deformation.region_entry(),
        **settings.deformation.bones_entry(),
        **({"toward": settings.toward} if settings.toward else {}),
        "model": used.metadata.name,
        "model_digest": digest_of(resolve(name)[0], "sha256"),
        "image_digest": source.digests["image"],
        "drdm": __version__,
    }
    if _exists(path, metadata):
        return
    lock.acquire()
    # Another process may have made it before this one got the lock.
    if _exists(path, metadata):
        return
    choice = named_choice(source.place(settings.deformation.region), name, used, plane=settings.deformation.plane)
    if choice.warning():
        warnings.warn(f"{source.case.name}: {choice.warning()}", FallbackWarning, stacklevel=2)
    metadata["fit"] = choice.fit.to_dict()
    with one_thread_each(used.device):
        fields = _make_fields(source, used, settings, others)
        entries, data = _packed(fields, source)
    metadata |= {"geometry": _geometry(source).to_dict(), "fields": entries}
    # A single entry: safetensors does not keep the order of several, and equal fields must give equal bytes.
    write_bytes(path, save({"fields": data}, {METADATA_KEY: json.dumps(metadata)}))


def _model_in(path: Path) -> str | None:
    """Return the model of an earlier call's file, so that models added since then do not change the choice."""
    written = _written(path)
    name = "" if written is None else written.get("model", "")
    return name if name and find(name) is not None else None


def _pose_in(folder: Path, cases: Sequence[Case]) -> Pose | None:
    """Return the pose of an earlier call's file, which other scans do not change; ``None`` if it is an amount."""
    found = next(filter(None, (_written(folder / f"{case.name}{SUFFIX}") for case in cases)), {})
    pose = pose_of(found.get("pose", 0.0))
    return pose if isinstance(pose, str | PoseSpread) else None


def _written(path: Path) -> dict[str, Any] | None:
    """Return what a file says about its fields; ``None`` if there is no file.

    Raises:
        OutputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stream:
            written: dict[str, Any] = json.loads(stream.metadata()[METADATA_KEY])
        if schema.wrong_key(written, {}, _WRITTEN) is not None:
            raise ValueError
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise damaged(path) from error
    return written


def _exists(path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether the file exists.

    Raises:
        SettingError: it was made with other settings.
        OutputError: it is damaged.
    """
    written = _written(path)
    if written is None:
        return False
    for key in (*metadata, "region", "toward"):
        if written.get(key) != metadata.get(key):
            raise SettingError(f"The fields in '{path}' were made with other {key}; choose a new folder.")
    return True


def _make_fields(source: Source, model: Model, settings: BankSettings, others: Sequence[Case]) -> list[WorldField]:
    fields, alone = [], 0
    for level in settings.levels:
        deformation = replace(settings.deformation, level=level)
        seeds = [seed_of(settings.seed, source.case.name, (level,), copy, 0) for copy in range(settings.copies)]
        if not settings.toward:
            # On a GPU in batches, which are the same whatever an earlier call has made.
            versions = make_deformations(source.image, model, deformation, seeds, label=source.label)
            fields += [world_field(made.field, source.image) for made in versions]
            continue
        # Each field leads toward another scan.
        for copy, seed in enumerate(seeds):
            words = f"{settings.seed}/{source.case.name}/{level}"
            tried = drawn_order(others, words, copy)
            found = first_way(source.image, tried, in_place=settings.toward == PHASES)
            alone += found is None
            way = None if found is None else found[0]
            made = next(make_deformations(source.image, model, deformation, (seed,), label=source.label, toward=way))
            fields.append(world_field(made.field, source.image))
    if alone:
        warnings.warn(
            f"{source.case.name}: {alone} of {len(fields)} fields lead toward no other scan, because none of {TRIES} "
            "could be registered.",
            FallbackWarning,
            stacklevel=2,
        )
    return fields


def _packed(fields: list[WorldField], source: Source) -> tuple[list[dict[str, Any]], Tensor]:
    """Pack fields one after the other, and describe each."""
    to_voxels = np.linalg.inv(ras_affine(source.image)[:3, :3])
    entries, data = [], bytearray()
    for one in fields:
        how, stored = pack(one.vectors, to_voxels)
        entries.append({"start": len(data), "bytes": len(stored), "how": how, "affine": one.affine.tolist()})
        data += stored
    return entries, torch.frombuffer(data, dtype=torch.uint8)


def _geometry(source: Source) -> FileGeometry:
    size = (*source.image.GetSize(), 1)[:3]
    return FileGeometry(size, ras_affine(source.image), tuple(other_affines(source.case.image)))
