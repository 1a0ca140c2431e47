"""How invertible the fields are, what repair changes, what it costs, and whether labels keep their topology.

    python -m benchmarks.invertible DATASET [--model hippocampus-mr-3d] [--subjects 8] [--json OUT]

DATASET has images/ and labels/; every K-th subject, which ``drdm train`` leaves out, is used (``--hold-out``). Elastic
deformations of TorchIO and MONAI are scaled to the mean displacement of ours, subject by subject; both fields are
linear in their strength, so that is the same as choosing it.

Topology: voxels have jagged surfaces, whose steps touch and part when they are resampled, whatever the map. So each
label is taken as the inside of its smoothed signed distance, with voxels of half the side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage.measure import euler_number

from benchmarks.displacement import mean_length, scale_field
from benchmarks.methods import monai_elastic, torchio_elastic
from benchmarks.phantom import phantom
from benchmarks.tables import markdown
from DRDMLib.deforming import deform
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility.certificate import certify_on_grid, certify_saved
from DRDMLib.invertibility.metrics import measure_ddf
from DRDMLib.invertibility.repair import repair
from DRDMLib.io.datasets import find_cases
from DRDMLib.io.images import read_image, read_label
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.model_grid import needs_refinement, physical_field
from DRDMLib.training.data import split

LEVELS = (16, 32, 48, 64, 79)
TOPOLOGY_LEVELS = (48, 79)
FINER = 2
TORCHIO_VOXELS = 3.0


def topology(mask: np.ndarray) -> tuple[int, int]:
    """Return the connected components, also over corners, and the Euler number of a shape of voxels as closed cubes."""
    components = int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])
    return components, int(euler_number(mask, connectivity=mask.ndim))


def topology_of(distance: sitk.Image) -> tuple[int, int]:
    """Return the topology of the inside of a signed distance."""
    return topology(sitk.GetArrayViewFromImage(distance) > 0)


def shapes(label: sitk.Image) -> list[sitk.Image]:
    """Return the smoothed signed distance of each value, inside positive, with voxels of half the side."""
    distances = []
    for value in np.unique(sitk.GetArrayViewFromImage(label)).tolist():
        if value:
            distance = sitk.SignedMaurerDistanceMap(label == value, True, False, True)
            smooth = sitk.SmoothingRecursiveGaussian(distance, 1.0)
            distances.append(sitk.Expand(smooth, [FINER] * label.GetDimension(), sitk.sitkLinear))
    return distances


def torchio_default(image: sitk.Image, seed: int) -> sitk.Image:
    """Draw a field of TorchIO with its default number of control points."""
    return torchio_elastic(image, seed, max_displacement=TORCHIO_VOXELS)


def torchio_fine(image: sitk.Image, seed: int) -> sitk.Image:
    """Draw a field of TorchIO with a control point every 4 mm."""
    extent = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    points = tuple(max(5, round(e / 4)) for e in extent)
    return torchio_elastic(image, seed, num_control_points=points, max_displacement=TORCHIO_VOXELS)


ELASTIC: dict[str, Callable[[sitk.Image, int], sitk.Image]] = {
    "TorchIO elastic": torchio_default,
    "TorchIO elastic, 4 mm": torchio_fine,
    "MONAI elastic": monai_elastic,
}


def mean_displacement(ddf: sitk.Image) -> float:
    """Return the mean displacement of a field, mm."""
    return mean_length(sitk.GetArrayViewFromImage(ddf))


def repair_rows(model: Model, subjects: list[sitk.Image]) -> list[dict[str, float]]:
    """Return figures before and after repair, level by level."""
    rows = []
    for level in LEVELS:
        before, after, changes, ratios, largest, strict = [], [], [], [], [], []
        for number, image in enumerate(subjects):
            grid, tensor = prepare(image, model)
            made = generate(tensor, model, DeformationSettings(level), (1000 + number,))
            field = physical_field(made.recovered, grid, refine=needs_refinement(image, grid))
            before.append(certify_on_grid(field.image(), image).certified)
            length = np.linalg.norm(field.vectors, axis=-1).mean()
            report = repair(field, image)
            after.append(certify_on_grid(field.image(), image).certified)
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
    """Return how often labels keep their topology, for ours and elastic deformations at equal mean displacement."""
    rows = []
    for level in TOPOLOGY_LEVELS:
        kept: dict[str, list[bool]] = {}
        certified: dict[str, list[bool]] = {}
        folded: dict[str, list[float]] = {}
        for number, (image, label) in enumerate(zip(subjects, labels, strict=True)):
            ours = deform(image, model, level, 2000 + number)
            fields = {"DRDM": ours.ddf}
            for name, draw in ELASTIC.items():
                elastic = draw(image, number)
                fields[name] = scale_field(elastic, mean_displacement(ours.ddf) / mean_displacement(elastic))
            whole = shapes(label)
            for name, ddf in fields.items():
                transform = sitk.DisplacementFieldTransform(sitk.Cast(ddf, sitk.sitkVectorFloat64))
                kept.setdefault(name, []).extend(
                    topology_of(sitk.Resample(shape, transform, sitk.sitkLinear, -1.0)) == topology_of(shape)
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
    """Return the processor seconds of one 128^3 deformation at level 48, and of certificate and repair within it."""
    image = sitk.GetImageFromArray(phantom(3))
    deform(image, model, 48, 0, steps=2)
    begin = time.process_time()
    grid, tensor = prepare(image, model)
    made = generate(tensor, model, DeformationSettings(48), (0,))
    field = physical_field(made.recovered, grid, refine=needs_refinement(image, grid))
    between = time.process_time()
    repair(field, image)
    ours = time.process_time() - between
    sitk.Resample(image, sitk.DisplacementFieldTransform(field.image()))
    return {"deformation": time.process_time() - begin - ours, "certificate_and_repair": ours}


def main() -> None:
    """Print three tables and write the figures."""
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
