"""The spread of poses in a population: how far people differ in position, angle, size and stretch.

An affine map is represented by the logarithm of its matrix and its shift. The antisymmetric part of the logarithm is a
rotation, the symmetric part a stretch: its mean over the diagonal is the size. Maps are drawn from a normal
distribution of these numbers, without those that are far out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError

# Share of the variance that is drawn. A copy of a scan already has the pose of its own subject; the whole spread on top
# of it would double the variance.
DRAWN = 0.5
# The share of records that do not name it, and the largest one that is believed.
_DRAWN_BEFORE, _MOST_DRAWN = 0.5, 16.0
# Squared Mahalanobis distance beyond which a draw is repeated: 95 % of the draws are nearer, as within two standard
# deviations of a single number. One for each number of dimensions: 6 numbers in 2D, 12 in 3D.
_FARTHEST = {2: 12.59, 3: 21.03}
# Largest standard deviations, which keep a spread from a file from making anything wild: radians or natural logarithms,
# and fractions of the extent.
MOST_LOG, MOST_SHIFT = 0.3, 0.15
# Number of standard deviations beyond which a motion is not believed, and the standard deviation of a normal
# distribution as a multiple of its median absolute deviation.
_LARGE, _MAD = 2.5, 1.4826
# Smallest eigenvalue of a covariance whose numbers were rounded.
_LEAST_EIGENVALUE = -1e-6
# Added to the variances, so that a spread without some of the motions can be drawn from: a thousandth, squared.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class PoseSpread:
    """The spread of the poses of a population, about the center of the image.

    Attributes:
        covariance: (d*d + d, d*d + d), symmetric: of the logarithm of the matrix, row by row, and of the shift as a
            fraction of the longest side of the image. The axes are those of the image, in the order and with the signs
            of the patient's axes L, P, S; x, y in 2D. The mean is zero.
        scans: number of the scans that it was estimated from.
        drawn: share of the variance that is drawn.

    Raises:
        SettingError: it is not a covariance of such numbers.
    """

    covariance: tuple[tuple[float, ...], ...]
    scans: int = 0
    drawn: float = DRAWN

    def __post_init__(self) -> None:
        matrix = self.matrix
        good = matrix.shape in ((6, 6), (12, 12)) and bool(np.isfinite(matrix).all())
        good = good and bool(np.allclose(matrix, matrix.T)) and bool(np.linalg.eigvalsh(matrix)[0] > _LEAST_EIGENVALUE)
        if not good:
            raise SettingError("The spread of poses is not valid; use 'auto', or a number such as 1, for the pose.")

    @property
    def ndim(self) -> int:
        """Dimension of the images, 2 or 3."""
        return 2 if len(self.covariance) == 6 else 3

    @property
    def matrix(self) -> np.ndarray:
        """The covariance as an array."""
        try:
            return np.asarray(self.covariance, float)
        except ValueError:
            return np.zeros((0, 0))

    @cached_property
    def _factor(self) -> Tensor:
        covariance = torch.from_numpy(self.matrix)
        eye = torch.eye(len(covariance)).double()
        factor: Tensor = torch.linalg.cholesky(self.drawn * covariance + _LEAST_VARIANCE * eye)
        return factor

    @staticmethod
    def of(matrix: np.ndarray, scans: int = 0) -> PoseSpread:
        """Make a spread from an array (d*d + d, d*d + d), rounded to six digits."""
        rounded = [[float(f"{value:.6g}") for value in row] for row in (matrix + matrix.T) / 2]
        return PoseSpread(tuple(map(tuple, rounded)), scans)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of the covariance the rows up to its diagonal."""
        rows = [list(row[: k + 1]) for k, row in enumerate(self.covariance)]
        share = {} if self.drawn == _DRAWN_BEFORE else {"drawn": self.drawn}
        return {"covariance": rows, "scans": self.scans, **share}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> PoseSpread:
        """Read the values that :meth:`to_dict` returned.

        Raises:
            SettingError: they are not valid.
        """
        try:
            rows: list[list[float]] = values["covariance"]
            full = [[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
            share = float(values.get("drawn", _DRAWN_BEFORE))
            spread = PoseSpread(tuple(tuple(map(float, row)) for row in full), int(values["scans"]), share)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SettingError("The poses are not those of a run or a model; choose the unchanged file.") from error
        if not 0 <= share <= _MOST_DRAWN or (np.diag(spread.matrix) > (1.01 * _most(spread.ndim)) ** 2).any():
            raise SettingError("The poses are wilder than those of people; choose the unchanged file.")
        return spread

    def carried(self, rows: np.ndarray, columns: np.ndarray, shift: np.ndarray) -> PoseSpread:
        """Return the spread in other coordinates, also of fewer dimensions.

        Args:
            rows, columns: (m, d) and (d, m); the logarithm L becomes ``rows @ L @ columns``.
            shift: (m, d); the shift s becomes ``shift @ s``.
        """
        m, d = rows.shape
        change = np.zeros((m * m + m, d * d + d))
        change[: m * m, : d * d] = np.kron(rows, columns.T)
        change[m * m :, d * d :] = shift
        carried = change @ self.matrix @ change.T
        return PoseSpread(tuple(map(tuple, ((carried + carried.T) / 2).tolist())), self.scans, self.drawn)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an affine map, with the share ``drawn`` of the variance of the population.

        Args:
            generator: source of all random numbers.

        Returns:
            Matrix (d, d) and shift (d,), on the generator's device.
        """
        d = self.ndim
        while True:
            normal = torch.randn(d * d + d, generator=generator, device=generator.device).cpu().double()
            if float(normal.square().sum()) <= _FARTHEST[d]:
                break
        # In 64 bits on the CPU, so that devices and versions hardly differ.
        drawn = (self._factor * normal).sum(1)
        matrix = torch.linalg.matrix_exp(drawn[: d * d].view(d, d))
        return matrix.float().to(generator.device), drawn[d * d :].float().to(generator.device)

    def figures(self) -> dict[str, float]:
        """Return the typical sizes (root mean squares) of the motions, within the plane if there are no others.

        Returns:
            ``turn_degrees``: angle of the rotation. ``size_percent``: change of all lengths. ``stretch_percent``:
            change of a length beyond that. ``shift_percent``: of the longest side.
        """
        d, covariance = self.ndim, self.matrix
        logs, shifts = covariance[: d * d, : d * d], covariance[d * d :, d * d :]
        moved = np.diag(logs).reshape(d, d)
        axes = [axis for axis in range(d) if moved[axis].sum() + moved[:, axis].sum() > 0] or list(range(d))
        kept = [i * d + j for i in axes for j in axes]
        logs, d = logs[np.ix_(kept, kept)], len(axes)
        transpose = np.arange(d * d).reshape(d, d).T.ravel()
        eye, trace = np.eye(d * d), np.eye(d).ravel()
        turning = (eye - eye[transpose]) / 2
        size = np.outer(trace, trace) / d
        stretching = (eye + eye[transpose]) / 2 - size

        def length(change: np.ndarray) -> float:
            return math.sqrt(float(np.trace(change @ logs @ change.T)))

        return {
            # The matrix of an angle holds it twice, and that of a size once for each axis.
            "turn_degrees": math.degrees(length(turning) / math.sqrt(2)),
            "size_percent": 100 * length(size) / math.sqrt(d),
            "stretch_percent": 100 * length(stretching) / math.sqrt(d),
            "shift_percent": 100 * math.sqrt(float(np.trace(shifts))),
        }

    def words(self) -> str:
        """Describe the population, such as ``turns 6 degrees, size 8 %, stretch 5 %, shift 2 % (from 24 scans)``."""
        turn, size, stretch, shift = self.figures().values()
        moves = f"turns {turn:.0f} degrees, size {size:.0f} %, stretch {stretch:.0f} %, shift {shift:.0f} %"
        return f"{moves} (from {self.scans} scans)"


def spread_of(maps: np.ndarray, again: np.ndarray | None = None) -> PoseSpread:
    """Estimate the spread from the maps of several scans.

    The correlations of few scans are made smaller, the variances are not. Motions far beyond those of the other scans,
    which come from registrations that went wrong, count as large ones only.

    Args:
        maps: (N, d*d + d), the logarithm of the matrix, row by row, and the shift as a fraction of the longest side.
        again: the same from a second, independent measurement. Only what both agree on counts then, so that errors of
            measurement do not make the spread larger.
    """
    count, size = maps.shape
    d = 2 if size == 6 else 3
    first, second = (_held(values, d) for values in (maps, maps if again is None else again))
    covariance = first.T @ second / max(1, count - 1)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    covariance = (vectors * np.maximum(values, 0)) @ vectors.T
    covariance = _shrunk(covariance, d, size / (size + count))
    scale = np.minimum(1.0, _most(d) / np.sqrt(np.diag(covariance) + _LEAST_VARIANCE))
    return PoseSpread.of(covariance * np.outer(scale, scale), count)


def _held(maps: np.ndarray, d: int) -> np.ndarray:
    """Return maps without their mean, and with the motions of each held within ``_LARGE`` robust deviations."""
    motions = maps @ _motions(d).T
    motions = motions - np.median(motions, axis=0)
    most = _LARGE * _MAD * np.median(np.abs(motions), axis=0)
    motions = np.clip(motions, -most, most)
    result: np.ndarray = (motions - motions.mean(axis=0)) @ _motions(d)
    return result


def _most(d: int) -> np.ndarray:
    """Return the largest standard deviations of the numbers of a map."""
    return np.asarray([MOST_LOG] * (d * d) + [MOST_SHIFT] * d)


def _shrunk(covariance: np.ndarray, d: int, share: float) -> np.ndarray:
    """Mix a covariance with that of independent rotations, stretches and shifts of the same variances."""
    basis = _motions(d)
    apart = basis @ covariance @ basis.T
    mixed = (1 - share) * apart + share * np.diag(np.diag(apart))
    result: np.ndarray = basis.T @ mixed @ basis
    return result


def _motions(d: int) -> np.ndarray:
    """Return orthonormal motions: rotations, shears, the size, other stretches of the axes, shifts."""
    rows = []
    for i in range(d):
        for j in range(i + 1, d):
            for sign in (1.0, -1.0):
                log = np.zeros((d, d))
                log[i, j], log[j, i] = 1.0, sign
                rows.append(log.ravel() / math.sqrt(2))
    rows.append(np.eye(d).ravel() / math.sqrt(d))
    for k in range(1, d):
        values = np.asarray([1.0] * k + [-float(k)] + [0.0] * (d - 1 - k))
        rows.append(np.diag(values / np.linalg.norm(values)).ravel())
    basis = np.zeros((d * d + d, d * d + d))
    basis[: d * d, : d * d] = rows
    basis[d * d :, d * d :] = np.eye(d)
    return basis
