"""Show a deformation: Slicer's own grid, arrows or contours, and the Jacobian determinant as a colored volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer

from DRDMLib.spatial.jacobian import jacobian_determinant

from ..deferred import sitk
from .errors import SceneError, requireInScene
from .errors import tr as _
from .grids import FLIP, Grid
from .hierarchy import VOLUME_REFERENCE, placeBeside
from .transforms import ensureLinearInterpolation, fieldFromTransform
from .volumes import requireVoxels, volumeFromImage, worldGrid

MODES = ("grid", "glyph", "contour")
_COLORS = "DRDMJacobian"
_ENTRIES = 256


def showDeformation(transformNode: Any, mode: str | None) -> None:
    """Show a deformation in the slice and 3D views with the transform's display node.

    Spacing, line width and resolution depend on the size of the deformed volume (or of the field, if the volume is not
    known), so that the grid has about twelve cells along the longest side.

    Args:
        transformNode: a grid transform.
        mode: ``"grid"``, ``"glyph"`` (arrows) or ``"contour"`` (lines of equal displacement); ``None`` hides it.

    Raises:
        SceneError: the transform is deleted or not a deformation, or the mode is unknown.
    """
    requireInScene(transformNode, "transform")
    if mode is None:
        display = transformNode.GetDisplayNode()
        if display is not None:
            display.SetVisibility(False)
        return
    if mode not in MODES:
        raise SceneError(
            _("The display mode '{mode}' is unknown; choose one of {modes}.").format(mode=mode, modes=", ".join(MODES))
        )
    ensureLinearInterpolation(transformNode)
    transformNode.CreateDefaultDisplayNodes()
    display = transformNode.GetDisplayNode()
    side, largest = _extent(transformNode)
    changing = display.StartModify()
    try:
        display.SetVisualizationMode(
            {"grid": display.VIS_MODE_GRID, "glyph": display.VIS_MODE_GLYPH, "contour": display.VIS_MODE_CONTOUR}[mode]
        )
        display.SetGridSpacingMm(side / 12)
        display.SetGridResolutionMm(side / 64)
        display.SetGridLineDiameterMm(side / 400)
        display.SetGridScalePercent(100)
        display.SetGlyphSpacingMm(side / 20)
        display.SetGlyphDiameterMm(side / 120)
        display.SetGlyphScalePercent(100)
        display.SetGlyphDisplayRangeMinMm(0.01 * largest)
        display.SetGlyphDisplayRangeMaxMm(max(1.01 * largest, 1e-3))
        display.SetContourResolutionMm(side / 64)
        display.SetContourLevelsMmFromString(" ".join(f"{largest * n / 6:.4g}" for n in range(1, 6)))
        region = transformNode.GetNodeReference(VOLUME_REFERENCE)
        if region is not None:
            display.SetAndObserveRegionNode(region)
        display.SetVisibility2D(True)
        display.SetVisibility3D(True)
        display.SetVisibility(True)
    finally:
        display.EndModify(changing)


def _extent(transformNode: Any) -> tuple[float, float]:
    """Length of the longest side of the deformed volume, and largest displacement; millimeters."""
    field = fieldFromTransform(transformNode)
    vectors = sitk.GetArrayViewFromImage(field)
    largest = float(np.linalg.norm(vectors, axis=-1).max(initial=0.0))
    volume = transformNode.GetNodeReference(VOLUME_REFERENCE)
    grid = Grid.fromImage(field)
    if volume is not None and volume.GetImageData() is not None:
        grid = worldGrid(volume)
    return float(max(n * s for n, s in zip(grid.size, grid.spacing, strict=True))), largest


def jacobianVolume(scene: Any, transformNode: Any, volumeNode: Any) -> Any:
    """Create a colored volume with the Jacobian determinant of a deformation, in world space.

    The field points from the new image to the original. So the determinant is the volume of tissue in the original
    divided by its volume in the new image: 1 unchanged, below 1 grown, above 1 shrunk. At 0 or below the deformation
    is folded, which has its own color. The voxels are those of the field; smaller ones would not show more.

    Args:
        scene: where the volume is added.
        transformNode: made by :func:`createTransform`.
        volumeNode: gives the region and the name.

    Raises:
        SceneError: a node is missing or deleted, or the transform is not a deformation.
    """
    requireVoxels(volumeNode)
    field = fieldFromTransform(transformNode)
    array = sitk.GetArrayViewFromImage(field)
    direction = np.asarray(field.GetDirection()).reshape(3, 3)
    values = jacobian_determinant(array, field.GetSpacing(), direction).astype(np.float32)
    grid = Grid.fromImage(field)
    image = grid.place(sitk.GetImageFromArray(values))
    corners = worldGrid(volumeNode).samplePoints(2) * FLIP
    index = (corners - np.asarray(grid.origin)) @ np.linalg.inv(grid.direction * np.asarray(grid.spacing)).T
    first = np.clip(np.floor(index.min(axis=0)), 0, np.asarray(grid.size) - 1).astype(int)
    last = np.clip(np.ceil(index.max(axis=0)), first, np.asarray(grid.size) - 1).astype(int)
    image = sitk.RegionOfInterest(image, (last - first + 1).tolist(), first.tolist())
    node = volumeFromImage(scene, image, f"{transformNode.GetName()} Jacobian")
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(jacobianColors(scene).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 2.0)
    placeBeside(volumeNode, node)
    return node


def jacobianColors(scene: Any) -> Any:
    """Return the color table of Jacobian determinants from 0 to 2; it is created once per scene.

    White at 1, blue below (tissue has grown), red above (it has shrunk). The colors change fast near 1, as most
    determinants do. The first entry, used for 0 and below, is magenta.
    """
    entries = [(f"{2 * n / (_ENTRIES - 1):.2f}", color) for n, color in enumerate(_diverging(_ENTRIES))]
    entries[0] = ("folded", (1.0, 0.0, 1.0))
    node = colorTable(scene, _COLORS, "DRDM Jacobian", "Jacobian determinant, white at 1; magenta: folded", entries)
    node.GetLookupTable().SetTableRange(0.0, 2.0)
    return node


def colorTable(
    scene: Any, tag: str, name: str, description: str, entries: Sequence[tuple[str, Sequence[float]]]
) -> Any:
    """Return the color table with a singleton tag; it is created once per scene.

    Args:
        entries: name of each color, and its red, green and blue from 0 to 1.
    """
    node = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetSingletonTag(tag)
    node.SetName(name)
    node.SetDescription(description)
    node.SetAttribute("Category", "DRDM")
    node.SetTypeToUser()
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(len(entries))
    for number, (text, color) in enumerate(entries):
        node.SetColor(number, text, *color, 1.0)
    return scene.AddNode(node)


def _diverging(count: int) -> list[tuple[float, float, float]]:
    """``count`` colors from blue over white to red."""
    ends = np.array([[0.02, 0.19, 0.55], [0.55, 0.02, 0.10]])
    half = np.array([[0.26, 0.58, 0.85], [0.93, 0.42, 0.28]])
    colors = []
    for position in np.linspace(-1, 1, count):
        side, strength = int(position > 0), float(abs(position) ** 0.6)
        low, high = (np.ones(3), half[side]) if strength < 0.5 else (half[side], ends[side])
        share = 2 * strength - (0 if strength < 0.5 else 1)
        colors.append(tuple(((1 - share) * low + share * high).tolist()))
    return colors
