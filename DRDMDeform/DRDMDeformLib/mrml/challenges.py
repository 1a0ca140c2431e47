"""Test cases for registration programs in the scene: the pair, the result as a file, and the error map."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import slicer
import vtk

from ..deferred import sitk
from .display import colorTable
from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import FLIP, Grid, numpyMatrix
from .hierarchy import createFolder, placeBeside, placeIn
from .transforms import MAX_POINTS, sampledOn
from .volumes import setImage, volumeFromImage

# Attribute of a fixed image: the folder with the truth of its case.
TRUTH_ATTRIBUTE = "DRDM.truth"
# Role of the node references from a fixed image to its moving image and to its error map.
MOVING_REFERENCE = "DRDM.moving"
ERRORS_REFERENCE = "DRDM.errors"
# Largest error of a saved transform between its grid points (99.9th percentile), millimeters.
TOLERANCE_MM = 0.005
# The value of voxels that do not count in an error map; they are not drawn.
NOT_COUNTED = -1.0
_COLORS = "DRDMRegistrationErrors"
_ENTRIES = 256
# No error to a large one: dark blue, cyan, yellow, red, as on the page of a score.
_STOPS = np.asarray([[20, 30, 110], [40, 170, 220], [250, 220, 60], [220, 40, 40]]) / 255


class RegistrationCase(NamedTuple):
    """A test case in the scene.

    Attributes:
        fixed, moving: the volumes to register.
        truth: folder with the truth.
    """

    fixed: Any
    moving: Any
    truth: Path


def addCase(scene: Any, volumeNode: Any, images: tuple[sitk.Image, sitk.Image], truth: Path) -> RegistrationCase:
    """Add the pair of a test case to the scene, in a folder beside the volume that it was made of.

    Args:
        scene: where the nodes are added.
        volumeNode: the volume that the case was made of.
        images: the fixed and the moving image, LPS.
        truth: folder with the truth, which stays out of the scene.
    """
    name = volumeNode.GetName()
    fixed, moving = (
        volumeFromImage(scene, image, f"{name} {kind}") for image, kind in zip(images, ("fixed", "moving"), strict=True)
    )
    fixed.SetAttribute(TRUTH_ATTRIBUTE, str(truth))
    fixed.SetNodeReferenceID(MOVING_REFERENCE, moving.GetID())
    folder = createFolder(volumeNode, _("{name} registration test").format(name=name))
    for node in (fixed, moving):
        placeIn(scene, folder, node)
    return RegistrationCase(fixed, moving, truth)


def caseOf(fixedNode: Any) -> RegistrationCase:
    """The test case of a fixed image.

    Raises:
        SceneError: the volume is not the fixed image of a test case.
    """
    requireInScene(fixedNode, "fixed image")
    truth = fixedNode.GetAttribute(TRUTH_ATTRIBUTE)
    if not truth:
        raise SceneError(
            _("'{name}' is not the fixed image of a test case; make a test case first.").format(name=nameOf(fixedNode))
        )
    return RegistrationCase(fixedNode, fixedNode.GetNodeReference(MOVING_REFERENCE), Path(truth))


def resultOf(transformNode: Any, images: tuple[sitk.Image, sitk.Image]) -> sitk.Transform | sitk.Image:
    """Convert a transform node to the map from points of the fixed to points of the moving image, LPS millimeters.

    That is the transform from the world to what is under the node, its transform from parent if it has no parent
    itself. Registration modules give the transform that shows the moving image on the fixed one when the moving image
    is put under it: at a place of the world, which is one of the fixed image, it shows what it has at the mapped place.

    Args:
        transformNode: any transform node: linear, B-spline, grid, or several of them.
        images: the fixed and the moving image, LPS.

    Returns:
        An affine transform if the node is linear, otherwise a displacement field (64-bit) around both images, refined
        until it agrees with the transform.

    Raises:
        SceneError: the node is deleted, or is no transform.
    """
    requireInScene(transformNode, "transform")
    if not transformNode.IsA("vtkMRMLTransformNode"):
        raise SceneError(
            _("'{name}' is not a transform; choose the result of the registration.").format(name=nameOf(transformNode))
        )
    if transformNode.IsTransformToWorldLinear():
        matrix = vtk.vtkMatrix4x4()
        transformNode.GetMatrixTransformToWorld(matrix)
        return _affine(np.linalg.inv(numpyMatrix(matrix)))
    transform = vtk.vtkGeneralTransform()
    transformNode.GetTransformFromWorld(transform)
    fixed, moving = (Grid.fromImage(image) for image in images)
    # Judged only inside the fixed image: splines end with a jump.
    grid, vectors = sampledOn(transform, _gridAround(fixed, moving), within=fixed, tolerance=TOLERANCE_MM)
    return grid.place(sitk.GetImageFromArray(vectors * FLIP, isVector=True))


def _affine(matrix: np.ndarray) -> sitk.Transform:
    """Convert a (4, 4) matrix of RAS points to a transform of LPS points."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((FLIP[:, None] * matrix[:3, :3] * FLIP).ravel().tolist())
    transform.SetTranslation((FLIP * matrix[:3, 3]).tolist())
    return transform


