"""Several deformations of one volume: separate transforms, or a sequence to scroll through.

What belongs to what is written into the nodes, so that it survives saving: the record (seed, level, model, figures) as
one JSON attribute of each transform, the volume as a node reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import SimpleITK as sitk
import slicer

from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .hierarchy import RECORD_ATTRIBUTE, VOLUME_REFERENCE, isDeformation, parentWithoutPreview, placeUnder, removeNode
from .transforms import createTransform, ensureLinearInterpolation, releaseNodes


def addVariants(
    scene: Any,
    volumeNode: Any,
    fields: Sequence[sitk.Image],
    records: Sequence[Mapping[str, Any]],
    asSequence: bool = False,
) -> Any:
    """Transforms for the deformations of a volume, named after it and under it in the subject hierarchy.

    Args:
        scene: where they are added.
        volumeNode: the volume; its parent (the previews of this module left aside) becomes that of the transforms.
        fields: displacement fields in world space, LPS millimetres, from the new image to the original.
        records: what is known about each; ``"level"`` and ``"seed"`` go into the names.
        asSequence: one transform that a sequence browser fills, instead of one node for each.

    Returns:
        The transform nodes; with ``asSequence`` a pair (proxy transform node, sequence browser node).

    Raises:
        SceneError: the volume is missing or deleted, or as many records as fields are not given. Nothing is left then.
    """
    requireInScene(volumeNode, "volume")
    if not fields or len(fields) != len(records):
        raise SceneError(
            _("{fields} deformations came with {records} records; give one record for each.").format(
                fields=len(fields), records=len(records)
            )
        )
    made: list[Any] = []
    try:
        if asSequence:
            return _addSequence(scene, volumeNode, fields, records, made)
        for field, record in zip(fields, records, strict=True):
            made.append(_transform(scene, volumeNode, field, record, _nextNumber(scene, volumeNode)))
        return made
    except BaseException:
        for node in reversed(made):
            removeNode(node)
        raise


def variantTransforms(scene: Any, volumeNode: Any) -> list[Any]:
    """The transforms that belong to a volume (of a sequence: the one that the browser fills)."""
    nodes = (
        scene.GetNthNodeByClass(n, "vtkMRMLTransformNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLTransformNode"))
    )
    return [n for n in nodes if isDeformation(n) and n.GetNodeReferenceID(VOLUME_REFERENCE) == volumeNode.GetID()]


def variantsOf(scene: Any, volumeNode: Any) -> list[tuple[Any, int, dict[str, Any]]]:
    """Every variant of a volume in the order they were made: transform or sequence browser, place in it, record."""
    found = []
    for transform in variantTransforms(scene, volumeNode):
        node = browserOf(transform) or transform
        found += [(node, index, record) for index, record in enumerate(records(node))]
    return found


def records(node: Any) -> list[dict[str, Any]]:
    """The records of a transform (one) or of a sequence browser (one for each variant, in order).

    Raises:
        SceneError: deleted, or not made by this module.
    """
    requireInScene(node, "deformation")
    nodes = [node]
    if isSequence(node):
        sequence = node.GetMasterSequenceNode()
        count = sequence.GetNumberOfDataNodes() if sequence is not None else 0
        nodes = [sequence.GetNthDataNode(n) for n in range(count)]
    texts = [n.GetAttribute(RECORD_ATTRIBUTE) for n in nodes]
    if not texts or None in texts:
        raise SceneError(
            _("'{name}' is not a deformation of this module; choose one that it has made.").format(name=nameOf(node))
        )
    return [json.loads(text) for text in texts]


def isSequence(node: Any) -> bool:
    """Whether a node is a sequence browser."""
    return bool(node.IsA("vtkMRMLSequenceBrowserNode"))


def transformOf(deformations: Any) -> Any:
    """The transform node of a deformation: the node itself, or the proxy node of a sequence browser."""
    if isSequence(deformations):
        return deformations.GetProxyNode(deformations.GetMasterSequenceNode())
    return deformations


def browserOf(transformNode: Any) -> Any:
    """The sequence browser that fills a transform, or ``None``."""
    scene = transformNode.GetScene()
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode")
        if browser.IsProxyNodeID(transformNode.GetID()):
            return browser
    return None


def selectVariant(browserNode: Any, index: int) -> None:
    """Shows one variant of a sequence: the transform that the browser fills gets its field and record.

    Raises:
        SceneError: deleted, or there is no such variant.
    """
    requireInScene(browserNode, "sequence")
    count = browserNode.GetNumberOfItems()
    if not 0 <= index < count:
        raise SceneError(
            _("There is no variant {n}; '{name}' has {count}.").format(
                n=index + 1, name=nameOf(browserNode), count=count
            )
        )
    browserNode.SetSelectedItemNumber(index)
    sequence = browserNode.GetMasterSequenceNode()
    proxy, wanted = browserNode.GetProxyNode(sequence), sequence.GetNthDataNode(index)
    if proxy is None or proxy.GetAttribute(RECORD_ATTRIBUTE) != wanted.GetAttribute(RECORD_ATTRIBUTE):
        # In Slicer the Sequences module has done this by now; without the application nobody else does.
        slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browserNode)
        proxy = browserNode.GetProxyNode(sequence)
    ensureLinearInterpolation(proxy)


def removeVariant(node: Any, index: int = 0) -> None:
    """Removes one variant: a transform, or an item of a sequence; with its last item the sequence goes.

    Nodes that follow a transform that goes return to the original first. Of a sequence that has others left, one of
    them is shown then.

    Raises:
        SceneError: deleted, or there is no such variant.
    """
    requireInScene(node, "deformation")
    if not isSequence(node):
        if index:
            raise SceneError(
                _("There is no variant {n}; '{name}' is a single one.").format(n=index + 1, name=nameOf(node))
            )
        releaseNodes(node)
        removeNode(node)
        return
    sequence, count = node.GetMasterSequenceNode(), node.GetNumberOfItems()
    if not 0 <= index < count:
        raise SceneError(
            _("There is no variant {n}; '{name}' has {count}.").format(n=index + 1, name=nameOf(node), count=count)
        )
    if count > 1:
        shown = node.GetSelectedItemNumber()
        sequence.RemoveDataNodeAtValue(sequence.GetNthIndexValue(index))
        selectVariant(node, min(shown - (index < shown), count - 2))
        return
    proxy = node.GetProxyNode(sequence)
    if proxy is not None:
        releaseNodes(proxy)
    for gone in (node, proxy, sequence):
        if gone is not None:
            removeNode(gone)


def _nextNumber(scene: Any, volumeNode: Any) -> int:
    taken = [records(n)[0].get("number", 0) for n in variantTransforms(scene, volumeNode)]
    return max(taken, default=0) + 1


def _variantName(volumeNode: Any, record: Mapping[str, Any], number: int) -> str:
    facts = ", ".join(f"{key} {record[key]}" for key in ("level", "seed") if key in record)
    return f"{volumeNode.GetName()} deformation {number}" + (f" ({facts})" if facts else "")


def _transform(scene: Any, volumeNode: Any, field: sitk.Image, record: Mapping[str, Any], number: int) -> Any:
    """One transform that belongs to the volume."""
    parent = parentWithoutPreview(volumeNode)
    node = createTransform(scene, field, _variantName(volumeNode, record, number), parent)
    try:
        node.SetAttribute(RECORD_ATTRIBUTE, json.dumps({**record, "number": number}))
        _linkToVolume(node, volumeNode)
    except BaseException:
        removeNode(node)
        raise
    return node


def _linkToVolume(node: Any, volumeNode: Any) -> None:
    node.SetNodeReferenceID(VOLUME_REFERENCE, volumeNode.GetID())
    placeUnder(volumeNode, node)


def _addSequence(
    scene: Any,
    volumeNode: Any,
    fields: Sequence[sitk.Image],
    records: Sequence[Mapping[str, Any]],
    made: list[Any],
) -> tuple[Any, Any]:
    base = f"{volumeNode.GetName()} deformations"
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(base))
    made.append(sequence)
    sequence.SetIndexName("variant")
    sequence.SetIndexUnit("")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
    proxy = None
    for number, (field, record) in enumerate(zip(fields, records, strict=True), start=1):
        node = _transform(scene, volumeNode, field, record, number)
        made.append(node)
        sequence.SetDataNodeAtValue(node, str(number))
        if proxy is None:
            proxy = node
        else:
            removeNode(made.pop())
    browser = slicer.vtkMRMLSequenceBrowserNode()
    browser.SetName(scene.GenerateUniqueName(f"{base} browser"))
    scene.AddNode(browser)
    made.append(browser)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(proxy, sequence, False)
    browser.SetOverwriteProxyName(sequence, False)
    assert proxy is not None
    proxy.SetName(scene.GenerateUniqueName(f"{volumeNode.GetName()} deformation"))
    browser.SetNodeReferenceID(VOLUME_REFERENCE, volumeNode.GetID())
    selectVariant(browser, 0)
    return proxy, browser
