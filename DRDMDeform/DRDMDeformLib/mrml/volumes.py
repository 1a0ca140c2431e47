"""Convert volumes of a scene to SimpleITK images in world space, and back; check whether a model fits a volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import vtk

from ..deferred import sitk
from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import Grid, arrayOf, concatenate, imageData, numpyMatrix, transformPoints, vtkMatrix
from .hierarchy import parentWithoutPreview


def imageFromVolume(volumeNode: Any) -> sitk.Image:
    """Convert a volume to an image at its position in the world.

    Parent transforms are applied, but not the deformations of this module (previews), so that a second deformation is
    one of the original. Under a linear transform the voxels are those of the node. Under a shear or a nonlinear
    transform no regular grid fits the voxels; then the volume is resampled (linearly; label maps: nearest voxel) on a
    grid of about the same spacing that covers it. Outside the volume it has the volume's background value.

    Args:
        volumeNode: scalar volume or label map.

    Returns:
        3D image, LPS millimeters; a volume one voxel thick stays one voxel thick.

    Raises:
        SceneError: as :func:`requireVoxels`, or the volume has one bit per voxel.
    """
    requireVoxels(volumeNode)
    exact = exactGrid(volumeNode)
    if exact is not None:
        return exact.place(sitk.GetImageFromArray(_voxelsOf(volumeNode)))
    grid = worldGrid(volumeNode)
    label = isLabel(volumeNode)
    background = 0.0 if label else volumeNode.GetImageBackgroundScalarComponentAsDouble(0)
    toIndex = concatenate(parentFromWorld(volumeNode), vtkMatrix(np.linalg.inv(localMatrix(volumeNode))))
    resliced = reslice(volumeNode.GetImageData(), toIndex, grid, label, background)
    return grid.place(sitk.GetImageFromArray(arrayOf(resliced)))


def requireVoxels(volumeNode: Any) -> None:
    """Raise SceneError unless the node is a volume with one value per voxel."""
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
    """Dimension (2 for a volume one voxel thick, else 3) and extent along its axes in world space, millimeters.

    Raises:
        SceneError: as :func:`imageFromVolume`.
    """
    requireVoxels(volumeNode)
    grid = worldGrid(volumeNode)
    dimension = 2 if 1 in volumeNode.GetImageData().GetDimensions() else 3
    return dimension, tuple(float(n * s) for n, s in zip(grid.size, grid.spacing, strict=True))


def localMatrix(volumeNode: Any) -> np.ndarray:
    """(4, 4) matrix from voxel index to the volume's own RAS coordinates, without its parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return numpyMatrix(matrix)


