"""Where nodes stand in the subject hierarchy, and how they leave the scene without a trace."""

from __future__ import annotations

from typing import Any

import slicer

# Attribute of a transform: its record as JSON.
RECORD_ATTRIBUTE = "DRDM.record"
# Role of the node reference from a transform (or sequence browser) to its volume.
VOLUME_REFERENCE = "DRDM.volume"


def isDeformation(node: Any) -> bool:
    """Whether a node is a transform that this module has made."""
    return node is not None and node.IsA("vtkMRMLTransformNode") and node.GetAttribute(RECORD_ATTRIBUTE) is not None


def volumeOf(node: Any) -> Any:
    """The volume that a transform or sequence browser of this module was made for, or ``None``."""
    return node.GetNodeReference(VOLUME_REFERENCE)


def parentWithoutPreview(node: Any) -> Any:
    """The parent transform of a node, the deformations of this module (its preview) left aside; or ``None``."""
    parent = node.GetParentTransformNode()
    while isDeformation(parent):
        parent = parent.GetParentTransformNode()
    return parent


def hierarchyOf(scene: Any) -> Any:
    """The subject hierarchy node of a scene."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def placeUnder(owner: Any, node: Any) -> None:
    """Puts ``node`` under ``owner`` in the subject hierarchy."""
    hierarchy = hierarchyOf(owner.GetScene())
    item = hierarchy.GetItemByDataNode(owner)
    if not item:
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), owner)
    hierarchy.CreateItem(item, node)


def placeBeside(neighbor: Any, node: Any) -> None:
    """Puts ``node`` into the folder of the subject hierarchy that ``neighbor`` is in."""
    hierarchy = hierarchyOf(neighbor.GetScene())
    item = hierarchy.GetItemByDataNode(neighbor)
    hierarchy.CreateItem(hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID(), node)


def createFolder(neighbor: Any, name: str) -> int:
    """The item of a new folder beside ``neighbor``; its name is made unique there."""
    hierarchy = hierarchyOf(neighbor.GetScene())
    item = hierarchy.GetItemByDataNode(neighbor)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    return int(hierarchy.CreateFolderItem(parent, hierarchy.GenerateUniqueItemName(name)))


def placeIn(scene: Any, folder: int, node: Any) -> None:
    """Puts ``node`` into a folder of the subject hierarchy."""
    hierarchyOf(scene).CreateItem(folder, node)


def folderOf(node: Any) -> str:
    """The name of the folder of the subject hierarchy that ``node`` is in."""
    hierarchy = hierarchyOf(node.GetScene())
    return str(hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))))


def removeItem(scene: Any, item: int) -> None:
    """Removes an item of the subject hierarchy that has no node."""
    hierarchyOf(scene).RemoveItem(item, False, False)


def removeNode(node: Any) -> None:
    """Removes a node, its item in the subject hierarchy, and the display and storage nodes that were made for it.

    Does nothing if the node is no longer in a scene. (The application removes such items by itself; without it they
    stay and point nowhere.)
    """
    scene = node.GetScene()
    if scene is None:
        return
    parts: list[Any] = []
    if node.IsA("vtkMRMLDisplayableNode"):
        parts += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        parts += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    # Asking the scene for its hierarchy would make one.
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)
    for gone in (node, *parts):
        if gone is not None and gone.GetScene() is scene:
            scene.RemoveNode(gone)
