"""Which segmentation belongs to which volume, and conversions between segmentations and label images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import slicer

from ..deferred import sitk
from .errors import SceneError, nameOf
from .errors import tr as _
from .segmentations import labelFromSegmentation, referenceVolumeRole
from .volumes import imageFromVolume, labelMapFromImage

# Role of the node reference from a volume to the segmentation that the user has chosen for it.
CHOSEN_REFERENCE = "DRDM.segmentation"


def chooseSegmentation(volumeNode: Any, node: Any) -> None:
    """Remember the segmentation or label map that the user has chosen for a volume; saved with the scene."""
    if volumeNode.GetNodeReferenceID(CHOSEN_REFERENCE) != node.GetID():
        volumeNode.SetNodeReferenceID(CHOSEN_REFERENCE, node.GetID())


def segmentationOf(scene: Any, volumeNode: Any) -> Any:
    """The segmentation or label map of a volume, or ``None``.

    That is the one that the user has chosen, else the last segmentation whose reference geometry is the volume, else
    the last one that has no reference geometry and lies on the volume, one with its name before others: Slicer sets
    none when it loads a file, and scans that were cropped alike all lie in the same place.
    """
    chosen = volumeNode.GetNodeReference(CHOSEN_REFERENCE)
    if chosen is not None:
        return chosen
    own, near = None, None
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
        if not node.GetSegmentation().GetNumberOfSegments():
            continue
        reference = node.GetNodeReference(referenceVolumeRole())
        if reference is volumeNode:
            own = node
        elif reference is None and _liesOn(node, volumeNode):
            near = node
    return own or segmentationNamedAfter(scene, volumeNode) or near


def segmentationNamedAfter(scene: Any, volumeNode: Any) -> Any:
    """The segmentation without reference geometry that lies on a volume and is named after it, or ``None``.

    Of several, that with the shortest name: "scan.nii.gz" before "scan.nii.gz deformed".
    """
    found: list[Any] = []
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
        loose = node.GetNodeReferenceID(referenceVolumeRole()) is None
        if loose and _isNamedAfter(node, volumeNode) and _liesOn(node, volumeNode):
            found.append(node)
    return min(reversed(found), key=lambda node: len(node.GetName()), default=None)


def isGuessed(node: Any, volumeNode: Any) -> bool:
    """Whether nothing but its place says that a segmentation or label map belongs to a volume."""
    chosen = volumeNode.GetNodeReferenceID(CHOSEN_REFERENCE) == node.GetID()
    drawn = node.GetNodeReferenceID(referenceVolumeRole()) == volumeNode.GetID()
    return not (chosen or drawn or _isNamedAfter(node, volumeNode))


def _isNamedAfter(node: Any, volumeNode: Any) -> bool:
    """Whether a name begins with that of a volume: "scan1.nii.gz" after "scan1", and not "scan10"."""
    name, start = node.GetName() or "", volumeNode.GetName() or ""
    return bool(start) and name.startswith(start) and not name[len(start) :][:1].isdigit()


def _liesOn(node: Any, volumeNode: Any) -> bool:
    """Whether at least half of the bounding box of a node is inside that of a volume, in world space."""
    boxes = []
    for each in (node, volumeNode):
        bounds = [0.0] * 6
        each.GetRASBounds(bounds)
        boxes.append(np.asarray(bounds).reshape(3, 2))
    own, other = boxes
    shared = np.minimum(own[:, 1], other[:, 1]) - np.maximum(own[:, 0], other[:, 0])
    size = own[:, 1] - own[:, 0]
    return bool(np.all(size > 0) and np.prod(np.clip(shared, 0, None)) >= 0.5 * np.prod(size))


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


def nameSegments(node: Any, names: Mapping[int, str], source: Any = None) -> None:
    """Name the segments of a segmentation, and color them as those of another one.

    Args:
        node: segmentation with binary label maps.
        names: {value of a segment: name}.
        source: segmentation whose first segment belongs to the value 1, and so on; its names come before ``names``.
    """
    segmentation, others = node.GetSegmentation(), []
    if source is not None and source.IsA("vtkMRMLSegmentationNode"):
        found = source.GetSegmentation()
        others = [found.GetNthSegment(n) for n in range(found.GetNumberOfSegments())]
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        value = segment.GetLabelValue()
        if 1 <= value <= len(others):
            segment.SetName(others[value - 1].GetName())
            segment.SetColor(*others[value - 1].GetColor())
        elif value in names:
            segment.SetName(names[value])


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
