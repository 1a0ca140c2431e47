"""How well every shipped model fits scans of many kinds, and which model is chosen for them.

    python -m benchmarks.fit [DATA] [--compare] [--json OUT]

``DATA`` is the folder with the datasets of the shipped models. Prints Markdown tables: the fit of every model for every
kind of scan, the models that are chosen, and the words that are used, on the half of the kinds that they were fixed on
and on the other half. ``--compare`` compares ways to measure the fit instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kinds_of_scans import GENERAL, GENERAL_2D, Kind, kinds
from benchmarks.tables import markdown
from DRDMLib.diffusion.fields import compose, warp
from DRDMLib.diffusion.forward import ForwardProcess
from DRDMLib.models.catalogue import CATALOGUE, Entry
from DRDMLib.models.choice import choose_model, loaded
from DRDMLib.models.fit import LEVEL, SEEDS, Fit, Probe, measure_fit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SCANS_TO_COMPARE = 3
# Named random fields, see ForwardProcess: as coarse as the differences between people, and that of the general models.
RANDOM_FIELDS: dict[str, dict[str, Any]] = {
    "coarse": {"noise_grids": (16, 8, 4), "control_size": 32, "velocity_scale": 6e-5, "amplitude": 2.0},
    "finer": {"noise_grids": (16, 8), "control_size": 32, "velocity_scale": 1e-4, "amplitude": 2.0},
}


def shipped() -> list[Entry]:
    """List the shipped models."""
    return [entry for entry in CATALOGUE if not entry.url and entry.available]


def measure(found: list[Kind]) -> list[dict[str, Any]]:
    """Measure every model on every scan of the kinds.

    Returns:
        One row for each scan: kind, name, chosen model, fits by model, and seconds of one core per model.
    """
    rows = []
    for kind in found:
        for name, image in kind.scans():
            began = time.process_time()
            choice = choose_model(image)
            seconds = (time.process_time() - began) / (1 + len(choice.others))
            probe = Probe(image)
            flat = image.GetDimension() == 2
            fits = {e.name: measure_fit(probe, loaded(e)).to_dict() for e in shipped() if e.ndim == 2 or not flat}
            rows.append({"kind": kind.name, "scan": name, "chosen": choice.name, "seconds": seconds, "fits": fits})
            print(f"{kind.name}: {name}: {choice.message()}", flush=True)
    return rows


def _table(lines: list[list[str]]) -> str:
    return markdown([dict(zip(lines[0], line, strict=True)) for line in lines[1:]])


def table_of_fits(found: list[Kind], rows: list[dict[str, Any]]) -> str:
    """Return the table of models and kinds: mean, smallest and largest fit; ``*``: the model has seen the subjects."""
    models = [entry.name for entry in shipped()]
    lines = [["scans", *models]]
    for kind in found:
        some = [row for row in rows if row["kind"] == kind.name]
        cells = [_cell([row["fits"][m]["undone"] for row in some if m in row["fits"]], m in kind.seen) for m in models]
        lines.append([f"{len(some)} x {kind.name}", *cells])
    return _table(lines)


def _cell(values: list[float], seen: bool) -> str:
    if not values:
        return ""
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f}){' *' if seen else ''}"


def table_of_choices(found: list[Kind], rows: list[dict[str, Any]]) -> str:
    """Return the confusion table: kinds and the models that were chosen."""
    models = [entry.name for entry in shipped() if entry.automatic]
    lines = [["scans", *models, "suits"]]
    for kind in found:
        chosen = Counter(row["chosen"] for row in rows if row["kind"] == kind.name)
        good = sum(n for name, n in chosen.items() if name in (*kind.suits, *kind.either, GENERAL, GENERAL_2D))
        lines.append([kind.name, *(str(chosen[m] or "") for m in models), f"{good} of {sum(chosen.values())}"])
    return _table(lines)


def table_of_words(found: list[Kind], rows: list[dict[str, Any]]) -> str:
    """Return how often each word is given to models that were made for a kind, to general ones, and to the others."""
    lines = [["half of the kinds", "models", "good", "fair", "poor"]]
    for half, text in (("A", "the words were fixed on these"), ("B", "the other half")):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for kind in (kind for kind in found if kind.half == half):
            for row in (row for row in rows if row["kind"] == kind.name):
                for name, values in row["fits"].items():
                    if name not in kind.seen and name not in kind.either:
                        counts[_role(name, kind)][Fit.from_dict(values).word] += 1
        for role, words in sorted(counts.items()):
            lines.append([text, role, *(str(words[word]) for word in ("good", "fair", "poor"))])
    return _table(lines)


def _role(name: str, kind: Kind) -> str:
    return "made for it" if name in kind.suits else "general" if name in (GENERAL, GENERAL_2D) else "made for others"


def compare(found: list[Kind]) -> str:
    """Compare ways to measure the fit of the 3D models on unseen volumes.

    A way is good if it separates the models that were made for a kind from the others: by the difference to the general
    model, which decides the choice, and by the fit itself, which gives the word.
    """
    entries = [entry for entry in shipped() if entry.ndim == 3]
    differences: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    fits: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for kind in (kind for kind in found if not kind.seen and not kind.either):
        for name, image in itertools.islice(kind.scans(), SCANS_TO_COMPARE):
            if image.GetDimension() == 2:
                continue
            probe = Probe(image)
            measured = {entry.name: _variants(probe, entry) for entry in entries}
            for way, general in measured[GENERAL].items():
                fits[way][0].append(general)
                for entry in entries:
                    if entry.name != GENERAL:
                        wrong = entry.name not in kind.suits
                        fits[way][wrong].append(measured[entry.name][way])
                        differences[way][wrong].append(measured[entry.name][way] - general)
            print(f"{kind.name}: {name}", flush=True)
    lines = [
        ["measure", "made for it less general, least", "made for others, most", "fit that suits, least", "others, most"]
    ]
    for way, (suit, other) in differences.items():
        values = (min(suit), max(other), min(fits[way][0]), max(fits[way][1]))
        lines.append([way, *(f"{value:+.2f}" for value in values)])
    return _table(lines)


@torch.inference_mode()
def _variants(probe: Probe, entry: Entry) -> dict[str, float]:
    model = loaded(entry)
    images = probe.tensor(model)
    inner = _inner(images)
    where = {"everywhere": torch.ones_like(images), "inner two thirds": inner, "foreground": _foreground(images)}
    where["structure"] = _structure(images)
    own = {"noise_grids": model.metadata.noise_grids, "velocity_scale": model.metadata.velocity_scale}
    found: dict[str, float] = {}
    for field, how in (*RANDOM_FIELDS.items(), ("own", RANDOM_FIELDS["coarse"] | own)):
        process = ForwardProcess(model.size, 3, **how)
        drawn = torch.cat([process.ddf(LEVEL, torch.Generator().manual_seed(seed)) for seed in SEEDS])
        left = compose(drawn, model.predict_to(warp(images, drawn, padding="border"), LEVEL, -1))
        for place, weights in where.items():
            for affine in (True, False):
                before, after = (_energy(u, weights, affine) for u in (drawn, left))
                found[f"{field} field, {place}{'' if affine else ', without affine part'}"] = 1 - after / before
    return found


def _inner(images: Tensor) -> Tensor:
    side = images.shape[-1]
    border = side // 6
    inside = torch.zeros_like(images)
    inside[(..., *[slice(border, side - border)] * 3)] = 1
    return inside


def _foreground(images: Tensor) -> Tensor:
    return (F.avg_pool3d(images, 3, 1, 1, count_include_pad=False) > 0.1).float()


def _structure(images: Tensor) -> Tensor:
    smooth = F.avg_pool3d(images, 3, 1, 1, count_include_pad=False)
    slope = torch.stack(torch.gradient(smooth, dim=[2, 3, 4])).square().sum(dim=0).sqrt()
    return (F.avg_pool3d(slope, 5, 1, 2, count_include_pad=False) > 0.02).float()


def _energy(fields: Tensor, weights: Tensor, affine: bool) -> float:
    """Return the weighted sum of squares of fields (N, 3, *S), with or without their affine part."""
    total = 0.0
    line = torch.linspace(-0.5, 0.5, fields.shape[-1])
    places = torch.stack([torch.ones(fields.shape[2:]), *torch.meshgrid(line, line, line, indexing="ij")]).flatten(1)
    for field, weight in zip(fields, weights, strict=True):
        chosen = weight.flatten() > 0
        values, basis = field.flatten(1)[:, chosen].double(), places[:, chosen].double()
        if not affine:
            values = values - torch.linalg.lstsq(basis.T, values.T).solution.T @ basis
        total += float(values.square().sum())
    return total


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--compare", action="store_true", help="compare ways to measure the fit")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = kinds(options.data)
    if options.compare:
        print(compare(found))
        return
    rows = measure(found)
    for table in (table_of_fits, table_of_choices, table_of_words):
        print(f"\n{table(found, rows)}")
    seconds = sorted(row["seconds"] for row in rows)
    print(f"\n{seconds[len(seconds) // 2]:.2f} s of one core per scan and model (median), {seconds[-1]:.2f} s at most")
    if options.json:
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
