"""Warp a label map by partial volumes: near borders the surrounding voxels vote, so that surfaces stay smooth.

A label map is a smooth anatomy that was cut into voxels. The nearest voxel would carry the stair steps along and put
teeth on them. Here the share of each label around a point is estimated instead: the voxels of a label are blurred by
0.7 voxels (along each axis, so that thick slices are interpolated too) and interpolated linearly, and the label with
the largest share wins. Only labels that are present around a point are compared, so their number does not matter.

Blurring alone would take away what is thin or sharp: a tube one voxel thick has a quarter of its neighborhood. So a
voxel has the more votes the less of its neighborhood has the same label. The numbers were found by warping shapes
given as formulas, see ``Testing/benchmarks/labels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import SimpleITK as sitk

from .coordinates import MovedIndex
from .field_samples import boxes, samples_of_transform
from .linear_warp import SIDES
from .mirror import reflect_outside

# Blur of a label along each axis.
_BLUR = (0.25, 0.5, 0.25)
# Voxels get more than one vote below this balance (share of the own label less that of all others, -1 to 1), and this
# many more per unit of balance.
_BALANCED = 0.3
_MORE_VOTES = 4.0
# A flat sheet one voxel thick has half of its neighborhood. With these votes its image is one voxel thick, too.
_SHEET = 5 / 3
# Votes of a voxel are stored as multiples of 1/32. An inner voxel has one, and a voxel at a border a bit more.
_VOTE = 32
# Blocks of the result, which are computed on their own; fixed, so that no result depends on the memory at hand.
_BLOCK = 2**16
# Points that vote at the same time; small enough for the processor's cache.
_CHUNK = 2**12


class LabelVote:
    """A label map whose voxels vote at any points.

    Args:
        source: its voxels, array order.
    """

    def __init__(self, source: np.ndarray) -> None:
        self._shape = source.shape
        self._votes = count_votes(source).reshape(-1)
        self._labels = np.ascontiguousarray(source).reshape(-1)

    def at(self, positions: list[np.ndarray]) -> np.ndarray:
        """Find the labels at positions: the index along each axis (*n), array order, not rounded, inside the map."""
        flat = [position.reshape(-1) for position in positions]
        return vote(self._labels, self._votes, self._shape, flat).reshape(positions[0].shape)


def warp_by_vote(source: np.ndarray, label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """Warp a label map onto the grid of ``reference``; its mirror image lies outside of it.

    Args:
        source: voxels of ``label``, array order.
        label: gives the grid of ``source``.
        transform: maps points of ``reference`` to points of ``label`` (LPS, millimeters).

    Returns:
        The warped label map, array order, of the type of ``source``.
    """
    voter = LabelVote(source)
    warped = np.empty(reference.GetSize()[::-1], source.dtype)
    samples, index = samples_of_transform(transform, reference), MovedIndex.of(reference, label)

    if samples is not None:
        # In one thread: several wait for each other, which takes as long and more of the processor.
        for box in boxes(warped.shape, SIDES):
            first = [part.start for part in box]
            warped[box] = voter.at(_positions(index, first, samples.box(box, np.float64)))
        return warped
    step = max(1, _BLOCK // max(1, warped[0].size))
    for start in range(0, len(warped), step):
        stop = min(start + step, len(warped))
        first = [start, *[0] * (warped.ndim - 1)]
        warped[start:stop] = voter.at(_positions(index, first, _displacements(reference, start, stop, transform)))
    return warped


def vote(labels: np.ndarray, votes: np.ndarray, shape: tuple[int, ...], positions: list[np.ndarray]) -> np.ndarray:
    """Find the label at each point.

    Args:
        labels: of the voxels, flattened.
        votes: of the voxels, see :func:`count_votes`, flattened.
        shape: of the label map.
        positions: of K points, index along each axis, not rounded.

    Returns:
        (K,), of the type of ``labels``.
    """
    nearest = np.zeros(len(positions[0]), np.int64)
    for position, side in zip(positions, shape, strict=True):
        nearest *= side
        nearest += np.rint(position).clip(0, side - 1).astype(np.int64)
    result: np.ndarray = labels[nearest]
    border = np.flatnonzero(votes[nearest] > _VOTE)
    for chunk in range(0, len(border), _CHUNK):
        part = border[chunk : chunk + _CHUNK]
        result[part] = _winners(labels, votes, shape, [p[part] for p in positions], result[part])
    return result


def count_votes(source: np.ndarray) -> np.ndarray:
    """Count the votes of each voxel of a label map, in units of 1 / ``_VOTE``: uint8, the same shape."""
    result = np.empty(source.shape, np.uint8)
    whole = 4**source.ndim
    balance = 2 * np.arange(whole + 1) / whole - 1
    votes = _VOTE * (1 + _MORE_VOTES * np.maximum(0, _BALANCED - balance))
    votes[whole // 2] = _VOTE * _SHEET
    table = np.rint(votes).clip(_VOTE + 1, 255).astype(np.uint8)
    table[whole] = _VOTE
    step = max(1, 4 * _BLOCK // max(1, source[0].size))
    for start in range(0, len(source), step):
        stop = min(start + step, len(source))
        rows = np.arange(start - 1, stop + 1).clip(0, len(source) - 1)
        around = np.pad(source[rows], [(0, 0)] + [(1, 1)] * (source.ndim - 1), mode="edge")
        own = source[start:stop]
        # The share of voxels with the same label, as a sum of products of 1, 2 and 1.
        same = np.zeros(own.shape, np.uint8)
        for offset in product(range(3), repeat=source.ndim):
            shifted = around[tuple(slice(o, o + n) for o, n in zip(offset, own.shape, strict=True))]
            same += (shifted == own).view(np.uint8) * np.uint8(np.prod([4 * _BLUR[o] for o in offset]))
        result[start:stop] = table[same]
    return result


def _displacements(reference: sitk.Image, start: int, stop: int, transform: sitk.Transform) -> np.ndarray:
    """Compute the displacements of any transform in the layers ``start`` to ``stop`` of ``reference``: (d, ...)."""
    d = reference.GetDimension()
    size = [*reference.GetSize()[:-1], stop - start]
    origin = reference.TransformIndexToPhysicalPoint([0] * (d - 1) + [start])
    moved = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, size, origin, reference.GetSpacing(), reference.GetDirection()
    )
    return np.moveaxis(sitk.GetArrayFromImage(moved), -1, 0)


def _positions(index: MovedIndex, first: list[int], vectors: np.ndarray) -> list[np.ndarray]:
    """Find where voxels lie in a label map; positions outside of it are reflected at its faces.

    Args:
        index: of the warped label map and the one that is read.
        first: index of the first of the voxels, array order.
        vectors: their displacements, (d, *n), millimeters, LPS.

    Returns:
        The index along each axis (*n), array order, not rounded.
    """
    positions = index.at(first, vectors)
    for position, side in zip(positions, index.shape, strict=True):
        reflect_outside(position, side)
    return positions


def _winners(
    labels: np.ndarray, votes: np.ndarray, shape: tuple[int, ...], positions: list[np.ndarray], nearest: np.ndarray
) -> np.ndarray:
    """Find the label with the largest share around each point; the nearest voxel's label wins a draw.

    Args:
        labels, votes: of the voxels, flattened.
        shape: of the label map.
        positions: of K points, index along each axis, not rounded.
        nearest: label of the nearest voxel, (K,).

    Returns:
        (K,)
    """
    index, share = np.zeros((1, len(nearest)), np.int64), np.ones((1, len(nearest)), np.float32)
    for position, side in zip(positions, shape, strict=True):
        # Within one voxel of the label map's border all positions are the same.
        inside = position.clip(-1, side)
        before = np.floor(inside)
        weights = np.stack(list(_weights((inside - before).astype(np.float32))))
        places = (before.astype(np.int64) + np.arange(-1, 3)[:, None]).clip(0, side - 1)
        index = (index[:, None] * side + places).reshape(-1, len(nearest))
        share = (share[:, None] * weights).reshape(-1, len(nearest))
    around = labels.take(index)
    share *= votes.take(index)
    winner: np.ndarray = nearest.copy()
    best = _share_of(share, around, nearest)
    left = share.sum(axis=0) - best
    open_points = np.flatnonzero(left > best)
    around, share = around[:, open_points], share[:, open_points]
    share[around == nearest[open_points]] = 0
    while len(open_points):
        candidate = np.take_along_axis(around, share.argmax(axis=0)[None], axis=0)[0]
        own = _share_of(share, around, candidate)
        better = own > best[open_points]
        winner[open_points[better]] = candidate[better]
        best[open_points[better]] = own[better]
        left[open_points] -= own
        share[around == candidate] = 0
        # Sums of floating-point numbers differ from what is left by a rounding error.
        remain = (left[open_points] > best[open_points]) & share.any(axis=0)
        around, share, open_points = around[:, remain], share[:, remain], open_points[remain]
    return winner


def _weights(fraction: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the weights of the four voxels around positions along an axis: linear interpolation of blurred voxels."""
    outer, middle, _ = _BLUR
    rest = 1 - fraction
    yield outer * rest
    yield middle * rest + outer * fraction
    yield outer * rest + middle * fraction
    yield outer * fraction


def _share_of(share: np.ndarray, around: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Sum the shares (N, K) of the voxels with a label (K,)."""
    result: np.ndarray = np.where(around == label, share, np.float32(0)).sum(axis=0)
    return result
