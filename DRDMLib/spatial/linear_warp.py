"""Warp an image with linear interpolation by a field that is sampled box by box, within the processor's cache.

A general resampler asks its transform for every voxel. Where the field's axes are parallel to the image's, its samples
cost a fraction of that, see :mod:`DRDMLib.spatial.field_samples`. The values are those of SimpleITK's resampler with
the same transform; positions differ by rounding, at most about 1e-12 voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import SimpleITK as sitk

from .coordinates import MovedIndex
from .field_grid import Block
from .field_samples import FieldSamples, boxes
from .mirror import reflect_outside

# Voxels of a box along each axis: small enough for the processor's cache, and large enough that several threads, of
# which only one at a time runs Python, hardly wait for each other.
SIDES = (8, 64, 96)
# Blocks of more voxels are computed by several threads, and by at most so many.
_MANY_VOXELS = 2**18
_MOST_THREADS = 8


class LinearWarp:
    """Reads an image where a sampled field points to; outside of the image, its mirror image is read.

    Args:
        image: any scalar image; its grid may be another one.
        reference: the grid of the result.
        samples: displacements at the voxels of ``reference``.
    """

    def __init__(self, image: sitk.Image, reference: sitk.Image, samples: FieldSamples) -> None:
        # Its own image, because another thread may read the voxels of ``image`` by a filter.
        self._image = sitk.Image(image)
        self._voxels = sitk.GetArrayViewFromImage(self._image)
        self._flat = np.ascontiguousarray(self._voxels).reshape(-1)
        self._samples = samples
        self._index = MovedIndex.of(reference, image)

    def values(self, where: Block, dtype: np.dtype) -> np.ndarray:
        """Compute the warped image in a block of voxels of the result.

        Args:
            where: one slice for each axis, array order.
            dtype: of the result, a floating-point type; computed in double precision.
        """
        result = np.empty([part.stop - part.start for part in where], dtype)

        def fill(box: Block) -> None:
            place = tuple(
                slice(part.start + one.start, part.start + one.stop) for part, one in zip(where, box, strict=True)
            )
            result[box] = self.at(self.positions(place))

        in_boxes(fill, result.shape)
        return result

    def positions(self, where: Block) -> list[np.ndarray]:
        """Find where the voxels of a block are read: the index along each axis, array order, not rounded.

        Positions outside of the image are reflected at its faces.
        """
        positions = self._index.at([part.start for part in where], self._samples.box(where, np.float64))
        for position, side in zip(positions, self._voxels.shape, strict=True):
            reflect_outside(position, side)
        return positions

    def at(self, positions: list[np.ndarray]) -> np.ndarray:
        """Read the image at positions, see :meth:`positions`; in double precision."""
        steps = np.asarray(self._voxels.strides) // self._voxels.itemsize
        # The corners around each position, and how far it is from the first one along each axis.
        corners, fractions = [np.zeros(1, np.intp)], []
        for position, side, step in zip(positions, self._voxels.shape, steps.tolist(), strict=True):
            fraction = np.clip(position, 0, side - 1)
            before = fraction.astype(np.intp)
            fraction -= before
            fractions.append(fraction)
            after = np.minimum(before + 1, side - 1)
            after *= step
            before *= step
            corners = [corner + one for corner, one in product(corners, (before, after))]
        values = [self._flat.take(corner).astype(np.float64) for corner in corners]
        for fraction in reversed(fractions):
            values = [_between(low, high, fraction) for low, high in zip(values[::2], values[1::2], strict=True)]
        return values[0]


def in_boxes(fill: Callable[[Block], None], shape: tuple[int, ...]) -> None:
    """Call a function for each box of an image, in as many threads as SimpleITK would use."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    if threads == 1 or math.prod(shape) < _MANY_VOXELS:
        for box in boxes(shape, SIDES):
            fill(box)
    else:
        with ThreadPoolExecutor(min(threads, _MOST_THREADS)) as pool:
            list(pool.map(fill, boxes(shape, SIDES)))


def _between(low: np.ndarray, high: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Interpolate; ``high`` is overwritten."""
    high -= low
    high *= fraction
    high += low
    return high
