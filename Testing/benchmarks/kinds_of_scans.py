"""Scans of many kinds for the benchmark ``fit``: whole ones and parts, and the models trained on their subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image
from DRDMLib.training.data import split

BRAIN, HIPPOCAMPUS, HEART = "brain-t1-3d", "hippocampus-mr-3d", "cardiac-mr-2d"
GENERAL, GENERAL_2D = "general-3d", "general-2d"
# Held out by the recipes of the shipped models, see Testing/recipes/training_images.py.
HELD_OUT_CT = (0, 7, 8, 10)
_TRAINING_PROSTATES = 12


@dataclass(frozen=True)
class Kind:
    """A kind of scans.

    Attributes:
        name: what it is.
        suits: models that were made for it, besides the general ones.
        scans: yields name and image of each scan.
        seen: models that were trained on these subjects.
        half: the half of the kinds that the words were fixed on (``"A"``), or the other one (``"B"``).
        either: models that may be chosen although they were not made for it.
    """

    name: str
    suits: tuple[str, ...]
    scans: Callable[[], Iterator[tuple[str, sitk.Image]]]
    seen: tuple[str, ...] = ()
    half: str = "A"
    either: tuple[str, ...] = ()


def kinds(data: Path) -> list[Kind]:
    """List the kinds of scans in a folder with the datasets that the shipped models were trained on."""
    heads = split(find_cases(data / "brain_ixi"), 5)[1]
    hippocampi = split(find_cases(data / "hippocampus"), 8)[1]
    ct = find_cases(data / "ct")
    seen_ct = [case for number, case in enumerate(ct) if number not in HELD_OUT_CT]
    prostates = find_cases(data / "prostate_mr")[_TRAINING_PROSTATES:]
    acdc = [case for case in find_cases(data / "cardiac_acdc") if case.name.endswith("_ED")]
    sunnybrook = [case for case in find_cases(data / "cardiac_sunnybrook") if case.name.endswith("phase00")]
    others = find_cases(data / "brain_misc")

    def whole(cases: list[Case]) -> Callable[[], Iterator[tuple[str, sitk.Image]]]:
        return lambda: ((case.name, read_image(case.image)) for case in cases)

    def parts(cases: list[Case], center: tuple[float, float, float], side: float) -> Callable[..., Iterator]:
        return lambda: ((case.name, part(read_image(case.image), center, side)) for case in cases)

    def slices(cases: list[Case]) -> Callable[[], Iterator[tuple[str, sitk.Image]]]:
        return lambda: ((case.name, middle_slice(read_image(case.image))) for case in cases)

    all_trained = (GENERAL, GENERAL_2D)
    return [
        Kind("head, IXI", (BRAIN,), whole(heads[:8])),
        Kind("head, elsewhere", (), whole(others), seen=(GENERAL_2D,), half="B", either=(BRAIN,)),
        Kind("brain without skull", (BRAIN,), lambda: _bare_brains(heads[8:14]), half="B"),
        Kind("part of a head, 160 mm", (), parts([*heads[14:17], *others], (0.35, 0.5, 0.6), 160.0)),
        Kind("part of a head, 110 mm", (), parts([*heads[14:17], *others], (0.6, 0.45, 0.6), 110.0), half="B"),
        Kind("part of a head, 60 mm", (), parts([*heads[14:17], *others], (0.4, 0.55, 0.5), 60.0), half="B"),
        Kind("hippocampus", (HIPPOCAMPUS,), whole(hippocampi[:8])),
        Kind("CT of chest or abdomen", (), whole([ct[0], ct[10]])),
        Kind("CT of a lung", (), whole([ct[7], ct[8]]), half="B"),
        Kind("part of a CT, 140 mm", (), parts([ct[0], ct[7], ct[10]], (0.4, 0.5, 0.5), 140.0)),
        Kind("part of a CT, 70 mm", (), parts([ct[0], ct[7], ct[10]], (0.6, 0.45, 0.55), 70.0), half="B"),
        Kind("CT of chest, abdomen and trunk", (), whole(seen_ct), seen=all_trained),
        Kind("prostate", (), whole(prostates), half="B"),
        Kind("heart, thick slices, ACDC", (HEART,), whole(acdc[::12][:8])),
        Kind("heart, thick slices, Sunnybrook", (HEART,), whole(sunnybrook), seen=(HEART, *all_trained)),
        Kind("slice of a heart, ACDC", (HEART,), slices(acdc[6::24][:4]), half="B"),
        Kind("slice of a head, IXI", (), slices(heads[17:20])),
        Kind("slice of a CT", (), slices([ct[i] for i in HELD_OUT_CT]), half="B"),
    ]


def part(image: sitk.Image, center: tuple[float, float, float], side: float) -> sitk.Image:
    """Cut a cube out of a volume.

    Args:
        center: of the cube, fractions of the extent.
        side: in mm; where the volume is shorter, the cube is as well.
    """
    size = [min(n, round(side / s)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    start = [
        int(np.clip(round(c * n - m / 2), 0, n - m)) for c, n, m in zip(center, image.GetSize(), size, strict=True)
    ]
    return sitk.RegionOfInterest(image, size, start)


def middle_slice(image: sitk.Image) -> sitk.Image:
    """Return the middle slice along the last axis as a 2D image."""
    return image[:, :, image.GetSize()[2] // 2]


def _bare_brains(cases: list[Case]) -> Iterator[tuple[str, sitk.Image]]:
    for case in cases:
        image = read_image(case.image)
        brain = sitk.BinaryDilate(sitk.Cast(sitk.ReadImage(str(case.label)) > 0, sitk.sitkUInt8), [1, 1, 1])
        brain.CopyInformation(image)
        inside = np.argwhere(sitk.GetArrayViewFromImage(brain))[:, ::-1]
        low = np.maximum(inside.min(axis=0) - 4, 0)
        high = np.minimum(inside.max(axis=0) + 5, image.GetSize())
        cropped = sitk.RegionOfInterest(sitk.Mask(image, brain), (high - low).tolist(), low.tolist())
        yield case.name, cropped
