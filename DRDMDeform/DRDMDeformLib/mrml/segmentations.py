"""Segmentations as label images on the grid of a volume, and segmentations warped in their own voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from DRDMLib.spatial.resampling import warp_label

from .errors import SceneError, nameOf, requireInScene
from .grids import Grid, arrayOf, imageData, mapped, numpyMatrix, vtkMatrix
from .i18n import tr as _
from .volumes import parentFromWorld, requireVoxels, reslice, worldGrid


class SegmentLabel(NamedTuple):
    """A segmentation on the grid of a volume.

    Attributes:
        image: integer label image, world space, LPS; 0 is background.
        segments: {value: (segment id, segment name)}.
        overlapping: names of the segments that lost voxels to a later one.
    """

    image: sitk.Image
    segments: dict[int, tuple[str, str]]
    overlapping: list[str]


def binaryName() -> str:
    """The representation that holds voxels."""
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def surfaceName() -> str:
    """The representation that holds closed surfaces."""
    return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


def registerConverters() -> None:
    """Makes segmentations copyable and convertible; in Slicer the Segmentations module has done so at its start.

    A segmentation made before this knows no conversions and cannot be copied whole, so it is done on import.
    """
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    if factory.ConstructRepresentationObjectByRepresentation(binaryName()) is None:
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(slicer.vtkMRMLScene())


if not hasattr(slicer, "app"):
    registerConverters()


def labelFromSegmentation(
    segmentationNode: Any, volumeNode: Any, segmentIds: Sequence[str] | None = None
) -> SegmentLabel:
    """Segments as one label image on the grid of :func:`imageFromVolume`; where they overlap, the later one stays.

    Segments that have closed surfaces only are converted aside; the segmentation itself is not changed.

    Args:
        segmentationNode: under any transform; a preview of this module does not count.
        volumeNode: gives the grid.
        segmentIds: which segments, in this order; by default all of them. Values count from 1.

    Raises:
        SceneError: a node is missing or deleted, an unknown segment, or no segment reaches into the volume.
    """
    requireInScene(segmentationNode, "segmentation")
    requireVoxels(volumeNode)
    if not segmentationNode.IsA("vtkMRMLSegmentationNode"):
        raise SceneError(
            _("'{name}' is not a segmentation; choose a segmentation.").format(name=nameOf(segmentationNode))
        )
    segmentation = segmentationNode.GetSegmentation()
    ids = list(segmentIds) if segmentIds is not None else segmentIdsOf(segmentation)
    if not ids:
        raise SceneError(
            _("The segmentation '{name}' has no segments; add one or leave it out.").format(
                name=nameOf(segmentationNode)
            )
        )
    grid = worldGrid(volumeNode)
    fromWorld = parentFromWorld(segmentationNode)
    label = np.zeros(grid.size[::-1], np.uint8 if len(ids) < 256 else np.uint16)
    segments: dict[int, tuple[str, str]] = {}
    covered: set[int] = set()
    for value, segmentId in enumerate(ids, start=1):
        segment = segmentation.GetSegment(segmentId)
        if segment is None:
            raise SceneError(
                _("The segmentation '{name}' has no segment '{segmentId}'.").format(
                    name=nameOf(segmentationNode), segmentId=segmentId
                )
            )
        mask = _segmentMask(segmentation, segment, fromWorld, grid)
        covered.update(np.unique(label[mask]).tolist())
        label[mask] = value
        segments[value] = (segmentId, segment.GetName())
    if not label.any():
        raise SceneError(
            _(
                "The segmentation '{name}' has no voxel inside the volume '{volume}'; "
                "choose the segmentation that belongs to the volume."
            ).format(name=nameOf(segmentationNode), volume=nameOf(volumeNode))
        )
    names = [segments[value][1] for value in sorted(covered - {0})]
    return SegmentLabel(grid.place(sitk.GetImageFromArray(label)), segments, names)


def segmentIdsOf(segmentation: Any) -> list[str]:
    """Ids of all segments, in order."""
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def _segmentMask(segmentation: Any, segment: Any, fromWorld: Any, grid: Grid) -> np.ndarray:
    """Where ``grid`` (world) lies in a segment, (k, j, i)."""
    labelmap = segment.GetRepresentation(binaryName())
    if labelmap is not None:
        value = segment.GetLabelValue()
    else:
        labelmap, fromWorld = _converted(segment, fromWorld, grid, segmentation.GetSourceRepresentationName())
        value = 1
    if labelmap is None or labelmap.IsEmpty():
        return np.zeros(grid.size[::-1], bool)
    resliced = reslice(labelmap, _matrixOf(labelmap), fromWorld, grid, True)
    return arrayOf(resliced) == value


def _converted(segment: Any, fromWorld: Any, grid: Grid, source: str) -> tuple[Any, Any]:
    """A segment without voxels as a label map, and the transform from the world to it.

    A closed surface is taken to the world first and converted on the grid itself, so nothing is resampled after.
    """
    data = segment.GetRepresentation(surfaceName())
    aside = slicer.vtkSegmentation()
    copy = slicer.vtkSegment()
    rest = vtk.vtkGeneralTransform()
    if data is not None and data.GetNumberOfPoints() == 0:
        return None, rest
    if data is not None:
        source = surfaceName()
        toWorld = vtk.vtkTransformPolyDataFilter()
        toWorld.SetInputData(data)
        toWorld.SetTransform(fromWorld.GetInverse())
        toWorld.Update()
        copy.AddRepresentation(source, toWorld.GetOutput())
    else:
        copy.DeepCopy(segment)
        rest = fromWorld
    aside.SetSourceRepresentationName(source)
    converter = slicer.vtkSegmentationConverter
    geometry = converter.SerializeImageGeometry(
        grid.vtkMatrix, orientedImage(np.zeros((1, 1, 1), np.uint8), grid.matrix, (0, 0, 0), grid.size)
    )
    aside.AddSegment(copy, "segment")
    aside.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    if not aside.CreateRepresentation(binaryName()):
        raise SceneError(
            _("The segment '{name}' cannot be converted to voxels; check it in Segmentations.").format(
                name=segment.GetName()
            )
        )
    return aside.GetSegment("segment").GetRepresentation(binaryName()), rest


def orientedImage(
    array: np.ndarray, matrix: np.ndarray, first: Sequence[int], size: Sequence[int] | None = None
) -> Any:
    """Voxels (k, j, i) as vtkOrientedImageData: ``first`` is the index of the first one, ``matrix`` index to RAS."""
    plain = imageData(array)
    image = slicer.vtkOrientedImageData()
    size = array.shape[::-1] if size is None else size
    image.SetExtent(*(int(v) for f, n in zip(first, size, strict=True) for v in (f, f + n - 1)))
    if tuple(size) == array.shape[::-1]:
        image.GetPointData().SetScalars(plain.GetPointData().GetScalars())
    image.SetImageToWorldMatrix(vtkMatrix(matrix))
    return image


def _matrixOf(labelmap: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    return numpyMatrix(matrix)


def warpSegmentation(segmentation: Any, field: sitk.Image, name: str, keepExtent: bool = True) -> None:
    """Deforms a vtkSegmentation of voxels in place, in its own voxel lattice; ids, names and values stay.

    Segments that share a label map still share it afterwards. Other representations that were there are made anew.

    Args:
        segmentation: its source representation is the binary label map.
        field: displacement field in the segmentation's own space, LPS millimetres, from the new to the original.
        name: of the segmentation, for messages.
        keepExtent: the segments end where the reference image does, as a warped label map of it would; what comes in
            from beyond repeats the border. Otherwise they may reach as far as they have moved.

    Raises:
        SceneError: the axes of a label map are not at right angles.
    """
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    furthest = float(np.linalg.norm(sitk.GetArrayViewFromImage(field), axis=-1).max(initial=0.0))

    def warped(labelmap: Any) -> Any:
        reference = _referenceExtent(segmentation, labelmap) if keepExtent else None
        return _warpedLayer(labelmap, reference, transform, furthest, name)

    _replaceLayers(segmentation, warped)


def resliceSegmentation(segmentation: Any, fromWorld: Any, name: str) -> None:
    """Takes a vtkSegmentation of voxels to the world through any transform, in place (nearest voxel).

    Slicer's own hardening cuts oblique label maps off here: it takes two corners of a box in the world for the corners
    of the same box along the axes of the image (vtkOrientedImageDataResample::TransformOrientedImage, Slicer 5.11).

    Args:
        segmentation: its source representation is the binary label map.
        fromWorld: vtkAbstractTransform from the world to the segmentation's own space.
        name: of the segmentation, for messages.

    Raises:
        SceneError: the axes of a label map are not at right angles.
    """
    toWorld = fromWorld.GetInverse()

    def resliced(labelmap: Any) -> Any:
        box, matrix = _gridOf(labelmap, name), _matrixOf(labelmap)
        reached = mapped(toWorld, box.lattice(13))
        index = (reached - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
        first, last = np.floor(index.min(axis=0)).astype(int) - 1, np.ceil(index.max(axis=0)).astype(int) + 1
        grid = _latticeGrid(matrix, first, last)
        assert grid is not None, "checked by _gridOf"
        return orientedImage(arrayOf(reslice(labelmap, matrix, fromWorld, grid, True)), matrix, first.tolist())

    _replaceLayers(segmentation, resliced)
    layers = _layers(segmentation)
    if layers:
        # The reference image has not come along; the voxels themselves are the best that is known of it now.
        converter = slicer.vtkSegmentationConverter
        segmentation.SetConversionParameter(
            converter.GetReferenceImageGeometryParameterName(), converter.SerializeImageGeometry(layers[0])
        )


def _replaceLayers(segmentation: Any, change: Callable[[Any], Any]) -> None:
    others = [n for n in _representations(segmentation) if n != binaryName()]
    for labelmap in _layers(segmentation):
        # In place, so that whatever shares or observes the label map keeps to it.
        labelmap.DeepCopy(change(labelmap))
    for other in others:
        segmentation.RemoveRepresentation(other)
        segmentation.CreateRepresentation(other)


def _representations(segmentation: Any) -> list[str]:
    names: list[str] = []
    segmentation.GetContainedRepresentationNames(names)
    return names


def _layers(segmentation: Any) -> list[Any]:
    """The label maps, each once however many segments share it."""
    segments = [segmentation.GetSegment(segmentId) for segmentId in segmentIdsOf(segmentation)]
    labelmaps = [segment.GetRepresentation(binaryName()) for segment in segments]
    return list({id(found): found for found in labelmaps if found is not None and not found.IsEmpty()}.values())


def _referenceExtent(segmentation: Any, labelmap: Any) -> list[int] | None:
    """The extent of the reference image in the voxel indices of ``labelmap``, if they share one lattice."""
    converter = slicer.vtkSegmentationConverter
    text = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    reference = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, reference, False):
        return None
    shift = np.linalg.inv(_matrixOf(labelmap)) @ _matrixOf(reference)
    start = np.rint(shift[:3, 3])
    if np.abs(shift[:3, :3] - np.eye(3)).max() > 1e-3 or np.abs(shift[:3, 3] - start).max() > 1e-2:
        return None
    return [int(v + start[n // 2]) for n, v in enumerate(reference.GetExtent())]


def _latticeGrid(matrix: np.ndarray, first: np.ndarray, last: np.ndarray) -> Grid | None:
    """The grid of voxels ``first`` to ``last`` of a lattice, or ``None`` if its axes are not at right angles."""
    placed = matrix.copy()
    placed[:3, 3] = matrix[:3, :3] @ first + matrix[:3, 3]
    return Grid.ofMatrix(last - first + 1, placed)


def _gridOf(labelmap: Any, name: str) -> Grid:
    extent = np.asarray(labelmap.GetExtent())
    grid = _latticeGrid(_matrixOf(labelmap), extent[::2], extent[1::2])
    if grid is None:
        raise SceneError(
            _("The axes of the segmentation '{name}' are not at right angles; resample it first.").format(name=name)
        )
    return grid


def _warpedLayer(
    labelmap: Any, reference: list[int] | None, transform: sitk.Transform, furthest: float, name: str
) -> Any:
    """A label map deformed, over the reference's extent; without one, as far as it can have moved."""
    own = list(labelmap.GetExtent())
    spacing = _gridOf(labelmap, name).spacing
    if reference is None:
        # One layer of background around it: the warp repeats the outermost voxels.
        extent = [v + (1 if n % 2 else -1) * (1 + int(np.ceil(furthest / spacing[n // 2]))) for n, v in enumerate(own)]
    else:
        extent = [(max if n % 2 else min)(a, b) for n, (a, b) in enumerate(zip(own, reference, strict=True))]
    first, last = np.asarray(extent[::2]), np.asarray(extent[1::2])
    array = np.zeros((last - first + 1)[::-1], arrayOf(labelmap).dtype)
    at = tuple(slice(own[2 * a] - first[a], own[2 * a + 1] - first[a] + 1) for a in (2, 1, 0))
    array[at] = arrayOf(labelmap)
    whole = _latticeGrid(_matrixOf(labelmap), first, last)
    assert whole is not None
    image = whole.place(sitk.GetImageFromArray(array))
    warped = sitk.GetArrayFromImage(warp_label(image, image, transform))
    full = np.nonzero(warped)
    box = tuple(slice(int(v.min()), int(v.max()) + 1) if v.size else slice(0, 1) for v in full)
    start = [int(first[a] + (box[2 - a].start or 0)) for a in range(3)]
    return orientedImage(warped[box], _matrixOf(labelmap), start)
