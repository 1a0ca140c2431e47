"""Keep thin structures of a label map, such as vessels, sheets and single voxels, when the label map is warped.

Resampling with the nearest voxel loses what falls between the sampled positions. The map is a homeomorphism, so a
structure in one piece has an image in one piece. Voxels that are missing near their new position are therefore
restored, and neighbors that have come apart are joined by a line of voxels.

Voxels are given by their indices, (K, d), array order, or by their positions in the flattened array.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator

import numpy as np
import SimpleITK as sitk

from .coordinates import to_index, to_points
from .point_map import CHUNK, PointMap

# Wider gaps, in voxels, are joined without looking for a detour.
_WIDEST = 6
# Largest number of voxels that are processed at the same time; limits the memory.
_CHUNK = 2**20
# Number of voxels of which all that is computed fits into the processor's cache.
_FEW = 2**14
_THIN, _CONTACT = 1, 2


def restore_thin(
    source: np.ndarray, label: sitk.Image, warped: np.ndarray, reference: sitk.Image, transform: sitk.Transform
) -> None:
    """Restore the thin structures of a label map in its warped version, which is changed in place.

    Args:
        source: voxels of ``label``, array order.
        label: gives the grid of ``source``.
        warped: the label map warped with nearest-neighbor interpolation, array order, contiguous.
        reference: gives the grid of ``warped``.
        transform: maps points of ``reference`` to points of ``label`` (LPS, millimeters).
    """
    thin = _thin_voxels(source)
    if len(thin) == 0:
        return
    targets, inside = _new_positions(thin, label, reference, transform)
    thin, targets = thin[inside], targets[inside]
    values = source[tuple(thin.T)]
    _, missing = _anchors(warped, targets, values)
    warped[tuple(targets[missing].T)] = values[missing]
    # Where a thin structure leaves a thick one, it must not come apart either.
    contacts = _contacts(source, thin)
    more, inside = _new_positions(contacts, label, reference, transform)
    join = _Joining(source, warped, thin, contacts[inside], np.concatenate([targets, more[inside]]))
    lost = join.join_neighbors()
    more_lost = join.join_strays(lambda voxels: _old_positions(voxels, label, reference, transform))
    # A line can cut through another thin structure.
    join.join_neighbors(join.thin_near(np.concatenate([lost, more_lost])))


class _Joining:
    """Joins the images of neighbors where they have come apart, by lines of voxels.

    Args:
        source: label map before warping.
        warped: the warped label map, which is changed.
        thin: thin voxels of ``source``, in order.
        contacts: their neighbors that are not thin, in order.
        targets: the new positions of ``thin``, then of ``contacts``.
    """

    def __init__(
        self, source: np.ndarray, warped: np.ndarray, thin: np.ndarray, contacts: np.ndarray, targets: np.ndarray
    ) -> None:
        self.source, self.warped, self.thin, self.targets = source.reshape(-1), warped, thin, targets
        self.values = np.concatenate([source[tuple(thin.T)], source[tuple(contacts.T)]])
        self.shape = source.shape
        self._flat_thin, self._flat_contacts = _flat(thin, source.shape), _flat(contacts, source.shape)
        self._kinds = np.zeros(source.size, np.uint8)
        self._kinds[self._flat_thin], self._kinds[self._flat_contacts] = _THIN, _CONTACT

    def join_neighbors(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Join neighbors that share a face, then those that share an edge, then those that share a corner.

        Args:
            chosen: only the neighbors of these thin voxels, numbers (K,); by default all.

        Returns:
            The voxels of other structures through which lines go, flattened.
        """
        lost = [np.zeros(0, np.int64)]
        for axes in range(1, len(self.shape) + 1):
            if chosen is not None and len(chosen) == 0:
                break
            anchors, missing = _anchors(self.warped, self.targets, self.values)
            apart = self._apart(axes, chosen, anchors, missing)
            for part in np.array_split(apart, 1 + len(apart) // _CHUNK):
                lost.append(_join(self.warped, anchors[part], self.values[part[:, 0]]))
        return np.concatenate(lost)

    def _apart(self, axes: int, chosen: np.ndarray | None, anchors: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Find pairs of neighbors that have come apart: numbers, (P, 2).

        Args:
            axes, chosen: see :meth:`_neighbors`.
            anchors, missing: see :func:`_anchors`.
        """
        numbers = np.arange(len(self.thin)) if chosen is None else chosen
        columns = np.ascontiguousarray(anchors.T)
        found = [np.zeros((0, 2), np.int64)]
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK]
            # In the order of the directions, whatever the number of voxels that are looked at together.
            by_direction: dict[int, list[np.ndarray]] = {}
            for first in range(0, len(chunk), _FEW):
                pairs = self._neighbors(axes, chunk[first : first + _FEW], once=chosen is None)
                for direction, (one, other) in enumerate(pairs):
                    far = np.zeros(len(one), bool)
                    for column in columns:
                        gaps = column[one] - column[other]
                        far |= np.abs(gaps, out=gaps) > 1
                    if far.any():
                        far &= ~(missing[one] | missing[other])
                        by_direction.setdefault(direction, []).append(np.stack([one[far], other[far]], axis=1))
            for direction in sorted(by_direction):
                found += by_direction[direction]
        return np.concatenate(found)

    def _neighbors(self, axes: int, part: np.ndarray, *, once: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs of neighbors with equal labels that differ along ``axes`` axes; the first is a thin voxel.

        They are given by their numbers among all voxels, (P,) each; for each direction the thin neighbors, then the
        others.

        Args:
            part: numbers of the thin voxels, (K,).
            once: two thin voxels are a pair only once.
        """
        own, values = self._flat_thin[part], self.values[part]
        for near in _near(self.thin[part], self.shape, axes):
            kinds = self._kinds[near]
            kinds[self.source[near] != values] = 0
            thin = np.flatnonzero((kinds == _THIN) & ((near > own) if once else (near != own)))
            yield part[thin], np.searchsorted(self._flat_thin, near[thin])
            contact = np.flatnonzero(kinds == _CONTACT)
            yield part[contact], np.searchsorted(self._flat_contacts, near[contact]) + len(self.thin)

    def thin_near(self, voxels: np.ndarray) -> np.ndarray:
        """Find the thin voxels whose new positions are at most two voxels away from ``voxels``, flattened: numbers."""
        if len(voxels) == 0:
            return voxels
        shape, marks = self.warped.shape, np.zeros(self.warped.size, bool)
        for _ in range(2):
            for near in _near(np.stack(np.unravel_index(voxels, shape), axis=1), shape):
                marks[near] = True
            voxels = np.flatnonzero(marks)
        return np.flatnonzero(marks[_flat(self.targets[: len(self.thin)], shape)])

    def join_strays(self, old_positions: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Join voxels of thin structures that lie far from all new positions, because space is stretched there.

        Args:
            old_positions: finds the voxels of ``source`` that are shown by voxels of ``warped``.

        Returns:
            As :meth:`join_neighbors`.
        """
        anchors, missing = _anchors(self.warped, self.targets, self.values)
        labels, known = self.warped.reshape(-1), np.zeros(self.warped.size, bool)
        known[_flat(anchors[~missing], self.warped.shape)] = True
        strays = _thin_voxels(self.warped)
        strays = strays[~known[_flat(strays, self.warped.shape)]]
        values, alone = self.warped[tuple(strays.T)], np.ones(len(strays), bool)
        for near in _near(strays, self.warped.shape):
            alone &= ~(known[near] & (labels[near] == values))
        strays = strays[alone]
        old = _flat(old_positions(strays), self.shape)
        ends, joined = [np.zeros((0, 2, len(self.shape)), np.int64)], [values[:0]]
        for kind, first, flat in ((_THIN, 0, self._flat_thin), (_CONTACT, len(self.thin), self._flat_contacts)):
            chosen = np.flatnonzero(self._kinds[old] == kind)
            place = first + np.searchsorted(flat, old[chosen])
            good = ~missing[place] & (self.values[place] == values[alone][chosen])
            ends.append(np.stack([strays[chosen[good]], anchors[place[good]]], axis=1))
            joined.append(self.values[place[good]])
        return _join(self.warped, np.concatenate(ends), np.concatenate(joined))


def _near(voxels: np.ndarray, shape: tuple[int, ...], axes: int | None = None) -> Iterator[np.ndarray]:
    """Yield the voxels of the neighborhood of given ones, flattened, nearest first.

    At the border, another voxel of the neighborhood stands for one outside.

    Args:
        axes: only voxels that differ along so many axes; by default all, also the given ones.
    """
    terms = []
    for axis, side in enumerate(shape):
        stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
        terms.append([(voxels[:, axis] + step).clip(0, side - 1).astype(np.int64) * stride for step in (-1, 0, 1)])
    for offset in _neighborhood(len(shape)):
        if axes in (None, int(np.abs(offset).sum())):
            yield functools.reduce(operator.add, (terms[axis][step + 1] for axis, step in enumerate(offset)))


def _neighborhood(ndim: int) -> np.ndarray:
    """Return the offsets (3^d, d) from a voxel to its neighbors and itself, nearest first."""
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    nearest_first: np.ndarray = offsets[np.argsort(np.abs(offsets).sum(axis=1), kind="stable")]
    return nearest_first


def _flat(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result: np.ndarray = np.ravel_multi_index(tuple(voxels.T), shape)
    return result


def _within(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result: np.ndarray = np.all((voxels >= 0) & (voxels < np.asarray(shape)), axis=-1)
    return result


def _thin_voxels(label: np.ndarray) -> np.ndarray:
    """Find the foreground voxels without an inner voxel of their structure next to them: indices (K, d), in order.

    An inner voxel has neighbors with the same label on all sides along the axes. Sheets, tubes and specks up to two
    voxels thick have no inner voxels, whereas the bumps of a thick structure have one nearby.
    """
    found = [np.zeros((0, label.ndim), np.int64)]
    layers = max(1, _CHUNK // max(1, label[0].size))
    for start in range(0, len(label), layers):
        stop = min(start + layers, len(label))
        # The labels of the inner voxels, with one voxel more on each side, where there is none.
        inner = np.zeros([stop - start + 2, *(n + 2 for n in label.shape[1:])], label.dtype)
        low, high = max(start - 1, 0), min(stop + 1, len(label))
        here = (slice(1, -1),) * label.ndim
        more = (slice(low - start + 1, high - start + 1), *here[1:])
        inner[more] = _inner_labels(label, low, high)
        own, marks = label[start:stop], np.zeros(inner.shape, bool)
        marks[here] = (own != 0) & (inner[here] == 0)
        thin, values = np.flatnonzero(marks), own[marks[here]]
        strides = np.array([int(np.prod(inner.shape[k + 1 :], dtype=np.int64)) for k in range(label.ndim)])
        flat = inner.reshape(-1)
        for _, offsets in itertools.groupby(_neighborhood(label.ndim)[1:], lambda offset: int(np.abs(offset).sum())):
            alone = np.ones(len(thin), bool)
            for offset in offsets:
                alone &= flat.take(thin + int(offset @ strides)) != values
            thin, values = thin[alone], values[alone]
        voxels = np.stack(np.unravel_index(thin, inner.shape), axis=1) - 1
        voxels[:, 0] += start
        found.append(voxels)
    return np.concatenate(found)


def _inner_labels(label: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the layers ``start`` to ``stop`` (exclusive) of a label map with zero in place of all but inner voxels."""
    low, high = max(start - 1, 0), min(stop + 1, len(label))
    part = label[low:high]
    inner = part != 0
    for axis in range(label.ndim):
        lines, marks = np.moveaxis(part, axis, 0), np.moveaxis(inner, axis, 0)
        equal = lines[1:] == lines[:-1]
        marks[1:] &= equal
        marks[:-1] &= equal
    here = slice(start - low, stop - low)
    result: np.ndarray = part[here] * inner[here]
    return result


def _contacts(source: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """Find the neighbors of thin voxels that have the same label but are not thin: indices (K, d), in order."""
    labels, marks = source.reshape(-1), np.zeros(source.size, bool)
    for start in range(0, len(thin), _FEW):
        part = thin[start : start + _FEW]
        values = source[tuple(part.T)]
        for near in _near(part, source.shape):
            marks[near[labels[near] == values]] = True
    marks[_flat(thin, source.shape)] = False
    return np.argwhere(marks.reshape(source.shape))


def _new_positions(
    voxels: np.ndarray, label: sitk.Image, reference: sitk.Image, transform: sitk.Transform
) -> tuple[np.ndarray, np.ndarray]:
    """Find the voxels (K, d) of the warped label map to which voxels move, and whether they lie inside it, (K,)."""
    targets, inside = np.zeros(voxels.shape, np.int32), np.zeros(len(voxels), bool)
    point_map = PointMap(transform)
    for start in range(0, len(voxels), CHUNK):
        part = slice(start, start + CHUNK)
        points = np.ascontiguousarray(to_points(voxels[part, ::-1], label).T)
        origins, found = point_map.inverse(points, 0.5 * min(label.GetSpacing()))
        targets[part] = np.rint(to_index(np.ascontiguousarray(origins.T), reference))[:, ::-1]
        inside[part] = found & _within(targets[part], reference.GetSize()[::-1])
    return targets, inside


def _old_positions(
    voxels: np.ndarray, label: sitk.Image, reference: sitk.Image, transform: sitk.Transform
) -> np.ndarray:
    """Find the nearest voxels (K, d) of ``label`` at the positions that voxels of the warped label map show."""
    last, point_map = np.asarray(label.GetSize()[::-1]) - 1, PointMap(transform)
    result = np.zeros(voxels.shape, np.int64)
    for start in range(0, len(voxels), CHUNK):
        part = slice(start, start + CHUNK)
        points = point_map(np.ascontiguousarray(to_points(voxels[part, ::-1], reference).T))
        result[part] = np.rint(to_index(np.ascontiguousarray(points.T), label))[:, ::-1].clip(0, last)
    return result


def _anchors(warped: np.ndarray, targets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest voxel with the target's label, at most one voxel away from the target along each axis.

    Returns:
        The voxels, (K, d), and whether there is none, (K,).
    """
    anchors, missing = targets.copy(), warped[tuple(targets.T)] != values
    moved = np.flatnonzero(missing)
    places, labels = warped.reshape(-1), values[moved]
    for near in _near(targets[moved], warped.shape):
        found = missing[moved] & (places[near] == labels)
        anchors[moved[found]] = np.stack(np.unravel_index(near[found], warped.shape), axis=1)
        missing[moved[found]] = False
    return anchors, missing


def _join(warped: np.ndarray, ends: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Join voxels by lines, unless a path of their label joins them nearby; ``warped`` is changed in place.

    Args:
        ends: two voxels with the same label, (K, 2, d).
        values: their labels, (K,).

    Returns:
        The voxels of other structures through which the lines go, flattened.
    """
    lengths = np.abs(ends[:, 0] - ends[:, 1]).max(axis=1)
    lost = [np.zeros(0, np.int64)]
    for length in np.unique(lengths):
        some, labels = ends[lengths == length], values[lengths == length]
        broken = np.zeros(len(some), bool)
        for voxels in _lines(some, length):
            broken |= warped[voxels] != labels
        some, labels = some[broken], labels[broken]
        if length <= _WIDEST:
            apart = ~_connected(warped, some, labels, length)
            some, labels = some[apart], labels[apart]
        for voxels in _lines(some, length):
            others = (warped[voxels] != 0) & (warped[voxels] != labels)
            lost.append(np.ravel_multi_index(voxels, warped.shape)[others])
            warped[voxels] = labels
    return np.concatenate(lost)


def _lines(ends: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the indices of the voxels between the ends (K, 2, d) of lines, one voxel of each line after the other."""
    for step in range(1, length):
        voxels = np.rint(ends[:, 0] + (ends[:, 1] - ends[:, 0]) * (step / length)).astype(np.int64)
        yield tuple(voxels.T)


def _connected(warped: np.ndarray, ends: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Return whether a path of the label joins the ends of each pair, within a small window around them, (K,).

    Args:
        length: largest distance of the ends along an axis, the same for all pairs.
    """
    left = np.arange(len(ends))
    if length == 2:
        # Most pairs have a neighbor in common.
        for offset in _neighborhood(warped.ndim):
            between = ends[left, 0] + offset
            common = np.abs(between - ends[left, 1]).max(axis=1) <= 1
            common[common] = _within(between[common], warped.shape)
            common[common] = warped[tuple(between[common].T)] == values[left[common]]
            left = left[~common]
    result = np.ones(len(ends), bool)
    half = (length + 1) // 2 + 1
    for part in np.array_split(left, 1 + len(left) * (2 * half + 1) ** warped.ndim // _CHUNK):
        result[part] = _connected_in_window(warped, ends[part], values[part], half)
    return result


def _connected_in_window(warped: np.ndarray, ends: np.ndarray, values: np.ndarray, half: int) -> np.ndarray:
    """Do the same within windows that reach ``half`` voxels from the middle of each pair."""
    # The pairs are the last axis, so that each operation runs over all of them.
    middle, count = ends.sum(axis=1) // 2, len(ends)
    path, flat = np.ones([1] * warped.ndim + [count], bool), np.zeros([1] * warped.ndim + [count], np.int64)
    for axis, side in enumerate(warped.shape):
        window = np.arange(-half, half + 1)[:, None] + middle[:, axis]
        window = window.reshape([2 * half + 1 if a == axis else 1 for a in range(warped.ndim)] + [count])
        path = path & (window >= 0) & (window < side)
        flat = flat * side + window.clip(0, side - 1)
    path &= warped.reshape(-1).take(flat) == values
    first, second = ((*(ends[:, k] - middle + half).T, np.arange(count)) for k in (0, 1))
    reached = np.zeros_like(path)
    reached[first] = True
    before, now = 0, count
    while now > before:
        for axis in range(warped.ndim):
            lines = np.moveaxis(reached, axis, 0)
            near = lines.copy()
            near[1:] |= lines[:-1]
            near[:-1] |= lines[1:]
            reached = np.moveaxis(near, 0, axis)
        reached &= path
        before, now = now, int(np.count_nonzero(reached))
    result: np.ndarray = reached[second]
    return result
