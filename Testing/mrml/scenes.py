"""Fields, nodes and parent transforms for the tests of the bridge, with SimpleITK as the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib.mrml import createTransform, volumeFromImage
from support import rotation, smooth_image

from DRDMLib.spatial.model_grid import bounding_box

GEOMETRIES = {
    "plain": dict(size=(44, 40, 36)),
    "oblique": dict(size=(44, 40, 36), direction=rotation(20, -15, 30)),
    "anisotropic": dict(size=(48, 40, 14), spacing=(0.9, 1.1, 3.5), direction=rotation(5, 0, 10)),
    "flipped": dict(size=(44, 40, 36), spacing=(1.0, 1.2, 0.8), direction=np.diag([-1.0, 1.0, -1.0])),
    "mirrored": dict(size=(44, 40, 36), direction=np.diag([1.0, -1.0, 1.0])),
}


def image_of(geometry: str, **options: Any) -> sitk.Image:
    return smooth_image(**(GEOMETRIES[geometry] | {"pixel": sitk.sitkFloat32} | options))


def smooth_field(image: sitk.Image, largest: float, seed: int = 1, nodes: int = 22, reach: float = 1.5) -> sitk.Image:
    """A smooth displacement field that is larger than an image and zero at its borders; LPS, millimeters."""
    d = image.GetDimension()
    generator = np.random.default_rng(seed)
    extent = np.asarray(image.GetSize()) * np.asarray(image.GetSpacing())
    center = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    axes, side = np.asarray(image.GetDirection()).reshape(d, d), float(extent.max()) * reach
    line = np.sin(np.linspace(0, np.pi, nodes)) ** 2
    weight = np.ones((nodes,) * d)
    for axis in range(d):
        weight = weight * line.reshape([-1 if a == axis else 1 for a in range(d)])
    parts = []
    for _ in range(d):
        noise = sitk.GetImageFromArray(generator.normal(size=(nodes,) * d))
        parts.append(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 2.5)) * weight)
    vectors = np.stack(parts, -1)
    vectors *= largest / np.linalg.norm(vectors, axis=-1).max()
    origin = np.asarray(center) - axes @ np.full(d, side / 2)
    field = field_from(vectors, [side / (nodes - 1)] * d, origin.tolist())
    field.SetDirection(axes.ravel().tolist())
    return field


def field_from(vectors: np.ndarray, spacing: list[float], origin: list[float]) -> sitk.Image:
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, np.float64), isVector=True)
    field.SetSpacing(spacing)
    field.SetOrigin(origin)
    return field


def constant_field(image: sitk.Image, vector: tuple[float, float, float]) -> sitk.Image:
    """A constant displacement field over an image, LPS."""
    low, high = bounding_box(image)
    side = float((high - low).max()) * 2
    origin = ((low + high) / 2 - side / 2).tolist()
    return field_from(np.broadcast_to(vector, (6, 6, 6, 3)), [side / 5] * 3, origin)


def displacement(field: sitk.Image) -> sitk.Transform:
    return sitk.DisplacementFieldTransform(sitk.Image(field))


@dataclass
class Parent:
    """A parent transform node, and its map from the world to the space under it for SimpleITK, LPS."""

    node: Any
    from_world: sitk.Transform


def linear_node(scene: Any, matrix: np.ndarray, name: str = "linear") -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    vtk_matrix = vtk.vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel().tolist())
    node.SetMatrixTransformToParent(vtk_matrix)
    return node


def linear_parent(scene: Any, columns: np.ndarray, shift: tuple[float, float, float]) -> Parent:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = columns, shift
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    inverse = np.linalg.inv(flip @ matrix @ flip)
    affine = sitk.AffineTransform(inverse[:3, :3].ravel().tolist(), inverse[:3, 3].tolist())
    return Parent(linear_node(scene, matrix), affine)


def parent_of(scene: Any, kind: str, image: sitk.Image) -> Parent:
    axes = np.asarray(image.GetDirection()).reshape(3, 3)
    ras_axes = np.diag([-1.0, -1.0, 1.0]) @ axes
    if kind == "none":
        return Parent(None, sitk.Transform(3, sitk.sitkIdentity))
    if kind == "rigid":
        return linear_parent(scene, rotation(-25, 10, 40), (12.0, -30.0, 7.0))
    if kind == "scaled":
        # Scaling along the axes of the volume keeps right angles.
        return linear_parent(scene, rotation(0, 20, 0) @ ras_axes @ np.diag([1.3, 0.8, 1.1]) @ ras_axes.T, (3, 4, 5))
    if kind == "sheared":
        shear = np.array([[1.0, 0.25, 0.0], [0.0, 0.9, 0.1], [0.05, 0.0, 1.2]])
        return linear_parent(scene, rotation(10, 0, 15) @ shear, (-8.0, 6.0, 2.0))
    assert kind == "grid"
    field = smooth_field(image, 4.0, seed=77, nodes=14)
    return Parent(createTransform(scene, field, "parent grid"), displacement(field))


def placed_volume(scene: Any, image: sitk.Image, parent: Any = None, name: str = "scan") -> Any:
    """Add a volume with the image, under ``parent``."""
    node = volumeFromImage(scene, image, name)
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def ball(image: sitk.Image, center: tuple[float, float, float] = (0.5, 0.5, 0.5), radius: float = 0.3) -> np.ndarray:
    """Mask (k, j, i) of an ellipsoid; center and radius as fractions of the image, SimpleITK's axis order."""
    lines = np.meshgrid(*[np.linspace(0, 1, n) for n in image.GetSize()[::-1]], indexing="ij")
    return sum((line - c) ** 2 for line, c in zip(lines, center[::-1], strict=True)) < radius**2


