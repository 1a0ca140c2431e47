"""Draw the fields of several copies of a case in one batch, where the device makes them together.

A batch consists of copies 0 to 7, 8 to 15 and so on of one case and one pair of levels, at the same attempt, also where
not all of them are needed: because others were made before, belong to another process, or keep to the limits. The last
bits of a sample depend on its batch, and so they depend neither on interruptions nor on the number of processes. The
copies that are not needed cost next to nothing, because they are not proven, warped or written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import SimpleITK as sitk

from ..generation import AT_ONCE, Progress
from ..levels import Level
from ..models.model import Model
from ..runtime.batches import versions_together
from ..settings import DeformationSettings
from ..versions import Drawn, PreparedScan
from .plan import Plan, Task

_Place: TypeAlias = tuple[int, tuple[Level, ...]]


class FromBatch(NamedTuple):
    """The fields of a sample, and the copies that were drawn with it."""

    drawn: Drawn
    copies: tuple[int, ...]

    def entry(self) -> dict[str, Any]:
        """Return the entry ``batch`` of the record: what the last bits depend on, besides the device."""
        return {"copies": list(self.copies), "at_once": self.drawn.at_once}


@dataclass
class _Group:
    """The samples of one case with the same levels.

    Attributes:
        waiting: copies that are to be made.
        scan: the scan on the grid of its model; ``False`` if its samples are not made in batches.
        drawn: attempt and copy -> its fields, until they are used.
    """

    waiting: set[int] = field(default_factory=set)
    scan: PreparedScan | bool = True
    drawn: dict[tuple[int, int], FromBatch] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class FieldBatches:
    """Draws the fields of the samples of a plan; safe to use from several threads.

    Args:
        plan: the plan.
        tasks: those that are to be made.
        entry: the entry ``batch`` of the record of a sample that is made again.
    """

    def __init__(self, plan: Plan, tasks: Iterable[Task], entry: dict[str, Any] | None = None) -> None:
        self._plan = plan
        self._copies = None if entry is None else tuple(entry["copies"])
        self._at_once: int = AT_ONCE if entry is None else entry["at_once"]
        self._groups: dict[_Place, _Group] = {}
        for task in tasks:
            self._groups.setdefault((task.case, task.levels), _Group()).waiting.add(task.copy)

    def draw(
        self,
        task: Task,
        attempt: int,
        image: sitk.Image,
        model: Model,
        settings: DeformationSettings,
        on_step: Progress | None = None,
    ) -> FromBatch | None:
        """Return the fields of the first deformation of a sample.

        Args:
            image: of the case.
            settings: of the deformation.
            on_step: called with (done, total) if this call draws the batch; may raise to cancel.

        Returns:
            ``None`` if the sample is not made in a batch.
        """
        # The copies of a case go toward different scans, and each region has random fields of its own.
        if self._plan.settings.toward or settings.region is not None:
            return None
        size = versions_together(model)
        if self._copies is None and min(size, self._plan.settings.copies) < 2:
            return None
        first = task.copy // size * size
        copies = self._copies or tuple(range(first, min(first + size, self._plan.settings.copies)))
        group = self._groups[task.case, task.levels]
        with group.lock:
            if group.scan is True:
                group.scan = PreparedScan(image, model, settings)
                # The slices of a stack are a batch already.
                group.scan = group.scan if group.scan.single else False
            if not group.scan or len(copies) < 2:
                return None
            if (attempt, task.copy) not in group.drawn:
                self._draw(group, task, attempt, copies, on_step)
            return group.drawn.pop((attempt, task.copy))

    def _draw(self, group: _Group, task: Task, attempt: int, copies: tuple[int, ...], on_step: Progress | None) -> None:
        assert isinstance(group.scan, PreparedScan)
        seeds = [self._plan.seed(replace(task, copy=copy), attempt) for copy in copies]
        made = group.scan.draw(seeds, at_once=self._at_once, on_step=on_step)
        if made[0].device == group.scan.model.device.type:
            # Where memory was low, it probably is for the next batch.
            self._at_once = made[0].at_once
        for copy, drawn in zip(copies, made, strict=True):
            if copy in group.waiting:
                group.drawn[attempt, copy] = FromBatch(drawn, copies)

    def ended(self, task: Task) -> None:
        """Forget the fields of a sample that is made, or has failed."""
        group = self._groups.get((task.case, task.levels))
        if group is None:
            return
        with group.lock:
            group.waiting.discard(task.copy)
            for key in [key for key in group.drawn if key[1] == task.copy]:
                del group.drawn[key]
            if not group.waiting:
                self._groups.pop((task.case, task.levels), None)
