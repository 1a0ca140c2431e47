"""How rigid bone stays in CT: before recovery, after it with free bones, and after it with rigid bones.

    python -m benchmarks.bones FOLDER [--levels 20 28 48 72] [--seeds 1] [--output bones.json]

For every CT in the folder, bone is found on a grid of about 3 mm. Two questions are asked, in millimeters. *Balls*: how
far is the connected bone in a ball of 40 mm diameter from a rigid motion of its own? *Pieces*: how far is each piece?
Pieces are separated where bone is thin (watershed of the distance to its surface): vertebrae, parts of ribs, of the
pelvis, of the shoulder blades. ``most`` is the largest deviation in a ball or a piece, the 95th percentile over all.
The table is compared with one rigid motion.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.tables import markdown
from DRDMLib.deforming import make_deformations
from DRDMLib.invertibility.inverse import inverse_points
from DRDMLib.io.images import read_image
from DRDMLib.models.catalogue import load_model
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.bones import find_skeleton, is_ct, rigid_fit, rigidity

# Side of the voxels in which pieces are separated, and how much thinner than its surroundings a neck is; millimeters.
VOXEL, NECK = 3.0, 1.5
LEAST_POINTS = 60


def pieces(points: np.ndarray) -> list[np.ndarray]:
    """Separate bone where it is thin: lists of the indices of its points (K, 3), millimeters."""
    voxels = np.rint((points - points.min(axis=0)) / VOXEL).astype(int) + 2
    mask = np.zeros((voxels.max(axis=0) + 3)[::-1], np.uint8)
    mask[tuple(voxels.T[::-1])] = 1
    image = sitk.BinaryMorphologicalClosing(sitk.GetImageFromArray(mask), [1, 1, 1])
    depth = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False)
    parts = sitk.Mask(sitk.MorphologicalWatershed(depth, NECK / VOXEL, markWatershedLine=False), image)
    values = sitk.GetArrayFromImage(parts)[tuple(voxels.T[::-1])]
    found = [np.flatnonzero(values == value) for value in np.unique(values) if value]
    return [piece for piece in found if len(piece) >= LEAST_POINTS]


def measure(field: sitk.Image, image: sitk.Image, separated: Sequence[np.ndarray]) -> dict[str, float]:
    """Measure bone and the table of one version.

    Args:
        field: its field.
        separated: the pieces of bone.
    """
    skeleton = find_skeleton(image)
    moved = inverse_points(field, skeleton.bone)
    balls = rigidity(skeleton.bone, moved)
    assert balls is not None
    fits = [rigid_fit(skeleton.bone[piece], moved[piece]) for piece in separated]
    deviations = np.concatenate([deviation for deviation, _ in fits])
    found = {f"balls {name}": value for name, value in balls.to_dict().items()}
    found["pieces mean_mm"] = float(deviations.mean())
    found["pieces p95_mm"] = float(np.percentile(deviations, 95))
    found["pieces max_mm"] = float(np.percentile([deviation.max() for deviation, _ in fits], 95))
    found["pieces degrees"] = float(np.mean([degrees for _, degrees in fits]))
    if len(skeleton.table):
        table = skeleton.table[:: max(1, len(skeleton.table) // 5000)]
        found["table p95_mm"] = float(np.percentile(rigid_fit(table, inverse_points(field, table))[0], 95))
    return found


def compare(path: Path, levels: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure all versions of one CT; an empty list for other images."""
    image = read_image(path)
    if image.GetDimension() != 3 or not is_ct(image):
        return []
    model = load_model("general-3d", "cpu")
    separated = pieces(find_skeleton(image).bone)
    rows = []
    for level in levels:
        for seed in seeds:
            free = DeformationSettings(level, bones="free")
            before = next(make_deformations(image, model, free, (seed,)))
            after = next(make_deformations(image, model, replace(free, bones="auto"), (seed,)))
            for state, field in (("random", before.random_field), ("free", before.field), ("rigid", after.field)):
                made = before if state != "rigid" else after
                rows.append(
                    {
                        "image": path.name,
                        "pieces": len(separated),
                        "level": level,
                        "seed": seed,
                        "state": state,
                        **measure(field, image, separated),
                        "displacement mm": made.metrics.mean_mm,
                        "repair max mm": made.repaired.max_mm,
                    }
                )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--levels", type=int, nargs="+", default=[20, 28, 48, 72])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file with all figures")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in sorted(options.folder.glob("*.nii.gz")):
        rows += compare(path, options.levels, range(options.seeds))
        print(path.name, len(rows), flush=True)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1))
    names = [name for name in rows[0] if name not in ("image", "pieces", "level", "seed", "state")]
    table = []
    for level in options.levels:
        for state in ("random", "free", "rigid"):
            own = [row for row in rows if (row["level"], row["state"]) == (level, state)]
            means = {name: float(np.mean([row[name] for row in own if name in row])) for name in names}
            table.append({"level": level, "bones": state, **means})
    print(markdown(table, default=".2f"))


if __name__ == "__main__":
    main()