def label_image(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    label = sitk.GetImageFromArray(array.astype(np.uint8))
    label.CopyInformation(image)
    return label


def two_structures(image: sitk.Image) -> sitk.Image:
    """A label image of two structures that touch each other, but not the border."""
    array = np.where(ball(image, (0.42, 0.5, 0.5), 0.26), 1, 0)
    array[ball(image, (0.68, 0.52, 0.48), 0.17)] = 2
    return label_image(image, array)


def add_segmentation(scene: Any, label: sitk.Image, parent: Any = None, name: str = "structures") -> Any:
    """Add a segmentation whose segments share one label map but have different colors and terminology."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    array = sitk.GetArrayFromImage(label)
    shared = oriented(label, array)
    for value in np.unique(array[array > 0]).tolist():
        segment = slicer.vtkSegment()
        segment.SetName(f"structure {value}")
        segment.SetColor(0.2 * value, 0.9, 0.3)
        segment.SetTag("TerminologyEntry", f"category~{value}")
        segment.AddRepresentation("Binary labelmap", shared)
        segment.SetLabelValue(int(value))
        node.GetSegmentation().AddSegment(segment, f"id_{value}")
    converter = slicer.vtkSegmentationConverter
    node.GetSegmentation().SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(), converter.SerializeImageGeometry(shared)
    )
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def oriented(image: sitk.Image, array: np.ndarray) -> Any:
    """Convert voxels on the grid of a SimpleITK image to vtkOrientedImageData (RAS), independently of the bridge."""
    out = slicer.vtkOrientedImageData()
    out.SetDimensions(*image.GetSize())
    scalars = vtk.util.numpy_support.numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
    out.GetPointData().SetScalars(scalars)
    matrix = vtk.vtkMatrix4x4()
    origin = image.TransformIndexToPhysicalPoint((0, 0, 0))
    for column in range(3):
        index = [0, 0, 0]
        index[column] = 1
        step = np.subtract(image.TransformIndexToPhysicalPoint(index), origin)
        for row, sign in enumerate((-1, -1, 1)):
            matrix.SetElement(row, column, sign * step[row])
    for row, sign in enumerate((-1, -1, 1)):
        matrix.SetElement(row, 3, sign * origin[row])
    out.SetImageToWorldMatrix(matrix)
    return out


def add_points(scene: Any, points: np.ndarray, parent: Any = None, name: str = "landmarks") -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for point in points:
        node.AddControlPoint(*point.tolist())
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def points_of(node: Any, world: bool = True) -> np.ndarray:
    out = []
    for n in range(node.GetNumberOfControlPoints()):
        point = [0.0, 0.0, 0.0]
        (node.GetNthControlPointPositionWorld if world else node.GetNthControlPointPosition)(n, point)
        out.append(point)
    return np.asarray(out)


def inner_points(image: sitk.Image, count: int = 30, share: float = 0.7, seed: int = 3) -> np.ndarray:
    """Random points inside an image, RAS."""
    generator = np.random.default_rng(seed)
    places = 0.5 + share * (generator.random((count, 3)) - 0.5)
    index = places * (np.asarray(image.GetSize()) - 1)
    lps = [image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()]
    return np.asarray(lps) * [-1, -1, 1]


def add_model(scene: Any, center: np.ndarray, radius: float, parent: Any = None, name: str = "surface") -> Any:
    source = vtk.vtkSphereSource()
    source.SetCenter(*center.tolist())
    source.SetRadius(radius)
    source.SetThetaResolution(24)
    source.SetPhiResolution(24)
    source.Update()
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    node.SetAndObservePolyData(source.GetOutput())
    node.CreateDefaultDisplayNodes()
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def mesh_points(node: Any) -> np.ndarray:
    return vtk.util.numpy_support.vtk_to_numpy(node.GetPolyData().GetPoints().GetData()).copy()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def interior(image: sitk.Image, grid: sitk.Image, transform: sitk.Transform, voxels: int = 2) -> np.ndarray:
    """Mask on ``grid`` of the voxels that the transform reads from inside the image."""
    inside = np.zeros(image.GetSize()[::-1], np.float32)
    inside[tuple(slice(voxels, n - voxels) for n in inside.shape)] = 1
    mask = sitk.GetImageFromArray(inside)
    mask.CopyInformation(image)
    return sitk.GetArrayFromImage(sitk.Resample(mask, grid, transform, sitk.sitkLinear, 0.0)) > 0.999


def everything(scene: Any) -> dict[str, Any]:
    """Names, parents and contents of all nodes, to check that nothing has changed."""
    state: dict[str, Any] = {}
    for n in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(n)
        facts: list[Any] = [node.GetName(), node.GetClassName()]
        if node.IsA("vtkMRMLTransformableNode"):
            facts.append(node.GetTransformNodeID())
        if node.IsA("vtkMRMLVolumeNode") and node.GetImageData() is not None:
            facts += [volume_bytes(node), matrix_of(node)]
        if node.IsA("vtkMRMLModelNode") and node.GetPolyData() is not None:
            facts.append(mesh_points(node).tobytes())
        if node.IsA("vtkMRMLMarkupsNode"):
            facts.append(points_of(node, world=False).tobytes())
        if node.IsA("vtkMRMLSegmentationNode"):
            facts.append(segmentation_state(node))
        state[node.GetID()] = facts
    return state


def volume_bytes(node: Any) -> bytes:
    scalars = node.GetImageData().GetPointData().GetScalars()
    return vtk.util.numpy_support.vtk_to_numpy(scalars).tobytes()


def matrix_of(node: Any) -> list[float]:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return [matrix.GetElement(i, j) for i in range(4) for j in range(4)]


def segmentation_state(node: Any) -> list[Any]:
    segmentation = node.GetSegmentation()
    names: list[str] = []
    segmentation.GetContainedRepresentationNames(names)
    facts: list[Any] = [segmentation.GetSourceRepresentationName(), sorted(names)]
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        facts += [segmentation.GetNthSegmentID(n), segment.GetName(), segment.GetColor(), segment.GetLabelValue()]
        labelmap = segment.GetRepresentation("Binary labelmap")
        if labelmap is not None:
            scalars = labelmap.GetPointData().GetScalars()
            facts += [labelmap.GetExtent(), vtk.util.numpy_support.vtk_to_numpy(scalars).tobytes()]
        surface = segment.GetRepresentation("Closed surface")
        if surface is not None:
            facts.append(vtk.util.numpy_support.vtk_to_numpy(surface.GetPoints().GetData()).tobytes())
    return facts


def first_layer(node: Any) -> sitk.Image:
    """The first label map of a segmentation on its own grid, LPS, independently of the bridge."""
    labelmap = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    array = vtk.util.numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())
    image = sitk.GetImageFromArray(array.reshape(labelmap.GetDimensions()[::-1]))
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    extent = labelmap.GetExtent()
    x, y, z, _ = matrix.MultiplyPoint((*extent[::2], 1))
    axes = np.array(
        [[sign * matrix.GetElement(row, column) for column in range(3)] for row, sign in enumerate((-1, -1, 1))]
    )
    spacing = np.linalg.norm(axes, axis=0)
    image.SetOrigin((-x, -y, z))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    return image
