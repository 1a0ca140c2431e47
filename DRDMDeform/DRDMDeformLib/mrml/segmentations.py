"""Convert segmentations to label images on the grid of a volume, and warp them in their own voxel grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import slicer
import vtk

from ..deferred import sitk
from .errors import SceneError, nameOf, requireInScene
from .errors import tr as _
from .grids import Grid, arrayOf, concatenate, copiedVoxels, imageData, numpyMatrix, transformPoints, vtkMatrix
from .volumes import parentFromWorld, requireVoxels, reslice, worldGrid


class SegmentLabel(NamedTuple):
    """A label image of a segmentation.

    Attributes:
        image: integer label image, world space, LPS; 0 is background.
        segments: {value: (segment ID, segment name)}.
        overlapping: names of the segments that a later segment overlaps.
    """

    image: sitk.Image
    segments: dict[int, tuple[str, str]]
    overlapping: list[str]


def binaryLabelmapName() -> str:
    """Name of the representation as binary label map."""
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def closedSurfaceName() -> str:
    """Name of the representation as closed surface."""
    return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


def referenceVolumeRole() -> str:
    """Role of the node reference from a segmentation to the volume of its reference geometry."""
    return slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()


def registerConverters() -> None:
    """Register the converters of segmentations, as the Segmentations module does when Slicer starts.

    A segmentation created before this cannot be converted or fully copied, so it is done on import.
    """
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    if factory.ConstructRepresentationObjectByRepresentation(binaryLabelmapName()) is None:
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(slicer.vtkMRMLScene())


if not hasattr(slicer, "app"):
    registerConverters()


def labelFromSegmentation(
    segmentationNode: Any, volumeNode: Any, segmentIds: Sequence[str] | None = None
) -> SegmentLabel:
    """Convert segments to one label image on the grid of :func:`imageFromVolume`.

    Where segments overlap, the later one is kept. Closed surfaces are converted in a copy; the segmentation itself is
    not changed.

    Args:
        segmentationNode: under any parent transform; previews of this module are ignored.
        volumeNode: gives the grid.
        segmentIds: segments in order of their values from 1; by default all.

    Raises:
        SceneError: a node is missing or deleted, a segment is unknown, or no segment has a voxel in the volume.
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
            _("The segmentation '{name}' has no segments; add one, or do not choose it.").format(
                name=nameOf(segmentationNode)
            )
        )
    grid = worldGrid(volumeNode)
    fromWorld = parentFromWorld(segmentationNode)
    label = np.zeros(grid.size[::-1], np.uint8 if len(ids) < 256 else np.uint16)
    segments: dict[int, tuple[str, str]] = {}
    covered: set[int] = set()
    layers: dict[Any, np.ndarray] = {}
    for value, segmentId in enumerate(ids, start=1):
        segment = segmentation.GetSegment(segmentId)
        if segment is None:
            raise SceneError(
                _("The segmentation '{name}' has no segment '{segmentId}'; choose another one.").format(
                    name=nameOf(segmentationNode), segmentId=segmentId
                )
            )
        mask = _segmentMask(segmentation, segment, fromWorld, grid, layers)
        covered.update(np.flatnonzero(np.bincount(label[mask])).tolist())
        np.copyto(label, value, where=mask, casting="unsafe")
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
    """IDs of all segments, in order."""
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def segmentationState(segmentationNode: Any) -> tuple[Any, ...]:
    """What changes when a segment is added, removed, renamed or drawn on."""
    segmentation = segmentationNode.GetSegmentation()
    found: list[Any] = []
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        data = segment.GetRepresentation(segmentation.GetSourceRepresentationName())
        found.append((segmentation.GetNthSegmentID(n), segment.GetName(), None if data is None else data.GetMTime()))
    return tuple(found)


def _segmentMask(
    segmentation: Any, segment: Any, fromWorld: Any, grid: Grid, layers: dict[Any, np.ndarray]
) -> np.ndarray:
    """Mask of a segment on ``grid`` (world), (k, j, i).

    Args:
        layers: the label map that was resliced last, since segments that do not overlap share one; updated.
    """
    labelmap = segment.GetRepresentation(binaryLabelmapName())
    if labelmap is not None:
        value = segment.GetLabelValue()
    else:
        labelmap, fromWorld = _convertToLabelmap(segment, fromWorld, grid, segmentation.GetSourceRepresentationName())
        value = 1
    if labelmap is None or labelmap.IsEmpty():
        return np.zeros(grid.size[::-1], bool)
    if labelmap not in layers:
        # Only the last one, for the memory. A copy: the array is only valid while the image exists.
        layers.clear()
        voxels = copiedVoxels(labelmap, _matrixOf(labelmap), fromWorld, grid)
        if voxels is None:
            voxels = arrayOf(reslice(labelmap, _toIndex(labelmap, fromWorld), grid, True)).copy()
        layers[labelmap] = voxels
    return np.asarray(layers[labelmap] == value)


