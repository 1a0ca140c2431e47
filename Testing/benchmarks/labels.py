"""How smooth and how true warped label maps are, all methods side by side.

    python -m benchmarks.labels DATA [--methods NAME ...] [--json OUT] [--time] [--side 256]

DATA has folders of images as in ``SCANS``, each with images/ and labels/. *Shapes*: shapes given as formulas are put on
the grid of a scan, and warped with a field that the library makes for the scan. The truth is the formula at the point
that the field maps each voxel's center to. *Real labels*: pieces of the scans' own labels, but the first of each label,
before and after; every piece that the original does not have is an artifact, because the map is a homeomorphism.

``--time`` measures CPU seconds and peak memory instead, with all regions of a head on a grid of ``--side`` voxels along
each axis, every call in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from benchmarks.label_methods import METHODS, Warp
from benchmarks.label_shapes import Scene, draw_scene, true_label
from benchmarks.labeled_views import DEEP_REGIONS, deep_structures, is_head
from benchmarks.tables import markdown
from DRDMLib.deforming import deform
from DRDMLib.io.images import read_image, read_label

LEVELS = (48, 72)
SEED = 3
# Collection, scan, model, number of shapes.
SCANS = (
    ("brain_ixi", "IXI013-HH-1212", "brain-t1-3d", 30),
    ("hippocampus", "hippocampus_003", "hippocampus-mr-3d", 12),
    ("hippocampus", "hippocampus_004", "hippocampus-mr-3d", 12),
    ("cardiac_sunnybrook", "SCD0000101_phase07", "general-3d", 24),
)
TIMED = ("nearest voxel (TorchIO, MONAI)", "nearest voxel, thin parts joined (before)", "ours")
KINDS = ("balls", "tori", "sheets", "tubes, 1 thick", "tubes, 2 thick", "tubes, 3 thick")


class Sample(NamedTuple):
    """A scan, its label map, shapes on its grid, and a field with what it makes of the shapes."""

    name: str
    level: int
    image: sitk.Image
    label: sitk.Image
    scene: Scene
    truth: np.ndarray
    field: sitk.Image


def samples(data: Path) -> Iterator[Sample]:
    """Deform every scan of ``SCANS`` at all levels."""
    for folder, name, model, count in SCANS:
        image = read_image(data / folder / "images" / f"{name}.nii.gz")
        label = read_label(data / folder / "labels" / f"{name}.nii.gz", image)
        if is_head(image):
            label = deep_structures(label, [(region,) for sides in DEEP_REGIONS for region in sides])
        scene = draw_scene(image, count, seed=1)
        for level in LEVELS:
            field = deform(image, model, level=level, seed=SEED, device="cpu").field
            yield Sample(name, level, image, label, scene, true_label(scene, image, field), field)


def pieces(mask: np.ndarray, connected: int = 3) -> int:
    """Count the pieces of a structure; voxels that share a corner (3) or a face (1) are connected."""
    return int(ndimage.label(mask, ndimage.generate_binary_structure(3, connected))[1])


def box_around(*masks: np.ndarray) -> tuple[slice, ...]:
    """Return the box around all voxels of the masks and two more on each side."""
    boxes = ndimage.find_objects(np.logical_or.reduce(masks).astype(np.uint8))
    return tuple(slice(max(0, s.start - 2), s.stop + 2) for s in boxes[0]) if boxes else (slice(0, 0),) * masks[0].ndim


def surface_distance(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float | None:
    """Return the mean distance between the outermost voxels of two shapes, mm; None if one has no voxels."""
    if not (a.any() and b.any()):
        return None
    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]
    to = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float((to[1][edges[0]].mean() + to[0][edges[1]].mean()) / 2)


def measure(warp: Warp, sample: Sample) -> list[dict[str, Any]]:
    """Compare the warped shapes with the truth, shape by shape."""
    transform = sitk.DisplacementFieldTransform(sitk.Image(sample.field))
    warped = warp(sample.scene.label, sample.image, transform)
    rows = []
    for value, shape in enumerate(sample.scene.shapes, start=1):
        box = box_around(warped == value, sample.truth == value)
        ours, true = warped[box] == value, sample.truth[box] == value
        rows.append(
            {
                "sample": f"{sample.name} {sample.level}",
                "kind": shape.kind,
                "wrong": int((ours != true).sum()),
                "voxels": int(true.sum()),
                "whole": pieces(ours) == 1 if pieces(true) == 1 else None,
                "mm": surface_distance(ours, true, sample.image.GetSpacing()[::-1]),
            }
        )
    return rows


def stray_pieces(label: np.ndarray) -> int:
    """Count the pieces of all labels but the first of each; an island that touches at a corner counts, too."""
    boxes = ndimage.find_objects(label)
    return sum(pieces(label[box] == value, 1) - 1 for value, box in enumerate(boxes, start=1) if box is not None)


def share(rows: list[dict[str, Any]]) -> float:
    """Return the voxels that are wrong, in percent of the voxels of the shapes."""
    return 100 * sum(row["wrong"] for row in rows) / max(1, sum(row["voxels"] for row in rows))


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a method in the table of shapes; "all" is the mean of the samples."""
    by_sample = [[row for row in rows if row["sample"] == s] for s in dict.fromkeys(row["sample"] for row in rows)]
    tubes = [row["whole"] for row in rows if row["kind"].startswith("tubes") and row["whole"] is not None]
    thin = [row["whole"] for row in rows if row["kind"] == KINDS[3] and row["whole"] is not None]
    distances = [row["mm"] for row in rows if row["mm"] is not None]
    return {
        "method": name,
        "wrong, %": statistics.mean(map(share, by_sample)),
        **{kind: share([row for row in rows if row["kind"] == kind]) for kind in KINDS},
        "surface, mm": statistics.mean(distances),
        "lost": sum(row["mm"] is None for row in rows),
        "tubes whole, %": 100 * statistics.mean(tubes),
        "thinnest whole, %": 100 * statistics.mean(thin),
    }


