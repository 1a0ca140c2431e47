"""Draw the thumbnails of the shipped samples for the Sample Data module, in the size of Slicer's own.

Usage: python Resources/Pictures/make_thumbnail.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 288, 261
# Slicer's colors of the structures, where their files do not name them.
COLORS = {1: (250, 201, 41), 2: (64, 194, 250)}
# Name of the sample -> its files, and the axis of the slice that is drawn (0 axial, 1 coronal, 2 sagittal).
SAMPLES = {
    "DRDMChest": ("chest.nii.gz", "chest.seg.nrrd", 1),
    "DRDMPhantom": ("sample.nii.gz", "sample_label.nii.gz", 2),
}


def main() -> None:
    """Draw a slice of each sample, the one with most of its structures."""
    for name, (scan, label, axis) in SAMPLES.items():
        draw(name, *(sitk.ReadImage(str(ROOT / "Resources" / "Sample" / file)) for file in (scan, label)), axis)


def draw(name: str, scan: sitk.Image, label: sitk.Image, axis: int) -> None:
    """Draw one thumbnail."""
    values, structures = (np.moveaxis(sitk.GetArrayFromImage(image), axis, 0) for image in (scan, label))
    at = int(np.argmax((structures > 0).sum(axis=(1, 2))))
    # First rows on top: superior, or for an axial slice anterior.
    flip = slice(None) if axis == 0 else slice(None, None, -1)
    gray, structures = values[at][flip].astype(float), structures[at][flip]
    low, high = np.percentile(gray, (1, 99))
    rgb = np.repeat(np.clip((gray - low) / (high - low), 0, 1)[..., None] * 255, 3, axis=2)
    for value, color in (_colors(label) or COLORS).items():
        rgb[structures == value] = 0.55 * rgb[structures == value] + 0.45 * np.asarray(color)
    picture = Image.fromarray(rgb.astype(np.uint8))
    # Fill the thumbnail, and cut what is too much.
    spacing = [s for k, s in enumerate(scan.GetSpacing()[::-1]) if k != axis]
    rows, columns = gray.shape[0] * spacing[0], gray.shape[1] * spacing[1]
    scale = max(WIDTH / columns, HEIGHT / rows)
    size = (round(columns * scale), round(rows * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - WIDTH) // 2, (size[1] - HEIGHT) // 2
    picture = picture.crop((left, top, left + WIDTH, top + HEIGHT))
    picture.quantize(128).save(ROOT / "DRDMDeform" / "Resources" / "Icons" / f"{name}.png", optimize=True)


def _colors(label: sitk.Image) -> dict[int, tuple[int, ...]]:
    """Return the colors of a segmentation's segments."""
    found = {}
    for key in label.GetMetaDataKeys():
        if key.startswith("Segment") and key.endswith("_Color"):
            number = key.removesuffix("_Color")
            color = tuple(round(255 * float(part)) for part in label.GetMetaData(key).split())
            found[int(label.GetMetaData(f"{number}_LabelValue"))] = color
    return found


if __name__ == "__main__":
    main()
