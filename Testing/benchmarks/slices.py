"""Labelled images as the benchmarks take them: volumes, or of a stack of thick slices the middle ones, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import SimpleITK as sitk
import torch.nn.functional as F
from torch import Tensor

from DRDMLib.datasets import Case
from DRDMLib.images import read_image, read_label

Pair = tuple[sitk.Image, sitk.Image]
# Of a stack: slices nearer to an end often show no ventricle.
MIDDLE = 3


def two_phases(cases: list[Case]) -> bool:
    """Whether these are hearts at the end of diastole and of systole (ACDC)."""
    return bool(cases) and all(case.name.endswith(("_ED", "_ES")) for case in cases)


def by_person(cases: list[Case]) -> list[list[Case]]:
    """Cases of one person together: both phases of a heart, else each case alone."""
    if not two_phases(cases):
        return [[case] for case in cases]
    people: dict[str, list[Case]] = {}
    for case in cases:
        people.setdefault(case.name.rsplit("_", 1)[0], []).append(case)
    return [people[name] for name in sorted(people)]


def load_pairs(case: Case) -> list[Pair]:
    """Image (32-bit) and label; of a stack of slices, its middle ones as 2D images."""
    image = read_image(case.image)
    assert case.label is not None
    label = read_label(case.label, image)
    image = sitk.Cast(image, sitk.sitkFloat32)
    if max(image.GetSpacing()) < 2.5 * min(image.GetSpacing()):
        return [(image, label)]
    first = (image.GetSize()[2] - MIDDLE) // 2
    return [(image[:, :, k], label[:, :, k]) for k in range(first, first + MIDDLE)]


def central(tensor: Tensor, window: Sequence[int]) -> Tensor:
    """(C, *S) cropped about its middle, or continued by its border, to (C, *window)."""
    for axis, side in enumerate(window, start=1):
        lack = max(0, side - tensor.shape[axis])
        if lack:
            pads = [0, 0] * (tensor.ndim - 1 - axis) + [lack // 2, lack - lack // 2] + [0, 0] * (axis - 1)
            tensor = F.pad(tensor[None].float(), pads, mode="replicate")[0].to(tensor.dtype)
        start = (tensor.shape[axis] - side) // 2
        tensor = tensor.narrow(axis, start, side)
    return tensor.contiguous()
