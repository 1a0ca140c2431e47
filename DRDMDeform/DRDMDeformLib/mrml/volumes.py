"""Volumes of a scene as SimpleITK images in world space, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk
import vtk

from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import Grid, arrayOf, concatenate, imageData, numpyMatrix, transformPoints, vtkMatrix
from .hierarchy import parentWithoutPreview


def imageFromVolume(volumeNode: Any) -> sitk.Image:
    """Voxels and world position of a volume.

    The parent transforms count, the deformations of this module (a preview) do not: it is the original that is read,
    and deformed anew. Under none or a linear one the voxels are those of the node and only their place is
    computed. Under a shear or a nonlinear one, no regular grid fits the voxels: the volume is resampled (linear; a
    label map: nearest voxel) onto a grid of about the same spacing that covers it; what lies outside it gets the
    volume's background value.

    Args:
        volumeNode: scalar volume or label map.

    Returns:
        3D, LPS millimetres; a volume one voxel thick stays one voxel thick.

    Raises:
        SceneError: no volume, deleted, without voxels, or with several values per voxel.
    """
    requireVoxels(volumeNode)
    exact = exactGrid(volumeNode)
    if exact is not None:
        return exact.place(sitk.GetImageFromArray(_supported(volumeNode)))
    grid = worldGrid(volumeNode)
    label = isLabel(volumeNode)
    background = 0.0 if label else volumeNode.GetImageBackgroundScalarComponentAsDouble(0)
    fromWorld = parentFromWorld(volumeNode)
    resliced = reslice(volumeNode.GetImageData(), localMatrix(volumeNode), fromWorld, grid, label, background)
    return grid.place(sitk.GetImageFromArray(arrayOf(resliced)))


def requireVoxels(volumeNode: Any) -> None:
    """Raises SceneError unless the node is a volume with one number per voxel."""
    requireInScene(volumeNode, "volume")
    if not volumeNode.IsA("vtkMRMLVolumeNode"):
        raise SceneError(_("'{name}' is not a volume; choose a volume.").format(name=nameOf(volumeNode)))
    image = volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise SceneError(
            _("The volume '{name}' has no image data; load it again or choose another one.").format(
                name=nameOf(volumeNode)
            )
        )
    if image.GetNumberOfScalarComponents() != 1:
        raise SceneError(
            _(
                "The volume '{name}' has {n} values per voxel (color or vectors); convert it to a scalar volume first "
                "(module Vector to Scalar Volume)."
            ).format(name=nameOf(volumeNode), n=image.GetNumberOfScalarComponents())
        )


def isLabel(volumeNode: Any) -> bool:
    """Whether the node is a label map volume."""
    return bool(volumeNode.IsA("vtkMRMLLabelMapVolumeNode"))


def imageDimension(volumeNode: Any) -> tuple[int, tuple[float, ...]]:
    """2 for a volume one voxel thick, else 3; and the extent along its axes in world space, millimetres.

    Raises:
        SceneError: as :func:`imageFromVolume`.
    """
    requireVoxels(volumeNode)
    grid = worldGrid(volumeNode)
    dimension = 2 if 1 in volumeNode.GetImageData().GetDimensions() else 3
    return dimension, tuple(float(n * s) for n, s in zip(grid.size, grid.spacing, strict=True))


def localMatrix(volumeNode: Any) -> np.ndarray:
    """(4, 4): voxel index to the coordinates that the volume's parent transform takes to the world."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return numpyMatrix(matrix)


def localGrid(volumeNode: Any) -> Grid:
    """The volume's own grid, its parents left aside.

    Raises:
        SceneError: the axes are not at right angles.
    """
    grid = Grid.fromMatrix(volumeNode.GetImageData().GetDimensions(), localMatrix(volumeNode))
    if grid is None:
        raise SceneError(
            _(
                "The axes of volume '{name}' are not at right angles; resample it first "
                "(module Resample Scalar Volume)."
            ).format(name=nameOf(volumeNode))
        )
    return grid


