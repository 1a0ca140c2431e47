"""What adapting a model to a few unlabeled scans brings, on other scans.

    python -m benchmarks.adapt DATA [--kinds prostates trunks hippocampi hearts] [--steps 60] [--guard]
        [--json OUT.json] [--pictures FOLDER]

``DATA`` is a folder with the datasets ``prostate_mr``, ``ct``, ``hippocampus``, ``cardiac_sunnybrook`` and
``cardiac_acdc``, each with ``images/``. Prints the share of the energy of random deformations that one prediction
undoes, before and after one training on all scans to adapt to. ``--guard`` also runs the whole of
``drdm train --from``, which judges on scans left out. ``--pictures`` draws a judged scan, deformed by both models.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.draw_recovery import draw_deformed, middle
from benchmarks.tables import markdown
from DRDMLib.generation import generate
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import Model, load_model_file
from DRDMLib.settings import DeformationSettings
from DRDMLib.training import train
from DRDMLib.training.adaptation import (
    LEVELS,
    adapt,
    adaptation_config,
    adapted_metadata,
    load_source,
    share_undone,
)
from DRDMLib.training.data import load_subjects

# The CT that no shipped model was trained on: a chest, both scans of a right lung, an abdomen.
_HELD_OUT_CT = (0, 7, 8, 10)


@dataclass(frozen=True)
class Kind:
    """Scans of one kind.

    Attributes:
        source: the model to start from.
        cases: returns the cases to adapt to and those to judge by.
        slices: judge by this many slices of each scan; 0 for volumes.
    """

    source: str
    cases: Callable[[Path], tuple[list[Case], list[Case]]]
    slices: int = 0


def _prostates(data: Path) -> tuple[list[Case], list[Case]]:
    cases = find_cases(data / "prostate_mr")
    return cases[:12], cases[12:]


def _trunks(data: Path) -> tuple[list[Case], list[Case]]:
    cases = find_cases(data / "ct")
    kept = [case for number, case in enumerate(cases) if number not in _HELD_OUT_CT]
    return kept, [cases[number] for number in _HELD_OUT_CT]


def _hippocampi(data: Path) -> tuple[list[Case], list[Case]]:
    # general-3d was trained on the first 80 that are not an eighth case.
    cases = find_cases(data / "hippocampus")
    return [case for number, case in enumerate(cases) if number % 8][80:100], cases[::8][:12]


def _hearts(data: Path) -> tuple[list[Case], list[Case]]:
    return find_cases(data / "cardiac_sunnybrook", r"^(.+?)_phase"), find_cases(data / "cardiac_acdc")[::8][:20]


KINDS = {
    "prostates": Kind("general-3d", _prostates),
    "trunks": Kind("general-3d", _trunks),
    "hippocampi": Kind("general-3d", _hippocampi),
    "hearts": Kind("general-2d", _hearts, slices=2),
}


def _judged(cases: list[Case], metadata: ModelMetadata, slices: int) -> Tensor:
    scans = load_subjects(cases, metadata)
    if slices:
        # The middle of each stack; its ends may show no heart.
        scans = [s[torch.linspace(len(s) // 3, 2 * len(s) // 3, slices).round().long()] for s in scans]
    return torch.cat(scans)


def measure(name: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Adapt the source of one kind and return its row."""
    kind = KINDS[name]
    source = load_source(options.source or kind.source, "cpu")
    metadata, network = source.model.metadata, source.model.network
    cases, others = kind.cases(data)
    subjects, judged = load_subjects(cases, metadata), _judged(others, metadata, kind.slices)
    if options.subjects:
        subjects = subjects[: options.subjects]
    config = replace(adaptation_config("cpu"), steps=options.steps, warmup=max(1, options.steps // 10))
    if options.learning_rate:
        config = replace(config, learning_rate=options.learning_rate)
    described = adapted_metadata(metadata, f"{metadata.name}-adapted", len(cases))
    images = torch.cat(subjects)
    row: dict[str, Any] = {"kind": name, "source": metadata.name, "subjects": len(subjects), "images": len(images)}
    row |= {"judged": len(judged), "steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        made = train(images, images[:0], described, config, folder, device="cpu", weights=network.state_dict())
        row["cpu_seconds"] = round(time.process_time() - begin, 1)
        adapted = load_model_file(made, "cpu")
        if options.save:
            shutil.copyfile(made, options.save)
    cpu = torch.device("cpu")
    for key, model in (("before", source.model), ("after", adapted)):
        row[key] = [round(float(v), 3) for v in share_undone(model.network, judged, metadata, cpu).mean(dim=0)]
    if options.guard:
        with tempfile.TemporaryDirectory() as folder:
            row["guard"] = adapt(source, subjects, described, config, folder, device="cpu").summary
    if options.pictures:
        draw(judged[:1], (source.model, adapted), options.pictures / f"{name}.png")
    return row


def draw(image: Tensor, models: tuple[Model, Model], path: Path) -> None:
    """Draw a scan on the model's grid, deformed at random, by the source and by the adapted model."""
    tensor = image.float() / 255
    figure = Figure(figsize=(8, 2 * len(LEVELS)), layout="constrained")
    grid = figure.subplots(len(LEVELS), 4, squeeze=False)
    for row, level in zip(grid, LEVELS, strict=True):
        made = [generate(tensor, model, DeformationSettings(level), (0,)) for model in models]
        row[0].imshow(middle(tensor)[0], cmap="gray", origin="lower")
        row[0].set_title(f"scan; level {level}", fontsize=8)
        fields = (made[0].random, made[0].recovered, made[1].recovered)
        for axes, field, words in zip(row[1:], fields, ("at random", "before", "after"), strict=True):
            draw_deformed(axes, tensor, field, tensor.shape[-1])
            axes.set_title(words, fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Print a table and write the figures of each kind as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--source", help="another model to start from")
    parser.add_argument("--steps", type=int, default=60, help="training steps; about one minute of one busy core")
    parser.add_argument("--subjects", type=int, default=0, help="adapt to the first N subjects only")
    parser.add_argument("--learning-rate", type=float, help="instead of the default")
    parser.add_argument("--save", type=Path, help="write the adapted model, of the last kind, to this file")
    parser.add_argument("--guard", action="store_true", help="also run the whole of drdm train --from")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    options = parser.parse_args()

    rows = []
    for name in options.kinds:
        rows.append(measure(name, options.data, options))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = ("kind", "source", "subjects", "judged", "steps", "cpu_seconds", "before", "after")
    print(markdown([{key: row[key] for key in shown} for row in rows]))


if __name__ == "__main__":
    main()
