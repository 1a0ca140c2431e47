"""Convert a displacement field (SimpleITK, LPS, world) to a grid transform node (RAS, from parent), and back.

A volume v is under our node N, and N is under the volume's former parent P (both are "from parent" maps). At a world
position w the volume shows v(N(P(w))). It should show what was at D(w), with D(x) = x + field(x). Therefore
N = P o D o P^-1. Without a parent, N is the field itself. Under a linear parent that keeps right angles, the grid and
the vectors are transformed. Under other parents, N is sampled on a grid that is refined until it agrees with the exact
map.

Slicer loads grid transforms with cubic interpolation, while everything else here (saved fields, DRDMLib, the volumes
made with them) is linear; :func:`ensureLinearInterpolation` corrects this before use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import vtk

from ..deferred import sitk
from .errors import SceneError, nameOf, notADeformation, requireInScene
from .errors import tr as _
from .grids import FLIP, Grid, arrayOf, concatenate, imageData, numpyMatrix, transformPoints, vtkMatrix
from .hierarchy import isDeformation, isLivePreview, parentWithoutPreview, setParent
from .volumes import fittedGrid, parentMatrix, transformFromWorld, transformToWorld

# Largest error of a sampled map between its grid points (99.9th percentile), millimeters.
TOLERANCE_MM = 0.05
# A sampled grid has at most this many points, whatever its error (24 bytes per point while it is computed).
MAX_POINTS = 6_000_000


def createTransform(scene: Any, field: sitk.Image, name: str, parent: Any = None) -> Any:
    """Create a grid transform node that deforms the nodes under it by ``field``.

    Args:
        scene: where the node is added.
        field: displacement field in world space, LPS millimeters, from the new image to the original. A 2D field is
            extended around its plane (z = 0), see :func:`thickened`; one with a pose to all of the posed scan.
        name: made unique in the scene.
        parent: the parent transform of the volume; it becomes the parent of the new node.

    Returns:
        vtkMRMLGridTransformNode with 32-bit vectors.

    Raises:
        SceneError: ``field`` is not a displacement field, or the parent has been deleted.
    """
    if field.GetNumberOfComponentsPerPixel() != field.GetDimension():
        raise SceneError(_("The displacement field needs as many values per voxel as it has dimensions."))
    if parent is not None:
        requireInScene(parent, "parent transform")
    from DRDMLib.spatial.field_grid import covering_field

    # A pose takes the scan out of the field's grid, beyond which Slicer moves everything as at its nearest node.
    field = covering_field(field)
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
    """Extend a 2D field to a 3D field of five layers: the field in the middle three, zero in the outer two.

    The layers are one grid spacing apart, so the field is constant up to one spacing from the plane and falls to zero
    at two. Any thickness is a choice, since a slice has no depth; this one has the scale at which the field varies.
    """
    step = max(field.GetSpacing())
    x, y = (sitk.VectorIndexSelectionCast(field, k, sitk.sitkFloat64) for k in (0, 1))
    moving, still = sitk.Compose(x, y, x * 0), sitk.Compose(x * 0, x * 0, x * 0)
    return sitk.JoinSeries([still, moving, moving, moving, still], -2.0 * step, step)


def gridTransform(grid: Grid, vectors: np.ndarray) -> Any:
    """Create a vtkOrientedGridTransform with linear interpolation.

    Args:
        grid: positions of the vectors.
        vectors: (k, j, i, 3), RAS millimeters.
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
    toWorld, fromWorld = transformToWorld(parent), transformFromWorld(parent)
    return _sampled(concatenate(toWorld, gridTransform(world, vectors), fromWorld), world, fromWorld)


def _sampled(composite: Any, source: Grid, toTarget: Any) -> tuple[Grid, np.ndarray]:
    """Sample ``composite`` on a regular grid over ``source`` transformed by ``toTarget``, refined as needed.

    Returns:
        The grid, and the vectors (k, j, i, 3), RAS millimeters.
    """
    return sampledOn(composite, fittedGrid(concatenate(source.vtkMatrix, toTarget), source.size))


