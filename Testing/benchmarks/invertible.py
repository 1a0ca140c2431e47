"""How invertible the fields are, what repair changes, what it costs, and whether labels keep their topology.

    python Testing/benchmarks/benchmark_invertible.py DATASET [--model hippocampus-mr-3d] [--subjects 8] [--json OUT]

DATASET has images/ and labels/; every K-th subject, which ``drdm train`` leaves out, is used (``--hold-out``). Elastic
deformations of TorchIO and MONAI are scaled to the mean displacement of ours, subject by subject; both fields are
linear in their strength, so that is the same as choosing it.

Topology: voxels have jagged surfaces, whose steps touch and part when they are sampled anew, whatever the map. So each
label is taken as the inside of its smoothed signed distance, and looked at with voxels of half the side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from contenders import monai_field, phantom
from scipy import ndimage

from DRDMLib.catalogue import load_model
from DRDMLib.certificate import certify_carried, certify_saved
from DRDMLib.datasets import find_cases
from DRDMLib.deformation import deform, generate, prepare
from DRDMLib.geometry import carried_field, needs_refinement
from DRDMLib.images import read_image, read_label
from DRDMLib.metrics import measure_ddf
from DRDMLib.models import Model
from DRDMLib.repair import repair
from DRDMLib.training.data import split

LEVELS = (16, 32, 48, 64, 79)
TOPOLOGY_LEVELS = (48, 79)
FINER = 2


def euler_number(mask: np.ndarray) -> int:
    """Of the union of the voxels as closed cubes: vertices - edges + faces - cubes."""
    padded = np.pad(mask, 1)
    total = 0
    for collapsed in itertools.product((False, True), repeat=mask.ndim):
        cells = padded
        for axis, meet in enumerate(collapsed):
            if meet:
                n = cells.shape[axis]
                cells = cells.take(range(n - 1), axis) | cells.take(range(1, n), axis)
        total += (-1) ** (mask.ndim - sum(collapsed)) * int(cells.sum())
    return total


def topology(distance: sitk.Image) -> tuple[int, int]:
    """Connected components (also over corners) and Euler number of a shape, given by its signed distance."""
    mask = sitk.GetArrayViewFromImage(distance) > 0
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1]), euler_number(mask)


def shapes(label: sitk.Image) -> list[sitk.Image]:
    """Smoothed signed distance of each value, inside positive, with voxels of half the side."""
    made = []
    for value in np.unique(sitk.GetArrayViewFromImage(label)).tolist():
        if value:
            distance = sitk.SignedMaurerDistanceMap(label == value, True, False, True)
            smooth = sitk.SmoothingRecursiveGaussian(distance, 1.0)
            made.append(sitk.Expand(smooth, [FINER] * label.GetDimension(), sitk.sitkLinear))
    return made


def mean_displacement(ddf: sitk.Image) -> float:
    """Millimetres."""
    return float(np.linalg.norm(sitk.GetArrayViewFromImage(ddf), axis=-1).mean())


def torchio_field(image: sitk.Image, seed: int, control_points: int | tuple[int, ...] = 7) -> sitk.Image:
    """TorchIO's elastic deformation, by default with its own number of control points, on the grid of ``image``."""
    import torchio

    torch.manual_seed(seed)
    subject = torchio.Subject(image=torchio.ScalarImage.from_sitk(image))
    warped = torchio.RandomElasticDeformation(control_points, max_displacement=3.0)(subject)
    spline = warped.history[-1].get_bspline_transform(image)
    filled = sitk.TransformToDisplacementFieldFilter()
    filled.SetReferenceImage(image)
    return filled.Execute(spline)


def torchio_fine_field(image: sitk.Image, seed: int) -> sitk.Image:
    """The same with a control point every 4 mm."""
    extent = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    return torchio_field(image, seed, tuple(max(5, round(e / 4)) for e in extent))


def monai_elastic_field(image: sitk.Image, seed: int) -> sitk.Image:
    """MONAI's elastic deformation with the settings of ``benchmark_deform``, on the grid of ``image``."""
    from monai.transforms import Rand3DElastic

    tensor = torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))[None]
    common: dict[str, Any] = {"prob": 1.0, "mode": "bilinear", "padding_mode": "border"}
    transform = Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 150), **common)
    field = monai_field(transform, lambda: transform.set_random_state(seed)(tensor), tensor)
    vectors = sitk.GetArrayFromImage(field) * np.asarray(image.GetSpacing())
    d = image.GetDimension()
    vectors = vectors @ np.asarray(image.GetDirection()).reshape(d, d).T
    made = sitk.GetImageFromArray(vectors, isVector=True)
    made.CopyInformation(image)
    return made


