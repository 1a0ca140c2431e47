"""What is written into nodes, so that it survives saving: which transforms are ours, which volume they belong to."""

from __future__ import annotations

from typing import Any

# Attribute of a transform: its record as JSON.
RECORD = "DRDM.record"
# Role of the node reference from a transform (or sequence browser) to its volume.
VOLUME = "DRDM.volume"


def isDeformation(node: Any) -> bool:
    """Whether a node is a transform that this module has made."""
    return node is not None and node.IsA("vtkMRMLTransformNode") and node.GetAttribute(RECORD) is not None


def volumeOf(node: Any) -> Any:
    """The volume that a transform or sequence browser of this module was made for, or ``None``."""
    return node.GetNodeReference(VOLUME)


def trueParent(node: Any) -> Any:
    """The parent transform of a node, the deformations of this module (its preview) left aside; or ``None``."""
    parent = node.GetParentTransformNode()
    while isDeformation(parent):
        parent = parent.GetParentTransformNode()
    return parent
