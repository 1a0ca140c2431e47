"""Keep thin structures of a label map, such as vessels, sheets and single voxels, when the label map is warped.

Resampling with the nearest voxel loses what falls between the sampled positions. The map is a homeomorphism, so a
structure in one piece has an image in one piece. Voxels that are missing near their new position are therefore
restored, and neighbors that have come apart are joined by a line of voxels.

Voxels are given by their indices, (K, d), array order, or by their positions in the flattened array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from .coordinates import to_index, to_points

# Wider gaps, in voxels, are joined without looking for a detour.
_WIDEST = 6
# Largest number of voxels that are processed at the same time; limits the memory.
_CHUNK = 2**20
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
            found = [np.zeros((0, 2), np.int64)]
            for pairs in self._neighbors(axes, chosen):
                gaps = np.abs(anchors[pairs[:, 0]] - anchors[pairs[:, 1]]).max(axis=1)
                found.append(pairs[(gaps > 1) & ~missing[pairs].any(axis=1)])
            apart = np.concatenate(found)
            for part in np.array_split(apart, 1 + len(apart) // _CHUNK):
                lost.append(_join(self.warped, anchors[part], self.values[part[:, 0]]))
        return np.concatenate(lost)

    def _neighbors(self, axes: int, chosen: np.ndarray | None) -> Iterator[np.ndarray]:
        """Yield pairs of neighbors with equal labels that differ along ``axes`` axes; the first is a thin voxel.

        They are given by their numbers among all voxels, (P, 2).
        """
        numbers = np.arange(len(self.thin)) if chosen is None else chosen
        for start in range(0, len(numbers), _CHUNK):
            part = numbers[start : start + _CHUNK]
            own, values = self._flat_thin[part], self.values[part]
            for near in _near(self.thin[part], self.shape, axes):
                kinds = self._kinds[near]
                equal = self.source[near] == values
                # Where all are chosen, two thin voxels are a pair only once.
                thin = equal & (kinds == _THIN) & ((near > own) if chosen is None else (near != own))
                yield np.stack([part[thin], np.searchsorted(self._flat_thin, near[thin])], axis=1)
                contact = equal & (kinds == _CONTACT)
                second = np.searchsorted(self._flat_contacts, near[contact]) + len(self.thin)
                yield np.stack([part[contact], second], axis=1)

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
            yield sum((terms[axis][step + 1] for axis, step in enumerate(offset)), np.zeros((), np.int64))


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
    inner = label != 0
    for axis in range(label.ndim):
        lines, marks = np.moveaxis(label, axis, 0), np.moveaxis(inner, axis, 0)
        marks[1:] &= lines[1:] == lines[:-1]
        marks[:-1] &= lines[:-1] == lines[1:]
    found = []
    step = max(1, _CHUNK // max(1, label[0].size))
    for start in range(0, len(label), step):
        stop = min(start + step, len(label))
        rows = slice(max(start - 1, 0), min(stop + 1, len(label)))
        # One layer more on each side; outside there is neither a label nor an inner voxel.
        more = [(rows.start - start + 1, stop + 1 - rows.stop)] + [(1, 1)] * (label.ndim - 1)
        labels, marks = np.pad(label[rows], more), np.pad(inner[rows], more)
        own = label[start:stop]
        thin = (own != 0) & ~inner[start:stop]
        if not thin.any():
            continue
        for offset in _neighborhood(label.ndim)[1:] + 1:
            near = tuple(slice(o, o + n) for o, n in zip(offset.tolist(), own.shape, strict=True))
            thin &= ~(marks[near] & (labels[near] == own))
        voxels = np.argwhere(thin)
        voxels[:, 0] += start
        found.append(voxels)
    return np.concatenate([np.zeros((0, label.ndim), np.int64), *found])


def _contacts(source: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """Find the neighbors of thin voxels that have the same label but are not thin: indices (K, d), in order."""
    labels, marks = source.reshape(-1), np.zeros(source.size, bool)
    for start in range(0, len(thin), _CHUNK):
        part = thin[start : start + _CHUNK]
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
    for start in range(0, len(voxels), _CHUNK):
        part = slice(start, start + _CHUNK)
        points = to_points(voxels[part, ::-1], label)
        origins, found = _inverse(points, transform, 0.5 * min(label.GetSpacing()))
        targets[part] = np.rint(to_index(origins, reference))[:, ::-1]
        inside[part] = found & _within(targets[part], reference.GetSize()[::-1])
    return targets, inside


def _old_positions(
    voxels: np.ndarray, label: sitk.Image, reference: sitk.Image, transform: sitk.Transform
) -> np.ndarray:
    """Find the nearest voxels (K, d) of ``label`` at the positions that voxels of the warped label map show."""
    points = _mapping(transform)(to_points(voxels[:, ::-1], reference))
    index = np.rint(to_index(points, label))[:, ::-1].clip(0, np.asarray(label.GetSize()[::-1]) - 1)
    result: np.ndarray = index.astype(np.int64)
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
    middle = ends.sum(axis=1) // 2
    path = np.ones((len(ends), *[1] * warped.ndim), bool)
    index = []
    for axis, side in enumerate(warped.shape):
        window = middle[:, axis, None] + np.arange(-half, half + 1)
        window = window.reshape(len(ends), *[2 * half + 1 if a == axis else 1 for a in range(warped.ndim)])
        path = path & (window >= 0) & (window < side)
        index.append(window.clip(0, side - 1))
    path &= warped[tuple(index)] == values.reshape(-1, *[1] * warped.ndim)
    first, second = ((np.arange(len(ends)), *(ends[:, k] - middle + half).T) for k in (0, 1))
    reached = np.zeros_like(path)
    reached[first] = True
    before, count = 0, len(ends)
    while count > before:
        for axis in range(1, reached.ndim):
            lines = np.moveaxis(reached, axis, 0)
            near = lines.copy()
            near[1:] |= lines[:-1]
            near[:-1] |= lines[1:]
            reached = np.moveaxis(near, 0, axis)
        reached &= path
        before, count = count, int(reached.sum())
    result: np.ndarray = reached[second]
    return result


def _mapping(transform: sitk.Transform) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function that applies a transform to points (K, d); for a displacement field it is vectorized."""
    concrete = transform.Downcast()
    if not isinstance(concrete, sitk.DisplacementFieldTransform):
        return lambda points: np.asarray([transform.TransformPoint(p) for p in points.tolist()]).reshape(points.shape)
    field = concrete.GetDisplacementField()
    vectors = sitk.GetArrayViewFromImage(field)
    sides = np.asarray(vectors.shape[:-1])

    def moved(points: np.ndarray) -> np.ndarray:
        index = to_index(points, field)[:, ::-1]
        # As in SimpleITK: linear between nodes, constant for half a voxel past the outermost nodes, zero beyond.
        inside = ((index >= -0.5) & (index < sides - 0.5)).all(axis=1)
        parts = [map_coordinates(vectors[..., k], index.T, order=1, mode="nearest") for k in range(points.shape[1])]
        result: np.ndarray = points + np.where(inside, parts, 0.0).T
        return result

    return moved


def _inverse(
    points: np.ndarray, transform: sitk.Transform, tolerance: float, rounds: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Find the positions that the transform maps to ``points``, by damped fixed-point iteration.

    It converges where space is stretched up to fourfold.

    Args:
        points: (K, d), LPS, millimeters.
        tolerance: largest allowed distance, millimeters.
        rounds: largest number of iterations.

    Returns:
        The positions, (K, d), and whether each was found to within the tolerance, (K,).
    """
    moved, guess = _mapping(transform), points.copy()
    found = np.zeros(len(points), bool)
    for _ in range(rounds):
        remaining = np.flatnonzero(~found)
        if len(remaining) == 0:
            break
        residual = points[remaining] - moved(guess[remaining])
        found[remaining] = np.linalg.norm(residual, axis=1) < tolerance
        guess[remaining] += 0.5 * residual
    return guess, found