def compare(data: Path, names: list[str]) -> dict[str, Any]:
    """Measure all methods on the shapes, and on the scans' own labels."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    strays: dict[str, dict[str, int]] = {"original": {}} | {name: {} for name in names}
    for sample in samples(data):
        print(f"{sample.name}, level {sample.level}", file=sys.stderr, flush=True)
        key = f"{sample.name} {sample.level}"
        strays["original"][key] = stray_pieces(sitk.GetArrayFromImage(sample.label))
        transform = sitk.DisplacementFieldTransform(sitk.Image(sample.field))
        for name in names:
            rows[name] += measure(METHODS[name], sample)
            strays[name][key] = stray_pieces(METHODS[name](sample.label, sample.image, transform))
    shapes = [summary(name, rows[name]) for name in names]
    samples_table = [
        {"method": name} | {s: share([r for r in rows[name] if r["sample"] == s]) for s in strays["original"]}
        for name in names
    ]
    print(markdown(shapes, {"surface, mm": ".2f"}, ".1f"), "\n")
    print("Voxels wrong, % of the shapes\n")
    print(markdown(samples_table, default=".1f"), "\n")
    print("Pieces of the scans' own labels, but the first of each\n")
    print(markdown([{"method": name, **counts} for name, counts in strays.items()]))
    return {"shapes": shapes, "samples": samples_table, "strays": strays}


def upsampled(label: sitk.Image, side: int) -> sitk.Image:
    """Resample a label map to a cube of voxels that covers the same space."""
    size = np.asarray(label.GetSize(), float)
    grid = sitk.Image([side] * 3, label.GetPixelID())
    grid.SetSpacing((np.asarray(label.GetSpacing()) * size / side).tolist())
    grid.SetOrigin(label.TransformContinuousIndexToPhysicalPoint((0.5 * size / side - 0.5).tolist()))
    grid.SetDirection(label.GetDirection())
    return sitk.Resample(label, grid, sitk.Transform(), sitk.sitkNearestNeighbor)


def time_one(name: str, folder: Path) -> None:
    """Warp the label map in a folder; print CPU seconds and the peak of the process in MiB."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    label = sitk.ReadImage(str(folder / "label.mha"))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "field.mha")))
    unit = 1 if sys.platform == "darwin" else 1024
    started = time.process_time()
    METHODS[name](label, label, transform)
    seconds = time.process_time() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20]))


def compare_times(data: Path, side: int, repeats: int) -> dict[str, Any]:
    """Time the methods in turns, each call in a process of its own."""
    folder, name, model, _ = SCANS[0]
    image = read_image(data / folder / "images" / f"{name}.nii.gz")
    label = upsampled(read_label(data / folder / "labels" / f"{name}.nii.gz", image), side)
    figures: dict[str, list[list[float]]] = {name: [] for name in TIMED}
    with tempfile.TemporaryDirectory() as place:
        sitk.WriteImage(label, f"{place}/label.mha")
        sitk.WriteImage(deform(image, model, level=LEVELS[0], seed=SEED, device="cpu").field, f"{place}/field.mha")
        for _ in range(repeats):
            for method in TIMED:
                own = [sys.executable, "-m", "benchmarks.labels", str(data), "--worker", method, place]
                figures[method].append(json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout))
    labels = len(np.unique(sitk.GetArrayViewFromImage(label))) - 1
    rows = [
        {"method": m, "CPU seconds": statistics.median(f[0] for f in v), "peak, MiB": max(f[1] for f in v)}
        for m, v in figures.items()
    ]
    print(f"{labels} labels, {side}^3 voxels; median of {repeats}, in turns, one thread\n")
    print(markdown(rows, {"peak, MiB": ".0f"}, ".1f"))
    return {"labels": labels, "side": side, "times": rows}


def main() -> None:
    """Print the tables, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        time_one(options.worker[0], Path(options.worker[1]))
        return
    if options.time:
        result = compare_times(options.data, options.side, options.repeats)
    else:
        result = compare(options.data, options.methods)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
