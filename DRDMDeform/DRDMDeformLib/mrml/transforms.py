"""A displacement field (SimpleITK, LPS, world) as a grid transform node (RAS, from parent), and back.

A volume v under our node N under its former parent P shows in the world, at w, what v has at N(P(w)), where P and N
are the "from parent" maps. It shall show what was at D(w), D(x) = x + field(x). So N = P o D o P^-1. Under no parent
that is the field itself; under a linear parent that keeps right angles it is the field with its grid and vectors taken
along; otherwise it is sampled, on a grid made finer until it follows the exact map.

Slicer reads grid transforms back with cubic interpolation, which bends between the nodes where everything else here
(the saved fields, DRDMLib, the volumes made from them) is linear; :func:`ensureLinearInterpolation` sets that before
use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import FLIP, Grid, arrayOf, concatenate, imageData, numpyMatrix, transformPoints, vtkMatrix
from .volumes import fittedGrid, parentMatrix

# A sampled map may miss the exact one by this much between its nodes (999 of 1000 places looked at), millimetres.
TOLERANCE_MM = 0.05
# A sampled grid is not made finer than this, whatever the tolerance (24 bytes a node while it is made).
MAX_NODES = 6_000_000


def createTransform(scene: Any, field: sitk.Image, name: str, parent: Any = None) -> Any:
    """A grid transform node that moves whatever is put under it by ``field``.

    Args:
        scene: where the node is added.
        field: displacement field in world space, LPS millimetres, from the new image to where to read in the
            original. A 2D field moves a slab around its plane (z = 0): all of it for one grid spacing to either side,
            falling to nothing within one more.
        name: made unique in the scene.
        parent: the transform node that the volume is under; the new node goes between the two.

    Returns:
        vtkMRMLGridTransformNode, 32-bit vectors, its own parent set to ``parent``.

    Raises:
        SceneError: not a displacement field, or the parent has been deleted.
    """
    if field.GetNumberOfComponentsPerPixel() != field.GetDimension():
        raise SceneError(_("The displacement field needs as many values per voxel as it has dimensions."))
    if parent is not None:
        requireInScene(parent, "parent transform")
    if field.GetDimension() == 2:
        field = thickened(field)
    grid, vectors = _localField(field, parent)
    node = slicer.vtkMRMLGridTransformNode()
    node.SetName(scene.GenerateUniqueName(name))
    node.SetAndObserveTransformFromParent(gridTransform(grid, vectors))
    scene.AddNode(node)
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def thickened(field: sitk.Image) -> sitk.Image:
    """A 2D field as a 3D one, five layers thick: all of it in the middle three, nothing in the outermost.

    The layers are one grid spacing apart, so the plane and one spacing to either side move within the plane, and
    what is two spacings away stays. A slice has no depth, so any thickness is a choice; this one follows the scale
    on which the field itself varies.
    """
    step = max(field.GetSpacing())
    x, y = (sitk.VectorIndexSelectionCast(field, k, sitk.sitkFloat64) for k in (0, 1))
    moving, still = sitk.Compose(x, y, x * 0), sitk.Compose(x * 0, x * 0, x * 0)
    return sitk.JoinSeries([still, moving, moving, moving, still], -2.0 * step, step)


def gridTransform(grid: Grid, vectors: np.ndarray) -> Any:
    """A vtkOrientedGridTransform with linear interpolation.

    Args:
        grid: where the vectors are.
        vectors: (k, j, i, 3), RAS millimetres.
    """
    data = imageData(vectors.astype(np.float32))
    data.SetOrigin(*(FLIP * np.asarray(grid.origin)))
    data.SetSpacing(*grid.spacing)
    direction = np.eye(4)
    direction[:3, :3] = FLIP[:, None] * grid.direction
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(vtkMatrix(direction))
    transform.SetDisplacementGridData(data)
    transform.SetInterpolationModeToLinear()
    return transform


def _localField(field: sitk.Image, parent: Any) -> tuple[Grid, np.ndarray]:
    """Grid and vectors (RAS) of N = P o D o P^-1."""
    world = Grid.fromImage(field)
    vectors = sitk.GetArrayViewFromImage(field) * FLIP
    matrix = parentMatrix(parent)
    if matrix is not None:
        inverse = np.linalg.inv(matrix)
        local = Grid.fromMatrix(world.size, inverse @ world.matrix)
        if local is not None:
            return local, vectors if parent is None else vectors @ inverse[:3, :3].T
    toWorld, fromWorld = vtk.vtkGeneralTransform(), vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(toWorld)
    parent.GetTransformFromWorld(fromWorld)
    return _sampled(concatenate(toWorld, gridTransform(world, vectors), fromWorld), world, fromWorld)


def _sampled(composite: Any, source: Grid, carry: Any) -> tuple[Grid, np.ndarray]:
    """``composite`` on a regular grid over what ``carry`` makes of ``source``, made finer until it is true."""
    grid = fittedGrid(concatenate(source.vtkMatrix, carry), source.size)
    while True:
        vectors = displacements(composite, grid)
        if grid.refined().voxels > MAX_NODES or _error(composite, grid, vectors) <= TOLERANCE_MM:
            return grid, vectors
        grid = grid.refined()


def displacements(transform: Any, grid: Grid) -> np.ndarray:
    """(k, j, i, 3): how far a transform moves the points of a grid, RAS millimetres."""
    points = grid.points()
    moved = transformPoints(transform, points)
    moved -= points
    return moved.reshape(*grid.size[::-1], 3)


def _error(composite: Any, grid: Grid, vectors: np.ndarray) -> float:
    """How much the grid misses the map between its nodes, at places drawn with a fixed seed; 99.9th percentile."""
    generator = np.random.default_rng(0)
    index = generator.random((4000, 3)) * (np.asarray(grid.size) - 1)
    points = index @ grid.matrix[:3, :3].T + grid.matrix[:3, 3]
    miss = transformPoints(composite, points) - transformPoints(gridTransform(grid, vectors), points)
    return float(np.percentile(np.linalg.norm(miss, axis=1), 99.9))


def gridTransformOf(transformNode: Any) -> Any:
    """The vtkOrientedGridTransform "from parent" of a node.

    Raises:
        SceneError: deleted, or not a single displacement grid given from the parent.
    """
    requireInScene(transformNode, "transform")
    transform = transformNode.GetTransformFromParent() if transformNode.IsA("vtkMRMLTransformNode") else None
    if transform is not None and transform.IsA("vtkGeneralTransform"):
        transform.Update()
        if transform.GetNumberOfConcatenatedTransforms() == 1:
            transform = transform.GetConcatenatedTransform(0)
    if transform is None or not transform.IsA("vtkOrientedGridTransform"):
        raise SceneError(
            _("'{name}' is not a deformation of this module; choose one that it has made.").format(
                name=nameOf(transformNode)
            )
        )
    transform.Update()
    if transform.GetInverseFlag() or transform.GetDisplacementGrid() is None:
        raise SceneError(
            _("The transform '{name}' is inverted; invert it again before use.").format(name=nameOf(transformNode))
        )
    return transform


def ensureLinearInterpolation(transformNode: Any) -> None:
    """Sets linear interpolation (Slicer reads grid transforms back with cubic)."""
    transform = gridTransformOf(transformNode)
    if transform.GetInterpolationMode() != vtk.VTK_LINEAR_INTERPOLATION:
        transform.SetInterpolationModeToLinear()


def fieldFromTransform(transformNode: Any, world: bool = True) -> sitk.Image:
    """The displacement field of a grid transform node: LPS millimetres, from the new image to the original.

    Args:
        transformNode: one of :func:`createTransform`, also after saving and loading.
        world: in world space, or in the space under the node's own parent.

    Returns:
        3D vector image, 64-bit.

    Raises:
        SceneError: deleted, or not a displacement grid given from the parent.
    """
    transform = gridTransformOf(transformNode)
    data = transform.GetDisplacementGrid()
    direction = np.eye(4)
    if transform.GetGridDirectionMatrix() is not None:
        direction = numpyMatrix(transform.GetGridDirectionMatrix())
    matrix = np.eye(4)
    matrix[:3, :3] = direction[:3, :3] * np.asarray(data.GetSpacing())
    matrix[:3, 3] = data.GetOrigin()
    vectors = arrayOf(data).astype(np.float64)
    vectors = vectors * transform.GetDisplacementScale() + transform.GetDisplacementShift()
    parent = transformNode.GetParentTransformNode()
    grid = Grid.fromMatrix(data.GetDimensions(), matrix)
    if grid is None:
        raise SceneError(
            _("The grid of '{name}' is sheared; it was not made by this module.").format(name=nameOf(transformNode))
        )
    if world and parent is not None:
        toWorld = parentMatrix(parent)
        carried = None if toWorld is None else Grid.fromMatrix(data.GetDimensions(), toWorld @ matrix)
        if toWorld is not None and carried is not None:
            grid, vectors = carried, vectors @ toWorld[:3, :3].T
        else:
            grid, vectors = _worldField(transformNode, grid, vectors)
    field = sitk.GetImageFromArray(vectors * FLIP, isVector=True)
    return grid.place(field)


def _worldField(transformNode: Any, grid: Grid, vectors: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Grid and vectors of D = P^-1 o N o P."""
    toWorld, fromWorld = vtk.vtkGeneralTransform(), vtk.vtkGeneralTransform()
    parent = transformNode.GetParentTransformNode()
    parent.GetTransformToWorld(toWorld)
    parent.GetTransformFromWorld(fromWorld)
    return _sampled(concatenate(fromWorld, gridTransform(grid, vectors), toWorld), grid, toWorld)


