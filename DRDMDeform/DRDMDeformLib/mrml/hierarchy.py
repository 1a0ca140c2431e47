"""Where nodes belong: their tags, their parent transform, and their place in the subject hierarchy."""

from __future__ import annotations

from typing import Any

import slicer

# Tags: they are saved with the scene and show which transforms were made by this module, and for which volume.

# Attribute of a transform: its record as JSON.
RECORD_ATTRIBUTE = "DRDM.record"
# Attribute of the transform of a preview that follows the slider; see ``live.py``. It is never saved.
PREVIEW_ATTRIBUTE = "DRDM.preview"
# Role of the node reference from a transform (or sequence browser) to its volume.
VOLUME_REFERENCE = "DRDM.volume"


def isDeformation(node: Any) -> bool:
    """Whether a node is a transform made by this module; also the one of a preview that follows the slider."""
    if node is None or not node.IsA("vtkMRMLTransformNode"):
        return False
    return node.GetAttribute(RECORD_ATTRIBUTE) is not None or isLivePreview(node)


def isLivePreview(node: Any) -> bool:
    """Whether a node is the transform of a preview that follows the slider, which is not proven."""
    return node is not None and node.GetAttribute(PREVIEW_ATTRIBUTE) is not None


def volumeOf(node: Any) -> Any:
    """The volume of a transform or sequence browser of this module, or ``None``."""
    return node.GetNodeReference(VOLUME_REFERENCE)


# Parent transforms


def parentWithoutPreview(node: Any) -> Any:
    """The parent transform that a node has without previews (deformations of this module), or ``None``."""
    parent = node.GetParentTransformNode()
    while isDeformation(parent):
        parent = parent.GetParentTransformNode()
    return parent


def setParent(node: Any, parent: Any) -> None:
    """Set the parent transform of a node; ``None`` removes it."""
    node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)


# Subject hierarchy


def hierarchyOf(scene: Any) -> Any:
    """The subject hierarchy node of a scene."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def placeBeside(neighbor: Any, node: Any) -> None:
    """Put ``node`` into the folder of ``neighbor``."""
    hierarchyOf(neighbor.GetScene()).CreateItem(_folderItem(neighbor), node)


def createFolder(neighbor: Any, name: str) -> int:
    """Create a folder beside ``neighbor``, with a unique name, and return its item."""
    hierarchy = hierarchyOf(neighbor.GetScene())
    return int(hierarchy.CreateFolderItem(_folderItem(neighbor), hierarchy.GenerateUniqueItemName(name)))


def _folderItem(node: Any) -> int:
    """The item that a node is in, or that of the scene."""
    hierarchy = hierarchyOf(node.GetScene())
    item = hierarchy.GetItemByDataNode(node)
    return int(hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID())


def placeIn(scene: Any, folder: int, node: Any) -> None:
    """Put ``node`` into a folder."""
    hierarchyOf(scene).CreateItem(folder, node)


def folderOf(node: Any) -> str:
    """The name of the folder of a node."""
    hierarchy = hierarchyOf(node.GetScene())
    return str(hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))))


def removeItem(scene: Any, item: int) -> None:
    """Remove an item that has no node."""
    hierarchyOf(scene).RemoveItem(item, False, False)


def removeNode(node: Any) -> None:
    """Remove a node with its subject hierarchy item and its display and storage nodes.

    Does nothing if the node is no longer in a scene. (In the application the item is removed automatically; without it,
    the item would remain and refer to nothing.)
    """
    scene = node.GetScene()
    if scene is None:
        return
    parts: list[Any] = []
    if node.IsA("vtkMRMLDisplayableNode"):
        parts += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        parts += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    # GetSubjectHierarchyNode would create a subject hierarchy.
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)
    for part in (node, *parts):
        if part is not None and part.GetScene() is scene:
            scene.RemoveNode(part)
