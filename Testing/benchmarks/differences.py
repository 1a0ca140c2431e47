"""How coarse are the differences between real subjects, and how coarse are random deformations?

``python Testing/benchmarks/measure_differences.py DATASET --methods torchio monai MODEL:random@28 MODEL@44``

Real differences: the labelled structures of two subjects, centres of their images together, matched by demons on the
distance to the structures' surface. Of every field, within the structures: mean displacement, and the shares of its
energy that a translation explains, that an affine map explains, and that lie in octaves of scale. Demons smooth what
they find (1.5 voxels here), so the finest octaves of the real differences are underestimated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from deformers import deformer
from scipy.ndimage import gaussian_filter
from slices import Pair, load_pairs

from DRDMLib.datasets import find_cases

OCTAVES = (1, 2, 4, 8)
# Beyond this distance from the surface, voxels, nothing is to be matched.
REACH = 6.0


def distance(label: sitk.Image) -> sitk.Image:
    """To the surface of all structures together, voxels, negative inside."""
    mask = sitk.Cast(label > 0, sitk.sitkUInt8)
    found = sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=False)
    return sitk.Clamp(sitk.Cast(found, sitk.sitkFloat32), sitk.sitkFloat32, -REACH, REACH)


def difference(a: Pair, b: Pair) -> np.ndarray:
    """The field from one subject's structures to another's, on the grid of ``a``, mm."""
    how = sitk.CenteredTransformInitializerFilter.GEOMETRY
    together = sitk.CenteredTransformInitializer(a[0], b[0], sitk.Euler3DTransform(), how)
    moved = sitk.Resample(b[1], a[1], together, sitk.sitkNearestNeighbor)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(150)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(1.5)
    return sitk.GetArrayFromImage(demons.Execute(distance(a[1]), distance(moved)))


def shares(field: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Figures of a field (*S, 3), mm, within a mask."""
    vectors, places = field[inside], np.argwhere(inside).astype(float)
    energy = float((vectors**2).sum(-1).mean())
    design = np.c_[np.ones(len(places)), places - places.mean(0)]
    left = vectors - design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
    figures = {
        "mean_mm": float(np.linalg.norm(vectors, axis=-1).mean()),
        "translation": float((vectors.mean(0) ** 2).sum()) / energy,
        "affine": 1 - float((left**2).sum(-1).mean()) / energy,
    }
    before = field
    for sigma in OCTAVES:
        after = gaussian_filter(before, (*[sigma] * 3, 0), mode="nearest")
        figures[f"finer_than_{sigma}"] = float(((before - after)[inside] ** 2).sum(-1).mean()) / energy
        before = after
    return figures


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="*", default=[], help="as in deformers.py, a level behind @")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [case for case in find_cases(options.dataset) if case.label]
    first, second = ([load_pairs(c)[0] for c in half[: options.subjects]] for half in (cases[::2], cases[1::2]))
    masks = [sitk.GetArrayFromImage(pair[1]) > 0 for pair in first]
    fields = {"between subjects": [difference(a, b) for a, b in zip(first, second, strict=True)]}
    for method in options.methods:
        name, _, level = method.partition("@")
        make = deformer(name)
        fields[method] = [make(pair[0], 1000 + k, int(level or 0)) for k, pair in enumerate(first)]
    rows: list[dict[str, object]] = []
    for method, made in fields.items():
        found = [shares(field, mask) for field, mask in zip(made, masks, strict=True)]
        rows.append({"method": method, **{key: float(np.mean([f[key] for f in found])) for key in found[0]}})
        print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps({"subjects": len(first), "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
