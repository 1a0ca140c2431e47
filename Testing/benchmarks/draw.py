"""Draw the pictures of the documentation from reports.

    python -m benchmarks.draw results TITLE=REPORT.json [...] -o PICTURE.png   # of fewshot and registration
    python -m benchmarks.draw networks TITLE=REPORT.json [...] -o PICTURE.png  # of arms and hospitals
    python -m benchmarks.draw quality TITLE=REPORT.json [...] -o PICTURE.png   # of quality
    python -m benchmarks.draw speed REPORT.json -o PICTURE.png                 # of speed

``results`` and ``networks`` have one dot for a seed and one line for a method; reports with the same title are drawn
together.
``quality`` has one column for a model, and ``speed`` all methods on one axis, and what the cost of DRDM depends on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_OURS, _OTHERS, _AUTHORS = "#1f77b4", "#888888", "#d62728"
_BEFORE, _AFTER = "#888888", "#1f77b4"
_QUALITY = {"mean_percent": "mean displacement,\n% of the side", "roughness": "roughness,\nvoxels"}
_SWEEPS = {"side": "Voxels a side", "level": "Level T'", "steps": "Recovery steps", "threads": "Threads"}
_SPEED_OTHERS = "#999999"
# Methods of the copies, whether with nnU-Net's augmentation, and their words.
_NETWORKS = {
    ("none", False): "no copies",
    ("torchio-mm", False): "elastic copies (TorchIO)",
    ("torchio-mm@30+2", False): "elastic copies, tuned, strong poses",
    ("general-3d:toward:gray+auto", False): "DRDM copies",
    ("general-3d:toward+2", False): "DRDM copies, strong poses",
    ("general-3d:toward:gray+2", False): "DRDM copies, strong poses",
    ("none", True): "nnU-Net's augmentation",
    ("general-3d:toward:gray+auto", True): "nnU-Net's augmentation and DRDM copies",
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# --------------------------------------------------------------------------------------------------------- results


def in_words(method: str, shots: int | None) -> str:
    """Say what a method is, and from how many subjects it learns."""
    plain, _, pose = method.partition("+")
    kind = plain.partition(":")[0].partition("@")[0]
    words = {
        "none": "no copies",
        "all": "all subjects labeled",
        "torchio": "elastic copies, tuned" if "@" in plain else "elastic copies (TorchIO)",
        "toward": "DRDM toward unlabeled others" if ":" in plain else "toward unlabeled others alone",
    }.get(kind, "DRDM copies")
    return f"{shots} subjects: {words}{', poses' if pose else ''}" if shots else words


def overlaps(reports: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the mean overlap of every seed by method and number of subjects, few subjects and low overlaps first.

    Methods with fewer seeds than others are left out.
    """
    found: dict[tuple[int, str], list[float]] = {}
    for row in (row for report in reports for row in report["rows"]):
        shots = row.get("shots")
        found.setdefault((shots or 10**6, in_words(str(row["method"]), shots)), []).append(float(row["dice"]))
    most = max(map(len, found.values()))
    order = sorted((key[0], float(np.mean(values)), key) for key, values in found.items() if len(values) == most)
    return {key[1]: found[key] for *_, key in order}


def networks(reports: Sequence[Any]) -> dict[str, list[float]]:
    """Return the mean overlap of every seed for each of the methods that the picture shows."""
    rows = [row for report in reports for row in (report if isinstance(report, list) else report["rows"])]
    found: dict[str, list[float]] = {}
    for key, words in _NETWORKS.items():
        values = [float(row["dice"]) for row in rows if (row["method"], row["nnunet"]) == key]
        if values:
            found.setdefault(words, []).extend(values)
    return found


