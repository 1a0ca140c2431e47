"""Metrics of displacement fields: size, roughness and folding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..spatial.coordinates import direction_matrix
from ..spatial.field_grid import FieldGrid
from ..spatial.jacobian import determinant, jacobian_determinant
from ..spatial.model_grid import image_extent
from ..spatial.resampling import field_on_grid, slabs
from .certificate import blocks, certify_saved


@dataclass(frozen=True)
class FieldMetrics:
    """Metrics of one field on the grid it is saved on.

    Attributes:
        mean_mm, max_mm: mean and largest length of the displacement, millimeters.
        mean_percent, max_percent: the same as a percentage of the longest physical side of the image.
        folded_fraction: fraction of voxels with a Jacobian determinant of 0 or below (central differences).
        min_jacobian: smallest Jacobian determinant (central differences).
        certified_invertible: whether the field is proven to be invertible; ``None`` if this was not tested.
        nondiffeomorphic_fraction: non-diffeomorphic volume (in 2D area) as a fraction of that of the grid, see
            :func:`digital_diffeomorphism`.
        nondiffeomorphic_cells: fraction of the grid's cells that are not diffeomorphic by the same criterion.
    """

    mean_mm: float
    max_mm: float
    mean_percent: float
    max_percent: float
    folded_fraction: float
    min_jacobian: float
    certified_invertible: bool | None = None
    nondiffeomorphic_fraction: float = 0.0
    nondiffeomorphic_cells: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Convert the metrics to a dictionary for a report."""
        return asdict(self)


class Strict(NamedTuple):
    """Result of the digital-diffeomorphism criterion, added up over cells.

    Attributes:
        cells: number of cells.
        bad: number of cells that do not meet the criterion.
        volume: non-diffeomorphic volume (in 2D area), in multiples of an undeformed cell.
    """

    cells: int
    bad: int
    volume: float


def digital_diffeomorphism(field: FieldGrid) -> Strict:
    """Apply the digital-diffeomorphism criterion to each cell of a field.

    The criterion is from Liu et al., "On finite difference Jacobian computation in deformable image registration" (IJCV
    132, 2024). The determinants of all 2^d combinations of forward and backward differences are those at the corners of
    the cells between the nodes. In 2D each is twice the area of a triangle of the deformed cell; in 3D it is six times
    the volume of a tetrahedron. In 3D the two tetrahedra that are left in the middle of each cell count too. A cell is
    bad if any of these determinants is not positive. The non-diffeomorphic volume is that of the negative ones, halved
    because the triangles or tetrahedra cover each cell twice.
    """
    cells, bad, volume = 0, 0, 0.0
    for where in blocks(field.vectors.shape[:-1]):
        steps = np.reshape(field.spacing, (-1, *[1] * len(where)))
        dets = torch.stack(_simplex_determinants(torch.from_numpy((field.block(where) / steps).astype(np.float32))))
        cells += dets[0].numel()
        if bool((dets <= 0).any()):
            bad += int((dets <= 0).any(dim=0).sum())
            volume -= float(dets.clamp(max=0).sum()) / 2 / math.factorial(len(where))
    return Strict(cells, bad, volume)


def _simplex_determinants(values: Tensor) -> list[Tensor]:
    """Compute the determinants at the corners of the cells, and in 3D of the two tetrahedra in the middle.

    Args:
        values: (d, *n), displacements in voxels.

    Returns:
        One tensor (*cells) for each corner and tetrahedron.
    """
    d = values.shape[0]
    ranges = (slice(None, -1), slice(1, None))

    def edge(axis: int, corner: tuple[int, ...]) -> list[Tensor]:
        at = (slice(None), *[slice(None) if a == axis else ranges[corner[a]] for a in range(d)])
        along = values[at].diff(dim=1 + axis)
        return [along[k] + 1 if k == axis else along[k] for k in range(d)]

    edges = {(a, c): edge(a, c) for a in range(d) for c in itertools.product((0, 1), repeat=d) if c[a] == 0}

    def at(axis: int, *others: int) -> list[Tensor]:
        return edges[(axis, (*others[:axis], 0, *others[axis:]))]

    corners = [determinant([at(a, *c[:a], *c[a + 1 :]) for a in range(d)]) for c in itertools.product((0, 1), repeat=d)]
    if d == 2:
        return corners

    def plus(a: list[Tensor], b: list[Tensor], sign: int = 1) -> list[Tensor]:
        return [x + sign * y for x, y in zip(a, b, strict=True)]

    # The tetrahedron of corner 000 with 110, 101 and 011; and that of 111 with 001, 010 and 100, edges reversed.
    x, y = at(0, 0, 0), at(1, 0, 0)
    one = determinant([plus(x, at(1, 1, 0)), plus(x, at(2, 1, 0)), plus(y, at(2, 0, 1))])
    x, y = at(0, 1, 1), at(1, 1, 1)
    two = determinant([plus(x, at(1, 0, 1)), plus(x, at(2, 0, 1)), plus(y, at(2, 1, 0))])
    return [*corners, -one, -two]


