"""A page of pictures of a model: original, diffused and recovered with grids, levels down, seeds across.

``python Testing/benchmarks/draw_recovery.py IMAGE MODEL -o PAGE.png [--levels 24 48 72] [--seeds 3]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from DRDMLib.catalogue import load_model
from DRDMLib.deformation import generate, prepare
from DRDMLib.fields import warp
from DRDMLib.images import read_image


def middle(tensor: torch.Tensor) -> np.ndarray:
    """(1, C, *S) -> the middle slice along the first spatial axis of a volume, (C, a, b)."""
    array = tensor[0].numpy()
    return array[:, array.shape[1] // 2] if array.ndim == 4 else array


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--levels", type=int, nargs="+", default=[24, 48, 72])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    model = load_model(options.model, "cpu")
    tensor = prepare(read_image(options.image), model)[1]
    tensor = tensor[len(tensor) // 2 : len(tensor) // 2 + 1]
    columns = 1 + 2 * options.seeds
    figure, axes = plt.subplots(len(options.levels), columns, figsize=(2 * columns, 2 * len(options.levels)))
    for row, level in zip(np.atleast_2d(axes), options.levels, strict=True):
        row[0].imshow(middle(tensor)[0], cmap="gray", origin="lower")
        row[0].set_title(f"original, level {level}", fontsize=7)
        for seed in range(options.seeds):
            made = generate(tensor, model, level, seed, steps=options.steps)
            for axis, ddf, name in zip(row[1 + 2 * seed :], made, ("diffused", "recovered"), strict=False):
                field = middle(ddf)[-2:] * model.size
                axis.imshow(middle(warp(tensor, ddf))[0], cmap="gray", origin="lower")
                down, across = np.meshgrid(*[np.arange(model.size)] * 2, indexing="ij")
                every = max(1, model.size // 12)
                for lines in (np.s_[::every, :], np.s_[:, ::every]):
                    y, x = (down + field[0])[lines], (across + field[1])[lines]
                    along = (x.T, y.T) if lines == np.s_[::every, :] else (x, y)
                    axis.plot(*along, color="tab:orange", linewidth=0.4, alpha=0.6)
                axis.set_xlim(0, model.size - 1)
                axis.set_ylim(0, model.size - 1)
                axis.set_title(name, fontsize=7)
    for axis in np.ravel(axes):
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
