"""Invert a certified field: find the positions that the map takes to given points.

This uses a damped Newton iteration on the map as it is applied, multilinear in each cell. The derivative is that of the
cell, and a step that does not bring a point nearer is halved. Because the map is a homeomorphism, each point has
exactly one solution. A map that is affine beyond its grid is a field that is zero there and then that affine map, whose
inverse is exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..spatial.affine import AffineMap
from ..spatial.coordinates import to_points
from ..spatial.field_grid import DisplacementGrid, FieldGrid, extended, positions
from ..spatial.jacobian import determinant

# Largest allowed residual, as a fraction of the least spacing of the grid.
TOLERANCE = 1e-4
_ROUNDS = 200
# Largest step in one round, cells.
_STRIDE = 4.0
_CHUNK = 2**17
# Largest errors of the inverse on a grid inside the image: the mean in millimeters, and the maximum in voxels. They
# leave a reserve to the limits that ``inverse_field`` promises.
_MEAN_MM, _MAX_VOXELS = 0.009, 0.09
_MOST_NODES = 2**25
_FINEST = 5


class Mapping:
    """The map ``phi(x) = x + u(x)`` of a grid, and its inverse. Points are in millimeters along the grid's array axes.

    Args:
        grid: the displacements; all of them are read into memory, with 32 bits.
    """

    def __init__(self, grid: DisplacementGrid) -> None:
        self.nodes = [torch.from_numpy(np.ascontiguousarray(n)) for n in grid.nodes]
        everything = tuple(slice(0, len(n)) for n in self.nodes)
        self.values = torch.from_numpy(grid.block(everything).astype(np.float32)).flatten(1)
        self.shape = [len(n) for n in self.nodes]
        self.tolerance = TOLERANCE * min(float(n.diff().min()) for n in self.nodes)

    def _place(self, points: Tensor) -> Tensor:
        """Convert points (K, d), millimeters, to positions in nodes (d, K)."""
        places = []
        for nodes, x in zip(self.nodes, points.T, strict=True):
            cell = (torch.searchsorted(nodes, x.contiguous(), right=True) - 1).clamp(0, len(nodes) - 2)
            places.append(cell + (x - nodes[cell]) / (nodes[cell + 1] - nodes[cell]))
        return torch.stack(places)

    def _evaluate(self, places: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Evaluate phi at positions in nodes (d, K).

        Returns:
            phi (d, K), millimeters, and for each axis its derivative along the side of the cell, (d, K).
        """
        d = len(self.shape)
        cells = torch.stack([p.floor().long().clamp(0, n - 2) for p, n in zip(places, self.shape, strict=True)])
        fractions = places - cells
        strides = [math.prod(self.shape[a + 1 :]) for a in range(d)]
        base = sum((cells[a] * strides[a] for a in range(1, d)), cells[0] * strides[0])
        corners = {
            bits: self.values[:, base + sum(b * s for b, s in zip(bits, strides, strict=True))].double()
            for bits in itertools.product((0, 1), repeat=d)
        }

        def blend(values: dict[tuple[int, ...], Tensor], keep: int | None) -> Tensor:
            for axis in reversed(range(d)):
                if axis != keep:
                    values = {
                        bits[:axis] + bits[axis + 1 :]: torch.lerp(v, values[_set(bits, axis, 1)], fractions[axis])
                        for bits, v in values.items()
                        if bits[axis] == 0
                    }
            return values[()] if keep is None else values[(1,)] - values[(0,)]

        value = blend(corners, None)
        slopes = [blend(corners, axis) for axis in range(d)]
        for axis, nodes in enumerate(self.nodes):
            low = nodes[cells[axis]]
            width = nodes[cells[axis] + 1] - low
            value[axis] += low + fractions[axis] * width
            slopes[axis][axis] += width
        return value, slopes

    def __call__(self, points: Tensor) -> Tensor:
        """Apply the map: (K, d) -> (K, d), millimeters."""
        return torch.cat([self._evaluate(self._place(p))[0].T for p in points.split(_CHUNK)])

    def inverse(self, points: Tensor, guess: Tensor | None = None) -> Tensor:
        """Apply the inverse map: (K, d) -> (K, d), millimeters. Points outside the grid stay where they are.

        Args:
            guess: first approximation of the result, by default ``points``.
        """
        guess = points if guess is None else guess
        parts = zip(points.split(_CHUNK), guess.split(_CHUNK), strict=True)
        return torch.cat([self._solve(p, g) for p, g in parts])

    def _solve(self, points: Tensor, guess: Tensor) -> Tensor:
        inside = torch.ones(len(points), dtype=torch.bool)
        for nodes, x in zip(self.nodes, points.T, strict=True):
            inside &= (x >= nodes[0]) & (x <= nodes[-1])
        last = torch.tensor(self.shape, dtype=torch.float64)[:, None] - 1
        target, best = points[inside].T, self._place(guess[inside]).clamp(min=torch.zeros_like(last), max=last)
        result = best.clone()
        active = torch.arange(best.shape[1])
        error = torch.full((best.shape[1],), math.inf, dtype=torch.float64)
        step, damping = torch.zeros_like(best), torch.ones_like(error)
        for _ in range(_ROUNDS):
            place = torch.minimum((best + damping * step).clamp(min=0), last)
            value, slopes = self._evaluate(place)
            residual = target - value
            length = residual.abs().amax(dim=0)
            # Accept a step that brings the point nearer, or one that has been halved often without success.
            accepted = (length < error) | (damping < 0.01)
            best, error = torch.where(accepted, place, best), torch.where(accepted, length, error)
            step = torch.where(accepted, _newton(slopes, residual), step)
            damping = torch.where(accepted, 1.0, damping / 2)
            result[:, active] = best
            unsolved = error > self.tolerance
            if not bool(unsolved.any()):
                break
            # Continue with the unsolved points alone once this saves enough work.
            if int(unsolved.sum()) < 0.8 * len(unsolved):
                active, target, best, error = active[unsolved], target[:, unsolved], best[:, unsolved], error[unsolved]
                step, damping = step[:, unsolved], damping[unsolved]
        out = points.clone()
        out[inside] = torch.stack([self._position(a, p) for a, p in enumerate(result)], dim=1)
        return out

    def _position(self, axis: int, places: Tensor) -> Tensor:
        """Convert positions in nodes along one axis to millimeters."""
        nodes = self.nodes[axis]
        cell = places.floor().long().clamp(0, len(nodes) - 2)
        return nodes[cell] + (places - cell) * (nodes[cell + 1] - nodes[cell])


