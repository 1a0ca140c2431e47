"""What fewer recovery steps save, and what they cost in quality.

    python -m benchmarks.steps DATASET --model hippocampus-mr-3d [--hold-out 8] [--subjects 8]

For each number of steps: seconds of the recovery, the figures of the fields, and their distance to the fields of the
first number, by default a step for every level. The last row is the noise: the same with other seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import figures, prepare_subjects
from benchmarks.tables import markdown
from DRDMLib.generation import generate
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.settings import DeformationSettings

STEPS = (80, 24, 16, 12, 8, 6, 4, 2)
_HEADS = {
    "steps": "steps",
    "seconds": "seconds",
    "mean_percent": "mean displacement, %",
    "max_percent": "largest, %",
    "folded_percent": "folded, %",
    "roughness": "roughness, voxels",
    "jacobian_spread": "spread of Jacobian",
    "diversity_percent": "diversity, %",
    "distance_percent": "distance to all steps, %",
}


def measure_steps(
    model: Model, subjects: list[torch.Tensor], level: int, steps: int, seed: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the figures of one number of steps, and the fields (N, d, *S)."""
    how = DeformationSettings(level, steps)
    begin = time.perf_counter()
    first = [generate(s, model, how, (seed + 1000 * i,)).recovered for i, s in enumerate(subjects)]
    seconds = (time.perf_counter() - begin) / len(subjects)
    second = [generate(s, model, how, (seed + 1000 * i + 1,)).recovered for i, s in enumerate(subjects)]
    fields = torch.cat(first)
    apart = 100 * float((fields - torch.cat(second)).norm(dim=1).mean())
    return {"steps": steps, "seconds": seconds, **figures(fields), "diversity_percent": apart}, fields


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--hold-out", type=int, default=8, help="every K-th subject was left out of training; 1: all")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--level", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = load_model(options.model, "cpu")
    _, subjects = prepare_subjects(options.dataset, options.hold_out, options.subjects, model)
    # The first call is slower.
    measure_steps(model, subjects[:1], options.level, 2, 0)
    rows: list[dict[str, Any]] = []
    reference: torch.Tensor | None = None
    for steps in options.steps:
        row, fields = measure_steps(model, subjects, options.level, steps, 0)
        reference = fields if reference is None else reference
        rows.append(row | {"distance_percent": 100 * float((fields - reference).norm(dim=1).mean())})
        print(f"{steps} steps: {row['seconds']:.2f} s", file=sys.stderr, flush=True)
    noise, _ = measure_steps(model, subjects, options.level, options.steps[0], 500)
    rows.append(noise | {"steps": f"{options.steps[0]}, other seeds", "distance_percent": float("nan")})
    table = markdown([{head: row[key] for key, head in _HEADS.items()} for row in rows], default=".3g")
    print(f"{model.metadata.name}, level {options.level}, {len(subjects)} subjects\n\n{table}")
    if options.json:
        report = {"model": model.metadata.name, "level": options.level, "subjects": len(subjects), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