def localGrid(volumeNode: Any) -> Grid:
    """The voxel grid of a volume without its parent transforms.

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
    """The voxel grid of a volume in world space, or ``None`` if it is not regular there."""
    matrix = parentMatrix(parentWithoutPreview(volumeNode))
    if matrix is None:
        return None
    return Grid.fromMatrix(volumeNode.GetImageData().GetDimensions(), matrix @ localMatrix(volumeNode))


def worldGrid(volumeNode: Any) -> Grid:
    """The grid of the image that :func:`imageFromVolume` returns."""
    exact = exactGrid(volumeNode)
    if exact is not None:
        return exact
    toWorld = transformToWorld(parentWithoutPreview(volumeNode))
    return fittedGrid(
        concatenate(vtkMatrix(localMatrix(volumeNode)), toWorld), volumeNode.GetImageData().GetDimensions()
    )


def fittedGrid(indexToWorld: Any, size: tuple[int, ...]) -> Grid:
    """A regular grid that covers the voxels of a nonlinear map, with about its directions and its mean spacing.

    Args:
        indexToWorld: vtkAbstractTransform from voxel index to world RAS.
        size: number of voxels.
    """
    n = np.asarray(size, float)
    middle = (n - 1) / 2
    ends = np.stack([middle + sign * n[a] / 2 * np.eye(3)[a] for a in range(3) for sign in (-1, 1)])
    transformed = transformPoints(indexToWorld, ends)
    axes = (transformed[1::2] - transformed[::2]).T / n
    spacing = np.linalg.norm(axes, axis=0)
    directions = [[0.0] * 3 for _axis in range(3)]
    vtk.vtkMath.Orthogonalize3x3((axes / spacing).tolist(), directions)
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(directions) * spacing
    straight, indices = Grid.fromMatrix(size, matrix), Grid.fromMatrix(size, np.eye(4))
    assert straight is not None and indices is not None
    bent = transformPoints(indexToWorld, indices.samplePoints(13))
    grid = straight.covering(bent)
    thin = np.asarray(size) == 1
    if not thin.any():
        return grid
    # A slice stays one voxel thick even if it is bent.
    center = straight.covering(bent.mean(axis=0, keepdims=True))
    axis = int(np.argmax(thin))
    index = grid.matrix[:3, axis]
    shift = (center.matrix[:3, 3] - grid.matrix[:3, 3]) @ index / (index @ index)
    matrix = grid.matrix
    matrix[:3, 3] += shift * index
    flat = Grid.fromMatrix([1 if a == axis else m for a, m in enumerate(grid.size)], matrix)
    assert flat is not None
    return flat


def parentMatrix(parent: Any) -> np.ndarray | None:
    """(4, 4) matrix from the space under a transform node (or ``None``) to the world; ``None`` if it is not linear."""
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        return None
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return numpyMatrix(matrix)


def transformToWorld(parent: Any) -> Any:
    """The vtkGeneralTransform from the space under a transform node (or ``None``) to the world."""
    toWorld = vtk.vtkGeneralTransform()
    if parent is not None:
        parent.GetTransformToWorld(toWorld)
    return toWorld


def transformFromWorld(parent: Any) -> Any:
    """The vtkGeneralTransform from the world to the space under a transform node (or ``None``)."""
    fromWorld = vtk.vtkGeneralTransform()
    if parent is not None:
        parent.GetTransformFromWorld(fromWorld)
    return fromWorld


def parentFromWorld(node: Any) -> Any:
    """The vtkGeneralTransform from the world to the coordinates of a node, without previews."""
    return transformFromWorld(parentWithoutPreview(node))


def reslice(image: Any, toIndex: Any, grid: Grid, nearest: bool, background: float = 0.0) -> Any:
    """Resample an image at the points of a grid.

    Args:
        image: vtkImageData; its own origin and spacing are ignored.
        toIndex: vtkAbstractTransform from the space of ``grid`` to the voxel index of ``image``.
        grid: points to sample.
        nearest: use the nearest voxel, otherwise linear interpolation.
        background: value outside the image.

    Returns:
        vtkImageData with the size of ``grid``, origin 0 and spacing 1.
    """
    plain = vtk.vtkImageData()
    plain.SetExtent(image.GetExtent())
    plain.GetPointData().SetScalars(image.GetPointData().GetScalars())
    filter_ = vtk.vtkImageReslice()
    filter_.SetInputData(plain)
    filter_.SetResliceTransform(concatenate(grid.vtkMatrix, toIndex))
    filter_.SetOutputOrigin(0, 0, 0)
    filter_.SetOutputSpacing(1, 1, 1)
    filter_.SetOutputExtent(*(v for n in grid.size for v in (0, n - 1)))
    filter_.TransformInputSamplingOff()
    filter_.SetOutputDimensionality(3)
    filter_.SetInterpolationMode(vtk.VTK_NEAREST_INTERPOLATION if nearest else vtk.VTK_LINEAR_INTERPOLATION)
    filter_.SetBackgroundLevel(background)
    filter_.Update()
    return filter_.GetOutput()


def _voxelsOf(volumeNode: Any) -> np.ndarray:
    image = volumeNode.GetImageData()
    if image.GetScalarType() == vtk.VTK_BIT:
        raise SceneError(
            _("The volume '{name}' has one bit per voxel; convert it with the module Cast Scalar Volume.").format(
                name=nameOf(volumeNode)
            )
        )
    return arrayOf(image)


def volumeFromImage(scene: Any, image: sitk.Image, name: str) -> Any:
    """Create a scalar volume node from a scalar 2D or 3D image (LPS, world space)."""
    return _volume(scene, image, name, "vtkMRMLScalarVolumeNode")


def labelMapFromImage(scene: Any, image: sitk.Image, name: str) -> Any:
    """Create a label map volume node from an integer image (LPS, world space)."""
    return _volume(scene, image, name, "vtkMRMLLabelMapVolumeNode")


def _volume(scene: Any, image: sitk.Image, name: str, className: str) -> Any:
    node = newNode(scene, className, name)
    setImage(node, image)
    node.CreateDefaultDisplayNodes()
    return node


def setImage(node: Any, image: sitk.Image) -> None:
    """Set voxels and geometry of a volume node to those of an image (LPS), in one modification."""
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    changing = node.StartModify()
    try:
        node.SetIJKToRASMatrix(Grid.fromImage(image).vtkMatrix)
        node.SetAndObserveImageData(imageData(sitk.GetArrayViewFromImage(image)))
    finally:
        node.EndModify(changing)


def newNode(scene: Any, className: str, name: str) -> Any:
    """Add a node of a class to the scene, with a unique name."""
    return scene.AddNewNodeByClass(className, scene.GenerateUniqueName(name))


def fitWarnings(volumeNode: Any, model: Mapping[str, Any]) -> list[str]:
    """Warn if a model does not fit a volume, in one sentence for each reason.

    Args:
        volumeNode: scalar volume.
        model: ``name``, ``ndim``, and if known ``anatomy``, ``modality`` and ``extent_mm``: the smallest and largest
            length of the longest side of suitable images.

    Raises:
        SceneError: the volume cannot be used at all.
    """
    dimension, extent = imageDimension(volumeNode)
    name, volume = str(model.get("name") or "this model"), nameOf(volumeNode)
    ndim = int(model.get("ndim") or 3)
    warnings = []
    if ndim == 3 and dimension == 2:
        warnings.append(
            _("'{volume}' is a single slice, but {name} is for volumes; choose a 2D model.").format(
                volume=volume, name=name
            )
        )
    if ndim == 2 and dimension == 3:
        warnings.append(
            _("{name} is for slices; all slices of '{volume}' will be deformed in the same way.").format(
                name=name, volume=volume
            )
        )
    limits = model.get("extent_mm")
    if limits is None:
        return warnings
    low, high = (float(v) for v in limits)
    # For a single slice its thickness does not count.
    sides = sorted(extent)[1:] if ndim == 2 and dimension == 2 else extent
    longest = max(sides)
    if not low <= longest <= high:
        purpose = " ".join(str(model[key]) for key in ("anatomy", "modality") if model.get(key))
        suitable = _("images {low} to {high} mm long").format(low=f"{low:.0f}", high=f"{high:.0f}")
        suitable += f" ({purpose})" if purpose else ""
        advice = _("crop it to the region first") if longest > high else _("choose another model")
        warnings.append(
            _("'{volume}' is {longest} mm long, but {name} is meant for {suitable}; {advice}.").format(
                volume=volume, longest=f"{longest:.0f}", name=name, suitable=suitable, advice=advice
            )
        )
    return warnings
