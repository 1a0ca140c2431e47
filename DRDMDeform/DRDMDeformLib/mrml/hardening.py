"""Harden deformations: on copies of nodes or on the nodes themselves, one variant or all of them.

Everything is computed in a temporary scene first and then added to the user's scene, so that an error does not leave
the user's scene partly changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import slicer
import vtk

from ..deferred import sitk
from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import arrayOf, concatenate
from .hierarchy import (
    RECORD_ATTRIBUTE,
    createFolder,
    isDeformation,
    isLivePreview,
    parentWithoutPreview,
    placeBeside,
    placeIn,
    removeItem,
    removeNode,
    setParent,
)
from .segmentations import (
    binaryLabelmapName,
    moveSurfaces,
    referenceVolumeRole,
    resliceSegmentation,
    warpSegmentation,
)
from .transforms import (
    disablePreview,
    enablePreview,
    ensureLinearInterpolation,
    fieldFromTransform,
    requireDeformable,
    requireNotDeformed,
)
from .variants import isSequence, selectVariant, transformOf, variantsOf
from .volumes import isLabel, localGrid, requireVoxels, setImage, transformToWorld


def apply(transformNode: Any, nodes: Sequence[Any], copies: bool = True, originalGrid: bool = True) -> list[Any]:
    """Harden a deformation.

    Args:
        transformNode: made by :func:`createTransform`.
        nodes: scalar volumes, label map volumes, segmentations, models, markups; under the transform (preview) or
            under its parent.
        copies: create deformed copies "<name> deformed" beside the nodes in the subject hierarchy, and end the preview
            of the nodes. Otherwise the nodes themselves are changed, which cannot be undone.
        originalGrid: volumes and label maps keep their voxel grid, and all nodes keep their parent transform.
            Otherwise they are hardened as by Slicer: the extent covers the deformed volume, and the parent transforms
            are hardened too.

    Returns:
        The deformed nodes, in the order of ``nodes``.

    Raises:
        SceneError: a node is deleted, under another transform, without data, or of a class that cannot be deformed.
            The scene is not changed then.
    """
    requireInScene(transformNode, "transform")
    ensureLinearInterpolation(transformNode)
    requireNotDeformed(transformNode)
    for node in nodes:
        requireDeformable(transformNode, node)
        if node.IsA("vtkMRMLVolumeNode"):
            requireVoxels(node)
    temporaryScene = slicer.vtkMRMLScene()
    field = fieldFromTransform(transformNode, world=False)
    harden = _hardenInOwnGrid if originalGrid else _hardenAsSlicer
    deformed = [harden(transformNode, field, node, temporaryScene) for node in nodes]
    if copies:
        made = _addCopies(transformNode, nodes, deformed, originalGrid)
        disablePreview(transformNode, nodes)
        return made
    for node, result in zip(nodes, deformed, strict=True):
        _replaceContent(transformNode, node, result, originalGrid)
    return list(nodes)


def _clone(node: Any, scene: Any) -> Any:
    """A copy of a node in ``scene``; the voxels are shared, since nothing here changes them in place."""
    clone = type(node)()
    scene.AddNode(clone)
    clone.CopyContent(node, not node.IsA("vtkMRMLVolumeNode"))
    return clone


def _hardenInOwnGrid(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
    """Harden a copy of the node in ``scene``, in the node's own voxel grid."""
    from DRDMLib.spatial.resampling import warp_image, warp_label

    clone = _clone(node, scene)
    if node.IsA("vtkMRMLVolumeNode"):
        grid = localGrid(node)
        image = grid.place(sitk.GetImageFromArray(arrayOf(node.GetImageData())))
        warp = warp_label if isLabel(node) else warp_image
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        setImage(clone, warp(image, image, sitk.DisplacementFieldTransform(sitk.Image(field))))
        # The exact matrix of the node: conversion to spacing and direction rounds it.
        clone.SetIJKToRASMatrix(matrix)
    elif _hasVoxelSegments(node):
        warpSegmentation(clone.GetSegmentation(), field, nameOf(node))
        moveSurfaces(node.GetSegmentation(), clone.GetSegmentation(), concatenate(transformNode.GetTransformToParent()))
    else:
        # ApplyTransform of a segmentation accepts a general transform, but not a grid transform.
        clone.ApplyTransform(concatenate(transformNode.GetTransformToParent()))
    return clone