def draw_results(
    reports: list[tuple[str, Any]],
    path: Path,
    read: Callable[[Sequence[Any]], dict[str, list[float]]] = overlaps,
) -> None:
    """Draw the overlaps of all seeds and their means, one title below the other."""
    titles = dict.fromkeys(title for title, _ in reports)
    found = [(title, read([report for own, report in reports if own == title])) for title in titles]
    heights = [1 + len(methods) for _, methods in found]
    figure = Figure(figsize=(8, 0.32 * sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(found), 1, height_ratios=heights, squeeze=False)
    for axes, (title, methods) in zip(grid[:, 0], found, strict=True):
        names = list(methods)[::-1]
        for y, name in enumerate(names):
            color = _OURS if "DRDM" in name else _OTHERS
            axes.plot(methods[name], [y] * len(methods[name]), "o", color=color, alpha=0.7)
            axes.plot([float(np.mean(methods[name]))] * 2, [y - 0.3, y + 0.3], color=color, linewidth=2)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("mean Dice", fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


# --------------------------------------------------------------------------------------------------------- quality


def draw_quality(reports: list[tuple[str, Any]], path: Path) -> None:
    """Draw the fields before and after recovery over levels, one column for a model."""
    figure = Figure(figsize=(2 * len(reports), 4), layout="constrained")
    grid = figure.subplots(len(_QUALITY), len(reports), sharex=True, squeeze=False)
    for column, (title, rows) in enumerate(reports):
        for axes, (key, words) in zip(grid[:, column], _QUALITY.items(), strict=True):
            levels = [row["level"] for row in rows]
            for stage, color in (("before", _BEFORE), ("after", _AFTER)):
                values = [row[f"{key}_{stage}"] for row in rows]
                axes.plot(levels, values, "o-", markersize=3, color=color, label=stage)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if column == 0:
                axes.set_ylabel(words, fontsize=8)
        grid[0, column].set_title(title, fontsize=9)
        grid[-1, column].set_xlabel("level", fontsize=8)
    grid[0, 0].legend(title="recovery", fontsize=8, title_fontsize=8, frameon=False)
    save(figure, path)


# ----------------------------------------------------------------------------------------------------------- speed


def draw_speed(report: dict[str, Any], path: Path) -> None:
    """Draw the seconds of all methods in 3D, and the sweeps if there are any."""
    rows = [r for r in report["rows"] if not r["problem"] and r["contender"]["ndim"] == 3]
    sweeps = {name: [r for r in group if not r["problem"]] for name, group in report.get("sweeps", {}).items()}
    figure = Figure(figsize=(10, 3.2 + (2.6 if sweeps else 0)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.2, 1]) if sweeps else [figure]
    _draw_bars(parts[0].subplots(), rows)
    if sweeps:
        bottom = parts[1]
        for axes, (name, group) in zip(bottom.subplots(1, len(sweeps)), sweeps.items(), strict=True):
            _draw_sweep(axes, name, group)
    save(figure, path)


def _color(row: dict[str, Any]) -> str:
    kind = row["contender"]["kind"]
    return _AUTHORS if kind.startswith("authors") else _OURS if kind in ("drdm", "random") else _SPEED_OTHERS


def _draw_bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda r: -r["median"])
    axes.barh([r["contender"]["label"] for r in rows], [r["median"] for r in rows], color=[_color(r) for r in rows])
    for y, row in enumerate(rows):
        axes.text(row["median"] * 1.08, y, f"{row['median']:.3g} s", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=max(r["median"] for r in rows) * 3)
    axes.set_xlabel("Seconds for one deformation of a 128 x 128 x 128 image, on a processor (logarithmic)")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sweep(axes: Any, name: str, rows: list[dict[str, Any]]) -> None:
    names = {"drdm": "DRDM", "torchio": "TorchIO", "monai": "MONAI"}
    for kind in dict.fromkeys(r["contender"]["kind"] for r in rows):
        own = [r for r in rows if r["contender"]["kind"] == kind]
        x = [r["contender"][name] for r in own]
        axes.plot(x, [r["median"] for r in own], "o-", color=_color(own[0]), alpha=1 if kind == "drdm" else 0.7)
        axes.annotate(names[kind], (x[-1], own[-1]["median"]), fontsize=8, ha="right", va="bottom")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_SWEEPS[name])
    axes.set_ylabel("Seconds")
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------------------------------------- command line


def read_report(text: str) -> tuple[str, Any]:
    """Read ``TITLE=REPORT.json`` or ``REPORT.json``: the title and the report."""
    title, _, path = text.rpartition("=")
    return title, json.loads(Path(path).read_text(encoding="utf-8"))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["results", "networks", "quality", "speed"])
    parser.add_argument("reports", nargs="+", type=read_report, metavar="[TITLE=]REPORT.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PICTURE.png")
    arguments = parser.parse_args()
    if arguments.kind == "speed" and len(arguments.reports) != 1:
        parser.error("the picture of the speed shows one report")
    return arguments


def main() -> None:
    """Draw one picture."""
    arguments = parse_arguments()
    if arguments.kind == "speed":
        draw_speed(arguments.reports[0][1], arguments.output)
    elif arguments.kind == "quality":
        draw_quality(arguments.reports, arguments.output)
    else:
        draw_results(arguments.reports, arguments.output, networks if arguments.kind == "networks" else overlaps)


if __name__ == "__main__":
    main()
