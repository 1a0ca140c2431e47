"""Plan which samples a run makes, and which process makes each.

The random numbers of a sample follow from its own name and the seed of the run alone: neither the other samples nor
the number of processes change it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ImageError
from ..io.datasets import Case
from ..runtime.distributed import ProcessInfo
from ..settings import DeformationSettings
from .limits import Limits

AUGMENT, SYNTHESIZE = "augment", "synthesize"


@dataclass(frozen=True)
class RunSettings:
    """What to make in a run; a folder holds results of one of these only.

    Attributes:
        command: ``"augment"`` (Algorithm 3) or ``"synthesize"`` (Algorithm 4).
        levels: one T' for each version, or two for each pair: original to moving, moving to fixed.
        copies: samples for each image and level.
        seed: of the run; every sample has a seed of its own that follows from it.
        deformation: of every sample, but for its level.
        limits: that samples must keep to.
        voxel_fields: also write the fields of pairs in voxels.
        split: shares of the subjects for training, validation and test.
        quality: make thumbnails and the quality page.
    """

    command: str
    levels: tuple[tuple[int, ...], ...]
    copies: int = 1
    seed: int = 0
    deformation: DeformationSettings = field(default_factory=DeformationSettings)
    limits: Limits = field(default_factory=Limits)
    voxel_fields: bool = False
    split: tuple[float, ...] = (0.8, 0.1, 0.1)
    quality: bool = True

    def at_level(self, level: int) -> DeformationSettings:
        """Settings of a deformation of this level."""
        return replace(self.deformation, level=level)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written and compared."""
        return {
            "command": self.command,
            "levels": [level[0] if self.command == AUGMENT else list(level) for level in self.levels],
            "copies": self.copies,
            "seed": self.seed,
            "steps": self.deformation.steps,
            "pose": self.deformation.pose,
            "plane": self.deformation.plane,
            "limits": self.limits.to_dict(),
            "voxel_fields": self.voxel_fields,
            "split": list(self.split),
            "quality": self.quality,
        }


@dataclass(frozen=True)
class Task:
    """One sample to make, or (``levels`` empty) the original that goes into a training set with its versions.

    Attributes:
        number: place in the plan.
        case: number of the case.
        name: of the sample; its files are called so.
    """

    number: int
    case: int
    name: str
    levels: tuple[int, ...] = ()
    copy: int = 0

    @property
    def original(self) -> bool:
        """Whether it is the undeformed image."""
        return not self.levels


def seed_of(run_seed: int, case: str, levels: tuple[int, ...], copy: int, attempt: int) -> int:
    """The seed of one draw, 0 to 2^31 - 1: a hash, so that like samples of other images get other noise."""
    words = f"{run_seed}/{case}/{':'.join(map(str, levels))}/{copy}/{attempt}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") & 0x7FFFFFFF


@dataclass(frozen=True)
class Plan:
    """All tasks of a run, case after case."""

    settings: RunSettings
    cases: list[Case]
    tasks: list[Task]

    @property
    def samples(self) -> list[Task]:
        """The tasks that make something new."""
        return [task for task in self.tasks if not task.original]

    def seed(self, task: Task, attempt: int) -> int:
        """Of one draw of a task."""
        return seed_of(self.settings.seed, self.cases[task.case].name, task.levels, task.copy, attempt)

    def share(self, process: ProcessInfo) -> list[Task]:
        """The tasks of one process, in the order of the plan.

        Tasks are dealt out like cards, costly ones first and otherwise in an order that has nothing to do with the
        images, so that shares cost alike: one of 64 processes does not get all the strong deformations.
        """
        if process.world == 1:
            return self.tasks

        def position_in_deck(task: Task) -> tuple[int, bytes]:
            steps = self.settings.deformation.steps
            cost = sum(level + 1 if steps is None else min(steps, level + 1) for level in task.levels)
            return -cost, hashlib.sha256(task.name.encode()).digest()

        own = sorted(self.tasks, key=position_in_deck)[process.rank :: process.world]
        return sorted(own, key=lambda task: task.number)


def make_plan(settings: RunSettings, cases: list[Case]) -> Plan:
    """The plan for these cases.

    Raises:
        ImageError: two samples would have the same name.
    """
    tasks: list[Task] = []
    for number, name, levels, copy in _samples(settings, cases):
        tasks.append(Task(len(tasks), number, name, levels, copy))
    names = [task.name.casefold() for task in tasks]
    if len(set(names)) < len(names):
        twice = next(task.name for task, name in zip(tasks, names, strict=True) if names.count(name) > 1)
        raise ImageError(f"Two results would be called '{twice}'; rename the image that ends like a result.")
    return Plan(settings, cases, tasks)


def _samples(settings: RunSettings, cases: list[Case]) -> Iterator[tuple[int, str, tuple[int, ...], int]]:
    for number, case in enumerate(cases):
        if settings.command == AUGMENT:
            yield number, case.name, (), 0
        for levels, copy in itertools.product(settings.levels, range(settings.copies)):
            yield number, f"{case.name}_t{'-'.join(f'{level:02d}' for level in levels)}_{copy:03d}", levels, copy
