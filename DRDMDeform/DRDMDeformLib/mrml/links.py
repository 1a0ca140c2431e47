"""Which segmentation belongs to which volume, and label images as segmentations."""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk
import slicer

from .errors import SceneError, nameOf
from .errors import tr as _
from .segmentations import labelFromSegmentation
from .volumes import imageFromVolume, labelMapFromImage


def segmentationOf(scene: Any, volumeNode: Any) -> Any:
    """The segmentation that was drawn on a volume (its geometry refers to it), or ``None``; the last one if several."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    found = None
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
        if node.GetNodeReferenceID(role) == volumeNode.GetID() and node.GetSegmentation().GetNumberOfSegments():
            found = node
    return found


def belongsToOtherVolume(node: Any, volumeNode: Any) -> bool:
    """Whether a segmentation refers to another volume than this one; one that refers to none fits any."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    return node.GetNodeReferenceID(role) not in (None, volumeNode.GetID())


def labelOf(node: Any, volumeNode: Any) -> sitk.Image:
    """A segmentation or a label map volume as a label image of a volume, world space, LPS.

    Raises:
        SceneError: it holds nothing, or is neither.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        return labelFromSegmentation(node, volumeNode).image
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return imageFromVolume(node)
    raise SceneError(_("'{name}' is neither a segmentation nor a label map; choose one.").format(name=nameOf(node)))


def segmentationFromImage(scene: Any, label: sitk.Image, name: str, volumeNode: Any) -> Any:
    """A label image (LPS) as a segmentation node on a volume, with one segment for each value.

    Raises:
        SceneError: the label image holds nothing.
    """
    labelNode = labelMapFromImage(scene, label, name)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    try:
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        if not logic.ImportLabelmapToSegmentationNode(labelNode, node):
            raise SceneError(_("The label image '{name}' holds no label.").format(name=name))
    except BaseException:
        scene.RemoveNode(node)
        raise
    finally:
        scene.RemoveNode(labelNode)
    return node
