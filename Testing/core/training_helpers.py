"""Images, metadata and datasets for the tests of training."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk
import torch
from support import smooth_image

from DRDMLib.models.model import ModelMetadata


def metadata(ndim=3, size=16, **more) -> ModelMetadata:
    # In 3D, drawing fields on the published control grid would take most of the time.
    more = ({"control_size": 32} if ndim == 3 else {}) | more
    return ModelMetadata("t", "compact", ndim, size, options={"width": 8}, amplitude=2.0, **more)


def images_of(ndim=3, size=16, count=4) -> torch.Tensor:
    """Make images of blobs, uint8, (count, 1, *S)."""
    made = [smooth_image((size,) * ndim, pixel=sitk.sitkFloat32, seed=s) for s in range(count)]
    arrays = torch.stack([torch.tensor(sitk.GetArrayFromImage(i)) for i in made])[:, None]
    low, high = arrays.amin(), arrays.amax()
    return ((arrays - low) / (high - low) * 255).to(torch.uint8)


def write_dataset(folder: Path, sizes) -> None:
    (folder / "images").mkdir(parents=True)
    for number, size in enumerate(sizes):
        sitk.WriteImage(smooth_image(size, seed=number), str(folder / "images" / f"case {number}.nii.gz"))
