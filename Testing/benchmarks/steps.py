"""What fewer recovery steps save, and what they cost in quality.

    python Testing/benchmarks/benchmark_steps.py DATASET --model hippocampus-mr-3d [--hold-out 8] [--subjects 8]

For each number of steps: seconds of the recovery, the figures of the fields, and how far they are from the ones that a
step for every level gives. Beside them the noise: how much the figures of that change with other seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluate_model import figures, prepared_subjects

from DRDMLib.catalogue import load_model
from DRDMLib.deformation import generate
from DRDMLib.models import Model

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


def row(model: Model, subjects: list[torch.Tensor], level: int, steps: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Figures of the fields of one number of steps, and the fields."""
    begin = time.perf_counter()
    first = [generate(s, model, level, seed + 1000 * i, steps=steps).recovered for i, s in enumerate(subjects)]
    seconds = (time.perf_counter() - begin) / len(subjects)
    second = [generate(s, model, level, seed + 1000 * i + 1, steps=steps).recovered for i, s in enumerate(subjects)]
    fields = torch.cat(first)
    apart = 100 * float((fields - torch.cat(second)).norm(dim=1).mean())
    return {"steps": steps, "seconds": seconds, **figures(fields), "diversity_percent": apart}, fields


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| " + " | ".join(_HEADS.values()) + " |", "| " + " | ".join(["---:"] * len(_HEADS)) + " |"]
    for r in rows:
        lines.append("| " + " | ".join(f"{r[k]:.3g}" if isinstance(r[k], float) else str(r[k]) for k in _HEADS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument(
        "--hold-out", type=int, default=8, help="every K-th subject is one left out of training; 1: all"
    )
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--level", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = load_model(options.model, "cpu")
    _, subjects = prepared_subjects(options.dataset, options.hold_out, options.subjects, model)
    row(model, subjects[:1], options.level, 2, 0)
    rows: list[dict[str, Any]] = []
    every: torch.Tensor | None = None
    for steps in options.steps:
        values, fields = row(model, subjects, options.level, steps, 0)
        every = fields if every is None else every
        rows.append(values | {"distance_percent": 100 * float((fields - every).norm(dim=1).mean())})
        print(f"{steps} steps: {values['seconds']:.2f} s", file=sys.stderr, flush=True)
    other, fields = row(model, subjects, options.level, options.steps[0], 500)
    rows.append(other | {"steps": f"{options.steps[0]}, other seeds", "distance_percent": float("nan")})
    print(f"{model.metadata.name}, level {options.level}, {len(subjects)} subjects\n\n{markdown(rows)}")
    if options.json:
        report = {"model": model.metadata.name, "level": options.level, "subjects": len(subjects), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
