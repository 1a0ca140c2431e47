"""The picture of the speed benchmark: all contenders on one axis, and what DRDM's cost depends on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_OURS, _OTHERS, _AUTHORS = "#1f77b4", "#999999", "#d62728"
_AXES = {"side": "Voxels a side", "level": "Level T'", "steps": "Recovery steps", "threads": "Threads"}


def draw_speed(report: dict[str, Any], path: Path) -> None:
    """Draw ``report``, as ``benchmark_deform.py`` writes it, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in report["rows"] if not r["problem"] and r["contender"]["ndim"] == 3]
    sweeps = {name: [r for r in group if not r["problem"]] for name, group in report.get("sweeps", {}).items()}
    figure = plt.figure(figsize=(10, 3.2 + (2.6 if sweeps else 0)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1]) if sweeps else (figure, None)
    _bars(top.subplots(), rows)
    if bottom is not None:
        for axes, (name, group) in zip(bottom.subplots(1, len(sweeps)), sweeps.items(), strict=True):
            _curve(axes, name, group)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(row: dict[str, Any]) -> str:
    kind = row["contender"]["kind"]
    return _AUTHORS if kind.startswith("authors") else _OURS if kind in ("drdm", "random") else _OTHERS


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda r: -r["median"])
    axes.barh([r["contender"]["label"] for r in rows], [r["median"] for r in rows], color=[_colour(r) for r in rows])
    for at, row in enumerate(rows):
        axes.text(row["median"] * 1.08, at, f"{row['median']:.3g} s", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=max(r["median"] for r in rows) * 3)
    axes.set_xlabel("Seconds for one deformation of a 128 x 128 x 128 image, on a processor (logarithmic)")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Any, name: str, rows: list[dict[str, Any]]) -> None:
    names = {"drdm": "DRDM", "torchio": "TorchIO", "monai": "MONAI"}
    for kind in dict.fromkeys(r["contender"]["kind"] for r in rows):
        own = [r for r in rows if r["contender"]["kind"] == kind]
        x = [r["contender"][name] for r in own]
        axes.plot(x, [r["median"] for r in own], "o-", color=_colour(own[0]), alpha=1 if kind == "drdm" else 0.7)
        axes.annotate(names[kind], (x[-1], own[-1]["median"]), fontsize=8, ha="right", va="bottom")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_AXES[name])
    axes.set_ylabel("Seconds")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw_speed(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
