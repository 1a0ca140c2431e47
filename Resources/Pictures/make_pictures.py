"""Draw the demo of the README, and variants of the smaller sample.

Usage: python Resources/Pictures/make_pictures.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import SimpleITK as sitk

from DRDMLib import deform, read_image, read_label
from DRDMLib.cli import main
from DRDMLib.deforming import model_for
from DRDMLib.io.resources import resource
from DRDMLib.levels import STRENGTHS
from DRDMLib.pictures import require_matplotlib

HERE = Path(__file__).resolve().parent
SEEDS = range(6)


def variants(path: Path) -> None:
    """Draw the sample and six variants at three strengths, one row for each, with the outline of the label."""
    plt = require_matplotlib()
    sample = read_image(resource("Sample", "sample.nii.gz"))
    label = read_label(resource("Sample", "sample_label.nii.gz"), sample)
    model = model_for(sample, None, "cpu")
    figure, grid = plt.subplots(
        len(STRENGTHS), len(SEEDS) + 1, figsize=(12.5, 5.4), layout="constrained", facecolor="#101418"
    )
    for row, level in zip(grid, STRENGTHS, strict=True):
        made = [deform(sample, model, level, seed) for seed in SEEDS]
        shown = [(sample, label, "original")]
        shown += [(m.warp(sample), m.warp_label(label), f"{m.strength} (level {m.level}), seed {m.seed}") for m in made]
        for axes, (image, outline, title) in zip(row, shown, strict=True):
            middle = image.GetSize()[0] // 2 - 2
            axes.imshow(sitk.GetArrayFromImage(image)[:, :, middle], cmap="gray", vmin=20, vmax=200, origin="lower")
            axes.contour(sitk.GetArrayFromImage(outline)[:, :, middle] > 0, [0.5], colors="#ffca28", linewidths=1)
            axes.set_title(title, color="#e8edf2", fontsize=8)
            axes.set_axis_off()
    figure.savefig(path, dpi=100, facecolor=figure.get_facecolor())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if main(["demo", "-o", str(Path(folder) / "demo"), "--device", "cpu"]) == 0:
            shutil.copy(Path(folder) / "demo" / "demo.png", HERE / "demo.png")
    variants(HERE / "variants.png")
