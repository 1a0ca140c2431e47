"""Plan the samples of a run and the process that makes each one.

The random numbers of a sample depend only on its name and the seed of the run. The other samples and the number of
processes do not change it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..diffusion.poses import PoseSpread
from ..diffusion.seeds import SAMPLES, sample_seed
from ..errors import SettingError
from ..io.datasets import Case
from ..io.files import name_key, shown
from ..levels import AUTO_POSE, AUTO_TOWARD, NOBODY, OWN_GRAY, Level, level_text
from ..runtime.distributed import ProcessInfo
from ..settings import DeformationSettings
from ..toward import WHOLE_SCANS
from .limits import Limits
from .mirroring import Mirroring

AUGMENT, SYNTHESIZE = "augment", "synthesize"
# See :class:`RunSettings`.
OTHERS = "others"
PHASES = "phases"
UNLABELED = "unlabeled"
_WORDS = (AUTO_TOWARD, NOBODY, OTHERS, PHASES, UNLABELED)
# Levels of the strengths for most models, to estimate the cost of a sample.
_TYPICAL_LEVEL = {"subtle": 16, "medium": 28, "strong": 48}


def folder_toward(scans: str | Path | None) -> Path | None:
    """Return the folder with the scans that are gone toward; ``None`` for a word or nothing."""
    return None if scans is None or scans in _WORDS else Path(scans)


def goes_toward(scans: str | Path | None) -> str:
    """Return the setting ``toward`` for what was asked for: one of the words, a folder, or nothing."""
    if scans is None or scans == NOBODY:
        return ""
    if scans in _WORDS:
        return str(scans)
    # Of '.' the name is empty.
    return Path(scans).absolute().name or str(scans)


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run; a folder holds the results of one run.

    Attributes:
        command: ``"augment"`` (Algorithm 3) or ``"synthesize"`` (Algorithm 4).
        levels: one strength for each version, or two for each pair: original to moving, moving to fixed.
        copies: samples for each image and level.
        seed: seed of the run; the seed of every sample is computed from it.
        deformation: settings of every sample, except for the level.
        limits: limits for samples.
        voxel_fields: also write the fields of pairs in voxels.
        split: shares of the subjects for training, validation and test.
        quality: write thumbnails and the quality page.
        label_geometry: where labels lie, see :func:`DRDMLib.read_label`.
        toward: what samples go part of the way toward: :data:`OTHERS` for the other subjects of the dataset,
            :data:`PHASES` for the other scans of the same subject, :data:`UNLABELED` for the scans of the dataset
            without a label, the name of a folder with scans, or nothing. ``"auto"`` is settled when a run begins, see
            :func:`DRDMLib.production.toward.settled`.
        gray_values: ``"others"``: those of training samples become those of the scan that they go toward, by a share;
            ``"own"``. ``"auto"`` is settled in the same way.
        mirroring: how training samples are mirrored, if they are.
        file_format: ending of the files of images, labels and fields, one of :data:`DRDMLib.io.volumes.FORMATS`.
        adapt: minutes for adapting the model to the images first; ``None`` takes the model as it is.
        seed_scheme: how the seeds of samples are made, see :mod:`DRDMLib.diffusion.seeds`; empty for runs of older
            versions, whose samples have seeds of 31 bits.
    """

    command: str
    levels: tuple[tuple[Level, ...], ...]
    copies: int = 1
    seed: int = 0
    deformation: DeformationSettings = field(default_factory=DeformationSettings)
    limits: Limits = field(default_factory=Limits)
    voxel_fields: bool = False
    split: tuple[float, ...] = (0.8, 0.1, 0.1)
    quality: bool = True
    label_geometry: str = "file"
    adapt: float | None = None
    toward: str = ""
    gray_values: str = OWN_GRAY
    mirroring: Mirroring | None = None
    file_format: str = "nii.gz"
    seed_scheme: str = SAMPLES

    def __post_init__(self) -> None:
        if not all(0 <= share < math.inf for share in self.split) or not 0 < sum(self.split) < math.inf:
            shares = " ".join(f"{share:g}" for share in self.split)
            raise SettingError(f"The shares {shares} are out of range; use numbers of 0 or more, such as 0.8 0.1 0.1.")
        if self.toward not in ("", AUTO_TOWARD) and self.deformation.region is not None:
            raise SettingError(WHOLE_SCANS)

    def at_level(self, level: Level) -> DeformationSettings:
        """Return the settings of a deformation of this level."""
        return replace(self.deformation, level=level)

    def for_labels(self, mapping: dict[int, int]) -> RunSettings:
        """Return the settings with the values of labels as they are in the new dataset, where they may be renumbered.

        Args:
            mapping: new number of each label value; empty if they are not renumbered.

        Raises:
            ImageError: no label of the dataset has a value that the region or the mirror images need.
        """
        if not mapping:
            return self
        deformation, mirroring = self.deformation, self.mirroring
        if deformation.region is not None:
            deformation = replace(deformation, region=deformation.region.renumbered(mapping))
        mirroring = None if mirroring is None else mirroring.for_labels(mapping)
        return replace(self, deformation=deformation, mirroring=mirroring)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which are written to ``run.json`` and compared."""
        return {
            "command": self.command,
            "levels": [level[0] if self.command == AUGMENT else list(level) for level in self.levels],
            "copies": self.copies,
            "seed": self.seed,
            "steps": self.deformation.steps,
            "pose": AUTO_POSE if isinstance(self.deformation.pose, PoseSpread) else self.deformation.pose,
            "plane": self.deformation.plane,
            "border": self.deformation.border,
            "limits": self.limits.to_dict(),
            "voxel_fields": self.voxel_fields,
            "split": list(self.split),
            "quality": self.quality,
            # Left out by default, so that runs from before these settings can be continued.
            **self.deformation.poses_entry(),
            **self.deformation.region_entry(),
            **self.deformation.bones_entry(),
            **({} if self.label_geometry == "file" else {"label_geometry": self.label_geometry}),
            **({} if self.adapt is None else {"adapt": self.adapt}),
            **({"toward": self.toward} if self.toward else {}),
            **({} if self.gray_values == OWN_GRAY else {"gray_values": self.gray_values}),
            **({} if self.mirroring is None else {"mirror": self.mirroring.to_dict()}),
            **({} if self.file_format == "nii.gz" else {"format": self.file_format}),
            **({"seed_scheme": self.seed_scheme} if self.seed_scheme else {}),
        }


@dataclass(frozen=True)
class Task:
    """One sample to make, or an original image that is part of a training set.

    Attributes:
        number: position in the plan.
        case: number of the case.
        name: name of the sample and of its files.
        levels: strength of the version, or of both deformations of a pair; empty for an original.
        copy: number of the sample among those of the same image and level.
    """

    number: int
    case: int
    name: str
    levels: tuple[Level, ...] = ()
    copy: int = 0

    @property
    def original(self) -> bool:
        """Whether it is the undeformed image."""
        return not self.levels


def seed_of(run_seed: int, case: str, levels: tuple[Level, ...], copy: int, attempt: int) -> int:
    """Return the seed of one attempt in a run of an older version, 0 to 2^31 - 1; new ones have :func:`sample_seed`."""
    words = f"{run_seed}/{case}/{':'.join(map(str, levels))}/{copy}/{attempt}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") & 0x7FFFFFFF


@dataclass(frozen=True)
class Plan:
    """All tasks of a run, ordered by case.

    Attributes:
        settings: the settings of the run.
        cases: the cases, with the names that they have in the results.
        tasks: all tasks.
        notes: sentences about names that were changed.
        others: scans that samples go toward, if they are not those of ``cases``.
    """

    settings: RunSettings
    cases: list[Case]
    tasks: list[Task]
    notes: list[str] = field(default_factory=list)
    others: list[Case] | None = None

    @property
    def samples(self) -> list[Task]:
        """The tasks that make a new sample, without the originals."""
        return [task for task in self.tasks if not task.original]

    @property
    def scans(self) -> list[Case]:
        """All scans of the dataset, also those that are not deformed because they have no label."""
        return self.cases + (self.others or [] if self.settings.toward == UNLABELED else [])

    def seed(self, task: Task, attempt: int) -> int:
        """Return the seed of one attempt at a task."""
        make = sample_seed if self.settings.seed_scheme else seed_of
        return make(self.settings.seed, self.cases[task.case].name, task.levels, task.copy, attempt)

    def share(self, process: ProcessInfo) -> list[Task]:
        """Return the tasks of one process, in the order of the plan.

        Tasks are sorted by cost and then by a hash of their names, and given to the processes in turn. All shares
        therefore take about the same time: no process gets all the strong deformations.
        """
        if process.world == 1:
            return self.tasks

        def cost_and_hash(task: Task) -> tuple[int, bytes]:
            steps = self.settings.deformation.steps
            counts = [_TYPICAL_LEVEL.get(level, 0) if isinstance(level, str) else level + 1 for level in task.levels]
            cost = sum(count if steps is None else min(steps, count) for count in counts)
            return -cost, hashlib.sha256(task.name.encode()).digest()

        own = sorted(self.tasks, key=cost_and_hash)[process.rank :: process.world]
        return sorted(own, key=lambda task: task.number)


def make_plan(settings: RunSettings, cases: list[Case]) -> Plan:
    """Make the plan for these cases.

    A case that is called like a result of another one gets a number.
    """
    named, notes = _with_free_names(settings, cases)
    tasks: list[Task] = []
    for number, case in enumerate(named):
        for name, levels, copy in _samples(settings, case.name):
            tasks.append(Task(len(tasks), number, name, levels, copy))
    return Plan(settings, named, tasks, notes)


def _with_free_names(settings: RunSettings, cases: list[Case]) -> tuple[list[Case], list[str]]:
    """Return the cases with names whose results are all called differently, and what was changed."""
    # Shorter names first: the case that is called like a result of another one is always longer.
    order = sorted(range(len(cases)), key=lambda number: len(cases[number].name))
    result, notes = list(cases), []
    own = {name_key(case.name) for case in cases}
    taken: set[str] = set()
    for number in order:
        name, count = cases[number].name, 1
        while taken & _keys(settings, name):
            count += 1
            name = f"{cases[number].name}-{count}"
            while name_key(name) in own:
                count += 1
                name = f"{cases[number].name}-{count}"
        taken |= _keys(settings, name)
        if count > 1:
            result[number] = replace(cases[number], name=name)
            notes.append(
                f"The case '{shown(cases[number].name)}' is called '{shown(name)}' in the results, because a result "
                "of another case has its name."
            )
    return result, notes


def _keys(settings: RunSettings, case: str) -> set[str]:
    return {name_key(name) for name, _, _ in _samples(settings, case)}


def _samples(settings: RunSettings, case: str) -> Iterator[tuple[str, tuple[Level, ...], int]]:
    """Yield name, levels and copy of each sample of a case, first the original if there is one."""
    if settings.command == AUGMENT:
        yield case, (), 0
    for levels, copy in itertools.product(settings.levels, range(settings.copies)):
        prefix = "t" if isinstance(levels[0], int) else ""
        yield f"{case}_{prefix}{'-'.join(map(level_text, levels))}_{copy:03d}", levels, copy
