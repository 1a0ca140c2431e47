"""Labelled images as the benchmarks take them: volumes, or of a stack of thick slices the middle ones, one by one.

Of a whole head with its MUSE regions the structures deep in the brain are looked at, in a window about them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch.nn.functional as F
from torch import Tensor

from DRDMLib.datasets import Case
from DRDMLib.images import read_image, read_label

Pair = tuple[sitk.Image, sitk.Image]
# Of a stack: slices nearer to an end often show no ventricle.
MIDDLE = 3
# MUSE regions of both sides: lateral ventricles, thalami, caudate nuclei, putamina, hippocampi.
DEEP = ((51, 52), (59, 60), (36, 37), (57, 58), (47, 48))
# As slices are stored (z, y, x): room for the deep structures at 2 mm.
HEAD_WINDOW = (48, 32, 64)
HEAD_SIDE = 80


class View(NamedTuple):
    """What a network sees of an image: a shape, and its middle if that is not the image's, both (z, y, x)."""

    window: tuple[int, ...]
    centre: tuple[int, ...] | None = None


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
    if is_head(label):
        label = deep_structures(label)
    image = sitk.Cast(image, sitk.sitkFloat32)
    if max(image.GetSpacing()) < 2.5 * min(image.GetSpacing()):
        return [(image, label)]
    first = (image.GetSize()[2] - MIDDLE) // 2
    return [(image[:, :, k], label[:, :, k]) for k in range(first, first + MIDDLE)]


def is_head(image: sitk.Image) -> bool:
    """Whether it shows a whole head, not a part that was cut out."""
    return image.GetDimension() == 3 and min(image.GetSize()) >= HEAD_SIDE


def deep_structures(label: sitk.Image) -> sitk.Image:
    """MUSE regions -> 1 to 5, in the order of ``DEEP``."""
    array = sitk.GetArrayViewFromImage(label)
    merged = np.zeros(array.shape, np.uint8)
    for number, regions in enumerate(DEEP, start=1):
        merged[np.isin(array, regions)] = number
    made = sitk.GetImageFromArray(merged)
    made.CopyInformation(label)
    return made


def view_of(label: sitk.Image, windows: dict[int, tuple[int, ...]]) -> View:
    """About the structures of a head, else about the image's middle, as large as ``windows`` says for its dimension."""
    if not is_head(label):
        return View(windows[label.GetDimension()])
    places = np.argwhere(sitk.GetArrayViewFromImage(label) > 0)
    return View(HEAD_WINDOW, tuple((places.min(0) + places.max(0)) // 2))


def seen(tensor: Tensor, view: View) -> Tensor:
    """(C, *S) cropped to the view, or continued by its border where that is larger: (C, *window)."""
    for axis, side in enumerate(view.window, start=1):
        lack = max(0, side - tensor.shape[axis])
        if lack:
            pads = [0, 0] * (tensor.ndim - 1 - axis) + [lack // 2, lack - lack // 2] + [0, 0] * (axis - 1)
            tensor = F.pad(tensor[None].float(), pads, mode="replicate")[0].to(tensor.dtype)
        room = tensor.shape[axis] - side
        start = room // 2 if view.centre is None else min(max(int(view.centre[axis - 1]) - side // 2, 0), room)
        tensor = tensor.narrow(axis, start, side)
    return tensor.contiguous()