def _set(bits: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*bits[:axis], value, *bits[axis + 1 :])


def _newton(slopes: list[Tensor], residual: Tensor) -> Tensor:
    """Compute the Newton step (d, K) from the cell's derivative with Cramer's rule, and limit its length."""
    columns = [list(s) for s in slopes]
    det = determinant(columns)
    # Rounding can make the determinant nearly zero at a corner of a cell, although it is positive.
    det = torch.where(det.abs() < 1e-12, 1e-12, det)
    swapped = [[list(residual) if a == b else columns[a] for a in range(len(columns))] for b in range(len(columns))]
    step = torch.stack([determinant(m) / det for m in swapped])
    return step * (_STRIDE / step.abs().amax(dim=0).clamp(min=_STRIDE))


def _to_axes(field: FieldGrid, points: np.ndarray) -> Tensor:
    return torch.from_numpy((points - field.origin) @ field.along.T)


def _to_space(field: FieldGrid, along: Tensor) -> np.ndarray:
    result: np.ndarray = along.numpy() @ np.linalg.inv(field.along).T + field.origin
    return result


def _parted(field: sitk.Image) -> tuple[FieldGrid, AffineMap]:
    """Return a field that is zero on its border, and the affine map that follows it; together they are ``field``."""
    grid = FieldGrid.of(field)
    outside = grid.border_map()
    if outside is None or outside.moves_nothing:
        return grid, AffineMap.identity(field.GetDimension())
    return grid.without(outside), outside


def inverse_points(field: sitk.Image, points: np.ndarray) -> np.ndarray:
    """Map points of the original to points of the new image.

    Args:
        field: a certified displacement field: vector image, millimeters, LPS.
        points: (K, d), LPS, millimeters.

    Returns:
        (K, d), LPS, millimeters.
    """
    grid, outside = _parted(field)
    before = outside.inverse()(np.asarray(points, np.float64))
    return _to_space(grid, Mapping(grid).inverse(_to_axes(grid, before)))


