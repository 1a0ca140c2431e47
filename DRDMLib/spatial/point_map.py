"""Map many points with a transform, and back.

Points are given by their coordinates, (d, K), so that each operation reads and writes memory in order. Give at most
``CHUNK`` points at once: then all that is computed fits into the processor's cache.
"""

from __future__ import annotations

import itertools

import numpy as np
import SimpleITK as sitk

from .coordinates import index_to_physical

CHUNK = 2**14


class PointMap:
    """A transform of points.

    Of a displacement field the values are those of ITK: linear between the nodes, constant for half a voxel past the
    outermost nodes, zero beyond.

    Args:
        transform: any transform of SimpleITK; displacement fields are fast.
    """

    def __init__(self, transform: sitk.Transform) -> None:
        concrete = transform.Downcast()
        self._transform = transform
        self._field = None
        if isinstance(concrete, sitk.DisplacementFieldTransform):
            # The image owns the memory of the array.
            self._field = concrete.GetDisplacementField()
            vectors = sitk.GetArrayViewFromImage(self._field)
            self._shape = vectors.shape[:-1]
            self._values = vectors.reshape(-1)
            self._origin = np.asarray(self._field.GetOrigin())
            self._to_index = np.linalg.inv(index_to_physical(self._field))
            self._along_axes = not (self._to_index - np.diag(np.diag(self._to_index))).any()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points: (d, K) -> (d, K), LPS, millimeters."""
        if self._field is None:
            one_by_one = [self._transform.TransformPoint(point) for point in points.T.tolist()]
            mapped: np.ndarray = np.asarray(one_by_one).reshape(-1, len(points)).T
            return mapped
        index = self._index(points)
        inside = np.ones(points.shape[1], bool)
        for along, side in zip(index, self._shape, strict=True):
            inside &= along >= -0.5
            inside &= along < side - 0.5
        moved = self._interpolated(index)
        if not inside.all():
            moved[:, ~inside] = 0
        moved += points
        return moved

    def inverse(self, points: np.ndarray, tolerance: float, rounds: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """Find the positions that are mapped to given points, by damped fixed-point iteration.

        It converges where space is stretched up to fourfold.

        Args:
            points: (d, K), LPS, millimeters.
            tolerance: largest allowed distance, millimeters.
            rounds: largest number of iterations.

        Returns:
            The positions, (d, K), and whether each was found to within the tolerance, (K,).
        """
        guess, found = points.copy(), np.zeros(points.shape[1], bool)
        left, aim, near = np.arange(points.shape[1]), points, points.copy()
        for _ in range(rounds):
            if len(left) == 0:
                break
            residual = aim - self(near)
            lengths = residual[0] * residual[0]
            for component in residual[1:]:
                lengths += component * component
            good = np.sqrt(lengths, out=lengths) < tolerance
            residual *= 0.5
            near += residual
            if good.any():
                found[left[good]] = True
                guess[:, left[good]] = near[:, good]
                left, aim, near = left[~good], aim[:, ~good], near[:, ~good]
        guess[:, left] = near
        return guess, found

    def _index(self, points: np.ndarray) -> np.ndarray:
        """Convert points to positions in nodes of the field, (d, K), array order."""
        offsets = points - self._origin[:, None]
        if self._along_axes:
            offsets *= np.diag(self._to_index)[:, None]
            result: np.ndarray = offsets[::-1]
            return result
        if offsets.shape[1] == 1:
            # The product with a single point is computed, and rounded, in another way than that with several.
            return self._index(np.repeat(points, 2, axis=1))[:, :1]
        result = (np.ascontiguousarray(offsets.T) @ self._to_index.T)[:, ::-1].T
        return result

    def _interpolated(self, index: np.ndarray) -> np.ndarray:
        """Interpolate the field linearly, (d, K); as ``scipy.ndimage.map_coordinates``, to the bit."""
        d = len(index)
        first: np.ndarray = np.zeros(index.shape[1], np.int64)
        weights: list[tuple[np.ndarray, np.ndarray]] = []
        steps: list[int | np.ndarray] = []
        for axis, side in enumerate(self._shape):
            before = np.floor(index[axis])
            low = 1.0 - (index[axis] - before)
            weights.append((low, 1.0 - low))
            # Past the outermost nodes these are read twice.
            number = np.clip(before, -1, side - 1).astype(np.int64)
            twice = (number < 0) | (number == side - 1)
            first *= side
            first += np.maximum(number, 0, out=number)
            # Elements of the array from a node to the next one.
            stride = d * int(np.prod(self._shape[axis + 1 :], dtype=np.int64))
            steps.append(np.where(twice, 0, stride) if twice.any() else stride)
        first *= d
        result, values = np.empty_like(index), np.empty(index.shape[1])
        for number, corner in enumerate(itertools.product((0, 1), repeat=d)):
            start, place = 0, first
            for step, one in zip(steps, corner, strict=True):
                if one and isinstance(step, int):
                    start += step
                elif one:
                    place = place + step
            for k, total in enumerate(result):
                # Places that are not in the array do not occur; without the check they are read faster.
                self._values[start + k :].take(place, out=values, mode="clip")
                for weight, one in zip(weights, corner, strict=True):
                    values *= weight[one]
                if number:
                    total += values
                else:
                    total[:] = values
        return result
