"""How coarse the differences between real subjects are, and how coarse random deformations are.

    python -m benchmarks.differences DATASET --methods torchio monai MODEL:random@28 MODEL@44

Real differences: the labeled structures of two subjects, centers of their images together, matched by demons on the
distance to the structures' surface. Of every field, within the structures: the mean displacement, and the fractions of
its energy that a translation explains, that an affine map explains, and that lie in octaves of scale. Demons smooth
what they find (1.5 voxels here), so the finest octaves of the real differences are underestimated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from benchmarks.displacement import beyond_affine, mean_length
from benchmarks.labeled_views import LabeledImage, load_views
from benchmarks.methods import deformer
from DRDMLib.io.datasets import find_cases

OCTAVES = (1, 2, 4, 8)
# Distances to the surface are cut off here, voxels.
REACH = 6.0


def distance(label: sitk.Image) -> sitk.Image:
    """Return the distance to the surface of all structures together, voxels, negative inside."""
    mask = sitk.Cast(label > 0, sitk.sitkUInt8)
    found = sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=False)
    return sitk.Clamp(sitk.Cast(found, sitk.sitkFloat32), sitk.sitkFloat32, -REACH, REACH)


def difference(a: LabeledImage, b: LabeledImage) -> np.ndarray:
    """Return the field from one subject's structures to another's, on the grid of ``a``, mm."""
    centered = sitk.CenteredTransformInitializer(
        a.image, b.image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    moved = sitk.Resample(b.label, a.label, centered, sitk.sitkNearestNeighbor)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(150)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(1.5)
    return sitk.GetArrayFromImage(demons.Execute(distance(a.label), distance(moved)))


def energy_fractions(field: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Return the mean displacement and the fractions of the energy of a field (*S, 3) within a mask."""
    vectors = field[inside]
    energy = float((vectors**2).sum(-1).mean())
    figures = {
        "mean_mm": mean_length(vectors),
        "translation": float((vectors.mean(0) ** 2).sum()) / energy,
        "affine": 1 - float((beyond_affine(field, inside) ** 2).sum(-1).mean()) / energy,
    }
    before = field
    for sigma in OCTAVES:
        after = gaussian_filter(before, (*[sigma] * 3, 0), mode="nearest")
        figures[f"finer_than_{sigma}"] = float(((before - after)[inside] ** 2).sum(-1).mean()) / energy
        before = after
    return figures


def main() -> None:
    """Measure the real differences and the fields of every method; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="*", default=[], help="as in methods.py; of a model with @LEVEL")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [case for case in find_cases(options.dataset) if case.label]
    first, second = ([load_views(c)[0] for c in half[: options.subjects]] for half in (cases[::2], cases[1::2]))
    masks = [sitk.GetArrayFromImage(pair.label) > 0 for pair in first]
    fields = {"between subjects": [difference(a, b) for a, b in zip(first, second, strict=True)]}
    for method in options.methods:
        name, _, level = method.partition("@")
        deform = deformer(name)
        fields[method] = [deform(pair.image, 1000 + k, int(level or 0)) for k, pair in enumerate(first)]
    rows: list[dict[str, object]] = []
    for method, drawn in fields.items():
        found = [energy_fractions(field, mask) for field, mask in zip(drawn, masks, strict=True)]
        rows.append({"method": method, **{key: float(np.mean([f[key] for f in found])) for key in found[0]}})
        print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps({"subjects": len(first), "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
