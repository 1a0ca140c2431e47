"""Which segmentation belongs to which volume, and conversions between segmentations and label images."""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk
import slicer

from .errors import SceneError, nameOf
from .errors import tr as _
from .segmentations import labelFromSegmentation, referenceVolumeRole
from .volumes import imageFromVolume, labelMapFromImage


def segmentationOf(scene: Any, volumeNode: Any) -> Any:
    """The last segmentation whose reference geometry is the volume, or ``None``."""
    found = None
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
        reference = node.GetNodeReferenceID(referenceVolumeRole())
        if reference == volumeNode.GetID() and node.GetSegmentation().GetNumberOfSegments():
            found = node
    return found


def belongsToOtherVolume(node: Any, volumeNode: Any) -> bool:
    """Whether the reference geometry of a segmentation is another volume; one without a reference fits every volume."""
    return node.GetNodeReferenceID(referenceVolumeRole()) not in (None, volumeNode.GetID())


def labelOf(node: Any, volumeNode: Any) -> sitk.Image:
    """Convert a segmentation or label map volume to a label image in world space, LPS.

    Args:
        node: segmentation or label map volume.
        volumeNode: gives the voxel grid of a segmentation.

    Raises:
        SceneError: the node is empty, or of another class.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        return labelFromSegmentation(node, volumeNode).image
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return imageFromVolume(node)
    raise SceneError(_("'{name}' is neither a segmentation nor a label map; choose one.").format(name=nameOf(node)))


def segmentationFromImage(scene: Any, label: sitk.Image, name: str, volumeNode: Any) -> Any:
    """Create a segmentation node from a label image (LPS), with one segment for each value.

    Args:
        scene: where the node is added.
        label: integer image.
        name: of the node.
        volumeNode: reference geometry of the segmentation.

    Raises:
        SceneError: the label image is empty.
    """
    labelNode = labelMapFromImage(scene, label, name)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    try:
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        if not logic.ImportLabelmapToSegmentationNode(labelNode, node):
            raise SceneError(_("The label image '{name}' contains no labels.").format(name=name))
    except BaseException:
        scene.RemoveNode(node)
        raise
    finally:
        scene.RemoveNode(labelNode)
    return node
