"""Draw original, diffused and recovered images with grids on one page, levels down, seeds across.

python -m benchmarks.draw_recovery IMAGE MODEL -o PAGE.png [--levels 24 48 72] [--seeds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from DRDMLib.diffusion.fields import warp
from DRDMLib.generation import generate, prepare
from DRDMLib.io.images import read_image
from DRDMLib.models.catalogue import load_model
from DRDMLib.settings import DeformationSettings


def middle(tensor: torch.Tensor) -> np.ndarray:
    """Return the middle slice of a volume along its first axis: (1, C, *S) -> (C, a, b)."""
    array = tensor[0].numpy()
    return array[:, array.shape[1] // 2] if array.ndim == 4 else array


def draw_deformed(axes: Axes, tensor: torch.Tensor, ddf: torch.Tensor, size: int) -> None:
    """Draw an image (1, 1, *S) deformed by a field (1, d, *S), fraction of the side, and the field's grid."""
    field = middle(ddf)[-2:] * size
    axes.imshow(middle(warp(tensor, ddf))[0], cmap="gray", origin="lower")
    down, across = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    y, x = down + field[0], across + field[1]
    every = max(1, size // 12)
    for lines in ((x[::every].T, y[::every].T), (x[:, ::every], y[:, ::every])):
        axes.plot(*lines, color="tab:orange", linewidth=0.4, alpha=0.6)
    axes.set_xlim(0, size - 1)
    axes.set_ylim(0, size - 1)


def main() -> None:
    """Draw the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--levels", type=int, nargs="+", default=[24, 48, 72])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()

    model = load_model(options.model, "cpu")
    tensor = prepare(read_image(options.image), model)[1]
    tensor = tensor[len(tensor) // 2 : len(tensor) // 2 + 1]
    columns = 1 + 2 * options.seeds
    figure = Figure(figsize=(2 * columns, 2 * len(options.levels)))
    grid = figure.subplots(len(options.levels), columns, squeeze=False)
    for row, level in zip(grid, options.levels, strict=True):
        row[0].imshow(middle(tensor)[0], cmap="gray", origin="lower")
        row[0].set_title(f"original, level {level}", fontsize=7)
        for seed in range(options.seeds):
            made = generate(tensor, model, DeformationSettings(level, options.steps), (seed,))
            for axes, ddf, name in zip(row[1 + 2 * seed :], made, ("diffused", "recovered"), strict=False):
                draw_deformed(axes, tensor, ddf, model.size)
                axes.set_title(name, fontsize=7)
    for axes in grid.flat:
        axes.axis("off")
    figure.tight_layout(pad=0.3)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
