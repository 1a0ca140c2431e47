"""Regions of interest of a scene as boxes of DRDMLib."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import FLIP, concatenate, transformPoints, vtkMatrix
from .hierarchy import parentWithoutPreview
from .volumes import requireVoxels, transformToWorld, worldGrid

# Points along each edge of an ROI, for the case that a nonlinear transform bends it.
_POINTS = 9


def boxFromROI(roiNode: Any, volumeNode: Any) -> tuple[float, ...]:
    """Convert an ROI to two opposite corners of a box along the axes of a volume, as ``drdm deform --region`` takes it.

    A turned ROI, or one under a transform, stands for its bounding box along the axes of the volume. Previews of this
    module are ignored.

    Args:
        roiNode: vtkMRMLMarkupsROINode.
        volumeNode: gives the axes.

    Returns:
        Six numbers: one corner and the opposite one, LPS millimeters.

    Raises:
        SceneError: a node is missing or deleted, the node is no ROI, or the ROI has not been placed or has no size.
    """
    requireInScene(roiNode, "region")
    requireVoxels(volumeNode)
    if not roiNode.IsA("vtkMRMLMarkupsROINode"):
        raise SceneError(_("'{name}' is not an ROI; choose an ROI.").format(name=nameOf(roiNode)))
    size = np.asarray(roiNode.GetSize(), float)
    if roiNode.GetNumberOfDefinedControlPoints() == 0 or not (size > 0).all():
        raise SceneError(
            _("The ROI '{name}' has no size; place it in a view, or choose another one.").format(name=nameOf(roiNode))
        )
    line = np.linspace(-0.5, 0.5, _POINTS)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) * size
    toNode = vtk.vtkMatrix4x4()
    toNode.DeepCopy(roiNode.GetObjectToNodeMatrix())
    world = transformPoints(concatenate(toNode, transformToWorld(parentWithoutPreview(roiNode))), points)
    # Two corners along the axes of the volume, in voxels; then in LPS.
    matrix = worldGrid(volumeNode).matrix
    index = transformPoints(concatenate(vtkMatrix(np.linalg.inv(matrix))), world)
    corners = np.stack([index.min(axis=0), index.max(axis=0)])
    lps = (corners @ matrix[:3, :3].T + matrix[:3, 3]) * FLIP
    return tuple(lps.ravel().tolist())


__all__ = ["boxFromROI"]
