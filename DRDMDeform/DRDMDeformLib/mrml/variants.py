"""Variants of a volume: several deformations as separate transforms, or as a sequence.

The record of a variant (seed, level, model, metrics) is a JSON attribute of its transform, and the volume is a node
reference, so that both are saved with the scene.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from ..deferred import sitk
from .errors import SceneError, nameOf, notADeformation, requireInScene
from .errors import tr as _
from .hierarchy import RECORD_ATTRIBUTE, VOLUME_REFERENCE, isDeformation, parentWithoutPreview, placeBeside, removeNode
from .sequences import browse, restoreSequence
from .transforms import createTransform, ensureLinearInterpolation, releaseNodes


def addVariants(
    scene: Any,
    volumeNode: Any,
    fields: Sequence[sitk.Image],
    records: Sequence[Mapping[str, Any]],
    asSequence: bool = False,
) -> Any:
    """Create transforms from displacement fields of a volume, named after it and beside it in the subject hierarchy.

    Args:
        scene: where the transforms are added.
        volumeNode: the volume; its parent without previews becomes the parent of the transforms.
        fields: displacement fields in world space, LPS millimeters, from the new image to the original.
        records: information on each field; ``"level"`` and ``"seed"`` become part of the name.
        asSequence: create a sequence with one proxy transform instead of one transform node for each field.

    Returns:
        The transform nodes; with ``asSequence`` a pair (proxy transform node, sequence browser node).

    Raises:
        SceneError: the volume is missing or deleted, or the numbers of fields and records differ. The scene is not
            changed then.
    """
    requireInScene(volumeNode, "volume")
    if not fields or len(fields) != len(records):
        raise SceneError(
            _("There are {fields} deformations but {records} records; give one record for each.").format(
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
    """The transforms of a volume; for a sequence its proxy transform."""
    nodes = (
        scene.GetNthNodeByClass(n, "vtkMRMLTransformNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLTransformNode"))
    )
    return [n for n in nodes if isDeformation(n) and n.GetNodeReferenceID(VOLUME_REFERENCE) == volumeNode.GetID()]


def variantsOf(scene: Any, volumeNode: Any) -> list[tuple[Any, int, dict[str, Any]]]:
    """Every variant of a volume in order of creation: transform or sequence browser, index there, and record."""
    found = []
    for transform in variantTransforms(scene, volumeNode):
        node = browserOf(transform) or transform
        found += [(node, index, record) for index, record in enumerate(records(node))]
    return found


def records(node: Any) -> list[dict[str, Any]]:
    """The record of a transform, or the records of all variants of a sequence browser.

    Raises:
        SceneError: the node is deleted, or not a deformation of this module.
    """
    requireInScene(node, "deformation")
    nodes = [node]
    if isSequence(node):
        sequence = node.GetMasterSequenceNode()
        count = sequence.GetNumberOfDataNodes() if sequence is not None else 0
        nodes = [sequence.GetNthDataNode(n) for n in range(count)]
    texts = [n.GetAttribute(RECORD_ATTRIBUTE) for n in nodes]
    if not texts or None in texts:
        raise notADeformation(node)
    return [json.loads(text) for text in texts]


def setRecord(transformNode: Any, record: Mapping[str, Any]) -> None:
    """Replace the record of a transform; its number stays.

    Raises:
        SceneError: as :func:`records`.
    """
    number = records(transformNode)[0].get("number")
    transformNode.SetAttribute(RECORD_ATTRIBUTE, json.dumps({**record, "number": number}))


def isSequence(node: Any) -> bool:
    """Whether a node is a sequence browser."""
    return bool(node.IsA("vtkMRMLSequenceBrowserNode"))


def transformOf(deformations: Any) -> Any:
    """The transform node of a deformation: the node itself, or the proxy node of a sequence browser."""
    if isSequence(deformations):
        return deformations.GetProxyNode(deformations.GetMasterSequenceNode())
    return deformations


def browserOf(transformNode: Any) -> Any:
    """The sequence browser of a proxy transform, or ``None``."""
    scene = transformNode.GetScene()
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode")
        if browser.IsProxyNodeID(transformNode.GetID()):
            return browser
    return None


def selectVariant(browserNode: Any, index: int) -> None:
    """Show one variant of a sequence: its field and record are copied to the proxy transform.

    Raises:
        SceneError: the browser is deleted, or there is no such variant.
    """
    requireInScene(browserNode, "sequence")
    restoreSequence(browserNode)
    _requireVariant(browserNode, index, browserNode.GetNumberOfItems())
    browserNode.SetSelectedItemNumber(index)
    sequence = browserNode.GetMasterSequenceNode()
    proxy, wanted = browserNode.GetProxyNode(sequence), sequence.GetNthDataNode(index)
    if proxy is None or proxy.GetAttribute(RECORD_ATTRIBUTE) != wanted.GetAttribute(RECORD_ATTRIBUTE):
        # In Slicer the Sequences module has already updated the proxy node; without the application it has not.
        slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browserNode)
        proxy = browserNode.GetProxyNode(sequence)
    ensureLinearInterpolation(proxy)


def removeVariant(node: Any, index: int = 0) -> None:
    """Remove one variant: a transform, or an item of a sequence. With its last item the sequence is removed.

    The preview of nodes under a removed transform is ended. A sequence with remaining items shows one of them.

    Raises:
        SceneError: the node is deleted, or there is no such variant.
    """
    requireInScene(node, "deformation")
    if not isSequence(node):
        _requireVariant(node, index, 1)
        releaseNodes(node)
        removeNode(node)
        return
    restoreSequence(node)
    sequence, count = node.GetMasterSequenceNode(), node.GetNumberOfItems()
    _requireVariant(node, index, count)
    if count > 1:
        shown = node.GetSelectedItemNumber()
        sequence.RemoveDataNodeAtValue(sequence.GetNthIndexValue(index))
        selectVariant(node, min(shown - (index < shown), count - 2))
        return
    proxy = node.GetProxyNode(sequence)
    if proxy is not None:
        releaseNodes(proxy)
    for part in (node, proxy, sequence):
        if part is not None:
            removeNode(part)


def _requireVariant(node: Any, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise SceneError(
            _("There is no variant {n}; the number of variants of '{name}' is {count}.").format(
                n=index + 1, name=nameOf(node), count=count
            )
        )


def _nextNumber(scene: Any, volumeNode: Any) -> int:
    taken = [records(n)[0].get("number", 0) for n in variantTransforms(scene, volumeNode)]
    return max(taken, default=0) + 1


def _variantName(volumeNode: Any, record: Mapping[str, Any], number: int) -> str:
    details = ", ".join(f"{key} {record[key]}" for key in ("level", "seed") if key in record)
    return f"{volumeNode.GetName()} deformation {number}" + (f" ({details})" if details else "")


def _transform(scene: Any, volumeNode: Any, field: sitk.Image, record: Mapping[str, Any], number: int) -> Any:
    """Create one transform of a volume."""
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
    # Not under the volume: the Transform column of the module Data acts on a whole branch, so that choosing one
    # deformation for the volume would put the others under it.
    placeBeside(volumeNode, node)


def _addSequence(
    scene: Any,
    volumeNode: Any,
    fields: Sequence[sitk.Image],
    records: Sequence[Mapping[str, Any]],
    made: list[Any],
) -> tuple[Any, Any]:
    """Create a sequence of variants. New nodes are added to ``made`` at once, to be removed if an error occurs."""
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
    browse(browser, sequence, proxy)
    assert proxy is not None
    proxy.SetName(scene.GenerateUniqueName(f"{volumeNode.GetName()} deformation"))
    browser.SetNodeReferenceID(VOLUME_REFERENCE, volumeNode.GetID())
    selectVariant(browser, 0)
    return proxy, browser
