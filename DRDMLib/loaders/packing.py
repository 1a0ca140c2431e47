"""Store displacement fields in little space: cubic splines where they give the same map, and 16-bit integers.

A field of :func:`DRDMLib.deform` on an image that is finer than the model's grid has been interpolated between the
nodes of that grid with cubic splines, and falls to zero outside it, or with a pose to an affine map. Along such an axis
it is given by half as many coefficients. Every field is unpacked again and compared when it is packed; one that differs
by more than a hundredth of a voxel is stored in a finer way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import block_diag
from torch import Tensor

# Largest allowed change of a field, in voxels of its image; and of a line of nodes by its spline.
MOST_VOXELS = 0.01
_MOST_OF_SPLINE = 0.003
_MOST_OUTSIDE = 4
_LINES = 500
_LARGEST = 32767


@dataclass(frozen=True)
class SplineAxis:
    """The nodes along an axis as a cubic B-spline with a coefficient for every second node.

    Attributes:
        nodes: number of nodes.
        first: 0 if the first node of the spline lies on a knot, 1 if it lies between two.
        head, tail: nodes before and after the spline, as multiples of its first and its last node.
        kept: number of nodes before and after the spline that are stored as they are.
    """

    nodes: int
    first: int
    head: tuple[float, ...] = ()
    tail: tuple[float, ...] = ()
    kept: tuple[int, int] = (0, 0)

    @property
    def _inner(self) -> int:
        return self.nodes - len(self.head) - len(self.tail) - sum(self.kept)

    def matrix(self) -> np.ndarray:
        """Make the matrix from coefficients to nodes: (nodes, coefficients)."""
        inner = _spline_matrix(self._inner, self.first)
        if self.head or self.tail:
            inner = np.concatenate([np.outer(self.head, inner[0]), inner, np.outer(self.tail, inner[-1])])
        return self._with_kept(inner)

    def fit(self) -> np.ndarray:
        """Make the matrix from nodes to coefficients, (coefficients, nodes): least squares of the inner nodes."""
        inner = _inverse_of_spline(self._inner, self.first)
        return self._with_kept(np.pad(inner, ((0, 0), (len(self.head), len(self.tail)))))

    def _with_kept(self, inner: np.ndarray) -> np.ndarray:
        before, after = self.kept
        result: np.ndarray = block_diag(np.eye(before), inner, np.eye(after)) if before or after else inner
        return result


@lru_cache(maxsize=64)
def _spline_matrix(nodes: int, first: int) -> np.ndarray:
    position = (np.arange(nodes) + first) / 2
    knots = np.arange(-1, int(np.ceil(position[-1])) + 2)
    t = np.abs(position[:, None] - knots)
    values: np.ndarray = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0))
    return values


@lru_cache(maxsize=64)
def _inverse_of_spline(nodes: int, first: int) -> np.ndarray:
    return np.linalg.pinv(_spline_matrix(nodes, first))


def pack(vectors: Tensor, to_voxels: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """Store a field.

    Args:
        vectors: (3, X, Y, Z) float32, millimeters.
        to_voxels: (3, 3), from millimeters to voxels of the image.

    Returns:
        A description for :func:`unpack`, of plain values, and the bytes.
    """
    matrix = torch.as_tensor(to_voxels, dtype=torch.float32)
    limit = _MOST_OF_SPLINE / float(np.linalg.norm(to_voxels, 2))
    axes = [_find_spline(vectors.movedim(1 + k, -1), limit) for k in range(3)]
    plain: list[SplineAxis | None] = [None] * 3
    for chosen in (axes, plain) if any(axes) else (plain,):
        described, data = _quantized(vectors, chosen)
        error = (matrix @ (unpack(described, data) - vectors).flatten(1)).norm(dim=0).max()
        if float(error) <= MOST_VOXELS:
            return described, data
    return {"type": "float32", "shape": list(vectors.shape), "axes": plain}, vectors.numpy().tobytes()


def unpack(described: dict[str, Any], data: bytes | bytearray) -> Tensor:
    """Restore a field that :func:`pack` has stored: (3, X, Y, Z) float32."""
    values: Tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, described["type"]))
    values = values.view(described["shape"])
    if described["type"] == "int16":
        values = values.to(torch.float32) * described["scale"]
    for axis, one in enumerate(described["axes"], start=1):
        if one is not None:
            values = _along(torch.as_tensor(SplineAxis(**one).matrix(), dtype=torch.float32), values, axis)
    return values.contiguous()


def _quantized(vectors: Tensor, axes: Sequence[SplineAxis | None]) -> tuple[dict[str, Any], bytes]:
    values = vectors.to(torch.float64)
    for axis, one in enumerate(axes, start=1):
        if one is not None:
            values = _along(torch.from_numpy(one.fit()), values, axis)
    scale = float(values.abs().max()) / _LARGEST or 1.0
    numbers = (values / scale).round().to(torch.int16)
    described = {
        "type": "int16",
        "shape": list(numbers.shape),
        "scale": scale,
        "axes": [None if one is None else vars(one) for one in axes],
    }
    return described, numbers.contiguous().numpy().tobytes()


def _along(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """Multiply the lines of ``values`` along an axis by a matrix."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    # As products of contiguous matrices, which are several times faster than a general contraction.
    if not after:
        return values @ matrix.T
    lines = values.reshape(math.prod(before), values.shape[axis], math.prod(after))
    return (matrix @ lines).view(*before, len(matrix), *after)


def _find_spline(lines: Tensor, limit: float) -> SplineAxis | None:
    """Find the spline that gives the nodes along the last axis to within ``limit`` (millimeters), if there is one."""
    nodes = lines.shape[-1]
    if nodes < 8:
        return None
    every = lines.reshape(-1, nodes).to(torch.float64).numpy()
    some = every[:: max(1, len(every) // _LINES)]
    fading = (
        SplineAxis(nodes, first, _multiples(some, head, range(head)), _tail(some, tail))
        for head, tail, first in _possible(nodes)
    )
    # What falls to an affine map is no multiple of anything.
    keeping = (SplineAxis(nodes, first, kept=(head, tail)) for head, tail, first in _possible(nodes) if head or tail)
    for axis in itertools.chain(fading, keeping):
        if np.abs(some - some @ (axis.matrix() @ axis.fit()).T).max() <= limit:
            return axis
    return None


def _possible(nodes: int) -> Iterator[tuple[int, int, int]]:
    """List the numbers of nodes before and after a spline, and its phase; splines end on a knot if nodes follow."""
    counts = sorted((h + t, h, t) for h in range(_MOST_OUTSIDE) for t in range(_MOST_OUTSIDE))
    for _, head, tail in counts:
        for first in (0,) if head else (0, 1):
            if not tail or (nodes - head - tail - 1 + first) % 2 == 0:
                yield head, tail, first


def _tail(lines: np.ndarray, count: int) -> tuple[float, ...]:
    nodes = lines.shape[1]
    return _multiples(lines, nodes - count - 1, range(nodes - count, nodes))


def _multiples(lines: np.ndarray, edge: int, outside: range) -> tuple[float, ...]:
    """Compute the multiples of the node ``edge`` that are nearest to the nodes ``outside``."""
    own = lines[:, edge]
    square = float(own @ own)
    return tuple(float(own @ lines[:, k]) / square if square else 0.0 for k in outside)
