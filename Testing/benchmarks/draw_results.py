"""The picture of the results page: one dot a seed, one line a method.

``python Testing/benchmarks/draw_results.py TITLE=RESULT.json [TITLE=RESULT.json ...] -o PICTURE.png`` takes what
``benchmark_fewshot.py`` and ``benchmark_registration.py`` write.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import asked_for

_OURS, _OTHERS = "#1f77b4", "#888888"


def groups(report: dict[str, Any]) -> dict[str, list[float]]:
    """The mean overlap of every seed, by method and number of subjects."""
    found: dict[str, list[float]] = {}
    for row in report["rows"]:
        shots = row.get("shots")
        name = f"{row['method']}, {shots} subjects" if shots else str(row["method"])
        found.setdefault(name, []).append(float(row["dice"]))
    return found


def draw(axes: Any, title: str, found: dict[str, list[float]]) -> None:
    """Dots of all seeds and a line at their mean; methods from top to bottom."""
    names = list(found)[::-1]
    for at, name in enumerate(names):
        colour = _OURS if any(part in name for part in ("-2d", "-3d")) else _OTHERS
        axes.plot(found[name], [at] * len(found[name]), "o", color=colour, alpha=0.7)
        axes.plot([float(np.mean(found[name]))] * 2, [at - 0.3, at + 0.3], color=colour, linewidth=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("mean Dice", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Run as a script."""
    reports, picture = asked_for(__doc__)
    from matplotlib import pyplot as plt

    drawn = [(title, groups(report)) for title, report in reports]
    heights = [1 + len(found) for _, found in drawn]
    figure, all_axes = plt.subplots(
        len(drawn), 1, figsize=(8, 0.32 * sum(heights) + 0.5), height_ratios=heights, layout="constrained"
    )
    for axes, (title, found) in zip(np.ravel(all_axes), drawn, strict=True):
        draw(axes, title, found)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