def _toIndex(labelmap: Any, fromWorld: Any) -> Any:
    """The transform from the world to the voxel index of a label map, given the one to its own RAS coordinates."""
    return concatenate(fromWorld, vtkMatrix(np.linalg.inv(_matrixOf(labelmap))))


def _convertToLabelmap(segment: Any, fromWorld: Any, grid: Grid, source: str) -> tuple[Any, Any]:
    """Convert a segment without a label map to one; also return the transform from the world to it.

    A closed surface is transformed to the world first and converted on the grid itself, to avoid resampling.
    """
    data = segment.GetRepresentation(closedSurfaceName())
    temporary = slicer.vtkSegmentation()
    copy = slicer.vtkSegment()
    remaining = vtk.vtkGeneralTransform()
    if data is not None and data.GetNumberOfPoints() == 0:
        return None, remaining
    if data is not None:
        source = closedSurfaceName()
        toWorld = vtk.vtkTransformPolyDataFilter()
        toWorld.SetInputData(data)
        toWorld.SetTransform(fromWorld.GetInverse())
        toWorld.Update()
        copy.AddRepresentation(source, toWorld.GetOutput())
    else:
        copy.DeepCopy(segment)
        remaining = fromWorld
    temporary.SetSourceRepresentationName(source)
    converter = slicer.vtkSegmentationConverter
    geometry = converter.SerializeImageGeometry(
        grid.vtkMatrix, orientedImage(np.zeros((1, 1, 1), np.uint8), grid.matrix, (0, 0, 0), grid.size)
    )
    temporary.AddSegment(copy, "segment")
    temporary.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    if not temporary.CreateRepresentation(binaryLabelmapName()):
        raise SceneError(
            _("The segment '{name}' cannot be converted to a label map; check it in the module Segmentations.").format(
                name=segment.GetName()
            )
        )
    return temporary.GetSegment("segment").GetRepresentation(binaryLabelmapName()), remaining


def orientedImage(
    array: np.ndarray, matrix: np.ndarray, first: Sequence[int], size: Sequence[int] | None = None
) -> Any:
    """Convert an array (k, j, i) to vtkOrientedImageData.

    Args:
        array: voxels; ignored if ``size`` is given and differs from its shape.
        matrix: (4, 4), voxel index to RAS.
        first: index of the first voxel, in order (i, j, k).
        size: size of the extent; by default that of the array.
    """
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
    """Deform the binary label maps of a vtkSegmentation in place, in their own voxel grid.

    IDs, names and values of the segments are kept. Segments that share a label map still share it afterward. Closed
    surfaces are removed, see :func:`moveSurfaces`; other representations are created again.

    Args:
        segmentation: its source representation is the binary label map.
        field: displacement field in the segmentation's own space, LPS millimeters, from the new to the original.
        name: of the segmentation, for messages.
        keepExtent: keep the extent of the reference image; voxels read from outside it repeat its border. Otherwise the
            extent covers the deformed segments.

    Raises:
        SceneError: the axes of a label map are not at right angles.
    """
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    largest = float(np.linalg.norm(sitk.GetArrayViewFromImage(field), axis=-1).max(initial=0.0))

    def warped(labelmap: Any) -> Any:
        reference = _referenceExtent(segmentation, labelmap) if keepExtent else None
        return _warpedLayer(labelmap, reference, transform, largest, name)

    _replaceLayers(segmentation, warped)