def measure(reference: sitk.Image, layers: Callable[[int, int], np.ndarray]) -> FieldMetrics:
    """Measure a field that is given slab by slab.

    Args:
        reference: gives the grid.
        layers: function that returns the layers ``start`` to ``stop`` along the slowest axis:
            (stop - start, ..., d), millimeters, LPS.

    Returns:
        All metrics except ``certified_invertible``, which is ``None``.
    """
    count = reference.GetSize()[-1]
    direction = direction_matrix(reference)
    total, largest, folded, lowest = 0.0, 0.0, 0, math.inf
    strict: list[Strict] = []
    for start, stop in slabs(reference.GetSize(), 2**21):
        below, above = max(0, start - 1), min(count, stop + 1)
        block = layers(below, above)
        determinants = jacobian_determinant(block, reference.GetSpacing(), direction)
        own = slice(start - below, start - below + stop - start)
        length = np.sqrt(np.einsum("...i,...i->...", block[own], block[own], dtype=np.float64))
        total += float(length.sum())
        largest = max(largest, float(length.max()))
        folded += int(np.count_nonzero(determinants[own] <= 0))
        lowest = min(lowest, float(determinants[own].min()))
        strict.append(_strict(block[own.start : own.stop + 1], reference, direction))
    voxels = reference.GetNumberOfPixels()
    side = float(image_extent(reference).max())
    return FieldMetrics(
        mean_mm=total / voxels,
        max_mm=largest,
        mean_percent=100 * total / voxels / side,
        max_percent=100 * largest / side,
        folded_fraction=folded / voxels,
        min_jacobian=lowest,
        nondiffeomorphic_fraction=sum(s.volume for s in strict) / max(1, sum(s.cells for s in strict)),
        nondiffeomorphic_cells=sum(s.bad for s in strict) / max(1, sum(s.cells for s in strict)),
    )


def _strict(layers: np.ndarray, reference: sitk.Image, direction: np.ndarray) -> Strict:
    if min(layers.shape[:-1]) < 2:
        # A single slice, or the last layer of a volume, has no cells of its own.
        return Strict(0, 0, 0.0)
    return digital_diffeomorphism(FieldGrid(layers, reference.GetSpacing()[::-1], direction, np.zeros(len(direction))))


def measure_ddf(ddf: sitk.Image) -> FieldMetrics:
    """Measure a displacement field (vector image, millimeters, LPS), and test whether it is invertible."""
    view = sitk.GetArrayViewFromImage(ddf)
    metrics = measure(ddf, lambda start, stop: np.asarray(view[start:stop], np.float32))
    return replace(metrics, certified_invertible=certify_saved(ddf).certified)


def measure_on_grid(field: sitk.Image, reference: sitk.Image) -> FieldMetrics:
    """Measure a coarse displacement field as it is on the grid of ``reference``, slab by slab to save memory.

    Args:
        field: vector image, millimeters, LPS.
    """
    return measure(reference, lambda start, stop: field_on_grid(field, reference, start, stop))


def folded_fraction(ddf: Tensor) -> Tensor:
    """Compute the fraction of voxels that fold: (N, d, *S), fraction of the side -> (N,)."""
    determinants = tensor_jacobian(ddf)
    return (determinants <= 0).flatten(1).float().mean(dim=1)


def tensor_jacobian(ddf: Tensor) -> Tensor:
    """Compute the Jacobian determinant by central differences: (N, d, *S), fraction of the side -> (N, *S)."""
    d = ddf.shape[1]
    sides = ddf.shape[2:]
    rows = []
    for k in range(d):
        voxels = ddf[:, k] * sides[k]
        gradients = torch.gradient(voxels, dim=list(range(1, d + 1)))
        rows.append(torch.stack([g + (1.0 if k == j else 0.0) for j, g in enumerate(gradients)], dim=-1))
    result: Tensor = torch.linalg.det(torch.stack(rows, dim=-2))
    return result


def roughness(ddf: Tensor) -> Tensor:
    """Compute the root mean square of the second differences along the axes, as a measure of roughness.

    (N, d, *S), fraction of the side -> (N,), voxels.
    """
    total = torch.zeros(ddf.shape[0], device=ddf.device)
    for axis in range(2, ddf.ndim):
        sides = torch.tensor(ddf.shape[2:], device=ddf.device).view(1, -1, *[1] * (ddf.ndim - 2))
        second = (ddf * sides).diff(n=2, dim=axis)
        total += second.square().sum(dim=1).flatten(1).mean(dim=1)
    return total.sqrt()
