"""Hardening: deformed copies of nodes, or the nodes themselves deformed for good.

Everything is computed in a scene of its own first and only then brought into the user's scene, so that a failure
half-way leaves the user's scene as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import SimpleITK as sitk
import slicer
import vtk

from DRDMLib.spatial.resampling import warp_image, warp_label

from .errors import nameOf, requireInScene
from .grids import arrayOf, chain
from .hierarchy import placeBeside, removeNode
from .segmentations import binaryName, resliceSegmentation, warpSegmentation
from .transforms import ensureLinear, fieldFromTransform, original, requireMovable
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
    ensureLinear(transformNode)
    for node in nodes:
        requireMovable(transformNode, node)
        if node.IsA("vtkMRMLVolumeNode"):
            requireVoxels(node)
    aside = slicer.vtkMRMLScene()
    field = fieldFromTransform(transformNode, world=False)
    make = _inOwnGrid if originalGrid else _hardened
    deformed = [make(transformNode, field, node, aside) for node in nodes]
    if copies:
        made = _addCopies(transformNode, nodes, deformed, originalGrid)
        original(transformNode, nodes)
        return made
    for node, result in zip(nodes, deformed, strict=True):
        _takeOver(transformNode, node, result, originalGrid)
    return list(nodes)


def _clone(node: Any, scene: Any) -> Any:
    """A node of the same class and content in ``scene``; voxels are shared, as no step here changes them in place."""
    clone = type(node)()
    scene.AddNode(clone)
    clone.CopyContent(node, not node.IsA("vtkMRMLVolumeNode"))
    return clone


def _inOwnGrid(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
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
        clone.ApplyTransform(chain(transformNode.GetTransformToParent()))
    return clone


def _hardened(transformNode: Any, field: sitk.Image, node: Any, scene: Any) -> Any:
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
        node.IsA("vtkMRMLSegmentationNode") and node.GetSegmentation().GetSourceRepresentationName() == binaryName()
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


def _takeOver(transformNode: Any, node: Any, result: Any, originalGrid: bool) -> None:
    """Gives ``node`` the content of ``result`` and the parent that goes with it, in one change."""
    parent = transformNode.GetParentTransformNode() if originalGrid else None
    changing = node.StartModify()
    try:
        node.CopyContent(result, False)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    finally:
        node.EndModify(changing)