def scaled(ddf: sitk.Image, factor: float) -> sitk.Image:
    """All displacements times ``factor``."""
    made = sitk.GetImageFromArray(sitk.GetArrayFromImage(ddf) * factor, isVector=True)
    made.CopyInformation(ddf)
    return made


ELASTIC = {
    "TorchIO elastic": torchio_field,
    "TorchIO elastic, 4 mm": torchio_fine_field,
    "MONAI elastic": monai_elastic_field,
}


def repair_rows(model: Model, subjects: list[sitk.Image]) -> list[dict[str, float]]:
    """Before and after repair, level by level."""
    rows = []
    for level in LEVELS:
        before, after, changes, ratios, largest, strict = [], [], [], [], [], []
        for number, image in enumerate(subjects):
            grid, tensor = prepare(image, model)
            made = generate(tensor, model, level, 1000 + number)
            field = carried_field(made.recovered, grid, refine=needs_refinement(image, grid))
            before.append(certify_carried(field.image(), image).certified)
            length = np.linalg.norm(field.vectors, axis=-1).mean()
            report = repair(field, image)
            after.append(certify_carried(field.image(), image).certified)
            changes.append((report.mean_mm, report.max_mm))
            ratios.append(np.linalg.norm(field.vectors, axis=-1).mean() / length)
            saved = sitk.Resample(field.image(), image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32)
            figures = measure_ddf(saved)
            largest.append(figures.max_percent)
            strict.append(figures.nondiffeomorphic_fraction)
        rows.append(
            {
                "level": level,
                "certified_before": float(np.mean(before)),
                "certified_after": float(np.mean(after)),
                "change_mean_mm": float(np.mean([c[0] for c in changes])),
                "change_max_mm": float(np.max([c[1] for c in changes])),
                "strength_kept": float(np.min(ratios)),
                "largest_percent": float(np.mean(largest)),
                "nondiffeomorphic": float(np.max(strict)),
            }
        )
    return rows


def topology_rows(model: Model, subjects: list[sitk.Image], labels: list[sitk.Image]) -> list[dict[str, Any]]:
    """Ours and elastic deformations at equal mean displacement: what becomes of each label's topology."""
    rows = []
    for level in TOPOLOGY_LEVELS:
        kept: dict[str, list[bool]] = {}
        certified: dict[str, list[bool]] = {}
        folded: dict[str, list[float]] = {}
        for number, (image, label) in enumerate(zip(subjects, labels, strict=True)):
            ours = deform(image, model, level, 2000 + number)
            fields = {"DRDM": ours.ddf}
            for name, make in ELASTIC.items():
                elastic = make(image, number)
                fields[name] = scaled(elastic, mean_displacement(ours.ddf) / mean_displacement(elastic))
            whole = shapes(label)
            for name, ddf in fields.items():
                transform = sitk.DisplacementFieldTransform(sitk.Cast(ddf, sitk.sitkVectorFloat64))
                kept.setdefault(name, []).extend(
                    topology(sitk.Resample(shape, transform, sitk.sitkLinear, -1.0)) == topology(shape)
                    for shape in whole
                )
                certified.setdefault(name, []).append(certify_saved(ddf).certified)
                folded.setdefault(name, []).append(measure_ddf(ddf).nondiffeomorphic_fraction)
        for name in kept:
            rows.append(
                {
                    "level": level,
                    "method": name,
                    "topology_kept": float(np.mean(kept[name])),
                    "certified": float(np.mean(certified[name])),
                    "nondiffeomorphic": float(np.mean(folded[name])),
                }
            )
    return rows


def cost(model: Model) -> dict[str, float]:
    """Processor seconds of one 128^3 deformation at level 48, and of certificate and repair within it."""
    image = sitk.GetImageFromArray(phantom(3))
    deform(image, model, 48, 0, steps=2)
    begin = time.process_time()
    grid, tensor = prepare(image, model)
    made = generate(tensor, model, 48, 0)
    field = carried_field(made.recovered, grid, refine=needs_refinement(image, grid))
    between = time.process_time()
    repair(field, image)
    ours = time.process_time() - between
    sitk.Resample(image, sitk.DisplacementFieldTransform(field.image()))
    return {"deformation": time.process_time() - begin - ours, "certificate_and_repair": ours}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        lines.append("| " + " | ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(options.model, "cpu")
    cases = [case for case in split(find_cases(options.dataset), options.hold_out)[1] if case.label]
    cases = cases[: options.subjects]
    subjects = [read_image(case.image) for case in cases]
    labels = [read_label(case.label, image) for case, image in zip(cases, subjects, strict=True) if case.label]
    results = {
        "repair": repair_rows(model, subjects),
        "topology": topology_rows(model, subjects, labels),
        "cost": [cost(model)],
    }
    for name, rows in results.items():
        print(f"\n{name}\n\n{markdown(rows)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