def enablePreview(transformNode: Any, nodes: Sequence[Any]) -> None:
    """Preview on: the nodes go under the transform. All of them or, on an error, none.

    Raises:
        SceneError: a node is deleted, cannot be deformed, or is under another transform than the deformed volume.
    """
    ensureLinearInterpolation(transformNode)
    for node in nodes:
        requireDeformable(transformNode, node)
    for node in nodes:
        node.SetAndObserveTransformNodeID(transformNode.GetID())


def disablePreview(transformNode: Any, nodes: Sequence[Any]) -> None:
    """Preview off: the nodes go back to where they were, under the parent of the transform (or none).

    Raises:
        SceneError: a node is deleted or is under another transform.
    """
    requireInScene(transformNode, "transform")
    for node in nodes:
        requireDeformable(transformNode, node)
    parent = transformNode.GetParentTransformNode()
    for node in nodes:
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)


def releaseNodes(transformNode: Any) -> None:
    """Whatever follows the transform goes back to where it was, under the transform's own parent (or none)."""
    scene, parent = transformNode.GetScene(), transformNode.GetParentTransformNode()
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLTransformableNode")
        if node.GetParentTransformNode() is transformNode:
            node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)


def requireDeformable(transformNode: Any, node: Any) -> None:
    """Raises SceneError unless ``node`` is, or was before the preview, right under the transform's parent."""
    requireInScene(node, "node")
    if node is transformNode or not node.IsA("vtkMRMLTransformableNode"):
        raise SceneError(
            _("'{name}' cannot be deformed; choose volumes, segmentations, models or markups.").format(
                name=nameOf(node)
            )
        )
    if not node.CanApplyNonLinearTransforms():
        raise SceneError(
            _("'{name}' can only be moved as a whole, not deformed; leave it out.").format(name=nameOf(node))
        )
    now, parent = node.GetParentTransformNode(), transformNode.GetParentTransformNode()
    if now is not parent and now is not transformNode:
        where = (
            _("under the transform '{name}'").format(name=nameOf(now)) if now is not None else _("under no transform")
        )
        wanted = _("under '{name}'").format(name=nameOf(parent)) if parent is not None else _("under none")
        raise SceneError(
            _("'{name}' is {where}, the deformed volume {wanted}; bring both under the same one.").format(
                name=nameOf(node), where=where, wanted=wanted
            )
        )
