"""Coverage and plausibility: whether copies of a few subjects look like other people, without training a network.

    python -m benchmarks.coverage DATASET --methods none pose+1 pose+auto torchio torchio@30 MODEL MODEL+1 [--shots 5]

A few labeled subjects are made into copies. *Coverage* is the mean over unseen people of the best Dice overlap with any
copy: high when the copies reach the shapes of other people. *Plausibility* is the mean over copies of the best overlap
with any unseen person: high when no copy is unlike everybody. Overlap is the mean Dice over the labels, after the
centers of the labeled structures have been moved together. *Recall* and *precision* are the same two questions by
nearest neighbors (Kynkäänniemi et al. 2019, arXiv:1904.06991): the share of people within the neighborhood of a copy,
and of copies within that of a person. Copies that equal the originals win plausibility only, random ones coverage only.

The poses of ``+auto`` are drawn as ``drdm augment`` draws them, from a spread that is estimated without labels. Five
scans are too few for it, so it is that of the people who are neither copied nor judged.

Every method makes the same number of copies. The row ``people`` has other real people in place of copies: the most
that can be reached.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from benchmarks.displacement import as_transform, resample
from benchmarks.labeled_views import LabeledImage, load_structures
from benchmarks.methods import add_pose, deformer, is_elastic
from benchmarks.tables import markdown
from DRDMLib.deforming import make_deformations
from DRDMLib.diffusion.poses import PoseSpread
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image
from DRDMLib.levels import AUTO_POSE, STRENGTHS, Level, read_level
from DRDMLib.models.catalogue import load_model
from DRDMLib.production.poses import poses_of_cases
from DRDMLib.production.toward import drawn_order
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.resampling import warp_label
from DRDMLib.toward import Way, find_way

FIGURES = ("coverage", "plausibility", "recall", "precision")
# Nearest neighbors whose distance is the size of a neighborhood.
NEIGHBORS = 3
# Ways that were found, for all methods that need them: (subject, other person) -> way.
_WAYS: dict[tuple[str, str], Way | None] = {}
# Half the side of the window around the structures' center, mm, as a multiple of their largest extent.
ROOM = 0.75


class Copy(NamedTuple):
    """The label of a copy, and a function that makes its image, which is not always needed."""

    label: sitk.Image
    image: Callable[[], sitk.Image]


# Subject, number of the copy, seed -> copy.
Maker = Callable[[LabeledImage, int, int], Copy]


def maker(
    name: str,
    levels: Sequence[Level],
    device: str,
    people: PoseSpread | None = None,
    others: Sequence[Case] = (),
) -> Maker:
    """Find a method: ``none``, ``pose+AMOUNT``, ``MODEL[:open][:around][:toward[:gray]][:LEVELS][+AMOUNT]``, or one
    of ``methods.py``.

    LEVELS are numbers or words with commas between them, in place of ``levels``. With the amount ``auto``, poses are
    drawn from ``people``. With ``FIRST>SECOND``, the copies of the first method are deformed again by the second, which
    is one of ``methods.py``, such as ``nnunet``.

    Models make copies as ``drdm augment`` does: repaired (with ``:open`` or ``:closed``, with such faces), of the
    whole image (with ``:around``, of the surroundings of its labels). With ``:toward``, they go part of the way toward
    ``others``, whose labels are not used; with ``:gray``, the gray values do so, too.
    """
    name, _, then = name.partition(">")
    if then:
        first, again = (maker(one, levels, device, people, others) for one in (name, then))

        def both(subject: LabeledImage, copy: int, seed: int) -> Copy:
            made = first(subject, copy, seed)
            return again(LabeledImage(made.image(), made.label), copy, seed)

        return both
    plain, _, amount = name.partition("+")
    if plain == "none":
        return lambda subject, _copy, _seed: Copy(subject.label, lambda: subject.image)
    pose = (people or AUTO_POSE) if amount == AUTO_POSE else float(amount or 0)
    if plain == "pose" or is_elastic(plain):
        field = deformer("nothing" if plain == "pose" else plain)

        def deformed(subject: LabeledImage, copy: int, seed: int) -> Copy:
            drawn = field(subject.image, seed, 0)
            moved = as_transform(drawn if pose == 0 else add_pose(subject.image, drawn, seed, pose), subject.image)
            return Copy(warp_label(subject.label, subject.label, moved), lambda: resample(subject.image, moved))

        return deformed
    path, *words = plain.split(":")
    model = load_model(path, device)
    border = next((word for word in words if word in ("open", "closed")), "auto")
    own = [word for word in words if word not in ("open", "closed", "around", "toward", "gray")]
    levels = [read_level(level) for level in own[0].split(",")] if own else levels
    region = RegionSettings(around=()) if "around" in words else None
    way = ways_to(others) if "toward" in words else None

    def make(subject: LabeledImage, copy: int, seed: int) -> Copy:
        level = levels[copy % len(levels)]
        settings = DeformationSettings(level, pose=pose, border=border, region=region)
        toward = None if way is None else way(subject, copy)
        made = next(make_deformations(subject.image, model, settings, (seed,), label=subject.label, toward=toward))

        def image() -> sitk.Image:
            gray = toward.gray if toward is not None and "gray" in words else None
            own = subject.image
            return made.warp(own if toward is None or gray is None else gray.apply(own, toward.gray_share(seed)))

        return Copy(made.warp_label(subject.label), image)

    return make


def ways_to(others: Sequence[Case]) -> Callable[[LabeledImage, int], Way | None]:
    """Return a function that finds the way to another person, a different one for each copy of a subject."""

    def way(subject: LabeledImage, copy: int) -> Way | None:
        key = repr(subject.image.GetOrigin()) + str(sitk.Hash(subject.image))
        for case in drawn_order(others, key, copy):
            if (key, case.name) not in _WAYS:
                _WAYS[key, case.name] = find_way(subject.image, read_image(case.image, case.series))
            if _WAYS[key, case.name] is not None:
                return _WAYS[key, case.name]
        return None

    return way


def structure_values(labels: Sequence[sitk.Image]) -> list[int]:
    """List the labels that occur in any of the images, without 0."""
    return sorted({int(v) for label in labels for v in np.unique(sitk.GetArrayViewFromImage(label))} - {0})


def window(labels: Sequence[sitk.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Choose a common grid around the structures: (size, spacing), three values each, SimpleITK's axis order."""
    spacing = np.median([label.GetSpacing() for label in labels], axis=0)
    extents = []
    for label in labels:
        inside = np.argwhere(sitk.GetArrayViewFromImage(label) > 0)
        extents.append((np.ptp(inside, axis=0) + 1)[::-1] * np.asarray(label.GetSpacing()))
    return np.ceil(2 * ROOM * np.max(extents, axis=0) / spacing).astype(int), spacing


