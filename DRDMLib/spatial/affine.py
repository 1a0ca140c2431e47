"""Affine maps of space: what a field follows beyond its grid where a pose moves the whole scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class AffineMap:
    """The map ``x -> matrix @ x + shift`` of points in LPS, millimeters.

    Attributes:
        matrix: (d, d).
        shift: (d,), millimeters.
    """

    matrix: np.ndarray
    shift: np.ndarray

    @staticmethod
    def identity(d: int) -> AffineMap:
        """The map of dimension ``d`` that moves nothing."""
        return AffineMap(np.eye(d), np.zeros(d))

    @staticmethod
    def of_slopes(value: np.ndarray, at: np.ndarray, slopes: np.ndarray, steps: np.ndarray) -> AffineMap:
        """Make the map with given displacements along the axes of a grid.

        Args:
            value: (d,), displacement at the point ``at`` (d,).
            slopes: (d, d), columns are the changes of the displacement from one node to the next along each axis.
            steps: (d, d), columns are the steps between the nodes, millimeters, LPS.
        """
        change = slopes @ np.linalg.inv(steps)
        return AffineMap(np.eye(len(value)) + change, value - change @ at)

    @property
    def moves_nothing(self) -> bool:
        """Whether it is the identity."""
        return not (self.matrix - np.eye(len(self.shift))).any() and not self.shift.any()

    @property
    def determinant(self) -> float:
        """By how much it changes volumes; not positive if it folds space."""
        return float(np.linalg.det(self.matrix))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points: (K, d) -> (K, d), LPS, millimeters."""
        result: np.ndarray = points @ self.matrix.T + self.shift
        return result

    def inverse(self) -> AffineMap:
        """The map back; the determinant must not be zero."""
        back = np.linalg.inv(self.matrix)
        return AffineMap(back, -back @ self.shift)

    def transform(self) -> sitk.AffineTransform:
        """The map as a transform of SimpleITK."""
        transform = sitk.AffineTransform(len(self.shift))
        transform.SetMatrix(self.matrix.ravel().tolist())
        transform.SetTranslation(self.shift.tolist())
        return transform

    def displacements(self, first: np.ndarray, steps: np.ndarray, index: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the displacements at the nodes of a grid: (*n, d), array order, millimeters.

        Args:
            first: (d,), position of the node with the index 0, LPS.
            steps: (d, d), columns are the steps between the nodes along the axes, array order.
            index: of the nodes along each axis, array order.
        """
        change = self.matrix - np.eye(len(self.shift))
        result: np.ndarray = change @ first + self.shift
        for axis in reversed(range(len(index))):
            along = index[axis][:, None] * (change @ steps[:, axis])
            # From the fastest axis on, so that few sums are over the whole grid.
            rest = (1,) * (result.ndim - 1)
            result = along.reshape(len(along), *rest, len(self.shift)) + result
        return result
