"""Metrics of displacement fields: size, roughness and folding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..errors import ImageError
from ..spatial.coordinates import direction_matrix
from ..spatial.field_grid import STORED, Block, FieldGrid, SampledGrid, positions
from ..spatial.field_samples import FieldSamples, boxes, over_boxes
from ..spatial.jacobian import central_determinants, determinant
from ..spatial.model_grid import image_extent, overlap
from ..spatial.resampling import field_on_grid, slabs
from .certificate import blocks, certify_on_grid, certify_saved, corner_values
from .determinant_bounds import least_determinant, least_determinants, tolerance
from .sample_bounds import all_strict

# Cells along each axis of a tile whose determinants are bounded together.
_TILE = 8
# If more than this share of the cells is undecided, all are computed, which is faster than picking them out.
_MANY = 0.2
# Number of cells whose determinants are computed together.
_CHUNK = 2**14
# If there are at most so many voxels for each node of a field, it takes less time to compute all determinants.
_FEW_SAMPLES = 3


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
    found = [Strict(0, 0, 0.0)]
    for where in blocks(field.vectors.shape[:-1]):
        found.append(_strict_in_block(field.block(where), field.spacing))
    return _added(found)


def _added(found: list[Strict]) -> Strict:
    return Strict(sum(s.cells for s in found), sum(s.bad for s in found), sum(s.volume for s in found))


def _strict_in_block(values: np.ndarray, spacing: Sequence[float]) -> Strict:
    """Apply the criterion to a block of nodes.

    Most tiles of cells are decided by a bound, see :mod:`DRDMLib.invertibility.determinant_bounds`; the
    others are computed.

    Args:
        values: (d, *n), millimeters; component k is along axis k.
        spacing: (d,), array order.
    """
    d = len(values)
    if min(values.shape[1:]) < 2:
        return Strict(0, 0, 0.0)
    values = (values / np.reshape(spacing, (-1, *[1] * d))).astype(np.float32)
    shape = tuple(n - 1 for n in values.shape[1:])
    undecided = ~(_least_in_tiles(values) > 0)
    cells, bad, volume = math.prod(shape), 0, 0.0
    for axis, count in enumerate(shape):
        undecided = undecided.repeat(_TILE, axis).take(range(count), axis)
    if undecided.mean() > _MANY:
        chosen: Iterable[np.ndarray] = [values]
    else:
        left = np.argwhere(undecided)
        corners = (left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK))
        chosen = (np.moveaxis(corner_values(values, part), (0, -1), (-1, 0)) for part in corners)
    for some in chosen:
        dets = torch.stack(_simplex_determinants(torch.from_numpy(np.ascontiguousarray(some))))
        if bool((dets <= 0).any()):
            bad += int((dets <= 0).any(dim=0).sum())
            volume -= float(dets.clamp(max=0).sum()) / 2 / math.factorial(d)
    return Strict(cells, bad, volume)


def _least_in_tiles(values: np.ndarray) -> np.ndarray:
    """Bound the determinants of the criterion from below in tiles of cells.

    Args:
        values: (d, *n), displacements in voxels, float32.

    Returns:
        One number for each tile of ``_TILE`` cells along each axis; the last ones can be smaller.
    """
    d = len(values)
    low, high = [], []
    for axis in range(d):
        edges = np.diff(values, axis=1 + axis)
        least = greatest = edges
        for other in range(d):
            least = _over_tiles(np.minimum, least, other, overlap=other != axis)
            greatest = _over_tiles(np.maximum, greatest, other, overlap=other != axis)
        low.append(least)
        high.append(greatest)
    # Parallel edges of a cell differ by at most their range.
    wider = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    widened: list[np.ndarray | float] = [wider[1] + wider[2], wider[2], wider[1]] if d == 3 else [0.0] * d
    largest = 1 + max(max(-float(a.min()), float(b.max())) for a, b in zip(low, high, strict=True))
    rounding = 4 * tolerance(largest, 0.0, 0.0, 2.0**-23) + 2.0**-16 * largest**d
    result: np.ndarray = least_determinant(low, high, widened) - rounding
    return result


def _over_tiles(function: np.ufunc, values: np.ndarray, axis: int, *, overlap: bool) -> np.ndarray:
    """Reduce values to tiles along an axis of the grid; ``overlap`` includes the first value of the next tile."""
    before = (slice(None),) * (1 + axis)
    starts = range(0, values.shape[1 + axis] - overlap, _TILE)
    parts = [values[before + (slice(start, start + _TILE + overlap),)] for start in starts]
    return np.stack([function.reduce(part, axis=1 + axis) for part in parts], axis=1 + axis)


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


class _Totals:
    """Adds up the metrics of parts of a field, on the grid of ``reference``."""

    def __init__(self, reference: sitk.Image) -> None:
        self.reference = reference
        self.direction, self.spacing = direction_matrix(reference), reference.GetSpacing()
        self._along = np.linalg.inv(self.direction)[::-1]
        self.total, self.largest, self.folded, self.lowest = 0.0, 0.0, 0, math.inf
        self._strict = [Strict(0, 0, 0.0)]

    def add_lengths(self, values: np.ndarray) -> None:
        """Add the lengths of displacements, (d, *n)."""
        squares = np.square(values[0])
        for component in values[1:]:
            squares += np.square(component)
        self.total += float(np.sqrt(squares).sum(dtype=np.float64))
        longest = values.reshape(len(values), -1)[:, squares.argmax()]
        self.largest = max(self.largest, float(np.linalg.norm(longest.astype(np.float64))))

    def add_central(self, values: np.ndarray, inner: Block) -> None:
        """Add the determinants of central differences.

        Args:
            values: (d, *n), a box of voxels and its neighbors.
            inner: the voxels of the box itself.
        """
        determinants = central_determinants(values, inner, self.spacing, self.direction)
        self.folded += int(np.count_nonzero(determinants <= 0))
        self.lowest = min(self.lowest, float(determinants.min()))

    def add_strict(self, values: np.ndarray) -> None:
        """Apply the digital-diffeomorphism criterion to the cells between voxels, (d, *n)."""
        along = np.stack(
            [sum(row[k] * values[k].astype(np.float64) for k in np.flatnonzero(row)) for row in self._along]
        )
        self._strict.append(_strict_in_block(along, self.spacing[::-1]))

    def metrics(self) -> FieldMetrics:
        voxels = self.reference.GetNumberOfPixels()
        side = float(image_extent(self.reference).max())
        strict = _added(self._strict)
        cells = max(1, math.prod(n - 1 for n in self.reference.GetSize()))
        return FieldMetrics(
            mean_mm=self.total / voxels,
            max_mm=self.largest,
            mean_percent=100 * self.total / voxels / side,
            max_percent=100 * self.largest / side,
            folded_fraction=self.folded / voxels,
            min_jacobian=self.lowest,
            nondiffeomorphic_fraction=strict.volume / cells,
            nondiffeomorphic_cells=strict.bad / cells,
        )


def measure(reference: sitk.Image, layers: Callable[[int, int], np.ndarray]) -> FieldMetrics:
    """Measure a field that is given slab by slab.

    Args:
        reference: gives the grid.
        layers: function that returns the layers ``start`` to ``stop`` along the slowest axis:
            (stop - start, ..., d), millimeters, LPS.

    Returns:
        All metrics except ``certified_invertible``, which is ``None``.
    """
    shape = reference.GetSize()[::-1]
    totals = _Totals(reference)
    for start, stop in slabs(reference.GetSize(), 2**21):
        below, above = max(0, start - 1), min(shape[0], stop + 1)
        block = np.moveaxis(layers(below, above), -1, 0)
        for where in boxes((stop - start, *shape[1:])):
            own = (slice(where[0].start + start - below, where[0].stop + start - below), *where[1:])
            around, inner = _with_neighbors(own, block.shape[1:])
            values = np.stack([component[around] for component in block]).astype(np.float32, copy=False)
            totals.add_lengths(np.stack([component[inner] for component in values]))
            totals.add_central(values, inner)
            corners = tuple(slice(i.start, None) for i in inner)
            totals.add_strict(np.stack([component[corners] for component in values]))
    return totals.metrics()


def _with_neighbors(where: Block, shape: tuple[int, ...]) -> tuple[Block, Block]:
    """Enlarge a box by one voxel on each side, within the grid; return it, and where the box lies in it."""
    around = tuple(slice(max(w.start - 1, 0), min(w.stop + 1, n)) for w, n in zip(where, shape, strict=True))
    return around, tuple(slice(w.start - a.start, w.stop - a.start) for w, a in zip(where, around, strict=True))


def measure_ddf(ddf: sitk.Image) -> FieldMetrics:
    """Measure a displacement field (vector image, millimeters, LPS), and test whether it is invertible."""
    view = sitk.GetArrayViewFromImage(ddf)
    metrics = measure(ddf, lambda start, stop: np.asarray(view[start:stop], np.float32))
    return replace(metrics, certified_invertible=certify_saved(ddf).certified)


def measure_saved(field: sitk.Image, scan: sitk.Image) -> FieldMetrics:
    """Measure a saved displacement field at the voxels of a scan, and test whether it is invertible.

    For a field on the coarse grid these are the figures of the report.

    Args:
        field: vector image, millimeters, LPS.
        scan: the scan that was deformed.

    Raises:
        ImageError: the scan has another dimension, or does not lie where the field is.
    """
    if scan.GetDimension() != field.GetDimension() or overlap(scan, field) == 0:
        raise ImageError("The field does not lie where the scan is; choose the scan that was deformed.")
    coarse = FieldGrid.of(field).border_map() is not None
    found = certify_on_grid(field, scan) if coarse else certify_saved(field)
    return replace(measure_on_grid(field, scan), certified_invertible=found.certified)


def measure_on_grid(field: sitk.Image, reference: sitk.Image) -> FieldMetrics:
    """Measure a coarse displacement field as it is on the grid of ``reference``, slab by slab to save memory.

    Args:
        field: vector image, millimeters, LPS.
    """
    samples = FieldSamples.of(field, reference)
    if samples is None:
        return measure(reference, lambda start, stop: field_on_grid(field, reference, start, stop))
    totals, shape = _Totals(reference), samples.shape
    if math.prod(shape) <= _FEW_SAMPLES * field.GetNumberOfPixels() and _meets_criterion(field, reference):
        for where in boxes(shape):
            around, inner = _with_neighbors(where, shape)
            values = samples.box(around)
            totals.add_lengths(np.stack([component[inner] for component in values]))
            totals.add_central(values, inner)
        return totals.metrics()
    for where in boxes((*shape[:-1], 1)):
        totals.add_lengths(samples.box((*where[:-1], slice(0, shape[-1]))))
    least = least_determinants(samples, totals.direction)
    parts = list(boxes(shape))
    central = np.full(len(parts), -np.inf) if least is None else over_boxes(np.minimum, least.central, least.cells)
    strict = central if least is None else over_boxes(np.minimum, least.strict, least.cells)
    # Boxes whose determinants are all greater than the least one found so far cannot change it.
    for number in np.argsort(central, kind="stable"):
        if central[number] > max(totals.lowest, 0):
            break
        around, inner = _with_neighbors(parts[number], shape)
        totals.add_central(samples.box(around), inner)
    for number in np.flatnonzero(~(strict > 0)):
        totals.add_strict(samples.box(tuple(slice(w.start, w.stop + 1) for w in parts[number])))
    return totals.metrics()


def _meets_criterion(field: sitk.Image, reference: sitk.Image) -> bool:
    """Whether bounds decide that all cells between the voxels of an image meet the criterion."""
    grid = FieldGrid.of(field, STORED)
    inside = positions(grid, reference)
    # Voxels outside of the field do not move.
    return inside is not None and min(map(len, inside)) > 1 and all_strict(SampledGrid(grid, inside))


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