def _hardenAsSlicer(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
    """Harden a copy of the node in ``scene`` as ``HardenTransform`` does, with its parent transforms.

    Binary label maps of segmentations are deformed in their own voxel grid, which a linear parent then takes to the
    world. Slicer would resample them once more there, and crop oblique ones.
    """
    toWorld = transformToWorld(transformNode)
    clone = _clone(node, scene)
    if not _hasVoxelSegments(node):
        _harden(clone, toWorld)
        return clone
    above = transformNode.GetParentTransformNode()
    if above is not None and not above.IsTransformToWorldLinear():
        resliceSegmentation(clone.GetSegmentation(), toWorld.GetInverse(), nameOf(node))
    else:
        warpSegmentation(clone.GetSegmentation(), field, nameOf(node), keepExtent=False)
        if above is not None:
            _harden(clone, transformToWorld(above))
    moveSurfaces(node.GetSegmentation(), clone.GetSegmentation(), toWorld)
    return clone


def _harden(node: Any, toWorld: Any) -> None:
    """Harden a transform to the world on a node, as Slicer does."""
    parent, scene = slicer.vtkMRMLTransformNode(), node.GetScene()
    parent.SetAndObserveTransformToParent(toWorld)
    scene.AddNode(parent)
    node.SetAndObserveTransformNodeID(parent.GetID())
    node.HardenTransform()
    scene.RemoveNode(parent)


def _hasVoxelSegments(node: Any) -> bool:
    return bool(
        node.IsA("vtkMRMLSegmentationNode")
        and node.GetSegmentation().GetSourceRepresentationName() == binaryLabelmapName()
    )


def _addCopies(transformNode: Any, nodes: Sequence[Any], deformed: Sequence[Any], originalGrid: bool) -> list[Any]:
    """Add copies of the nodes with the content of ``deformed`` to the scene; on an error none is added."""
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
            setParent(copy, parent)
            placeBeside(node, copy)
    except BaseException:
        for copy in made:
            removeNode(copy)
        raise
    return made


def _copyDisplay(node: Any, copy: Any) -> None:
    """Create display nodes for ``copy`` with the properties of those of ``node``."""
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
    """Set the reference geometry of a segmentation: the copy of its volume if there is one, otherwise the volume."""
    if node.IsA("vtkMRMLSegmentationNode"):
        role = referenceVolumeRole()
        reference = node.GetNodeReferenceID(role)
        if reference:
            copy.SetNodeReferenceID(role, copyOf.get(reference, reference))


def _replaceContent(transformNode: Any, node: Any, result: Any, originalGrid: bool) -> None:
    """Replace the content of ``node`` by that of ``result`` and set its parent transform, in one modification."""
    parent = transformNode.GetParentTransformNode() if originalGrid else None
    changing = node.StartModify()
    try:
        node.CopyContent(result, False)
        setParent(node, parent)
    finally:
        node.EndModify(changing)


def applyVariants(
    scene: Any,
    volumeNode: Any,
    nodes: Sequence[Any],
    originalGrid: bool = True,
    onProgress: Callable[[int, int], None] | None = None,
) -> list[list[Any]]:
    """Harden every variant of a volume on copies of nodes.

    The copies of variant 3 are named "<name> deformed 3" (03 if there are ten or more), have the variant's record as an
    attribute, and are put into a folder "<volume> variants" beside the volume. The preview of the nodes is ended, and
    every sequence shows the same variant as before.

    Args:
        scene: the scene of all nodes.
        volumeNode: the volume.
        nodes: as in :func:`apply`, usually the volume and its segmentation.
        originalGrid: as in :func:`apply`.
        onProgress: called with the number of finished variants and of all variants, before each variant and at the
            end; may raise an exception to cancel.

    Returns:
        For each variant the copies, in the order of ``nodes``.

    Raises:
        SceneError: there is no variant, or a node cannot be deformed. The scene is not changed then.
    """
    requireInScene(volumeNode, "volume")
    variants = variantsOf(scene, volumeNode)
    if not variants:
        raise SceneError(_("There is no deformation of '{name}' yet; make one first.").format(name=nameOf(volumeNode)))
    previews = _endPreviews(nodes)
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
        for transform, previewed in previews:
            enablePreview(transform, previewed)
        raise
    finally:
        for name, item in shown.items():
            selectVariant(browsers[name], item)
    return made


def _report(onProgress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if onProgress is not None:
        onProgress(done, total)


def _endPreviews(nodes: Sequence[Any]) -> list[tuple[Any, list[Any]]]:
    """End the preview of nodes; return each deformation with the nodes that were under it."""
    ended: dict[str, tuple[Any, list[Any]]] = {}
    for node in nodes:
        requireInScene(node, "node")
        if node.IsA("vtkMRMLTransformableNode") and isLivePreview(node.GetParentTransformNode()):
            raise SceneError(_("'{name}' shows a preview; wait for the proven version.").format(name=nameOf(node)))
    for node in nodes:
        above: Any = node.GetParentTransformNode() if node.IsA("vtkMRMLTransformableNode") else None
        if isDeformation(above):
            ended.setdefault(above.GetID(), (above, []))[1].append(node)
            setParent(node, parentWithoutPreview(node))
    return list(ended.values())


def _applyOne(node: Any, index: int, nodes: Sequence[Any], originalGrid: bool) -> list[Any]:
    if isSequence(node):
        selectVariant(node, index)
    return apply(transformOf(node), nodes, copies=True, originalGrid=originalGrid)
