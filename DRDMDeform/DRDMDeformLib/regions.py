"""Where a volume is deformed: an ROI of the scene, or the surroundings of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from slicer.i18n import tr as _

from . import mrml
from .deferred import sitk
from .mrml import SceneError

# Largest difference between the corners of equal boxes, mm.
_SAME_BOX = 1.0


@dataclass(frozen=True)
class SceneRegion:
    """A region for ``drdm deform``.

    Attributes:
        box: two opposite corners, LPS millimeters; empty for the surroundings of the label, or for the whole volume.
        around: deform around all labels.
        margin: largest distance from the region at which anything moves, mm; ``None``: as needed.
        keep: values of the label that do not move.
        label: label map on the grid of the volume.
    """

    box: tuple[float, ...] = ()
    around: bool = False
    margin: float | None = None
    keep: tuple[int, ...] = ()
    label: sitk.Image | None = None

    def arguments(self, label: str | Path) -> list[object]:
        """The options of the command line; ``label`` is the file of the label map."""
        arguments: list[object] = ["--label", label] if self.label is not None else []
        arguments += ["--region", *self.box] if self.box else ["--around", "all"] if self.around else []
        arguments += ["--margin", self.margin] if self.margin and (self.box or self.around) else []
        arguments += ["--keep", *self.keep] if self.keep else []
        return arguments


def sceneRegion(
    volumeNode: Any, roi: Any, segmentation: Any, around: bool, margin: float | None, keep: Sequence[str]
) -> SceneRegion | None:
    """Do the work of :meth:`DRDMDeformLib.logic.Logic.regionOf`."""
    around = around and roi is None and segmentation is not None
    if roi is None and not around and not keep:
        return None
    label: sitk.Image | None = None
    values: dict[str, int] = {}
    if segmentation is not None and (around or keep):
        label, values = _labelOf(segmentation, volumeNode)
    unknown = [name for name in keep if name not in values]
    if unknown:
        raise SceneError(
            _("There is no segment '{name}' to keep still; the names are: {names}.").format(
                name=unknown[0], names=", ".join(values) or _("none, choose a segmentation in Input")
            )
        )
    box = () if roi is None else mrml.boxFromROI(roi, volumeNode)
    return SceneRegion(box, around, margin, tuple(values[name] for name in keep), label)


def commonBox(roi: Any, volumeNodes: Sequence[Any]) -> tuple[float, ...]:
    """The box of an ROI along the axes of several volumes: two opposite corners, LPS millimeters.

    Raises:
        SceneError: the axes of the volumes differ, so that there is no such box.
    """
    boxes = np.array([mrml.boxFromROI(roi, volume) for volume in volumeNodes])
    if len(boxes) and np.ptp(boxes, axis=0).max() > _SAME_BOX:
        raise SceneError(
            _("An ROI is not the same box in all volumes, because their axes differ; deform around the labels.")
        )
    return tuple(boxes[0].tolist()) if len(boxes) else ()


def _labelOf(segmentation: Any, volumeNode: Any) -> tuple[sitk.Image, dict[str, int]]:
    """A label map of a segmentation on the grid of a volume, and the value of each name."""
    if segmentation.IsA("vtkMRMLSegmentationNode"):
        made = mrml.labelFromSegmentation(segmentation, volumeNode)
        return made.image, {name: value for value, (_id, name) in made.segments.items()}
    image = mrml.imageFromVolume(segmentation)
    found = np.unique(sitk.GetArrayViewFromImage(image))
    return image, {str(int(value)): int(value) for value in found if value}


__all__ = ["SceneRegion", "commonBox", "sceneRegion"]