def sampledOn(
    composite: Any, grid: Grid, *, within: Grid | None = None, tolerance: float = TOLERANCE_MM
) -> tuple[Grid, np.ndarray]:
    """Sample ``composite`` on a grid, which is refined until the samples are accurate or too many.

    Args:
        within: grid over the place where the error is measured; by default all of ``grid``.
        tolerance: largest error, 99.9th percentile, millimeters.

    Returns:
        The grid, and the vectors (k, j, i, 3), RAS millimeters.
    """
    while True:
        vectors = displacements(composite, grid)
        if grid.refined().voxels > MAX_POINTS or _error(composite, grid, vectors, within or grid) <= tolerance:
            return grid, vectors
        grid = grid.refined()


def displacements(transform: Any, grid: Grid) -> np.ndarray:
    """Displacements of the points of a grid by a transform, (k, j, i, 3), RAS millimeters."""
    points = grid.points()
    moved = transformPoints(transform, points)
    moved -= points
    return moved.reshape(*grid.size[::-1], 3)


def _error(composite: Any, grid: Grid, vectors: np.ndarray, within: Grid) -> float:
    """Error of the sampled map at random points of ``within`` (fixed seed): 99.9th percentile, millimeters."""
    generator = np.random.default_rng(0)
    index = generator.random((4000, 3)) * (np.asarray(within.size) - 1)
    points = index @ within.matrix[:3, :3].T + within.matrix[:3, 3]
    miss = transformPoints(composite, points) - transformPoints(gridTransform(grid, vectors), points)
    return float(np.percentile(np.linalg.norm(miss, axis=1), 99.9))


def gridTransformOf(transformNode: Any) -> Any:
    """The vtkOrientedGridTransform "from parent" of a node.

    Raises:
        SceneError: the node is deleted, or its transform from parent is not a single displacement grid.
    """
    requireInScene(transformNode, "transform")
    if isLivePreview(transformNode):
        raise SceneError(
            _("'{name}' is only a preview; wait for the proven version.").format(name=nameOf(transformNode))
        )
    transform = transformNode.GetTransformFromParent() if transformNode.IsA("vtkMRMLTransformNode") else None
    if transform is not None and transform.IsA("vtkGeneralTransform"):
        transform.Update()
        if transform.GetNumberOfConcatenatedTransforms() == 1:
            transform = transform.GetConcatenatedTransform(0)
    if transform is None or not transform.IsA("vtkOrientedGridTransform"):
        raise notADeformation(transformNode)
    transform.Update()
    if transform.GetInverseFlag() or transform.GetDisplacementGrid() is None:
        raise SceneError(
            _("The transform '{name}' is inverted; invert it again before use.").format(name=nameOf(transformNode))
        )
    return transform


def ensureLinearInterpolation(transformNode: Any) -> None:
    """Set linear interpolation (Slicer loads grid transforms with cubic interpolation)."""
    transform = gridTransformOf(transformNode)
    if transform.GetInterpolationMode() != vtk.VTK_LINEAR_INTERPOLATION:
        transform.SetInterpolationModeToLinear()


def fieldFromTransform(transformNode: Any, world: bool = True) -> sitk.Image:
    """The displacement field of a grid transform node: LPS millimeters, from the new image to the original.

    Args:
        transformNode: made by :func:`createTransform`, also after saving and loading.
        world: return the field in world space, otherwise in the space under the parent of the node.

    Returns:
        3D vector image, 64-bit.

    Raises:
        SceneError: as :func:`gridTransformOf`.
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
            _("The grid of '{name}' is sheared; choose a deformation made by this module.").format(
                name=nameOf(transformNode)
            )
        )
    if world and parent is not None:
        toWorld = parentMatrix(parent)
        worldGrid = None if toWorld is None else Grid.fromMatrix(data.GetDimensions(), toWorld @ matrix)
        if toWorld is not None and worldGrid is not None:
            grid, vectors = worldGrid, vectors @ toWorld[:3, :3].T
        else:
            grid, vectors = _worldField(transformNode, grid, vectors)
    field = sitk.GetImageFromArray(vectors * FLIP, isVector=True)
    return grid.place(field)


def _worldField(transformNode: Any, grid: Grid, vectors: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Grid and vectors of D = P^-1 o N o P."""
    parent = transformNode.GetParentTransformNode()
    toWorld, fromWorld = transformToWorld(parent), transformFromWorld(parent)
    return _sampled(concatenate(fromWorld, gridTransform(grid, vectors), toWorld), grid, toWorld)


