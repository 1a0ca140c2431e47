"""Lay one scan on another of the same kind, before they are registered: by a shift, and by a turn.

Operators choose how the slices of a stack, or a 2D image, lie in their plane, so that two hearts are often turned by 60
degrees. Volumes without thick slices lie as the patients do.
"""

from __future__ import annotations

import math
from operator import itemgetter

import numpy as np
import SimpleITK as sitk

from .coordinates import direction_matrix, thick_axes

# Semi-axes of the ellipsoid in the middle by which scans are laid on each other, and the largest shift; as shares of
# half the side.
_MIDDLE, _FARTHEST = 0.6, 0.25
# Angles by which a scan is turned, and those around the best one, degrees; the largest shift then; by how much a turned
# one must correlate better, and how much more for each degree.
_TURNS, _FINER = (0.0, *(float(turn) for turn in range(-150, 181, 30) if turn)), 15.0
_FARTHEST_TURNED, _TURNED, _EACH_DEGREE = 0.6, 0.02, 0.0005
# Along an axis of fewer voxels, such as across thick slices, all count as the middle.
_FEW = 22


def slice_plane(image: sitk.Image) -> tuple[int, int] | None:
    """Return the axes of the slices whose direction an operator chose; ``None`` for volumes without thick slices."""
    if image.GetDimension() == 2:
        return 0, 1
    thick = thick_axes(image.GetSpacing())
    if sum(thick) != 1:
        return None
    first, second = (axis for axis in range(3) if not thick[axis])
    return first, second


def laid_on(
    other: sitk.Image, image: sitk.Image, plane: tuple[int, int], turn: float | None
) -> tuple[sitk.Image, float]:
    """Resample a scan onto the grid of another so that the middle of both fits best; -1 where it shows nothing.

    Turn and shift are those of the largest normalized cross-correlation of the middle of ``image`` with the other scan.

    Args:
        plane: the axes of ``image`` within which the other scan is turned.
        turn: by what angle, degrees; ``None`` to find it.

    Returns:
        The scan, and the angle.
    """
    own = sitk.GetArrayFromImage(image).astype(np.float64)
    middle = middle_of(own.shape, _MIDDLE)

    def tried(turn: float) -> tuple[float, float, np.ndarray]:
        """Return how well the other scan fits, less what a turn costs; the turn, and the shift, millimeters."""
        laid = sitk.Resample(other, image, _placed(other, image, turn, plane), sitk.sitkLinear, -1.0)
        values = sitk.GetArrayFromImage(laid).astype(np.float64)
        # The middle of the body moves when a scan is turned about its own middle.
        reach = [int((_FARTHEST_TURNED if turn and n >= _FEW else _FARTHEST) * n / 2) for n in own.shape]
        shift, quality = _best_shift(own, middle, np.where(values < 0, 0, values), reach)
        vector = direction_matrix(image) @ (np.asarray(shift[::-1]) * np.asarray(image.GetSpacing()))
        return quality - (_TURNED + _EACH_DEGREE * abs(turn) if turn else 0.0), turn, vector

    found = [tried(one) for one in (_TURNS if turn is None else (turn,))]
    if turn is None:
        coarse = max(found, key=itemgetter(0))[1]
        found += [tried(math.remainder(coarse + more, 360)) for more in (-_FINER, _FINER)]
    # The first of equal ones.
    _, best, vector = max(found, key=itemgetter(0))
    return sitk.Resample(other, image, _placed(other, image, best, plane, vector), sitk.sitkLinear, -1.0), best


def _placed(
    other: sitk.Image, image: sitk.Image, turn: float, plane: tuple[int, int], shift: np.ndarray | float = 0.0
) -> sitk.Transform:
    """Return the map from points of one scan to those of another whose middle lies on its middle.

    Args:
        turn, plane: angle about the middle, degrees, and the axes of ``image`` within which it turns.
        shift: made before, millimeters, LPS.
    """
    d = image.GetDimension()
    centers = [
        np.asarray(one.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in one.GetSize()]))
        for one in (image, other)
    ]
    if turn == 0:
        return sitk.TranslationTransform(d, (centers[1] - centers[0] + shift).tolist())
    matrix = rotation(image, plane, turn)
    placed = sitk.AffineTransform(d)
    placed.SetMatrix(matrix.ravel().tolist())
    placed.SetCenter(centers[0].tolist())
    placed.SetTranslation((centers[1] - centers[0] + matrix @ np.broadcast_to(shift, d)).tolist())
    return placed


def rotation(image: sitk.Image, plane: tuple[int, int], degrees: float) -> np.ndarray:
    """Return the rotation (d, d) by an angle within two axes of an image, from the first to the second, LPS."""
    direction = direction_matrix(image)
    rotation = np.eye(len(direction))
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation[np.ix_(plane, plane)] = [[c, -s], [s, c]]
    result: np.ndarray = direction @ rotation @ direction.T
    return result


def _best_shift(own: np.ndarray, mask: np.ndarray, other: np.ndarray, reach: list[int]) -> tuple[list[int], float]:
    """Find the shift, in voxels, at which ``other`` correlates best with the masked part of ``own``, and how well."""
    # Here, because it takes longer to load than most of what every command needs.
    from scipy import signal

    padded = np.pad(other, [(r, r) for r in reach], mode="edge")
    weight = mask.astype(np.float64)
    count = weight.sum()
    template = np.where(mask, own - own[mask].mean(), 0)

    def correlate(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        result: np.ndarray = signal.correlate(values, kernel, mode="valid", method="fft")
        return result

    mean = correlate(padded, weight) / count
    variance = correlate(padded**2, weight) / count - mean**2
    quality = correlate(padded, template) / np.sqrt(np.maximum(variance, 1e-3 * padded.var() + 1e-12))
    best = np.unravel_index(int(np.argmax(quality)), quality.shape)
    correlation = float(quality[best]) / max(float(np.sqrt(count * np.square(template).sum())), 1e-12)
    return [int(k) - r for k, r in zip(best, reach, strict=True)], correlation


def middle_of(shape: tuple[int, ...], share: float) -> np.ndarray:
    """Return which voxels lie in the ellipsoid in the middle of a grid; over few slices it is a cylinder."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) if n >= _FEW else np.zeros(n) for n in shape], indexing="ij")
    inside: np.ndarray = np.sum(np.square(axes), axis=0) <= share**2
    return inside
