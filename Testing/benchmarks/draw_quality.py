"""The picture of the fields' quality: what recovery does at each level, one column a model.

``python Testing/benchmarks/draw_quality.py TITLE=RESULT.json [TITLE=RESULT.json ...] -o PICTURE.png`` takes what
``evaluate_model.py`` writes.
"""

from __future__ import annotations

from typing import Any

from drawing import asked_for

_BEFORE, _AFTER = "#888888", "#1f77b4"
_ROWS = {"mean_percent": "mean displacement,\n% of the side", "roughness": "roughness,\nvoxels"}


def draw(axes: Any, rows: list[dict[str, float]], figure: str) -> None:
    """One figure of a model before and after recovery, over levels."""
    levels = [row["level"] for row in rows]
    for stage, colour in (("before", _BEFORE), ("after", _AFTER)):
        axes.plot(levels, [row[f"{figure}_{stage}"] for row in rows], "o-", markersize=3, color=colour, label=stage)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def main() -> None:
    """Run as a script."""
    reports, picture = asked_for(__doc__)
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        len(_ROWS), len(reports), figsize=(2 * len(reports), 4), sharex=True, squeeze=False, layout="constrained"
    )
    for column, (title, rows) in enumerate(reports):
        for line, (key, words) in enumerate(_ROWS.items()):
            draw(grid[line, column], rows, key)
            grid[line, 0].set_ylabel(words, fontsize=8)
        grid[0, column].set_title(title, fontsize=9)
        grid[-1, column].set_xlabel("level", fontsize=8)
    grid[0, 0].legend(title="recovery", fontsize=8, title_fontsize=8, frameon=False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
