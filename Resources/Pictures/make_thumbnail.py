"""Draw the thumbnail of the shipped phantom for the Sample Data module, in the size of Slicer's own.

Usage: python Resources/Pictures/make_thumbnail.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 288, 261
COLORS = {1: (250, 201, 41), 2: (64, 194, 250)}


def main() -> None:
    """Draw the sagittal slice with most of the structures."""
    scan, label = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(ROOT / "Resources" / "Sample" / name)))
        for name in ("sample.nii.gz", "sample_label.nii.gz")
    )
    spacing = sitk.ReadImage(str(ROOT / "Resources" / "Sample" / "sample.nii.gz")).GetSpacing()
    at = int(np.argmax((label > 0).sum(axis=(0, 1))))
    # First rows on top: superior.
    gray, structures = scan[::-1, :, at].astype(float), label[::-1, :, at]
    low, high = np.percentile(gray, (1, 99))
    rgb = np.repeat(np.clip((gray - low) / (high - low), 0, 1)[..., None] * 255, 3, axis=2)
    for value, color in COLORS.items():
        rgb[structures == value] = 0.55 * rgb[structures == value] + 0.45 * np.asarray(color)
    picture = Image.fromarray(rgb.astype(np.uint8))
    # Fill the thumbnail, and cut what is too much.
    rows, columns = gray.shape[0] * spacing[2], gray.shape[1] * spacing[1]
    scale = max(WIDTH / columns, HEIGHT / rows)
    size = (round(columns * scale), round(rows * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - WIDTH) // 2, (size[1] - HEIGHT) // 2
    picture = picture.crop((left, top, left + WIDTH, top + HEIGHT))
    picture.quantize(128).save(ROOT / "DRDMDeform" / "Resources" / "Icons" / "DRDMPhantom.png", optimize=True)


if __name__ == "__main__":
    main()
