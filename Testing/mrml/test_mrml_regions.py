import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import SceneError, boxFromROI, imageFromVolume
from scenes import GEOMETRIES, image_of, linear_node, placed_volume
from support import rotation

from DRDMLib.spatial.region import Region, box_of


def roi_node(scene, center, size, directions=None):
    """An ROI; center in LPS, size along its own axes, columns of ``directions`` in LPS."""
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "roi")
    matrix = vtk.vtkMatrix4x4()
    for row in range(3):
        sign = 1 if row == 2 else -1
        for column in range(3):
            matrix.SetElement(row, column, sign * (np.eye(3) if directions is None else directions)[row, column])
        matrix.SetElement(row, 3, sign * center[row])
    if directions is None:
        node.SetCenterWorld(*[matrix.GetElement(row, 3) for row in range(3)])
        node.SetSize(*size)
    else:
        node.SetSize(*size)
        node.SetAndObserveObjectToNodeMatrix(matrix)
    return node


def ends(numbers, image):
    """The box as first and last voxel, exclusive."""
    return [end.tolist() for end in box_of(Region.of(numbers), image)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_box_along_the_axes_of_the_volume_is_kept(scene, geometry):
    image = image_of(geometry)
    volume = placed_volume(scene, image, None)
    start, stop = np.asarray([3, 2, 4]), np.asarray([9, 7, 10])
    center = image.TransformContinuousIndexToPhysicalPoint(((start + stop - 1) / 2).tolist())
    directions = np.reshape(image.GetDirection(), (3, 3))
    if np.linalg.det(directions) < 0:
        directions = directions * [1, 1, -1]
    node = roi_node(scene, center, (stop - start) * image.GetSpacing(), directions)
    assert ends(boxFromROI(node, volume), imageFromVolume(volume)) == [start.tolist(), stop.tolist()]


def test_a_turned_roi_stands_for_its_bounding_box(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image, None)
    center = np.asarray(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    turn = rotation(0, 0, 30)
    numbers = boxFromROI(roi_node(scene, center, (8, 6, 4), turn), volume)
    half = np.abs(turn) @ np.asarray([4, 3, 2])
    low, high = np.sort(np.reshape(numbers, (2, 3)), axis=0)
    assert np.allclose(low, center - half, atol=1e-3)
    assert np.allclose(high, center + half, atol=1e-3)


def test_transforms_of_the_roi_and_of_the_volume_count(scene):
    image = image_of("plain")
    volume = placed_volume(scene, image, None)
    center = np.asarray(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    node = roi_node(scene, center, (6, 6, 6))
    before = np.reshape(boxFromROI(node, volume), (2, 3))
    shift = np.eye(4)
    shift[:3, 3] = (2.0, -3.0, 1.0)
    transform = linear_node(scene, shift)
    node.SetAndObserveTransformNodeID(transform.GetID())
    moved = np.reshape(boxFromROI(node, volume), (2, 3))
    assert np.allclose(moved - before, [-2.0, 3.0, 1.0], atol=1e-6)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    both = boxFromROI(node, volume)
    assert ends(both, imageFromVolume(volume)) == ends(before.ravel(), image)


def test_nodes_that_are_no_regions(scene):
    volume = placed_volume(scene, image_of("plain"), None)
    with pytest.raises(SceneError, match="not an ROI"):
        boxFromROI(volume, volume)
    with pytest.raises(SceneError, match="no size"):
        boxFromROI(scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "empty"), volume)
    with pytest.raises(SceneError):
        boxFromROI(None, volume)
    assert isinstance(slicer.vtkMRMLMarkupsROINode(), slicer.vtkMRMLNode)
    assert isinstance(imageFromVolume(volume), sitk.Image)