def inverse_layers(field: sitk.Image, reference: sitk.Image, ranges: Iterator[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Invert the field as it is saved on the grid of ``reference``; the result is on that grid, in layers.

    The map that is inverted is linear between the voxels; outside the image it is continued by the field itself.

    Args:
        field: a certified displacement field: vector image, millimeters, LPS.
        reference: the image; its extent lies within the field, or the field is zero on its border.
        ranges: (start, stop) of the layers along the slowest axis, see :func:`DRDMLib.spatial.resampling.slabs`.

    Yields:
        (layers, ..., d), float32, millimeters, LPS.
    """
    grid, outside = _parted(field)
    back = outside.inverse()
    inside = positions(grid, reference)
    assert inside is not None, "the field was made for this image"
    mapping = Mapping(extended(grid, inside, 1 if reference.GetNumberOfPixels() < _MOST_NODES else 4))
    d = reference.GetDimension()
    for start, stop in ranges:
        index = np.indices((stop - start, *reference.GetSize()[-2::-1])).reshape(d, -1).T.astype(np.float64)
        index[:, 0] += start
        points = to_points(index[:, ::-1], reference)
        moved = _to_space(grid, mapping.inverse(_to_axes(grid, back(points)))) - points
        yield moved.reshape(stop - start, *reference.GetSize()[-2::-1], d).astype(np.float32)


def inverse_field(field: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Compute the inverse as a displacement field over the extent of ``field``, with zeros on its border.

    The inverse of a map that is affine beyond its grid covers the extent to which that map carries ``field``, and is
    affine on its border.

    Such a field is linear between its nodes, and there it is not exact. Its grid is made so fine that
    ``|phi(phi^-1(x)) - x|`` inside the image is below 0.01 mm on average and below 0.1 voxel at most, unless this takes
    more than 2^25 nodes, or nodes more than five times as fine as those of the field. The largest mean error that was
    measured then is 0.015 mm, see the page ``docs/reliability.md``.

    Args:
        field: a certified displacement field: vector image, millimeters, LPS.
        reference: the image; its extent lies within the field, or the field is zero on its border.

    Returns:
        Vector image, 64-bit, millimeters, LPS.
    """
    grid, outside = _parted(field)
    mapping = Mapping(grid)
    inside = positions(grid, reference)
    assert inside is not None, "the field was made for this image"
    generator = np.random.default_rng(0)
    within = [np.clip(a[[0, -1]], 0, n - 1) for a, n in zip(inside, mapping.shape, strict=True)]
    probes = [generator.uniform(ends[0], ends[1], 2**16) * s for ends, s in zip(within, grid.spacing, strict=True)]
    points = torch.from_numpy(np.stack(probes, axis=1))
    back, like = _along_axes(outside.inverse(), grid), _carried_grid(grid, outside)
    offset = torch.from_numpy(grid.along @ (like.origin - grid.origin))
    rough = _sampled_inverse(mapping, like, 1, None, back, offset)
    fine = rough
    divisor = 1
    while divisor < _FINEST:
        errors = (mapping(Mapping(fine)(points - offset) + offset) - _mapped(back, points)).norm(dim=1)
        mean, worst = float(errors.mean()) / _MEAN_MM, float(errors.max()) / _MAX_VOXELS / min(reference.GetSpacing())
        if mean <= 1 and worst <= 1:
            break
        # The mean error falls with the square of the spacing; the largest, at kinks of the map, with a lower power.
        finer = min(max(divisor + 1, math.ceil(divisor * max(mean**0.5, worst**0.8))), _FINEST)
        while math.prod((n - 1) * finer + 1 for n in like.vectors.shape[:-1]) > _MOST_NODES:
            finer -= 1
        if finer <= divisor:
            break
        divisor = finer
        fine = _sampled_inverse(mapping, like, divisor, Mapping(rough), back, offset)
    return fine.image()


def _along_axes(affine: AffineMap, grid: FieldGrid) -> AffineMap:
    """Return an affine map for points along the axes of a grid, millimeters from its first node."""
    if affine.moves_nothing:
        return affine
    along = grid.along
    return AffineMap(along @ affine.matrix @ np.linalg.inv(along), along @ (affine(grid.origin) - grid.origin))


def _mapped(affine: AffineMap, points: Tensor) -> Tensor:
    return torch.from_numpy(affine(points.numpy()))


def _carried_grid(grid: FieldGrid, outside: AffineMap) -> FieldGrid:
    """Return a grid (without displacements) that covers the extent to which an affine map carries another grid."""
    if outside.moves_nothing:
        return grid
    low, high = grid.carried_extent(outside)
    size = np.ceil((high - low) / grid.spacing - 1e-6).astype(int) + 1
    origin = grid.origin + np.linalg.inv(grid.along) @ low
    return replace(grid, vectors=np.broadcast_to(0.0, (*size.tolist(), len(size))), origin=origin)


def _sampled_inverse(
    mapping: Mapping, like: FieldGrid, divisor: int, guess: Mapping | None, back: AffineMap, offset: Tensor
) -> FieldGrid:
    """Sample the inverse of ``mapping``, after ``back``, on the grid of ``like``, made ``divisor`` times finer.

    Args:
        guess: an approximation of the result.
        back: along the axes of the grids.
        offset: from the points of ``like`` to those of ``mapping``.
    """
    nodes = [
        torch.arange((n - 1) * divisor + 1) * (s / divisor)
        for n, s in zip(like.vectors.shape, like.spacing, strict=False)
    ]
    shape = tuple(map(len, nodes))
    along = np.empty((*shape, len(shape)))
    for layer, first in enumerate(nodes[0]):
        points = torch.cartesian_prod(first[None], *nodes[1:]).double()
        found = mapping.inverse(_mapped(back, points + offset), None if guess is None else guess(points) + offset)
        along[layer] = (found - offset - points).numpy().reshape(*shape[1:], len(shape))
    _balance(along)
    space = np.linalg.inv(like.along)
    for layer in along:
        layer[...] = layer @ space.T
    return replace(like, vectors=along, spacing=tuple(s / divisor for s in like.spacing))


def _balance(values: np.ndarray) -> None:
    """Subtract a twelfth of the second differences from values (*S, d), in place.

    The mean error of the linear interpolation between them is then zero.
    """
    d = values.ndim - 1
    inner = (slice(1, -1),) * d
    shift = np.zeros_like(values[inner])
    for axis in range(d):
        below, above = list(inner), list(inner)
        below[axis], above[axis] = slice(0, -2), slice(2, None)
        shift += values[tuple(below)] + values[tuple(above)] - 2 * values[inner]
    values[inner] -= shift / 12