def _gridAround(fixed: Grid, moving: Grid) -> Grid:
    """Return a grid around both images that has the voxels of the fixed one, or every n-th of them, among its points.

    The search for other conventions also maps points of the moving image.
    """
    corners = np.concatenate([fixed.samplePoints(2), moving.samplePoints(2)])
    inverse = np.linalg.inv(fixed.matrix)
    index = corners @ inverse[:3, :3].T + inverse[:3, 3]
    low, high = np.floor(index.min(axis=0)), np.ceil(index.max(axis=0))
    step = max(1, int(np.ceil((np.prod(high - low + 1) / MAX_POINTS) ** (1 / 3))))
    low = np.floor(low / step) * step
    # Two layers at least: ITK reads a single slice of vectors as a 2D image.
    size = np.maximum(np.ceil((high - low) / step) + 1, 2).astype(int)
    matrix = fixed.matrix
    matrix[:3, 3] += matrix[:3, :3] @ low
    matrix[:3, :3] *= step
    grid = Grid.fromMatrix(size, matrix)
    assert grid is not None
    return grid


def addErrorMap(scene: Any, fixedNode: Any, images: tuple[sitk.Image, sitk.Image], largest: float, name: str) -> Any:
    """Add the errors of a result as a volume, colored from 0 to ``largest``; it replaces the one of an earlier result.

    Args:
        scene: where the node is added.
        fixedNode: the fixed image of the case.
        images: errors at the voxels of the fixed image or at every n-th of them, millimeters; and the image that is 1
            at the voxels that count. All others are not drawn.
        largest: error with the last color, millimeters.
        name: of the node.
    """
    errors, counted = images
    known = sitk.Resample(counted, errors, sitk.Transform(), sitk.sitkNearestNeighbor)
    counts = sitk.GetArrayFromImage(known) == 1
    values = np.where(counts, sitk.GetArrayViewFromImage(errors), np.float32(NOT_COUNTED)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(errors)
    former = fixedNode.GetNodeReference(ERRORS_REFERENCE)
    if former is None:
        node = volumeFromImage(scene, image, name)
        placeBeside(fixedNode, node)
        fixedNode.SetNodeReferenceID(ERRORS_REFERENCE, node.GetID())
    else:
        node = former
        setImage(node, image)
        node.SetName(name)
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(errorColors(scene).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, largest)
    display.SetAutoThreshold(False)
    display.SetApplyThreshold(True)
    display.SetThreshold(0.0, float(max(largest, values.max())))
    return node


def errorColors(scene: Any) -> Any:
    """Return the color table of registration errors, from dark blue over cyan and yellow to red; made once a scene."""
    at = np.linspace(0, 1, len(_STOPS))
    entries = [
        (f"{position:.2f}", [float(np.interp(position, at, channel)) for channel in _STOPS.T])
        for position in np.linspace(0, 1, _ENTRIES)
    ]
    description = "Error of a registration: dark blue none, red large"
    return colorTable(scene, _COLORS, "DRDM registration errors", description, entries)


def showLegend(volumeNode: Any, title: str) -> Any:
    """Show the colors of a volume as a color bar in the views, and return its display node."""
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volumeNode)
    if legend is None:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(volumeNode)
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.1f")
    legend.SetVisibility(True)
    return legend


def showPlace(scene: Any, ras: tuple[float, float, float]) -> None:
    """Move all slice views to a place, RAS millimeters, and center them on it."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *ras, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