def exactGrid(volumeNode: Any) -> Grid | None:
    """The volume's voxels in world space, or ``None`` where they do not lie on a regular grid."""
    matrix = parentMatrix(parentWithoutPreview(volumeNode))
    if matrix is None:
        return None
    return Grid.fromMatrix(volumeNode.GetImageData().GetDimensions(), matrix @ localMatrix(volumeNode))


def worldGrid(volumeNode: Any) -> Grid:
    """The grid of :func:`imageFromVolume`."""
    exact = exactGrid(volumeNode)
    if exact is not None:
        return exact
    toWorld = vtk.vtkGeneralTransform()
    parent = parentWithoutPreview(volumeNode)
    if parent is not None:
        parent.GetTransformToWorld(toWorld)
    return fittedGrid(
        concatenate(vtkMatrix(localMatrix(volumeNode)), toWorld), volumeNode.GetImageData().GetDimensions()
    )


def fittedGrid(indexToWorld: Any, size: tuple[int, ...]) -> Grid:
    """A regular grid over voxels that a transform bends: nearest directions, mean spacing, all of it covered."""
    n = np.asarray(size, float)
    middle = (n - 1) / 2
    ends = np.stack([middle + sign * n[a] / 2 * np.eye(3)[a] for a in range(3) for sign in (-1, 1)])
    reached = transformPoints(indexToWorld, ends)
    axes = (reached[1::2] - reached[::2]).T / n
    spacing = np.linalg.norm(axes, axis=0)
    right = [[0.0] * 3 for _ in range(3)]
    vtk.vtkMath.Orthogonalize3x3((axes / spacing).tolist(), right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(right) * spacing
    seed = Grid.fromMatrix(size, matrix)
    assert seed is not None
    bent = transformPoints(indexToWorld, Grid.fromMatrix(size, np.eye(4)).samplePoints(13))  # type: ignore[union-attr]
    grid = seed.covering(bent)
    thin = np.asarray(size) == 1
    if not thin.any():
        return grid
    # A slice stays one voxel thick, whatever its bend.
    center = seed.covering(bent.mean(axis=0, keepdims=True))
    axis = int(np.argmax(thin))
    index = grid.matrix[:3, axis]
    shift = (center.matrix[:3, 3] - grid.matrix[:3, 3]) @ index / (index @ index)
    matrix = grid.matrix
    matrix[:3, 3] += shift * index
    flat = Grid.fromMatrix([1 if a == axis else m for a, m in enumerate(grid.size)], matrix)
    assert flat is not None
    return flat


def parentMatrix(parent: Any) -> np.ndarray | None:
    """(4, 4): the coordinates under a transform node (or ``None``) to the world; ``None`` if it is not linear."""
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        return None
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return numpyMatrix(matrix)


def parentFromWorld(node: Any) -> Any:
    """World to the coordinates of a transformable node, previews left aside: a vtkGeneralTransform."""
    fromWorld = vtk.vtkGeneralTransform()
    parent = parentWithoutPreview(node)
    if parent is not None:
        parent.GetTransformFromWorld(fromWorld)
    return fromWorld


def reslice(
    image: Any, ijkToLocal: np.ndarray, fromWorld: Any, grid: Grid, nearest: bool, background: float = 0.0
) -> Any:
    """Voxels read at the points of ``grid``.

    Args:
        image: vtkImageData; of its own geometry only the extent counts.
        ijkToLocal: (4, 4), its voxel index to local RAS.
        fromWorld: vtkAbstractTransform from the space of ``grid`` to local RAS.
        nearest: nearest voxel, or linear.
        background: value outside.

    Returns:
        vtkImageData with the size of ``grid``, unit geometry.
    """
    plain = vtk.vtkImageData()
    plain.SetExtent(image.GetExtent())
    plain.GetPointData().SetScalars(image.GetPointData().GetScalars())
    filter_ = vtk.vtkImageReslice()
    filter_.SetInputData(plain)
    filter_.SetResliceTransform(concatenate(grid.vtkMatrix, fromWorld, vtkMatrix(np.linalg.inv(ijkToLocal))))
    filter_.SetOutputOrigin(0, 0, 0)
    filter_.SetOutputSpacing(1, 1, 1)
    filter_.SetOutputExtent(*(v for n in grid.size for v in (0, n - 1)))
    filter_.TransformInputSamplingOff()
    filter_.SetOutputDimensionality(3)
    filter_.SetInterpolationMode(vtk.VTK_NEAREST_INTERPOLATION if nearest else vtk.VTK_LINEAR_INTERPOLATION)
    filter_.SetBackgroundLevel(background)
    filter_.Update()
    return filter_.GetOutput()


def _supported(volumeNode: Any) -> np.ndarray:
    image = volumeNode.GetImageData()
    if image.GetScalarType() == vtk.VTK_BIT:
        raise SceneError(
            _("The volume '{name}' has one bit per voxel; convert it with Cast Scalar Volume.").format(
                name=nameOf(volumeNode)
            )
        )
    return arrayOf(image)


def volumeFromImage(scene: Any, image: sitk.Image, name: str) -> Any:
    """A scalar volume node with the voxels and the place (LPS, world) of a scalar 2D or 3D image."""
    return _volume(scene, image, name, "vtkMRMLScalarVolumeNode")


def labelMapFromImage(scene: Any, image: sitk.Image, name: str) -> Any:
    """A label map volume node with the voxels and the place (LPS, world) of an integer image."""
    return _volume(scene, image, name, "vtkMRMLLabelMapVolumeNode")


def _volume(scene: Any, image: sitk.Image, name: str, className: str) -> Any:
    node = newNode(scene, className, name)
    setImage(node, image)
    node.CreateDefaultDisplayNodes()
    return node


def setImage(node: Any, image: sitk.Image) -> None:
    """Gives a volume node the voxels and the place (LPS) of an image, in one change."""
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    changing = node.StartModify()
    try:
        node.SetIJKToRASMatrix(Grid.fromImage(image).vtkMatrix)
        node.SetAndObserveImageData(imageData(sitk.GetArrayViewFromImage(image)))
    finally:
        node.EndModify(changing)


def newNode(scene: Any, className: str, name: str) -> Any:
    """A node of a class in the scene, its name made unique."""
    return scene.AddNewNodeByClass(className, scene.GenerateUniqueName(name))


def fitWarnings(volumeNode: Any, model: Mapping[str, Any]) -> list[str]:
    """What speaks against using a model on a volume, a sentence each; empty if nothing does.

    Args:
        volumeNode: scalar volume.
        model: ``name``, ``ndim``, and if known ``anatomy``, ``modality`` and ``extent_mm``: the smallest and largest
            longest side that it is meant for.

    Raises:
        SceneError: the volume cannot be used at all.
    """
    dimension, extent = imageDimension(volumeNode)
    name, volume = str(model.get("name") or "this model"), nameOf(volumeNode)
    ndim = int(model.get("ndim") or 3)
    warnings = []
    if ndim == 3 and dimension == 2:
        warnings.append(
            _("'{volume}' is a single slice, and {name} is for volumes; choose a 2D model.").format(
                volume=volume, name=name
            )
        )
    if ndim == 2 and dimension == 3:
        warnings.append(
            _("{name} is for slices; '{volume}' will be deformed within its slices, all of them alike.").format(
                name=name, volume=volume
            )
        )
    limits = model.get("extent_mm")
    if limits is None:
        return warnings
    low, high = (float(v) for v in limits)
    # A 2D model sees slices: their depth in the stack does not count.
    sides = sorted(extent)[1:] if ndim == 2 and dimension == 2 else extent
    longest = max(sides)
    if not low <= longest <= high:
        subject = " ".join(str(model[key]) for key in ("anatomy", "modality") if model.get(key))
        meant = _("images {low} to {high} mm long").format(low=f"{low:.0f}", high=f"{high:.0f}")
        meant += f" ({subject})" if subject else ""
        advice = _("crop it to the region first") if longest > high else _("choose another model")
        warnings.append(
            _("'{volume}' is {longest} mm long, but {name} is meant for {meant}; {advice}.").format(
                volume=volume, longest=f"{longest:.0f}", name=name, meant=meant, advice=advice
            )
        )
    return warnings
