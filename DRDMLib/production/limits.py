"""What a sample must keep to; one that does not is drawn again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..deformation import Deformation
from ..spatial.coordinates import to_index, to_points

# Voxels of each label whose way is followed, evenly chosen.
_FOLLOWED = 500


@dataclass(frozen=True)
class Limits:
    """Bounds on one deformation; ``None`` is no bound.

    Attributes:
        folded: largest share of voxels that fold.
        least_mm: smallest mean displacement, millimetres.
        most_mm: largest displacement of any voxel, millimetres.
        inside: smallest share of each label's voxels that stay in the image; with any value, no label may vanish.
        max_attempts: how many times a sample is drawn before it is given up.
    """

    folded: float | None = 0.0
    least_mm: float | None = None
    most_mm: float | None = None
    inside: float | None = None
    max_attempts: int = 10

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that ``run.json`` uses."""
        values = asdict(self)
        values["draws"] = values.pop("max_attempts")
        return values

    def violation(
        self, deformation: Deformation, label: sitk.Image | None, warped: sitk.Image | None, *, final: bool = True
    ) -> str:
        """Which bound a deformation breaks (``folded``, ``too little``, ``too much``, ``label left``), or nothing.

        Args:
            label, warped: the label before and after.
            final: the field is written with its figures.
        """
        # Measuring costs time: a field that is not written, and proven to be invertible, is not looked at for folds.
        look = final or not deformation.certified
        if self.folded is not None and look and deformation.metrics.folded_fraction > self.folded:
            return "folded"
        if self.least_mm is not None and deformation.metrics.mean_mm < self.least_mm:
            return "too little"
        if self.most_mm is not None and deformation.metrics.max_mm > self.most_mm:
            return "too much"
        if self.inside is not None and label is not None and warped is not None:
            kept = set(label_values(warped))
            if any(value not in kept for value in label_values(label) if value):
                return "label left"
            if share_inside(deformation, label) < self.inside:
                return "label left"
        return ""


def label_values(label: sitk.Image) -> list[int]:
    """The values of a label map, sorted."""
    view = sitk.GetArrayViewFromImage(label)
    found: set[int] = set()
    for layer in view if view.ndim > 2 else [view]:
        found.update(int(v) for v in np.unique(layer))
    return sorted(found)


def share_inside(deformation: Deformation, label: sitk.Image) -> float:
    """The smallest share, over all labels, of voxels that are still in the image after the deformation."""
    array = sitk.GetArrayViewFromImage(label)
    reference = deformation.reference
    lowest = 1.0
    for value in label_values(label):
        if value == 0:
            continue
        voxels = np.argwhere(array == value)
        voxels = voxels[:: max(1, len(voxels) // _FOLLOWED)]
        moved = to_index(deformation.inverse_points(to_points(voxels[:, ::-1], label)), reference)
        inside = ((moved >= -0.5) & (moved <= np.asarray(reference.GetSize()) - 0.5)).all(axis=1)
        lowest = min(lowest, float(inside.mean()))
    return lowest
