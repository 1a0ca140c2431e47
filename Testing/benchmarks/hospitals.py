"""Networks for another hospital than that of the labels: five hearts of one, tested on people of another.

    python -m benchmarks.hospitals run DATA OUT.json [--seeds 0 1 2]
    python -m benchmarks.hospitals tables OUT.json

The left ventricle of the five patients of Sunnybrook is labeled, at the end of diastole, in a square of 192 mm. The
test is on the fifty patients of ACDC for the test (see ``yardstick.py``), and versions go toward the other fifty, whose
labels are not used. Networks, copies and nnU-Net's augmentation are those of ``arms.py``. The patients are the same
with every seed, which is that of the copies and of the initial weights; every method of a seed has the same weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.coverage import Copy, Maker, maker
from benchmarks.example_sets import arrays_of, augmented, examples_of, read_examples, read_subject, write
from benchmarks.graph_training import NetworkTrainer
from benchmarks.labeled_views import LabeledImage
from benchmarks.tables import markdown
from benchmarks.yardstick import TABLES, read, setting
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image
from DRDMLib.levels import STRENGTHS
from DRDMLib.production.poses import poses_of_cases

COPIES, ITERATIONS, WINDOW, PIXEL, SIDE, VENTRICLE = 12, 800, (64, 64), 2.25, 192.0, 3
OURS = "general-3d:toward"
# Words of the rows, and the methods of the copies.
METHODS = {
    "no copies": "none",
    "TorchIO's elastic deformation, default": "torchio-mm",
    "poses alone": "pose+2",
    "elastic, 30 mm, with poses": "torchio-mm@30+2",
    "ours, with `--gray-values own`": f"{OURS}+auto",
    "ours, as `drdm augment` comes": f"{OURS}:gray+auto",
    "the same with `--pose 2`": f"{OURS}:gray+2",
}


def ventricle(label: sitk.Image) -> sitk.Image:
    """Return the mask of the left ventricle."""
    return sitk.Cast(label == VENTRICLE, sitk.sitkUInt8)


def labeled(data: Path) -> list[LabeledImage]:
    """Read the heart of each patient when it is largest, in a square around the ventricle, slices with a label only."""
    largest: dict[str, tuple[int, Case, sitk.Image]] = {}
    for case in find_cases(data / "cardiac_sunnybrook"):
        if case.label is None:
            continue
        label = ventricle(sitk.ReadImage(str(case.label)))
        size, patient = int(sitk.GetArrayViewFromImage(label).sum()), case.name.partition("_")[0]
        if patient not in largest or size > largest[patient][0]:
            largest[patient] = (size, case, label)
    made = []
    for _, (_, case, label) in sorted(largest.items()):
        image = read_image(case.image)
        label = sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor)
        inside = np.argwhere(sitk.GetArrayViewFromImage(label))[:, ::-1]
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        size = [min(round(SIDE / s), n) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)]
        most = np.asarray(image.GetSize()) - size
        start = np.clip((low + high - size) // 2, 0, most).tolist()
        size[2], start[2] = int(high[2] - low[2]), int(low[2])
        made.append(LabeledImage(*(sitk.RegionOfInterest(one, size, start) for one in (image, label))))
    return made


def remembered(make: Maker) -> Maker:
    """Return a maker that makes each copy once."""
    kept: dict[tuple[int, int], Copy] = {}

    def once(subject: LabeledImage, copy: int, seed: int) -> Copy:
        if (id(subject), seed) not in kept:
            made = make(subject, copy, seed)
            image = made.image()
            kept[id(subject), seed] = Copy(made.label, lambda: image)
        return kept[id(subject), seed]

    return once


def train_and_test(path: Path, data: Path, seed: int, *, nnunet: bool) -> list[float]:
    """Train a network on the examples in a file, and return the Dice of each person."""
    torch.set_num_threads(1)
    trainer = NetworkTrainer(WINDOW, 2, torch.device("cpu"))
    trainer.train(read_examples(path), seed, ITERATIONS, augment=not nnunet)
    people = [read_subject(case) for case in setting(TABLES["hearts"], data, choosing=False).cases]
    return trainer.test([arrays_of(LabeledImage(one.image, ventricle(one.label)), WINDOW, PIXEL) for one in people])


def run(data: Path, out: Path, seeds: list[int]) -> None:
    """Train what is missing in a file of rows."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rows: list[dict[str, Any]] = read(out)
    others = setting(TABLES["hearts"], data, choosing=False).others or []
    subjects, spread = labeled(data), poses_of_cases(others)
    waiting: list[tuple[dict[str, Any], Future[list[float]]]] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context) as pool:
        for seed in seeds:
            for number, method in enumerate(METHODS.values()):
                make = None if method == "none" else remembered(maker(method, STRENGTHS, "cpu", spread, others))
                for nnunet in (False, True):
                    key = {"seed": seed, "method": method, "nnunet": nnunet}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    path = Path(folder, f"{seed}-{number}-{nnunet}.npz")
                    found = examples_of(subjects, make, COPIES, WINDOW, PIXEL, seed)
                    write(augmented(found, seed) if nnunet else found, path)
                    waiting.append((key, pool.submit(train_and_test, path, data, seed, nnunet=nnunet)))
        for key, trained in waiting:
            people = trained.result()
            rows.append(key | {"dice": float(np.mean(people)), "people": [round(value, 4) for value in people]})
            print({k: v for k, v in rows[-1].items() if k != "people"}, flush=True)
            out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def tables(out: Path) -> str:
    """Return the table: means over the seeds, and the value of each."""
    lines = []
    for words, method in METHODS.items():
        line: dict[str, Any] = {"copies": words}
        for column, nnunet in (("alone", False), ("with nnU-Net's augmentation", True)):
            found = [row["dice"] for row in read(out) if (row["method"], row["nnunet"]) == (method, nnunet)]
            line[column] = f"{np.mean(found):.3f} ({', '.join(f'{one:.3f}' for one in found)})" if found else ""
        lines.append(line)
    return markdown(lines, {})


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["run", "tables"])
    parser.add_argument("paths", type=Path, nargs="+", metavar="DATA OUT", help="for 'tables' OUT only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.task == "run":
        run(options.paths[0], options.paths[-1], options.seeds)
    print(tables(options.paths[-1]))


if __name__ == "__main__":
    main()