def enablePreview(transformNode: Any, nodes: Sequence[Any]) -> None:
    """Put nodes under a transform; on an error none of them is.

    Nodes under another deformation with the same parent are moved from one to the other, without showing the original
    in between, which takes Slicer some tenths of a second.

    Raises:
        SceneError: as :func:`requireDeformable` and :func:`requireNotDeformed`.
    """
    ensureLinearInterpolation(transformNode)
    requireNotDeformed(transformNode)
    for node in nodes:
        if not _isBeside(transformNode, node.GetParentTransformNode()):
            requireDeformable(transformNode, node)
    for node in nodes:
        setParent(node, transformNode)


def _isBeside(transformNode: Any, other: Any) -> bool:
    """Whether a node is another deformation, or a preview, under the parent of a transform."""
    parent = transformNode.GetParentTransformNode()
    return other is not None and isDeformation(other) and other.GetParentTransformNode() is parent


def disablePreview(transformNode: Any, nodes: Sequence[Any]) -> None:
    """Put nodes back under the parent of a transform, or under no transform.

    Raises:
        SceneError: as :func:`requireDeformable`.
    """
    requireInScene(transformNode, "transform")
    for node in nodes:
        requireDeformable(transformNode, node)
    for node in nodes:
        setParent(node, transformNode.GetParentTransformNode())


def followVolume(transformNode: Any, volumeNode: Any) -> None:
    """Put a deformation under the parent transform that its volume has now, which may have been changed elsewhere.

    Does nothing if that parent is itself under the deformation.
    """
    parent = parentWithoutPreview(volumeNode)
    above = parent
    while above is not None:
        if above is transformNode:
            return
        above = above.GetParentTransformNode()
    if transformNode.GetParentTransformNode() is not parent:
        setParent(transformNode, parent)


def releaseNodes(transformNode: Any) -> None:
    """Put all nodes under a transform back under its parent, or under no transform."""
    scene, parent = transformNode.GetScene(), transformNode.GetParentTransformNode()
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLTransformableNode")
        if node.GetParentTransformNode() is transformNode:
            setParent(node, parent)


def requireNotDeformed(transformNode: Any) -> None:
    """Raise SceneError if a deformation is itself under another one, which would be applied too."""
    above = transformNode.GetParentTransformNode()
    if isDeformation(above):
        raise SceneError(
            _("The deformation '{name}' is itself under '{other}'; take it out there in the module Transforms.").format(
                name=nameOf(transformNode), other=nameOf(above)
            )
        )


def requireDeformable(transformNode: Any, node: Any) -> None:
    """Raise SceneError unless a node can be deformed and is under the transform (preview) or under its parent."""
    requireInScene(node, "node")
    if node is transformNode or not node.IsA("vtkMRMLTransformableNode"):
        raise SceneError(
            _("'{name}' cannot be deformed; choose volumes, segmentations, models or markups.").format(
                name=nameOf(node)
            )
        )
    if not node.CanApplyNonLinearTransforms():
        raise SceneError(
            _("'{name}' can only be moved as a whole, not deformed; do not choose it.").format(name=nameOf(node))
        )
    current, parent = node.GetParentTransformNode(), transformNode.GetParentTransformNode()
    if current is not parent and current is not transformNode:
        raise SceneError(
            _(
                "'{name}' is {place} and the deformed volume is {volumePlace}; put both under the same transform."
            ).format(name=nameOf(node), place=_describeParent(current), volumePlace=_describeParent(parent))
        )


def _describeParent(parent: Any) -> str:
    """The parent transform for a message."""
    return _("under the transform '{name}'").format(name=nameOf(parent)) if parent is not None else _("under none")
