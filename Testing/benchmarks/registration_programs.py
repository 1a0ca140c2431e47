"""Real registration programs on pairs of known truth, and on pairs of different people.

    python -m benchmarks.registration_programs run DATA WORK [--anatomies hippocampus heads chest] [--cases 10]
    python -m benchmarks.registration_programs tables WORK [--json OUT.json]

``run`` makes the pairs with ``drdm challenge``, registers them with every setting of ``registration_settings`` and
appends one line to ``WORK/records.jsonl`` for each result; what is there already is not computed again. ``tables``
prints Markdown: the ranking with its confidence, the deliberately broken results, false alarms, and the rank
correlation with the overlap of labels on pairs of different people. Needs the packages ``antspyx`` and ``itk-elastix``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.registration_settings import PROGRAMS
from benchmarks.registration_tables import tables
from DRDMLib.challenge.cases import COUNTS
from DRDMLib.challenge.score import _displacements, score
from DRDMLib.challenge.truth import Truth, read_truth
from DRDMLib.cli import main as drdm
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image, read_label
from DRDMLib.training.data import split

PAIRS = ("hard", "people", "medium")
SHIFT = (5.0, 0.0, 0.0)
HELD_OUT = {"hippocampus": 8, "heads": 5}


@dataclass(frozen=True)
class Anatomy:
    """Scans of one anatomy.

    Attributes:
        folder: of the dataset in DATA.
        spacing: to which scans are resampled, millimeters; ``None``: as they are.
        cases: at most so many.
        pairs: pairs of different people for each scan.
    """

    folder: str
    spacing: float | None
    cases: int
    pairs: int


ANATOMIES = {
    "hippocampus": Anatomy("hippocampus", None, 10, 1),
    "heads": Anatomy("brain_ixi", 2.5, 4, 1),
    "chest": Anatomy("ct", 4.0, 1, 0),
}


def scans(data: Path, name: str, anatomy: Anatomy) -> list[Case]:
    """List scans that the shipped models were not trained on; of the chest one that only the general models know."""
    cases = find_cases(data / anatomy.folder)
    if name in HELD_OUT:
        return split(cases, HELD_OUT[name])[1][: anatomy.cases]
    return [case for case in cases if case.name.startswith("LIDC")][: anatomy.cases]


def resampled(image: sitk.Image, spacing: float | None, nearest: bool = False) -> sitk.Image:
    """Resample an image to voxels of equal sides."""
    if spacing is None:
        return image
    size = [max(1, round(n * s / spacing)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetDirection(image.GetDirection())
    grid.SetSpacing([n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), size, strict=True)])
    corner = image.TransformContinuousIndexToPhysicalPoint([-0.5] * 3)
    shift = np.asarray(grid.TransformContinuousIndexToPhysicalPoint([-0.5] * 3))
    grid.SetOrigin((np.asarray(corner) - shift).tolist())
    if not nearest:
        widths = [max(0.0, (m - s) / 2) for m, s in zip(grid.GetSpacing(), image.GetSpacing(), strict=True)]
        if max(widths) > 0:
            image = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), [max(w, 1e-3) for w in widths])
    kind = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, grid, sitk.Transform(), kind, 0.0)


def prepare(data: Path, work: Path, name: str, count: int | None) -> list[tuple[Path, Path | None]]:
    """Write the scans and their labels, in the place that their files say, and return their paths."""
    anatomy, written = ANATOMIES[name], []
    for case in scans(data, name, anatomy)[:count]:
        folder = work / name / "scans"
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{case.name}.nii.gz", folder / f"{case.name}_label.nii.gz"
        image = resampled(read_image(case.image), anatomy.spacing)
        label = None
        if case.label is not None:
            label = resampled(read_label(case.label, read_image(case.image)), anatomy.spacing, nearest=True)
        for path, one in zip(paths, (image, label), strict=True):
            if one is not None:
                sitk.WriteImage(one, str(path))
        written.append((paths[0], None if label is None else paths[1]))
    return written


def make_case(work: Path, name: str, scan: Path, label: Path | None, recipe: str) -> Truth:
    """Make one case of a scan, and read its truth."""
    stem = scan.name.removesuffix(".nii.gz")
    folder = work / name / recipe / stem
    number = sum(ord(letter) for letter in stem)
    if not (folder / "truth").exists():
        more = ["--label", str(label)] if label else []
        how = ["--recipe", recipe, "--seed", str(number), "--device", "cpu", "--progress", "none"]
        if drdm(["challenge", str(scan), "-o", str(folder), *more, *how]):
            raise SystemExit(f"no case of {scan}")
    return read_truth(folder / "truth" / f"{stem}_000")


def field_transform(vectors: np.ndarray, grid: sitk.Image) -> sitk.Transform:
    """Return displacements at the voxels of a grid as a transform."""
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, np.float64), isVector=True)
    field.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(field)


def broken(result: sitk.Transform, fixed: sitk.Image) -> Iterator[tuple[str, sitk.Transform]]:
    """Break a result deliberately: stopped half way, shifted by 5 mm, inverted."""
    vectors = _displacements(result, fixed)
    yield "stopped half way", field_transform(0.5 * vectors, fixed)
    yield "shifted by 5 mm", field_transform(vectors + np.asarray(SHIFT), fixed)
    inverter = sitk.InvertDisplacementFieldImageFilter()
    inverter.SetMaximumNumberOfIterations(50)
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(fixed)
    yield "inverted", sitk.DisplacementFieldTransform(inverter.Execute(field))


def figures(result: sitk.Transform, truth: Truth) -> dict[str, Any]:
    """Score a result."""
    found = score(result, truth)
    dice = [label["dice"] for label in found.result.labels.values() if label["dice"] is not None]
    before = [label["dice"] for label in found.before.labels.values() if label["dice"] is not None]
    return {
        "mean_mm": found.result.body["mean"],
        "landmarks_mm": found.result.landmarks.get("mean"),
        "before_mm": found.before.body["mean"],
        "floor_mm": found.floor.body["mean"],
        "dice": float(np.mean(dice)) if dice else None,
        "before_dice": float(np.mean(before)) if before else None,
        "folded": found.folded_fraction,
        "looks_like": None if found.looks_like is None else found.looks_like.name,
    }


def mean_error(result: sitk.Transform, truth: Truth) -> float:
    """Return the mean error over the body, millimeters, the figure that ranks."""
    counts = sitk.GetArrayViewFromImage(truth.counted) == COUNTS
    apart = _displacements(result, truth.fixed) - _displacements(truth.transform, truth.fixed)
    return float(np.linalg.norm(apart[counts], axis=-1).mean())


def overlap(result: sitk.Transform, fixed: sitk.Image, labels: tuple[sitk.Image, sitk.Image]) -> float:
    """Return the mean Dice of the structures of two people."""
    moved = sitk.GetArrayFromImage(sitk.Resample(labels[1], fixed, result, sitk.sitkNearestNeighbor, 0))
    still = sitk.GetArrayFromImage(labels[0])
    values = [v for v in np.intersect1d(np.unique(still), np.unique(sitk.GetArrayViewFromImage(labels[1]))) if v]
    pairs = [(moved == v, still == v) for v in values]
    return float(np.mean([2 * int((a & b).sum()) / max(1, int(a.sum()) + int(b.sum())) for a, b in pairs]))


class Records:
    """Lines of ``records.jsonl``, by what they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, key: dict[str, str]) -> bool:
        """Return whether there is a record of this."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Append a record."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "broken"}, flush=True)


def register(
    records: Records, key: dict[str, str], pair: tuple[sitk.Image, sitk.Image], work: Path, judge: Any
) -> None:
    """Register a pair with every setting, and record what ``judge`` says of the results."""
    fixed, moving = (sitk.Cast(image, sitk.sitkFloat32) for image in pair)
    for program, run in PROGRAMS.items():
        whole = {**key, "program": program}
        if records.has(whole):
            continue
        folder = work / "results" / "-".join(key.values()) / program.replace(", ", "-").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        try:
            result = run(fixed, moving, folder)
        except (RuntimeError, ValueError, TypeError) as error:
            records.add({**whole, "failed": str(error)[:200]})
            continue
        records.add({**whole, "seconds": time.process_time() - began, **judge(result, program)})


def run(data: Path, work: Path, anatomies: list[str], kinds: list[str], count: int | None) -> None:
    """Make pairs and register them, the small ones first."""
    work.mkdir(parents=True, exist_ok=True)
    records = Records(work / "records.jsonl")
    for name in anatomies:
        written = prepare(data, work, name, count)
        for place, (scan, label) in enumerate(written):
            stem = scan.name.removesuffix(".nii.gz")
            for recipe in (kind for kind in kinds if kind != "people"):
                truth = make_case(work, name, scan, label, recipe)

                def judge(result: sitk.Transform, program: str, truth: Truth = truth) -> dict[str, Any]:
                    row = figures(result, truth)
                    if program not in ("nothing", "affine"):
                        row["broken"] = {kind: mean_error(r, truth) for kind, r in broken(result, truth.fixed)}
                    return row

                key = {"anatomy": name, "pair": recipe, "case": stem}
                register(records, key, (truth.fixed, truth.moving), work, judge)
            steps = min(ANATOMIES[name].pairs, len(written) - 1) if "people" in kinds else 0
            for step in range(1, steps + 1):
                other, other_label = written[(place + step) % len(written)]
                if label is None or other_label is None:
                    continue
                fixed, moving = (sitk.ReadImage(str(path)) for path in (scan, other))
                labels = sitk.ReadImage(str(label)), sitk.ReadImage(str(other_label))

                def overlaps(result: sitk.Transform, program: str, fixed: Any = fixed, labels: Any = labels) -> Any:
                    return {"dice": overlap(result, fixed, labels)}

                case = f"{stem}-{other.name.removesuffix('.nii.gz')}"
                register(records, {"anatomy": name, "pair": "people", "case": case}, (fixed, moving), work, overlaps)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["run", "tables"])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="DATA WORK to run, WORK for tables")
    parser.add_argument("--anatomies", nargs="+", choices=list(ANATOMIES), default=list(ANATOMIES))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="recipes, and different people")
    parser.add_argument("--cases", type=int, help="fewer scans of each anatomy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Before ANTs and elastix are loaded; their results may depend on the number of threads.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if options.action == "run":
        run(*options.folders, options.anatomies, options.pairs, options.cases)
        return
    rows = Records(options.folders[0] / "records.jsonl").rows
    text, found = tables(rows)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
