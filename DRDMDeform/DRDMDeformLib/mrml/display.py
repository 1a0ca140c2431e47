"""Showing a deformation: Slicer's own grid, arrows or contours, and the Jacobian determinant as a coloured volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from DRDMLib.spatial.jacobian import jacobian_determinant

from .errors import SceneError, requireInScene
from .grids import FLIP, Grid
from .hierarchy import placeUnder
from .i18n import tr as _
from .marks import VOLUME
from .transforms import ensureLinear, fieldFromTransform
from .volumes import requireVoxels, volumeFromImage, worldGrid

MODES = ("grid", "glyph", "contour")
_COLOURS = "DRDMJacobian"
_ENTRIES = 256


def showDeformation(transformNode: Any, mode: str | None) -> None:
    """Shows a deformation in slice and 3D views, drawn by the transform's own display node.

    Spacing, line width and resolution follow the size of the deformed volume (of the field, if the volume is not
    known), so that there are about twelve cells along its longest side.

    Args:
        transformNode: a grid transform.
        mode: ``"grid"``, ``"glyph"`` (arrows), ``"contour"`` (lines of equal displacement), or ``None``: hide.

    Raises:
        SceneError: deleted, not a deformation, or an unknown mode.
    """
    requireInScene(transformNode, "transform")
    if mode is None:
        display = transformNode.GetDisplayNode()
        if display is not None:
            display.SetVisibility(False)
        return
    if mode not in MODES:
        raise SceneError(
            _("A deformation is shown as {modes} or not at all, not as '{mode}'.").format(
                modes=", ".join(MODES), mode=mode
            )
        )
    ensureLinear(transformNode)
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
        region = transformNode.GetNodeReference(VOLUME)
        if region is not None:
            display.SetAndObserveRegionNode(region)
        display.SetVisibility2D(True)
        display.SetVisibility3D(True)
        display.SetVisibility(True)
    finally:
        display.EndModify(changing)


def _extent(transformNode: Any) -> tuple[float, float]:
    """Longest side of what is deformed and the largest displacement, millimetres."""
    field = fieldFromTransform(transformNode)
    vectors = sitk.GetArrayViewFromImage(field)
    largest = float(np.linalg.norm(vectors, axis=-1).max(initial=0.0))
    volume = transformNode.GetNodeReference(VOLUME)
    grid = Grid.ofImage(field)
    if volume is not None and volume.GetImageData() is not None:
        grid = worldGrid(volume)
    return float(max(n * s for n, s in zip(grid.size, grid.spacing, strict=True))), largest


def jacobianVolume(scene: Any, transformNode: Any, volumeNode: Any) -> Any:
    """The Jacobian determinant of a deformation over a volume, as a coloured scalar volume in world space.

    The field leads from the new image to the original, so the determinant is "volume in the original over volume in
    the new image": 1 kept, below 1 grown, above 1 shrunk; 0 or below: folded, drawn in a colour of its own.

    The determinant is as fine as the field, not as the volume: finer voxels would show nothing more.

    Args:
        scene: where the volume is added.
        transformNode: one of :func:`createTransform`.
        volumeNode: gives the region, and the name.

    Raises:
        SceneError: a node is missing or deleted, or the transform is not a deformation.
    """
    requireVoxels(volumeNode)
    field = fieldFromTransform(transformNode)
    array = sitk.GetArrayViewFromImage(field)
    direction = np.asarray(field.GetDirection()).reshape(3, 3)
    values = jacobian_determinant(array, field.GetSpacing(), direction).astype(np.float32)
    grid = Grid.ofImage(field)
    image = grid.place(sitk.GetImageFromArray(values))
    corners = worldGrid(volumeNode).lattice(2) * FLIP
    index = (corners - np.asarray(grid.origin)) @ np.linalg.inv(grid.direction * np.asarray(grid.spacing)).T
    first = np.clip(np.floor(index.min(axis=0)), 0, np.asarray(grid.size) - 1).astype(int)
    last = np.clip(np.ceil(index.max(axis=0)), first, np.asarray(grid.size) - 1).astype(int)
    image = sitk.RegionOfInterest(image, (last - first + 1).tolist(), first.tolist())
    node = volumeFromImage(scene, image, f"{transformNode.GetName()} Jacobian")
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(jacobianColours(scene).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 2.0)
    placeUnder(volumeNode, node)
    return node


def jacobianColours(scene: Any) -> Any:
    """The colour table of Jacobian determinants, made once in a scene: 0 to 2, white at 1.

    Blue below 1 (tissue has grown), red above (it has shrunk); the colours deepen fast next to 1, as most determinants
    are near it. The first entry, which everything at 0 or below falls into, is magenta.
    """
    node = scene.GetSingletonNode(_COLOURS, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetSingletonTag(_COLOURS)
    node.SetName("DRDM Jacobian")
    node.SetDescription("Jacobian determinant from 0 to 2, white at 1; magenta: folded")
    node.SetAttribute("Category", "DRDM")
    node.SetTypeToUser()
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(_ENTRIES)
    node.GetLookupTable().SetTableRange(0.0, 2.0)
    for entry, (red, green, blue) in enumerate(_diverging(_ENTRIES)):
        node.SetColor(entry, f"{2 * entry / (_ENTRIES - 1):.2f}", red, green, blue, 1.0)
    node.SetColor(0, "folded", 1.0, 0.0, 1.0, 1.0)
    return scene.AddNode(node)


def _diverging(count: int) -> list[tuple[float, float, float]]:
    """Blue, white in the middle, red; as many colours as asked for."""
    ends = np.array([[0.02, 0.19, 0.55], [0.55, 0.02, 0.10]])
    half = np.array([[0.26, 0.58, 0.85], [0.93, 0.42, 0.28]])
    colours = []
    for place in np.linspace(-1, 1, count):
        side, strength = int(place > 0), float(abs(place) ** 0.6)
        low, high = (np.ones(3), half[side]) if strength < 0.5 else (half[side], ends[side])
        share = 2 * strength - (0 if strength < 0.5 else 1)
        colours.append(tuple(((1 - share) * low + share * high).tolist()))
    return colours
