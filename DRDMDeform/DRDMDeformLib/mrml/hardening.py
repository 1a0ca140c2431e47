"""Hardening: deformed copies of nodes, or the nodes themselves deformed for good.

Everything is computed in a scene of its own first and only then brought into the user's scene, so that a failure
half-way leaves the user's scene as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import SimpleITK as sitk
import slicer
import vtk

from DRDMLib.resampling import warp_image, warp_label

from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import arrayOf, concatenate
from .hierarchy import (
    RECORD_ATTRIBUTE,
    createFolder,
    isDeformation,
    parentWithoutPreview,
    placeBeside,
    placeIn,
    removeItem,
    removeNode,
)
from .segmentations import binaryLabelmapName, resliceSegmentation, warpSegmentation
from .transforms import disablePreview, enablePreview, ensureLinearInterpolation, fieldFromTransform, requireDeformable
from .variants import isSequence, selectVariant, transformOf, variantsOf
from .volumes import isLabel, localGrid, requireVoxels, setImage


def apply(transformNode: Any, nodes: Sequence[Any], copies: bool = True, originalGrid: bool = True) -> list[Any]:
    """Deforms nodes for good.

    Args:
        transformNode: one of :func:`createTransform`.
        nodes: scalar volumes, label map volumes, segmentations, models, markups; under the transform (preview) or
            under its parent.
        copies: leave the nodes as they are, back under the parent that they had without the preview, and return
            deformed copies "<name> deformed", beside them in the subject hierarchy. Otherwise the nodes themselves
            change; that cannot be undone.
        originalGrid: volumes and label maps are resampled in their own voxels, and everything stays under the parent
            that it had. Otherwise as Slicer hardens: the voxels reach as far as the deformed volume does, and the
            parent transforms are hardened too.

    Returns:
        The deformed nodes, in the order of ``nodes``.

    Raises:
        SceneError: a node is deleted, under another transform, without data, or of a kind that cannot be deformed;
            the scene is unchanged then.
    """
    requireInScene(transformNode, "transform")
    ensureLinearInterpolation(transformNode)
    for node in nodes:
        requireDeformable(transformNode, node)
        if node.IsA("vtkMRMLVolumeNode"):
            requireVoxels(node)
    aside = slicer.vtkMRMLScene()
    field = fieldFromTransform(transformNode, world=False)
    make = _deformInOwnGrid if originalGrid else _hardenAsSlicer
    deformed = [make(transformNode, field, node, aside) for node in nodes]
    if copies:
        made = _addCopies(transformNode, nodes, deformed, originalGrid)
        disablePreview(transformNode, nodes)
        return made
    for node, result in zip(nodes, deformed, strict=True):
        _replaceContent(transformNode, node, result, originalGrid)
    return list(nodes)


def _clone(node: Any, scene: Any) -> Any:
    """A node of the same class and content in ``scene``; voxels are shared, as no step here changes them in place."""
    clone = type(node)()
    scene.AddNode(clone)
    clone.CopyContent(node, not node.IsA("vtkMRMLVolumeNode"))
    return clone


def _deformInOwnGrid(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
    clone = _clone(node, scene)
    if node.IsA("vtkMRMLVolumeNode"):
        grid = localGrid(node)
        image = grid.place(sitk.GetImageFromArray(arrayOf(node.GetImageData())))
        warp = warp_label if isLabel(node) else warp_image
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        setImage(clone, warp(image, image, sitk.DisplacementFieldTransform(sitk.Image(field))))
        # To the last bit the place it had: going through spacing and direction rounds.
        clone.SetIJKToRASMatrix(matrix)
    elif _hasVoxelSegments(node):
        warpSegmentation(clone.GetSegmentation(), field, nameOf(node))
    else:
        # A segmentation asks a general transform whether it is linear, and takes no grid as such.
        clone.ApplyTransform(concatenate(transformNode.GetTransformToParent()))
    return clone


def _hardenAsSlicer(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
    """What ``HardenTransform`` makes of the node, its parents included.

    Segmentations of voxels go another way to the same place: deformed in their own lattice, which a linear parent then
    takes to the world unharmed; Slicer resamples once more there, and cuts oblique ones off.
    """
    toWorld = vtk.vtkGeneralTransform()
    transformNode.GetTransformToWorld(toWorld)
    clone = _clone(node, scene)
    if _hasVoxelSegments(node):
        above = transformNode.GetParentTransformNode()
        if above is not None and not above.IsTransformToWorldLinear():
            resliceSegmentation(clone.GetSegmentation(), toWorld.GetInverse(), nameOf(node))
            return clone
        warpSegmentation(clone.GetSegmentation(), field, nameOf(node), keepExtent=False)
        if above is None:
            return clone
        toWorld = vtk.vtkGeneralTransform()
        above.GetTransformToWorld(toWorld)
    parent = slicer.vtkMRMLTransformNode()
    parent.SetAndObserveTransformToParent(toWorld)
    scene.AddNode(parent)
    clone.SetAndObserveTransformNodeID(parent.GetID())
    clone.HardenTransform()
    scene.RemoveNode(parent)
    return clone


def _hasVoxelSegments(node: Any) -> bool:
    return bool(
        node.IsA("vtkMRMLSegmentationNode")
        and node.GetSegmentation().GetSourceRepresentationName() == binaryLabelmapName()
    )


def _addCopies(transformNode: Any, nodes: Sequence[Any], deformed: Sequence[Any], originalGrid: bool) -> list[Any]:
    made: list[Any] = []
    copyOf: dict[str, str] = {}
    scene = transformNode.GetScene()
    parent = transformNode.GetParentTransformNode() if originalGrid else None
    try:
        for node, result in zip(nodes, deformed, strict=True):
            copy = type(node)()
            copy.SetName(scene.GenerateUniqueName(f"{node.GetName()} deformed"))
            scene.AddNode(copy)
            made.append(copy)
            copyOf[node.GetID()] = copy.GetID()
            _copyDisplay(node, copy)
            copy.CopyContent(result, False)
            _copyReferences(node, copy, copyOf)
            if parent is not None:
                copy.SetAndObserveTransformNodeID(parent.GetID())
            placeBeside(node, copy)
    except BaseException:
        for copy in made:
            removeNode(copy)
        raise
    return made


def _copyDisplay(node: Any, copy: Any) -> None:
    """Display nodes for ``copy`` that show it as ``node`` is shown."""
    scene = copy.GetScene()
    for n in range(node.GetNumberOfDisplayNodes()):
        source = node.GetNthDisplayNode(n)
        if source is None:
            continue
        display = copy.GetNthDisplayNode(n)
        if display is None:
            display = type(source)()
            scene.AddNode(display)
            copy.AddAndObserveDisplayNodeID(display.GetID())
        display.CopyContent(source)
        if source.GetColorNodeID():
            display.SetAndObserveColorNodeID(source.GetColorNodeID())


def _copyReferences(node: Any, copy: Any, copyOf: dict[str, str]) -> None:
    """What a segmentation was drawn on: the deformed volume if that was made along with it, else the original."""
    if node.IsA("vtkMRMLSegmentationNode"):
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        reference = node.GetNodeReferenceID(role)
        if reference:
            copy.SetNodeReferenceID(role, copyOf.get(reference, reference))


def _replaceContent(transformNode: Any, node: Any, result: Any, originalGrid: bool) -> None:
    """Gives ``node`` the content of ``result`` and the parent that goes with it, in one change."""
    parent = transformNode.GetParentTransformNode() if originalGrid else None
    changing = node.StartModify()
    try:
        node.CopyContent(result, False)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    finally:
        node.EndModify(changing)


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
    browsers = {node.GetID(): node for node, _index, _record in variants if isSequence(node)}
    shown = {name: browser.GetSelectedItemNumber() for name, browser in browsers.items()}
    folder = createFolder(volumeNode, f"{volumeNode.GetName()} variants")
    made: list[list[Any]] = []
    try:
        for number, (node, index, record) in enumerate(variants, start=1):
            _report(onProgress, number - 1, len(variants))
            made.append(_applyOne(node, index, nodes, originalGrid))
            label = f"{number:0{len(str(len(variants)))}d}"
            for source, copy in zip(nodes, made[-1], strict=True):
                copy.SetName(scene.GenerateUniqueName(f"{source.GetName()} deformed {label}"))
                copy.SetAttribute(RECORD_ATTRIBUTE, json.dumps(record))
                placeIn(scene, folder, copy)
        _report(onProgress, len(variants), len(variants))
    except BaseException:
        for copies in made:
            for copy in copies:
                removeNode(copy)
        removeItem(scene, folder)
        for transform, followers in previews:
            enablePreview(transform, followers)
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
            parent = parentWithoutPreview(node)
            node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    return list(left.values())


def _applyOne(node: Any, index: int, nodes: Sequence[Any], originalGrid: bool) -> list[Any]:
    if isSequence(node):
        selectVariant(node, index)
    return apply(transformOf(node), nodes, copies=True, originalGrid=originalGrid)
