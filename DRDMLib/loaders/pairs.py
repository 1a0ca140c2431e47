"""Load registration pairs as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import OutputError, SettingError
from ..io import schema
from ..io.files import image_stem, read_object
from ..io.images import read_field, read_image, read_label
from ..spatial.coordinates import index_to_physical

_KEYS = {"train": "training_paired_images", "validation": "registration_val", "test": "registration_test"}
_PATH = schema.text()
_are_pairs = schema.listing(
    schema.record(
        dict.fromkeys(("fixed", "moving", "displacement"), _PATH),
        dict.fromkeys(("fixed_label", "moving_label", "mask", "displacement_voxels"), _PATH),
    )
)
_UNITS = ("voxels", "fraction", "millimetres")


class PairDataset(Dataset[dict[str, Any]]):
    """The pairs of a ``drdm synthesize`` dataset, as tensors with spatial axes (X, Y[, Z]).

    An item has ``name``, ``moving`` and ``fixed`` (1, *S) float32, ``ddf`` (d, *S) float32 with
    ``fixed(x) = moving(x + ddf(x))``, ``spacing`` (d,) in millimeters, and, with labels, ``moving_label`` and
    ``fixed_label`` (1, *S) int64. ``mask`` (1, *S) is true where the fixed image is read from inside the moving one; it
    is there if all pairs of the part have one.

    Example:
        >>> pairs = PairDataset("pairs", "train", unit="fraction")
        >>> batch = next(iter(torch.utils.data.DataLoader(pairs, batch_size=2, shuffle=True)))
        >>> again = DRDMLib.diffusion.fields.warp(batch["moving"], batch["ddf"])

    Args:
        folder: folder of the run.
        part: ``"train"``, ``"validation"`` or ``"test"``; no subject is in two parts.
        unit: unit of ``ddf``: ``"voxels"`` along each axis, ``"fraction"`` of the image's side (as
            :func:`DRDMLib.diffusion.fields.warp` expects), or ``"millimetres"`` (RAS world coordinates).
        labels: whether to load labels; by default they are loaded if all pairs of the part have them, so that batches
            can be made.
        scale: scale intensities so that the 0.5th and 99.5th percentiles of the moving image become 0 and 1; the fixed
            image is scaled by the same factor and offset.
        size: voxels along each axis, (X, Y[, Z]), of all items, so that pairs of different sizes make batches: images
            and fields are cropped or padded about their middle. Padding has the lowest value of the moving image, no
            displacement, and the label 0.
        transform: function that is applied to each item.

    Raises:
        OutputError: the folder has no such dataset, or its run is not finished.
        SettingError: the part or the unit is unknown, or labels are missing.
    """

    def __init__(
        self,
        folder: str | Path,
        part: str = "train",
        *,
        unit: str = "voxels",
        labels: bool | None = None,
        scale: bool = True,
        size: Sequence[int] | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if part not in _KEYS:
            raise SettingError(f"There is no part '{part}'; use train, validation or test.")
        if unit not in _UNITS:
            raise SettingError(f"There is no unit '{unit}'; use voxels, fraction or millimetres.")
        self.folder, self.unit, self.scale, self.transform = Path(folder), unit, scale, transform
        self.size = None if size is None else tuple(size)
        self.pairs = _pairs(self.folder, _KEYS[part])
        with_labels = all("fixed_label" in pair for pair in self.pairs)
        if labels and not with_labels:
            raise SettingError(f"Not all pairs of '{folder}' have labels; leave them out with labels=False.")
        self.labels = with_labels if labels is None else labels
        self._masks = all("mask" in pair for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one pair.

        Raises:
            ImageError: a file is missing or damaged.
        """
        files = {key: self.folder / file for key, file in self.pairs[index].items() if isinstance(file, str)}
        fixed, moving = read_image(files["fixed"]), read_image(files["moving"])
        images = [_tensor(image).float() for image in (moving, fixed)]
        item: dict[str, Any] = {
            "name": image_stem(files["displacement"]),
            "moving": images[0],
            "fixed": images[1],
            "ddf": _field(_on_image(read_field(files["displacement"]), fixed), self.unit),
            "spacing": torch.tensor(fixed.GetSpacing(), dtype=torch.float32),
        }
        if self._masks:
            item["mask"] = _tensor(read_label(files["mask"], fixed)).bool()
        if self.scale:
            low, high = np.percentile(images[0].numpy(), [0.5, 99.5])
            for key in ("moving", "fixed"):
                # Values are not clipped: the warped moving image would no longer be exactly the fixed one.
                item[key] = (item[key] - float(low)) / max(float(high - low), 1e-6)
        if self.labels:
            for key, image in (("moving_label", moving), ("fixed_label", fixed)):
                item[key] = _tensor(read_label(files[key], image)).long()
        if self.size is not None:
            low = float(item["moving"].min())
            for key in ("moving", "fixed", "ddf", "moving_label", "fixed_label", "mask"):
                if key in item:
                    item[key] = _fitted(item[key], self.size, low if key in ("moving", "fixed") else 0)
        if self.unit == "fraction":
            shape = torch.tensor(item["ddf"].shape[1:], dtype=torch.float32)
            item["ddf"] = item["ddf"] / shape.view(-1, *[1] * len(shape))
        return item if self.transform is None else self.transform(item)


def _field(field: sitk.Image, unit: str) -> Tensor:
    """Return the field as a tensor (d, *S), in RAS millimeters, or else in voxels."""
    vectors = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(field).T, np.float32))
    if unit == "millimetres":
        vectors[:2] *= -1
        return vectors
    to_voxels = torch.as_tensor(np.linalg.inv(index_to_physical(field)), dtype=torch.float32)
    return (to_voxels @ vectors.flatten(1)).view_as(vectors)


def _fitted(tensor: Tensor, size: tuple[int, ...], value: float) -> Tensor:
    """Crop or pad a tensor (C, *S) about its middle to (C, *size).

    Raises:
        SettingError: it has another dimension.
    """
    if len(size) != tensor.ndim - 1:
        raise SettingError(f"The pairs are {tensor.ndim - 1}D, but the size has {len(size)} numbers.")
    made = tensor.new_full((len(tensor), *size), value)
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(tensor.shape[1:], size, strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
    made[tuple(target)] = tensor[tuple(source)]
    return made


def _on_image(field: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Return a saved field on the grid of its image; it has two equal slices for an image of one."""
    if field.GetDimension() == 3 and image.GetDimension() == 3 and image.GetSize()[2] == 1:
        first: sitk.Image = field[:, :, :1]
        return first
    return field


def _tensor(image: sitk.Image) -> Tensor:
    """Return the image as a tensor (1, X, Y[, Z]); unsigned integers become wider signed ones."""
    array = sitk.GetArrayFromImage(image).T[None]
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.int64}
    return torch.from_numpy(np.ascontiguousarray(array, wider.get(array.dtype)))


def _pairs(folder: Path, key: str) -> list[dict[str, str]]:
    path = folder / "dataset.json"
    try:
        pairs: list[dict[str, str]] = read_object(path, (key,))[key]
        if not _are_pairs(pairs):
            raise ValueError
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            f"'{folder}' has no finished dataset of 'drdm synthesize'; choose its folder, or finish it with --resume."
        ) from error
    return pairs
