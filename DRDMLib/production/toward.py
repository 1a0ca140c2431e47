"""The other scans that the samples of a run go toward: a different one for each copy, drawn by the seed of the run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DRDMError
from ..io.datasets import Case
from ..io.files import counted, digest_of_files
from ..io.images import image_files, read_image
from ..toward import Way, find_way
from . import records
from .plan import Plan, Task
from .sources import Source, relative_paths

# Largest number of scans that are tried for a sample.
TRIES = 3


@dataclass(frozen=True)
class Chosen:
    """What a sample goes toward.

    Attributes:
        way: the way to another scan, or ``None``.
        entry: the entry ``toward`` of the record: where the other scan is, and how alike the two are. Without a way it
            is ``None``, and without the setting it is missing.
    """

    way: Way | None = None
    entry: dict[str, Any] | None = None


def candidates(plan: Plan, task: Task) -> list[Case]:
    """Return the scans that a sample may go toward, of other subjects, in the order in which they are tried."""
    own = plan.cases[task.case]
    others = [
        case
        for case in (plan.cases if plan.others is None else plan.others)
        if case.image.absolute() != own.image.absolute() and (plan.others is not None or case.subject != own.subject)
    ]
    if not others:
        return []
    words = f"{plan.settings.seed}/{own.name}/{':'.join(map(str, task.levels))}"
    order = sorted(
        others, key=lambda case: hashlib.sha256(f"{words}/{case.name}".encode(errors="surrogatepass")).digest()
    )
    first = task.copy % len(order)
    return (order[first:] + order[:first])[:TRIES]


def choose(source: Source, others: Sequence[Case], folder: Path) -> Chosen:
    """Find the way to the first of several scans that can be registered to a case.

    Args:
        folder: of the run; the record has the path of the other scan relative to it, too.
    """
    for case in others:
        # What cannot be read is reported as a case of its own.
        with contextlib.suppress(DRDMError, OSError, RuntimeError):
            other = read_image(case.image, case.series)
            way = find_way(source.image, other)
            if way is not None:
                files = {"image": str(case.image.absolute())}
                digest = digest_of_files(image_files(case.image, case.series))
                places = {"files": files, "relative": relative_paths(files, folder), "series": case.series}
                return Chosen(way, {"case": case.name, **places, "digests": {"image": digest}, **way.to_dict()})
    return Chosen()


def sentence(written: Sequence[dict[str, Any]]) -> str:
    """Warn of samples that go toward no other scan, because none could be registered; empty if there are none."""
    asked = [record for record in written if record["status"] == records.DONE and "toward" in record]
    alone = [record for record in asked if record["toward"] is None]
    if not alone:
        return ""
    cases = sorted({record["case"] for record in alone})
    shown = ", ".join(cases[:3]) + (", ..." if len(cases) > 3 else "")
    return (
        f"{len(alone)} of {counted(len(asked), 'sample')} go toward no other scan ({shown}), because none of {TRIES} "
        "could be registered to theirs; name a folder with scans of the same kind with --toward."
    )
