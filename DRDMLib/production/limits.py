"""Limits for samples; a sample that breaks one is generated again with another seed."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..deformation import Deformation
from ..errors import SettingError
from ..spatial.coordinates import to_index, to_points

# Number of evenly chosen voxels of each label whose new position is computed.
_TRACKED_VOXELS = 500


@dataclass(frozen=True)
class Limits:
    """Limits for one deformation; ``None`` means no limit.

    Attributes:
        folded: largest allowed fraction of folded voxels, those with a Jacobian determinant of 0 or less.
        least_mm: smallest allowed mean displacement, millimeters.
        most_mm: largest allowed displacement of any voxel, millimeters.
        inside: smallest allowed fraction of each label's voxels that stay in the image. With any value, no label may
            disappear.
        outside: largest allowed fraction of voxels that are read from outside the scan.
        max_attempts: number of attempts before a sample is given up.
        ignored: label value of voxels that are not trained on (nnU-Net's ``ignore``); no limit counts it.

    Raises:
        SettingError: a limit is negative, not finite, or a fraction above 1.
    """

    folded: float | None = 0.0
    least_mm: float | None = None
    most_mm: float | None = None
    inside: float | None = None
    outside: float | None = None
    max_attempts: int = 10
    ignored: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("fraction of folded voxels", self.folded, 1.0),
            ("smallest mean displacement", self.least_mm, sys.float_info.max),
            ("largest displacement", self.most_mm, sys.float_info.max),
            ("fraction of each label", self.inside, 1.0),
            ("fraction of voxels from outside", self.outside, 1.0),
        ):
            if value is not None and not 0 <= value <= most:
                limits = "0 to 1" if most == 1 else "0 or more, in mm"
                raise SettingError(f"The {name} {value:g} is out of range; use {limits}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under the names that ``run.json`` uses; the ignored label belongs to the dataset."""
        values = asdict(self)
        values.pop("ignored")
        values["draws"] = values.pop("max_attempts")
        if self.outside is None:
            # So that runs from before this limit can be continued.
            values.pop("outside")
        return values

    def violation(
        self, deformation: Deformation, label: sitk.Image | None, warped: sitk.Image | None, *, final: bool = True
    ) -> str:
        """Return the limit that a deformation breaks.

        Args:
            label, warped: the label before and after the deformation.
            final: whether the field and its metrics are written.

        Returns:
            ``"folded"``, ``"too little"``, ``"too much"``, ``"from outside"``, ``"label left"``, or an empty string.
        """
        # Measuring takes time: folds are not searched in a field that is proven invertible and is not written.
        look = final or not deformation.certified
        if self.folded is not None and look and deformation.metrics.folded_fraction > self.folded:
            return "folded"
        if self.least_mm is not None and deformation.metrics.mean_mm < self.least_mm:
            return "too little"
        if self.most_mm is not None and deformation.metrics.max_mm > self.most_mm:
            return "too much"
        if self.outside is not None and deformation.from_outside > self.outside:
            return "from outside"
        if self.inside is not None and label is not None and warped is not None:
            kept = set(label_values(warped))
            counted = [value for value in label_values(label) if value not in (0, self.ignored)]
            if not kept.issuperset(counted):
                return "label left"
            if share_inside(deformation, label, counted) < self.inside:
                return "label left"
        return ""


def label_values(label: sitk.Image) -> list[int]:
    """Return the values of a label map, sorted."""
    view = sitk.GetArrayViewFromImage(label)
    found: set[int] = set()
    for layer in view if view.ndim > 2 else [view]:
        found.update(int(v) for v in np.unique(layer))
    return sorted(found)


def share_inside(deformation: Deformation, label: sitk.Image, values: list[int]) -> float:
    """Return the smallest fraction, over these label values, of voxels that stay in the image after the deformation."""
    array = sitk.GetArrayViewFromImage(label)
    reference = deformation.reference
    lowest = 1.0
    for value in values:
        voxels = np.argwhere(array == value)
        voxels = voxels[:: max(1, len(voxels) // _TRACKED_VOXELS)]
        moved = to_index(deformation.inverse_points(to_points(voxels[:, ::-1], label)), reference)
        inside = ((moved >= -0.5) & (moved <= np.asarray(reference.GetSize()) - 0.5)).all(axis=1)
        lowest = min(lowest, float(inside.mean()))
    return lowest
