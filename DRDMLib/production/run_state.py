"""What one process of a run knows, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..models.model import Model
from ..runtime.distributed import Place
from . import records
from .plan import AUGMENT, Plan
from .sources import Source
from .throughput import Clock

LOGS = "logs"


class Listener(Protocol):
    """What a run tells while it works."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """``done`` of ``total`` samples."""

    def item(self, **values: Any) -> None:
        """One sample is complete."""

    def message(self, text: str) -> None:
        """Something a person should know."""


@dataclass
class Run:
    """One process's part of a run.

    Attributes:
        plan: everything that is to be made.
        folder: where.
        place: which share.
        description: what ``run.json`` says.
        context: what every record repeats.
        sources: cases that have been read already.
        done: number of a task -> its record.
        seconds: name of a sample -> how long it took.
        gpu_busy: share of the time that the GPU was busy, where it is known.
    """

    plan: Plan
    folder: Path
    place: Place
    model: Model
    description: dict[str, Any]
    context: dict[str, Any]
    listener: Listener
    sources: dict[int, Source] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None

    @property
    def becomes(self) -> dict[int, int]:
        """What each value of a label becomes."""
        return {int(old): new for old, new in self.description["label_values"].items()}

    @property
    def parts(self) -> dict[str, str]:
        """Subject -> train, validation, test."""
        return dict(self.description["parts"])

    @property
    def complete(self) -> bool:
        """Whether every task of the plan has been tried, by whichever process."""
        return len(self.done) == len(self.plan.tasks)

    def failures(self) -> list[str]:
        """One sentence for each case, or sample, that could not be used."""
        found = []
        for number in sorted(self.done):
            record = self.done[number]
            if record["status"] == records.FAILED:
                found.append(f"{record['case']}: {record['reason']}")
            elif record["status"] == records.REJECTED:
                found.append(f"{record['name']}: {record['reason']}")
        return list(dict.fromkeys(found))

    def summary(self) -> str:
        """The last sentence."""
        made = sum(r["status"] == records.DONE and bool(r["levels"]) for r in self.done.values())
        again = sum(len(r.get("redrawn", [])) for r in self.done.values())
        told = f" {again} draws broke the limits and were drawn again." if again else ""
        if self.plan.settings.command == AUGMENT:
            originals = sum(r["status"] == records.DONE and not r["levels"] for r in self.done.values())
            return f"{originals} originals and {made} new versions are in '{self.folder}'.{told}"
        return f"{made} pairs are in '{self.folder}'.{told}"
