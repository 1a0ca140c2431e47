"""Sequences of transforms and their browsers, which Slicer's module Sequences also acts on.

A browser shows the items of a sequence in a proxy node. If a browser has none, or one of another class than the items,
the module makes one of its own, which nothing is under.
"""

from __future__ import annotations

from typing import Any

import slicer

from .hierarchy import RECORD_ATTRIBUTE, VOLUME_REFERENCE, placeBeside, removeNode

_ITEM_CLASS = "vtkMRMLGridTransformNode"


def browse(browserNode: Any, sequenceNode: Any, proxyNode: Any) -> None:
    """Let a browser show the items of a sequence in a node, which keeps its name; one made by Slicer is removed."""
    browserNode.SetAndObserveMasterSequenceNodeID(sequenceNode.GetID())
    made = browserNode.GetProxyNode(sequenceNode)
    browserNode.AddProxyNode(proxyNode, sequenceNode, False)
    if made is not None and made is not proxyNode:
        removeNode(made)
    browserNode.SetOverwriteProxyName(sequenceNode, False)


def restoreSequences(scene: Any) -> None:
    """Restore all sequences of variants, see :func:`restoreSequence`."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    for browser in [scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode") for n in range(count)]:
        if browser.GetNodeReferenceID(VOLUME_REFERENCE) is not None:
            restoreSequence(browser)


def restoreSequence(browserNode: Any) -> None:
    """Let a sequence of variants that was saved and loaded be shown in the transform that the volume is under.

    Variants on the same grid are saved as one file, from which Slicer loads items of a more general class. It would
    show them in a node of its own, so that another variant could be chosen, but would not be seen.
    """
    sequence = browserNode.GetMasterSequenceNode()
    if sequence is None:
        return
    items = [sequence.GetNthDataNode(n) for n in range(sequence.GetNumberOfDataNodes())]
    if not items or any(item.GetAttribute(RECORD_ATTRIBUTE) is None for item in items):
        return
    if any(item.GetClassName() != _ITEM_CLASS for item in items):
        # Otherwise the browser would be updated in between.
        modifying = sequence.StartModify()
        try:
            for number, item in enumerate(items):
                sequence.SetDataNodeAtValue(_gridTransformNode(item), sequence.GetNthIndexValue(number))
        finally:
            sequence.EndModify(modifying)
    proxy = browserNode.GetProxyNode(sequence)
    if proxy is None or proxy.GetClassName() != _ITEM_CLASS:
        browse(browserNode, sequence, _proxyOf(browserNode, [item.GetAttribute(RECORD_ATTRIBUTE) for item in items]))
        slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browserNode)


def _gridTransformNode(item: Any) -> Any:
    """A transform of the class of new items, with the name, the record and the field of a loaded one."""
    node = slicer.vtkMRMLGridTransformNode()
    node.SetName(item.GetName())
    node.SetAttribute(RECORD_ATTRIBUTE, item.GetAttribute(RECORD_ATTRIBUTE))
    node.SetAndObserveTransformFromParent(item.GetTransformFromParent())
    return node


def _proxyOf(browserNode: Any, records: list[str]) -> Any:
    """The transform in which the items were shown before Slicer has made one of its own, or a new one."""
    scene, volume = browserNode.GetScene(), browserNode.GetNodeReference(VOLUME_REFERENCE)
    volumeID = browserNode.GetNodeReferenceID(VOLUME_REFERENCE)
    for n in range(scene.GetNumberOfNodesByClass(_ITEM_CLASS)):
        node = scene.GetNthNodeByClass(n, _ITEM_CLASS)
        if node.GetNodeReferenceID(VOLUME_REFERENCE) == volumeID and node.GetAttribute(RECORD_ATTRIBUTE) in records:
            return node
    node = slicer.vtkMRMLGridTransformNode()
    name = browserNode.GetName() if volume is None else f"{volume.GetName()} deformation"
    node.SetName(scene.GenerateUniqueName(name))
    node.SetAttribute(RECORD_ATTRIBUTE, records[0])
    scene.AddNode(node)
    if volume is not None:
        node.SetNodeReferenceID(VOLUME_REFERENCE, volumeID)
        placeBeside(volume, node)
    return node
