"""Every variant of a volume applied at once: numbered copies in a folder of the subject hierarchy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .errors import SceneError, nameOf, requireInScene
from .hardening import apply
from .hierarchy import createFolder, placeIn, removeItem, removeNode
from .i18n import tr as _
from .marks import RECORD, isDeformation, trueParent
from .transforms import follow
from .variants import browserOf, records, selectVariant, variantTransforms


def variantsOf(scene: Any, volumeNode: Any) -> list[tuple[Any, int, dict[str, Any]]]:
    """Every variant of a volume in the order they were made: transform or sequence browser, place in it, record."""
    found = []
    for transform in variantTransforms(scene, volumeNode):
        node = browserOf(transform) or transform
        found += [(node, index, record) for index, record in enumerate(records(node))]
    return found


def applyVariants(
    scene: Any,
    volumeNode: Any,
    nodes: Sequence[Any],
    originalGrid: bool = True,
    onProgress: Callable[[int, int], None] | None = None,
) -> list[list[Any]]:
    """Deformed copies of nodes for every variant of a volume.

    The copies of variant 3 are named "<name> deformed 3" (03 if there are ten or more), carry the variant's record as
    an attribute, and lie together in a folder "<volume> versions" beside the volume. The nodes themselves are back
    under the parent that they had without a preview, and every sequence shows what it showed before.

    Args:
        scene: of all nodes.
        volumeNode: whose variants.
        nodes: as :func:`apply` takes them, usually the volume and its segmentation.
        originalGrid: as in :func:`apply`.
        onProgress: called with the variants done and all of them, before each and at the end; may raise to stop.

    Returns:
        For each variant the copies, in the order of ``nodes``.

    Raises:
        SceneError: there is no variant, or a node cannot be deformed; the scene is unchanged then.
    """
    requireInScene(volumeNode, "volume")
    variants = variantsOf(scene, volumeNode)
    if not variants:
        raise SceneError(_("There is no deformation of '{name}' yet; make one first.").format(name=nameOf(volumeNode)))
    previews = _leavePreviews(nodes)
    browsers = {node.GetID(): node for node, _index, _record in variants if node.IsA("vtkMRMLSequenceBrowserNode")}
    shown = {name: browser.GetSelectedItemNumber() for name, browser in browsers.items()}
    folder = createFolder(volumeNode, f"{volumeNode.GetName()} versions")
    made: list[list[Any]] = []
    try:
        for number, (node, index, record) in enumerate(variants, start=1):
            _report(onProgress, number - 1, len(variants))
            made.append(_applyOne(node, index, nodes, originalGrid))
            label = f"{number:0{len(str(len(variants)))}d}"
            for source, copy in zip(nodes, made[-1], strict=True):
                copy.SetName(scene.GenerateUniqueName(f"{source.GetName()} deformed {label}"))
                copy.SetAttribute(RECORD, json.dumps(record))
                placeIn(scene, folder, copy)
        _report(onProgress, len(variants), len(variants))
    except BaseException:
        for copies in made:
            for copy in copies:
                removeNode(copy)
        removeItem(scene, folder)
        for transform, followers in previews:
            follow(transform, followers)
        raise
    finally:
        for name, item in shown.items():
            selectVariant(browsers[name], item)
    return made


def _report(onProgress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if onProgress is not None:
        onProgress(done, total)


def _leavePreviews(nodes: Sequence[Any]) -> list[tuple[Any, list[Any]]]:
    """Brings nodes back to where they were before a preview; says which was under which deformation."""
    left: dict[str, tuple[Any, list[Any]]] = {}
    for node in nodes:
        requireInScene(node, "node")
        above: Any = node.GetParentTransformNode() if node.IsA("vtkMRMLTransformableNode") else None
        if isDeformation(above):
            left.setdefault(above.GetID(), (above, []))[1].append(node)
            parent = trueParent(node)
            node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    return list(left.values())


def _applyOne(node: Any, index: int, nodes: Sequence[Any], originalGrid: bool) -> list[Any]:
    transform = node
    if node.IsA("vtkMRMLSequenceBrowserNode"):
        selectVariant(node, index)
        transform = node.GetProxyNode(node.GetMasterSequenceNode())
    return apply(transform, nodes, copies=True, originalGrid=originalGrid)
