"""The other scans that the samples of a run go toward: a different one for each copy, drawn by the seed of the run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import DRDMError, ImageError, SettingError
from ..io.datasets import Case
from ..io.files import counted, digest_of_files
from ..io.images import image_files, read_image
from ..levels import AUTO_GRAY, AUTO_TOWARD, FEWEST_TOWARD, OTHERS_GRAY, OWN_GRAY
from ..toward import Way, find_way
from . import records
from .plan import AUGMENT, PHASES, UNLABELED, Plan, RunSettings, Task
from .sources import Source, relative_paths

# Largest number of scans that are tried for a sample.
TRIES = 3


@dataclass(frozen=True)
class Chosen:
    """What a sample goes toward.

    Attributes:
        way: the way to another scan, or ``None``.
        other: the other scan, and whether it shows the same person in the same place.
        entry: the entry ``toward`` of the record: where the other scan is, and how alike the two are. Without a way it
            is ``None``, and without the setting it is missing.
    """

    way: Way | None = None
    other: tuple[Case, bool] | None = None
    entry: dict[str, Any] | None = None

    def entry_of(self, seed: int, *, gray: bool) -> dict[str, Any] | None:
        """Return the entry of the sample of a seed.

        Args:
            gray: its gray values go toward those of the other scan, if they may change; the entry has their share.
        """
        if self.entry is None or self.way is None or self.way.gray is None or not gray:
            return self.entry
        return self.entry | {"gray": round(self.way.gray_share(seed), 4)}

    def from_version(self, image: sitk.Image) -> Way | None:
        """Return the way from a version of the scan; that from the scan itself, if it cannot be found."""
        if self.other is None:
            return None
        case, in_place = self.other
        found = first_way(image, [case], in_place=in_place, turn=None if self.way is None else self.way.turn)
        return self.way if found is None else found[0]


def settled(
    settings: RunSettings, cases: Sequence[Case], earlier: dict[str, Any] | None = None
) -> tuple[RunSettings, list[Case], list[Case] | None]:
    """Find out what ``"auto"`` means for a dataset: versions go toward its scans without a label, from ten on.

    In a training set, the gray values go there, too.

    Args:
        cases: of the dataset.
        earlier: content of ``run.json`` of the run that is continued; it stays as it was begun.

    Returns:
        The settings, the cases that are deformed, and those that versions go toward; ``None`` if the settings say it.

    Raises:
        SettingError: versions are to go toward the scans without a label, and there are none; or gray values are to
            become those of others, and versions go toward nobody else.
    """
    settings, labeled, others = _with_scans(settings, cases, earlier)
    goes = settings.command == AUGMENT and settings.toward not in ("", PHASES)
    gray = settings.gray_values
    if gray == AUTO_GRAY:
        begun = None if earlier is None else earlier["settings"].get("gray_values", OWN_GRAY)
        gray = begun or (OTHERS_GRAY if goes else OWN_GRAY)
    elif gray == OTHERS_GRAY and not goes:
        raise SettingError(
            "Gray values become those of the scans of other people that versions go toward, and these go toward none; "
            "name such scans with --toward, or leave out --gray-values."
        )
    return replace(settings, gray_values=gray), labeled, others


def _with_scans(
    settings: RunSettings, cases: Sequence[Case], earlier: dict[str, Any] | None
) -> tuple[RunSettings, list[Case], list[Case] | None]:
    """Do the part of :func:`settled` that is about where versions go."""
    unlabeled = [case for case in cases if case.label is None]
    if settings.toward == AUTO_TOWARD:
        enough = len({case.subject for case in unlabeled}) >= FEWEST_TOWARD and len(unlabeled) < len(cases)
        found = UNLABELED if enough and settings.deformation.region is None else ""
        begun = found if earlier is None else earlier["settings"].get("toward", "")
        settings = replace(settings, toward=begun if begun in ("", UNLABELED) else found)
    if settings.toward != UNLABELED:
        return settings, list(cases), None
    if not unlabeled:
        raise SettingError("No image of this dataset is without a label; name a folder with other scans with --toward.")
    return settings, [case for case in cases if case.label is not None], unlabeled


def candidates(plan: Plan, task: Task) -> list[Case]:
    """Return the scans that a sample may go toward, in the order in which they are tried."""
    own = plan.cases[task.case]
    words = f"{plan.settings.seed}/{own.name}/{':'.join(map(str, task.levels))}"
    scans = other_scans(own, plan.cases, plan.others, phases=plan.settings.toward == PHASES)
    return drawn_order(scans, words, task.copy)


def other_scans(own: Case, cases: Sequence[Case], others: Sequence[Case] | None, *, phases: bool = False) -> list[Case]:
    """Return the scans of other people, or the other scans of the same person.

    Args:
        own: the case that is deformed.
        cases: those of its dataset.
        others: the scans in another folder, if they are not those of the dataset.
        phases: return the other scans of the same person.
    """
    image = own.image.absolute()
    if phases:
        return [case for case in cases if case.image.absolute() != image and case.subject == own.subject]
    if others is not None:
        return [case for case in others if case.image.absolute() != image]
    return [case for case in cases if case.image.absolute() != image and case.subject != own.subject]


def drawn_order(others: Sequence[Case], words: str, copy: int) -> list[Case]:
    """Return the scans to try for a copy: another one comes first for each copy.

    Args:
        words: seed of the run, name of the case and so on, from which the order is drawn.
    """
    if not others:
        return []
    order = sorted(others, key=lambda case: _number(f"{words}/{case.name}"))
    first = copy % len(order)
    return (order[first:] + order[:first])[:TRIES]


def _number(words: str) -> bytes:
    return hashlib.sha256(words.encode(errors="surrogatepass")).digest()


def require_phases(cases: Sequence[Case]) -> None:
    """Check that a dataset has several scans of some subject.

    Raises:
        SettingError: it has not.
    """
    if len({case.subject for case in cases}) == len(cases):
        raise SettingError(
            "No subject of this dataset has several scans, between which it could move; say which scans belong "
            "together, such as --subject 'patient\\d+'."
        )


def first_way(
    image: sitk.Image, others: Sequence[Case], *, in_place: bool = False, turn: float | None = None
) -> tuple[Way, Case] | None:
    """Find the way to the first of several scans that an image can be registered to, see :func:`find_way`."""
    for case in others:
        # What cannot be read is reported as a case of its own.
        with contextlib.suppress(DRDMError, OSError, RuntimeError):
            way = find_way(image, read_image(case.image, case.series), in_place=in_place, turn=turn)
            if way is not None:
                return way, case
    return None


def choose(
    source: Source, others: Sequence[Case], folder: Path, *, in_place: bool = False, turn: float | None = None
) -> Chosen:
    """Find the way to the first of several scans that can be registered to a case.

    Args:
        folder: of the run; the record has the path of the other scan relative to it, too.
        in_place: the others are scans of the same person in the same place.
        turn: angle by which the other scan is turned, degrees, if it is known.

    Raises:
        ImageError: the other scan cannot be read again.
    """
    found = first_way(source.image, others, in_place=in_place, turn=turn)
    if found is None:
        return Chosen()
    way, case = found
    files = {"image": str(case.image.absolute())}
    try:
        digest = digest_of_files(image_files(case.image, case.series))
    except OSError as error:
        raise ImageError(f"'{case.image}' cannot be read again ({error.strerror}); check the disk.") from error
    places = {"files": files, "relative": relative_paths(files, folder), "series": case.series}
    entry = {"case": case.name, **places, "digests": {"image": digest}, **way.to_dict()}
    return Chosen(way, (case, in_place), entry | ({"in_place": True} if in_place else {}))


def sentence(written: Sequence[dict[str, Any]]) -> str:
    """Warn of samples that go toward no other scan, because none could be registered; empty if there are none."""
    asked = [record for record in written if record["status"] == records.DONE and "toward" in record]
    alone = [record for record in asked if record["toward"] is None]
    if not alone:
        return ""
    cases = sorted({record["case"] for record in alone})
    shown = ", ".join(cases[:3]) + (", ..." if len(cases) > 3 else "")
    return (
        f"{len(alone)} of {counted(len(asked), 'sample')} go toward no other scan ({shown}), because there is none, or "
        f"none of {TRIES} could be registered to theirs; name a folder with scans of the same kind with --toward, or "
        "leave it out with --toward none."
    )
