"""Shapes given as formulas, on any grid: their label map, and the true label map after a deformation.

The unit of length is one voxel of the grid, on thick slices one slice: a ball is then longer across the slices, as
organs are that show in several of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from benchmarks.label_methods import mapped_layer, points_within
from DRDMLib.invertibility.inverse import inverse_points
from DRDMLib.spatial.coordinates import to_index, to_points

# A tube one voxel thick has pieces on a grid unless the voxels that its middle line goes through belong to it.
_LINE_POINTS = 2000
_TRIES = 600
_REACH = 18.0
# Least distance of two shapes, in voxels.
_APART = 2


@dataclass(frozen=True)
class Shape:
    """A shape.

    Attributes:
        kind: name of the row in the tables.
        center: no point of the shape is farther away than ``_REACH`` along an axis, (3,).
        formula: whether points (K, 3) lie in it, (K,).
        line: the middle line of a tube one voxel thick, (N, 3), otherwise empty.
    """

    kind: str
    center: np.ndarray
    formula: Callable[[np.ndarray], np.ndarray]
    line: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (K, 3) lie in the shape, (K,)."""
        result = np.zeros(len(points), bool)
        near = points_within(points, self.center - _REACH, self.center + _REACH)
        result[near] = self.formula(points[near])
        return result


@dataclass(frozen=True)
class Scene:
    """Shapes that do not touch each other; the first has the label 1."""

    shapes: list[Shape]
    label: sitk.Image


def ball(center: np.ndarray, generator: np.random.Generator) -> Shape:
    """Make a ball with a radius of 3 to 8."""
    radius = generator.uniform(3, 8)
    return Shape("balls", center, lambda points: np.linalg.norm(points - center, axis=1) < radius)


def torus(center: np.ndarray, generator: np.random.Generator) -> Shape:
    """Make a ring with a radius of 5 to 8, 2 to 5 thick."""
    frame, radius, half = _frame(generator), generator.uniform(5, 8), generator.uniform(1, 2.5)

    def inside(points: np.ndarray) -> np.ndarray:
        own = (points - center) @ frame
        return np.hypot(np.hypot(own[:, 0], own[:, 1]) - radius, own[:, 2]) < half

    return Shape("tori", center, inside)


def sheet(center: np.ndarray, generator: np.random.Generator) -> Shape:
    """Make a round, wavy sheet, 1 to 3.5 thick."""
    frame, half, radius = _frame(generator), generator.uniform(0.5, 1.75), generator.uniform(6, 10)
    periods, phases, height = generator.uniform(8, 16, 2), generator.uniform(0, 6, 2), generator.uniform(0.5, 2)

    def inside(points: np.ndarray) -> np.ndarray:
        own = (points - center) @ frame
        waves = np.sin(2 * np.pi * own[:, :2] / periods + phases).sum(axis=1) * height / 2
        return (np.abs(own[:, 2] - waves) < half) & (np.hypot(own[:, 0], own[:, 1]) < radius)

    return Shape("sheets", center, inside)


def tube(center: np.ndarray, generator: np.random.Generator, thickness: int) -> Shape:
    """Make a bent tube, 14 to 28 long."""
    frame, length, t = _frame(generator), generator.uniform(14, 28), np.linspace(-0.5, 0.5, _LINE_POINTS)
    bends = [generator.uniform(1, 3) * np.sin(generator.uniform(3, 7) * t + generator.uniform(0, 6)) for _ in range(2)]
    line = center + np.stack([*bends, length * t], axis=1) @ frame.T
    tree = cKDTree(line)

    def inside(points: np.ndarray) -> np.ndarray:
        return np.isfinite(tree.query(points, distance_upper_bound=thickness / 2)[0])

    return Shape(f"tubes, {thickness} thick", center, inside, line if thickness == 1 else np.zeros((0, 3)))


KINDS: tuple[Callable[[np.ndarray, np.random.Generator], Shape], ...] = (
    ball,
    torus,
    sheet,
    lambda center, generator: tube(center, generator, 1),
    lambda center, generator: tube(center, generator, 2),
    lambda center, generator: tube(center, generator, 3),
)


def _frame(generator: np.random.Generator) -> np.ndarray:
    """Draw a rotation or reflection, (3, 3)."""
    frame: np.ndarray = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    return frame


def draw_scene(grid: sitk.Image, count: int, seed: int) -> Scene:
    """Place up to ``count`` shapes on a grid; there are fewer where there is no more room."""
    generator, shapes = np.random.default_rng(seed), []
    array = np.zeros(grid.GetSize()[::-1], np.uint8)
    for _ in range(_TRIES):
        if len(shapes) == count:
            break
        center = generator.uniform(0, grid.GetSize())
        shape = KINDS[len(shapes) % len(KINDS)](center, generator)
        voxels = _voxels(shape)
        if len(voxels) == 0 or (voxels < 1).any() or (voxels > np.asarray(array.shape) - 2).any():
            continue
        low, high = np.maximum(voxels.min(axis=0) - _APART, 0), voxels.max(axis=0) + _APART + 1
        part = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        mask = np.zeros(part.shape, bool)
        mask[tuple((voxels - low).T)] = True
        if not part[ndimage.binary_dilation(mask, iterations=_APART)].any():
            shapes.append(shape)
            part[mask] = len(shapes)
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(grid)
    return Scene(shapes, label)


def _voxels(shape: Shape) -> np.ndarray:
    """Return the voxels of a shape on an endless grid: indices (K, 3), array order."""
    sides = [np.arange(np.floor(c - _REACH), np.ceil(c + _REACH) + 1) for c in shape.center]
    points = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
    voxels = np.concatenate([points[shape.inside(points)], np.rint(shape.line)])
    return np.unique(voxels[:, ::-1].astype(int), axis=0)


def _mark_line(array: np.ndarray, line: np.ndarray, value: int | bool) -> None:
    index = np.rint(line[:, ::-1]).astype(int)
    index = index[((index >= 0) & (index < array.shape)).all(axis=1)]
    array[tuple(index.T)] = value


def true_label(scene: Scene, reference: sitk.Image, field_image: sitk.Image) -> np.ndarray:
    """Compute the label map that a displacement field makes of the shapes, array order.

    A voxel has the label of the shape in which the point lies that the field maps its center to.
    """
    transform = sitk.DisplacementFieldTransform(sitk.Image(field_image))
    result = np.zeros(reference.GetSize()[::-1], np.uint8)
    for z, layer in enumerate(result):
        points = mapped_layer(reference, z, transform, scene.label)
        for number, shape in enumerate(scene.shapes, start=1):
            layer.reshape(-1)[shape.inside(points)] = number
    for number, shape in enumerate(scene.shapes, start=1):
        if len(shape.line):
            there = inverse_points(field_image, to_points(shape.line, scene.label))
            _mark_line(result, to_index(there, reference), number)
    return result