def resliceSegmentation(segmentation: Any, fromWorld: Any, name: str) -> None:
    """Transform the binary label maps of a vtkSegmentation to the world, in place (nearest voxel).

    Slicer's own hardening crops oblique label maps here: it takes two corners of a box in the world for corners of the
    box along the axes of the image (vtkOrientedImageDataResample::TransformOrientedImage, Slicer 5.11).

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
        transformed = transformPoints(toWorld, box.samplePoints(13))
        index = (transformed - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
        first, last = np.floor(index.min(axis=0)).astype(int) - 1, np.ceil(index.max(axis=0)).astype(int) + 1
        grid = _gridOfRange(matrix, first, last)
        assert grid is not None, "checked by _gridOf"
        return orientedImage(
            arrayOf(reslice(labelmap, _toIndex(labelmap, fromWorld), grid, True)), matrix, first.tolist()
        )

    _replaceLayers(segmentation, resliced)
    layers = _layers(segmentation)
    if layers:
        # The reference image has not been transformed, so the label map becomes the reference geometry.
        converter = slicer.vtkSegmentationConverter
        segmentation.SetConversionParameter(
            converter.GetReferenceImageGeometryParameterName(), converter.SerializeImageGeometry(layers[0])
        )


def _replaceLayers(segmentation: Any, change: Callable[[Any], Any]) -> None:
    """Replace every label map by ``change(label map)``; remove closed surfaces, create other representations again."""
    others = [n for n in _representations(segmentation) if n not in (binaryLabelmapName(), closedSurfaceName())]
    segmentation.RemoveRepresentation(closedSurfaceName())
    for labelmap in _layers(segmentation):
        # In place, so that the segments that share a label map still do, and observers stay connected.
        labelmap.DeepCopy(change(labelmap))
    for other in others:
        segmentation.RemoveRepresentation(other)
        segmentation.CreateRepresentation(other)


def moveSurfaces(source: Any, target: Any, transform: Any) -> None:
    """Give a segmentation the closed surfaces of another one, with each point moved by a transform.

    A surface that is created from deformed voxels shows their stair steps; the surface itself stays smooth. Does
    nothing if ``source`` has no closed surfaces.

    Args:
        source: vtkSegmentation.
        target: vtkSegmentation with segments of the same IDs; its closed surfaces are replaced.
        transform: vtkAbstractTransform from the space of ``source`` to that of ``target``.
    """
    if closedSurfaceName() not in _representations(source):
        return
    target.RemoveRepresentation(closedSurfaceName())
    for segmentId in segmentIdsOf(target):
        surface = source.GetSegment(segmentId).GetRepresentation(closedSurfaceName())
        if surface is None:
            continue
        moved = vtk.vtkTransformPolyDataFilter()
        moved.SetInputData(surface)
        moved.SetTransform(transform)
        moved.Update()
        target.GetSegment(segmentId).AddRepresentation(closedSurfaceName(), moved.GetOutput())


def _representations(segmentation: Any) -> list[str]:
    names: list[str] = []
    segmentation.GetContainedRepresentationNames(names)
    return names


def _layers(segmentation: Any) -> list[Any]:
    """The label maps, each once even if several segments share it."""
    segments = [segmentation.GetSegment(segmentId) for segmentId in segmentIdsOf(segmentation)]
    labelmaps = [segment.GetRepresentation(binaryLabelmapName()) for segment in segments]
    return list({id(found): found for found in labelmaps if found is not None and not found.IsEmpty()}.values())


def _referenceExtent(segmentation: Any, labelmap: Any) -> list[int] | None:
    """The extent of the reference image in voxel indices of ``labelmap``; ``None`` if their grids do not agree."""
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


def _gridOfRange(matrix: np.ndarray, first: np.ndarray, last: np.ndarray) -> Grid | None:
    """The grid of the voxels with index ``first`` to ``last``; ``None`` if its axes are not at right angles."""
    placed = matrix.copy()
    placed[:3, 3] = matrix[:3, :3] @ first + matrix[:3, 3]
    return Grid.fromMatrix(last - first + 1, placed)


def _gridOf(labelmap: Any, name: str) -> Grid:
    extent = np.asarray(labelmap.GetExtent())
    grid = _gridOfRange(_matrixOf(labelmap), extent[::2], extent[1::2])
    if grid is None:
        raise SceneError(
            _("The axes of the segmentation '{name}' are not at right angles; resample it first.").format(name=name)
        )
    return grid


def _warpedLayer(
    labelmap: Any, reference: list[int] | None, transform: sitk.Transform, largest: float, name: str
) -> Any:
    """Deform a label map over the extent of the reference; without one, over all that it may have moved to."""
    from DRDMLib.spatial.resampling import warp_label

    own = list(labelmap.GetExtent())
    spacing = _gridOf(labelmap, name).spacing
    if reference is None:
        # With one layer of background around it, since the warp repeats the outermost voxels.
        extent = [v + (1 if n % 2 else -1) * (1 + int(np.ceil(largest / spacing[n // 2]))) for n, v in enumerate(own)]
    else:
        extent = [(max if n % 2 else min)(a, b) for n, (a, b) in enumerate(zip(own, reference, strict=True))]
    first, last = np.asarray(extent[::2]), np.asarray(extent[1::2])
    array = np.zeros((last - first + 1)[::-1], arrayOf(labelmap).dtype)
    at = tuple(slice(own[2 * a] - first[a], own[2 * a + 1] - first[a] + 1) for a in (2, 1, 0))
    array[at] = arrayOf(labelmap)
    whole = _gridOfRange(_matrixOf(labelmap), first, last)
    assert whole is not None
    image = whole.place(sitk.GetImageFromArray(array))
    warped = sitk.GetArrayFromImage(warp_label(image, image, transform))
    full = np.nonzero(warped)
    box = tuple(slice(int(v.min()), int(v.max()) + 1) if v.size else slice(0, 1) for v in full)
    start = [int(first[a] + (box[2 - a].start or 0)) for a in range(3)]
    return orientedImage(warped[box], _matrixOf(labelmap), start)
