"""What a model does to subjects that it was not trained on, level by level.

    python -m benchmarks.quality DATASET --model hippocampus-mr-3d [--hold-out 8] [--subjects 12] [--pictures FOLDER]

Prints a Markdown table; ``--pictures`` also draws each subject at three levels. The subjects are those that
``drdm train`` leaves out: every K-th of the sorted dataset.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.tables import markdown
from DRDMLib.deforming import deform
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility.metrics import folded_fraction, roughness, tensor_jacobian
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image, read_label
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.model import Model
from DRDMLib.pictures import deformation_picture
from DRDMLib.settings import DeformationSettings
from DRDMLib.training.data import split

LEVELS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 79)
PICTURE_LEVELS = (32, 56, 79)
# Figure -> head of its column, and decimals.
COLUMNS = {
    "mean_percent": ("mean displacement, % of side", 2),
    "max_percent": ("largest, %", 1),
    "folded_percent": ("folded, %", 4),
    "roughness": ("roughness, voxels", 3),
    "jacobian_spread": ("spread of Jacobian", 3),
}


def figures(ddf: torch.Tensor) -> dict[str, float]:
    """Return means over the fields (N, d, *S), fraction of the side."""
    length = ddf.norm(dim=1)
    return {
        "mean_percent": 100 * float(length.mean()),
        "max_percent": 100 * float(length.flatten(1).amax(dim=1).mean()),
        "folded_percent": 100 * float(folded_fraction(ddf).mean()),
        "roughness": float(roughness(ddf).mean()),
        "jacobian_spread": float(tensor_jacobian(ddf).flatten(1).std(dim=1).mean()),
    }


def level_rows(model: Model, subjects: list[torch.Tensor], levels: list[int]) -> list[dict[str, float]]:
    """Return the means over subjects before and after recovery, and the diversity of two samples of one subject."""
    rows = []
    for level in levels:
        how = DeformationSettings(level)
        made = [[generate(s, model, how, (1000 * i + k,)) for k in (0, 1)] for i, s in enumerate(subjects)]
        before = figures(torch.cat([pair[0].random for pair in made]))
        after = figures(torch.cat([pair[0].recovered for pair in made]))
        apart = [float((a.recovered - b.recovered).norm(dim=1).mean()) for a, b in made]
        row: dict[str, float] = {"level": level, "diversity_percent": 100 * sum(apart) / len(apart)}
        row |= {f"{k}_before": v for k, v in before.items()} | {f"{k}_after": v for k, v in after.items()}
        rows.append(row)
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """Return the table of a model card."""
    cells = []
    for row in rows:
        line: dict[str, object] = {"level": row["level"]}
        for key, (head, digits) in COLUMNS.items():
            line[head] = f"{row[key + '_before']:.{digits}f} → {row[key + '_after']:.{digits}f}"
        cells.append(line | {"diversity, %": row["diversity_percent"]})
    return markdown(cells, {"level": ".0f", "diversity, %": ".2f"})


def prepare_subjects(dataset: str, hold_out: int, most: int, model: Model) -> tuple[list[Case], list[torch.Tensor]]:
    """Return the first subjects that training left out, and each on the model's grid; of a stack, its middle slice."""
    cases = find_cases(dataset)
    cases = (cases if hold_out == 1 else split(cases, hold_out)[1])[:most]
    tensors = [prepare(read_image(case.image), model)[1] for case in cases]
    return cases, [t[len(t) // 2 : len(t) // 2 + 1] for t in tensors]


def draw_subject(case: Case, model: Model, folder: Path) -> None:
    """Draw a subject at three levels."""
    image = read_image(case.image)
    label = read_label(case.label, image) if case.label else None
    for level in PICTURE_LEVELS:
        result = deform(image, model, level, seed=level)
        deformation_picture(result, folder / f"{case.name}_t{level}.png", label=label)


def main() -> None:
    """Print the table, write the figures, draw the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--hold-out", type=int, default=8, help="every K-th subject was left out of training; 1: all")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    options = parser.parse_args()

    model = load_model(options.model, options.device)
    left_out, subjects = prepare_subjects(options.dataset, options.hold_out, options.subjects, model)
    rows = level_rows(model, subjects, options.levels)
    print(f"{len(left_out)} subjects, two samples each, model {model.metadata.name}\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for case in left_out[:4]:
            draw_subject(case, model, options.pictures)


if __name__ == "__main__":
    main()
