"""What a model does to subjects it was not trained on, level by level.

``python Testing/benchmarks/evaluate_model.py DATASET --model hippocampus-mr-3d [--hold-out 8] [--subjects 12]``
prints a Markdown table and, with ``--pictures FOLDER``, draws each subject at three levels. The subjects are those
that ``drdm train`` leaves out: every K-th of the sorted dataset.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from DRDMLib.catalogue import load_model
from DRDMLib.datasets import Case, find_cases
from DRDMLib.deformation import deform, generate, prepare
from DRDMLib.images import read_image, read_label
from DRDMLib.metrics import folded_fraction, roughness, tensor_jacobian
from DRDMLib.models import Model
from DRDMLib.training.data import split

LEVELS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 79)
PICTURE_LEVELS = (32, 56, 79)


def figures(ddf: torch.Tensor) -> dict[str, float]:
    """Means over the fields (N, d, *S), fraction of the side."""
    length = ddf.norm(dim=1)
    return {
        "mean_percent": 100 * float(length.mean()),
        "max_percent": 100 * float(length.flatten(1).amax(dim=1).mean()),
        "folded_percent": 100 * float(folded_fraction(ddf).mean()),
        "roughness": float(roughness(ddf).mean()),
        "jacobian_spread": float(tensor_jacobian(ddf).flatten(1).std(dim=1).mean()),
    }


def table_rows(model: Model, subjects: list[torch.Tensor], levels: tuple[int, ...]) -> list[dict[str, float]]:
    """Before and after recovery, averaged over subjects; diversity between two samples of one subject."""
    rows = []
    for level in levels:
        made = [[generate(s, model, level, 1000 * i + k) for k in (0, 1)] for i, s in enumerate(subjects)]
        before = figures(torch.cat([pair[0].random for pair in made]))
        after = figures(torch.cat([pair[0].recovered for pair in made]))
        apart = [float((a.recovered - b.recovered).norm(dim=1).mean()) for a, b in made]
        row: dict[str, float] = {"level": level, "diversity_percent": 100 * sum(apart) / len(apart)}
        row |= {f"{k}_before": v for k, v in before.items()} | {f"{k}_after": v for k, v in after.items()}
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, float]]) -> str:
    """The table as it stands in a model card."""
    lines = [
        "| level | mean displacement, % of side | largest, % | folded, % | roughness, voxels | spread of Jacobian "
        "| diversity, % |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        cells = [f"{r['level']:.0f}"]
        for key, digits in (
            ("mean_percent", 2),
            ("max_percent", 1),
            ("folded_percent", 4),
            ("roughness", 3),
            ("jacobian_spread", 3),
        ):
            cells.append(f"{r[key + '_before']:.{digits}f} → {r[key + '_after']:.{digits}f}")
        cells.append(f"{r['diversity_percent']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prepared_subjects(dataset: str, hold_out: int, most: int, model: Model) -> tuple[list[Case], list[torch.Tensor]]:
    """The first subjects that training left out, and each on the model's grid; of a stack of slices, the middle one."""
    cases = find_cases(dataset)
    cases = (cases if hold_out == 1 else split(cases, hold_out)[1])[:most]
    tensors = [prepare(read_image(case.image), model)[1] for case in cases]
    return cases, [t[len(t) // 2 : len(t) // 2 + 1] for t in tensors]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument(
        "--hold-out", type=int, default=8, help="every K-th subject is one left out of training; 1: all"
    )
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()

    model = load_model(options.model, options.device)
    left_out, subjects = prepared_subjects(options.dataset, options.hold_out, options.subjects, model)
    rows = table_rows(model, subjects, tuple(options.levels))
    print(f"{len(left_out)} subjects, two samples each, model {model.metadata.name}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if options.pictures:
        from DRDMLib.pictures import deformation_picture

        options.pictures.mkdir(parents=True, exist_ok=True)
        for case in left_out[:4]:
            image = read_image(case.image)
            label = read_label(case.label, image) if case.label else None
            for level in PICTURE_LEVELS:
                result = deform(image, model, level, seed=level)
                deformation_picture(result, options.pictures / f"{case.name}_t{level}.png", label=label)


if __name__ == "__main__":
    main()
