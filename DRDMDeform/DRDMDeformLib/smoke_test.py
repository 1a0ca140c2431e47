"""A quick check of an installed extension: deform the phantom, and apply the deformation."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from DRDMLib.io.resources import resource

from . import mrml
from .deferred import sitk
from .job import runToEnd
from .mrml import links


def runSmokeTest(logic: Any) -> str:
    """Deform and apply the phantom in the open scene; its nodes are removed again.

    Returns:
        One sentence with what was found.

    Raises:
        DRDMError, SceneError: a step failed.
        AssertionError: a step has a wrong result.
    """
    scene, made = slicer.mrmlScene, []
    try:
        image, label = (
            sitk.ReadImage(str(resource("Sample", name))) for name in ("sample.nii.gz", "sample_label.nii.gz")
        )
        volume = mrml.volumeFromImage(scene, image, "DRDM smoke test")
        made.append(volume)
        segmentation = links.segmentationFromImage(scene, label, "DRDM smoke test segmentation", volume)
        made.append(segmentation)
        runToEnd(logic.startDeform(volume, level=48, seed=1, steps=2, onMade=made.extend))
        transform = made[-1]
        largest = logic.figures(transform)[0]["metrics"]["max_mm"]
        _require(largest > 0.5, _("The deformation moves nothing."))
        made += logic.apply(transform, [volume, segmentation])
        newVolume, newSegmentation = made[-2:]
        before, after = (slicer.util.arrayFromVolume(node).astype(float) for node in (volume, newVolume))
        _require(before.shape == after.shape, _("The deformed volume has another size."))
        changed = float(abs(after - before).max()) / float(before.max() - before.min())
        _require(changed > 0.05, _("The deformed volume is the same as the original."))
        counts = [node.GetSegmentation().GetNumberOfSegments() for node in (segmentation, newSegmentation)]
        _require(counts[0] == counts[1] > 0, _("The deformed segmentation has other segments."))
    finally:
        for node in reversed(made):
            mrml.removeNode(node)
    return _("The phantom was deformed by up to {mm} mm and applied.").format(mm=f"{largest:.1f}")


def _require(condition: bool, message: str) -> None:
    """As ``assert``, which Python leaves out when it optimizes."""
    if not condition:
        raise AssertionError(message)
