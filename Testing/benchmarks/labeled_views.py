"""Load labeled images: volumes, or the middle slices of a stack of thick slices, one by one.

Of a whole head with its MUSE regions only the structures deep in the brain are kept, in a window around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch.nn.functional as F
from torch import Tensor

from DRDMLib.io.datasets import Case
from DRDMLib.io.images import read_image, read_label

# Slices nearer to the end of a stack often show no ventricle.
MIDDLE_SLICES = 3
# MUSE regions of both sides: lateral ventricles, thalami, caudate nuclei, putamina, hippocampi.
DEEP_REGIONS = ((51, 52), (59, 60), (36, 37), (57, 58), (47, 48))
# In array order (z, y, x): room for the deep structures at 2 mm.
HEAD_WINDOW = (48, 32, 64)
HEAD_SIDE = 80


class LabeledImage(NamedTuple):
    """An image (32-bit) and its label map on the same grid, 2D or 3D."""

    image: sitk.Image
    label: sitk.Image


class View(NamedTuple):
    """The part of an image that a network sees, in array order (z, y, x).

    Attributes:
        window: its shape in voxels.
        center: its middle voxel; None is the middle of the image.
    """

    window: tuple[int, ...]
    center: tuple[int, ...] | None = None


def has_two_phases(cases: list[Case]) -> bool:
    """Return whether all cases are hearts at the end of diastole or of systole (ACDC)."""
    return bool(cases) and all(case.name.endswith(("_ED", "_ES")) for case in cases)


def group_by_patient(cases: list[Case]) -> list[list[Case]]:
    """Group the cases of each patient: both phases of a heart, otherwise every case alone."""
    if not has_two_phases(cases):
        return [[case] for case in cases]
    patients: dict[str, list[Case]] = {}
    for case in cases:
        patients.setdefault(case.name.rsplit("_", 1)[0], []).append(case)
    return [patients[name] for name in sorted(patients)]


def load_case(case: Case) -> LabeledImage:
    """Read the image of a case and its label map as they are; the case must have a label."""
    assert case.label is not None
    image = read_image(case.image)
    return LabeledImage(sitk.Cast(image, sitk.sitkFloat32), read_label(case.label, image))


def load_structures(case: Case) -> LabeledImage:
    """Read a case; of a whole head with MUSE regions, the labels of the deep structures."""
    image, label = load_case(case)
    return LabeledImage(image, deep_structures(label) if is_head(label) else label)


def load_views(case: Case) -> list[LabeledImage]:
    """Read a case as one volume, or as 2D images of its middle slices if the slices are thick."""
    image, label = load_structures(case)
    if max(image.GetSpacing()) < 2.5 * min(image.GetSpacing()):
        return [LabeledImage(image, label)]
    first = (image.GetSize()[2] - MIDDLE_SLICES) // 2
    return [LabeledImage(image[:, :, k], label[:, :, k]) for k in range(first, first + MIDDLE_SLICES)]


def is_head(image: sitk.Image) -> bool:
    """Return whether an image shows a whole head and not a cropped part."""
    return image.GetDimension() == 3 and min(image.GetSize()) >= HEAD_SIDE


def deep_structures(label: sitk.Image, structures: Sequence[tuple[int, ...]] = DEEP_REGIONS) -> sitk.Image:
    """Merge the MUSE regions of each structure into one label; the first is 1, all other regions are background."""
    array = sitk.GetArrayViewFromImage(label)
    merged = np.zeros(array.shape, np.uint8)
    for number, regions in enumerate(structures, start=1):
        merged[np.isin(array, regions)] = number
    result = sitk.GetImageFromArray(merged)
    result.CopyInformation(label)
    return result


def view_of(label: sitk.Image, windows: dict[int, tuple[int, ...]]) -> View:
    """Choose the view of a labeled image.

    Args:
        label: label map.
        windows: shape of the window by dimension; a head has a window of its own, around its structures.
    """
    if not is_head(label):
        return View(windows[label.GetDimension()])
    voxels = np.argwhere(sitk.GetArrayViewFromImage(label) > 0)
    return View(HEAD_WINDOW, tuple((voxels.min(0) + voxels.max(0)) // 2))


def crop_to_view(tensor: Tensor, view: View) -> Tensor:
    """Crop (C, *S) to the view, and repeat the border where the view is larger: (C, *window)."""
    for axis, side in enumerate(view.window, start=1):
        missing = max(0, side - tensor.shape[axis])
        if missing:
            pads = [0, 0] * (tensor.ndim - 1 - axis) + [missing // 2, missing - missing // 2] + [0, 0] * (axis - 1)
            tensor = F.pad(tensor[None].float(), pads, mode="replicate")[0].to(tensor.dtype)
        spare = tensor.shape[axis] - side
        start = spare // 2 if view.center is None else min(max(int(view.center[axis - 1]) - side // 2, 0), spare)
        tensor = tensor.narrow(axis, start, side)
    return tensor.contiguous()