def centered(label: sitk.Image, size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Resample a label to the common grid, the center of its structures in the middle: (*S)."""
    inside = np.argwhere(sitk.GetArrayViewFromImage(label) > 0)
    if not len(inside):
        return np.zeros(size[::-1], np.int32)
    center = np.asarray(label.TransformContinuousIndexToPhysicalPoint(inside.mean(axis=0)[::-1].tolist()))
    direction = np.asarray(label.GetDirection()).reshape(len(size), -1)
    origin = center - direction @ (spacing * (size - 1) / 2)
    grid = [size.tolist(), sitk.Transform(), sitk.sitkNearestNeighbor, origin.tolist(), spacing.tolist()]
    array = sitk.GetArrayFromImage(sitk.Resample(label, *grid, label.GetDirection(), 0.0, sitk.sitkInt32))
    return np.asarray(array, np.int32)


def dice_matrix(first: Sequence[np.ndarray], second: Sequence[np.ndarray], values: Sequence[int]) -> np.ndarray:
    """Compute the mean Dice over the labels for all pairs: (len(first), len(second))."""
    total = np.zeros((len(first), len(second)))
    for value in values:
        a, b = (np.stack([x.ravel() == value for x in arrays]).astype(np.float32) for arrays in (first, second))
        sizes = a.sum(1)[:, None] + b.sum(1)[None]
        total += np.where(sizes > 0, 2 * (a @ b.T) / np.maximum(sizes, 1), 1.0)
    return total / len(values)


def figures(copies: Sequence[np.ndarray], people: Sequence[np.ndarray], values: Sequence[int]) -> dict[str, float]:
    """Compute coverage, plausibility, recall and precision of copies."""
    overlap = dice_matrix(copies, people, values)
    among_people, among_copies = dice_matrix(people, people, values), dice_matrix(copies, copies, values)
    # The neighborhood of each: the overlap with its k-th neighbor, itself left out.
    people_reach, copies_reach = (np.sort(m, axis=1)[:, -1 - NEIGHBORS] for m in (among_people, among_copies))
    return {
        "coverage": float(overlap.max(axis=0).mean()),
        "plausibility": float(overlap.max(axis=1).mean()),
        "recall": float((overlap >= copies_reach[:, None]).any(axis=0).mean()),
        "precision": float((overlap >= people_reach[None]).any(axis=1).mean()),
    }


def choose(cases: list[Case], shots: int, unseen: int, people: str, draw: int) -> tuple[list[Case], list[Case]]:
    """Choose the subjects to copy and the unseen people: evenly over the list, never its end alone.

    Args:
        people: pattern of the names that may be copied, such as those of the healthy.
        draw: number of the draw. Each has other subjects, as long as there are some; later draws are random.
    """
    allowed = [case for case in cases if re.search(people, case.name)]
    step = len(allowed) / shots
    if draw < int(step):
        first = [allowed[int(k * step + draw) % len(allowed)] for k in range(shots)]
    else:
        first = [allowed[k] for k in np.sort(np.random.default_rng(draw).permutation(len(allowed))[:shots])]
    names = {case.name for case in first}
    rest = [case for case in cases if case.name not in names]
    unseen = min(unseen, len(rest))
    return first, [rest[int(k * len(rest) / unseen)] for k in range(unseen)]


@dataclass(frozen=True)
class Setting:
    """What is copied and what is compared.

    Attributes:
        cases: labeled cases; subjects to copy and unseen people are among them.
        others: cases of other people: the row ``people``, and the poses of ``+auto``.
        people: pattern of the names that may be copied.
        shots: number of subjects.
        copies: of each subject.
        unseen: number of unseen people.
        levels: of models, in turn.
    """

    cases: list[Case]
    others: list[Case] | None = None
    people: str = ""
    shots: int = 5
    copies: int = 24
    unseen: int = 50
    levels: Sequence[Level] = STRENGTHS


def labels_of(cases: Sequence[Case]) -> list[LabeledImage]:
    """Read cases; of whole heads with MUSE regions, the labels of the deep structures."""
    return [load_structures(case) for case in cases]


def measure(
    setting: Setting, methods: Sequence[str], draw: int, done: Sequence[str] = (), device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Make the copies of every method from one draw of the subjects, and yield its figures; ``done`` is left out."""
    missing = [method for method in methods if method not in done]
    if not missing:
        return
    chosen, rest = choose(setting.cases, setting.shots, setting.unseen, setting.people, draw)
    others = setting.others
    if others is None:
        others = [case for case in setting.cases if case not in chosen and case not in rest]
    subjects, people = labels_of(chosen), labels_of(rest)
    size, spacing = window([p.label for p in subjects + people])
    values = structure_values([p.label for p in subjects + people])
    unseen = [centered(p.label, size, spacing) for p in people]
    if any(":toward" in method for method in missing) and not others:
        others = rest
        print("There are no other people, so that the copies go toward those who are judged.", flush=True)
    spread = poses_of_cases(others) if any(method.endswith("+auto") for method in missing) else None
    if spread is not None:
        print(f"Poses of the other people, without their labels: {spread.words()}.", flush=True)
    for method in missing:
        if method == "people":
            most = setting.shots * setting.copies
            copies = [centered(one.label, size, spacing) for one in labels_of(others[:: 1 + len(others) // (most + 1)])]
        else:
            make = maker(method, setting.levels, device, spread, others)
            copies = [
                centered(make(subject, copy, 1000 * number + copy).label, size, spacing)
                for number, subject in enumerate(subjects)
                for copy in range(setting.copies)
            ]
        if copies:
            yield {"method": method, "draw": draw, "copies": len(copies)} | figures(copies, unseen, values)


def main() -> None:
    """Make the copies of every method, measure them; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", required=True, help="none, pose+1, those of methods.py, or models")
    parser.add_argument("--only", default="", help="pattern of the cases that are used at all, such as _ED")
    parser.add_argument("--people", default="", help="pattern of the subjects that may be copied")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--copies", type=int, default=24, help="of each subject")
    parser.add_argument("--levels", type=read_level, nargs="+", default=list(STRENGTHS))
    parser.add_argument("--unseen", type=int, default=50)
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [case for case in find_cases(options.dataset) if case.label and re.search(options.only, case.name)]
    setting = Setting(cases, None, options.people, options.shots, options.copies, options.unseen, options.levels)
    rows: list[dict[str, Any]] = []
    for draw in options.draws:
        for row in measure(setting, [*options.methods, "people"], draw, device=options.device):
            rows.append(row)
            print(row, flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows, dict.fromkeys(FIGURES, ".3f")))


if __name__ == "__main__":
    main()
