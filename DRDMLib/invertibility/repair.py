"""The smallest local change that makes a field provably invertible.

Where cells fail the certificate, the displacement around them is relaxed: it flows towards the mean of its neighbors
(explicit heat flow), at full strength at the failing cells and fading smoothly to nothing a few nodes away. Cells are
judged anew after each round, so that nothing is smoothed longer than needed; what goes on failing is smoothed in a
wider neighborhood. The outermost nodes keep their values, zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from ..errors import DRDMError
from ..spatial.field_grid import Block, FieldGrid, coincide, extended, positions
from .certificate import STRIDES, failing_cells

# What determinants are brought above, in every point: a share of the volume that must be left.
MARGIN = 0.01
ROUNDS = 80
# Rounds after which what still fails is also made weaker.
_PATIENCE = 40
_RADIUS, _GROWTH = 1.5, 0.35
# Failing cells less than this many nodes apart are relaxed together.
_TILE = 8


class Repair(NamedTuple):
    """What a repair changed: length of the difference over all nodes of the field, millimeters, and rounds taken."""

    mean_mm: float = 0.0
    max_mm: float = 0.0
    rounds: int = 0


NOT_REPAIRED = Repair()


def repair(field: FieldGrid, reference: sitk.Image) -> Repair:
    """Change ``field.vectors`` in place until it is certified, and so are its samples on the grid of ``reference``.

    Raises:
        DRDMError: not reached in ``ROUNDS`` rounds, or not finite.
    """
    vectors = field.vectors
    inside = positions(field, reference)
    assert inside is not None, "the field covers the image it was made for"
    shape = vectors.shape[:-1]
    original: np.ndarray | None = None
    touched = np.zeros(shape, bool)
    # Nodes changed since the field, or its samples, were last found good; at first everything is new.
    stale: list[np.ndarray | None] = [None, None]
    for number in range(ROUNDS):
        cells = failing_cells(field, MARGIN, stale[0])
        stale[0] = np.zeros(shape, bool)
        if not len(cells) and not coincide(inside):
            cells = _failing_samples(field, inside, stale[1])
            stale[1] = np.zeros(shape, bool)
        if not len(cells):
            return _difference(vectors, original, touched, number)
        if original is None:
            original = vectors.astype(np.float32)
        for where in _relax(vectors, cells, number):
            for marks in (touched, *stale):
                if marks is not None:
                    marks[where] = True
    raise DRDMError("This deformation cannot be made invertible; choose a lower level or another seed.")


def _failing_samples(field: FieldGrid, inside: tuple[np.ndarray, ...], stale: np.ndarray | None) -> np.ndarray:
    """Cells of the field in which its samples on an image's grid fail."""
    for stride in STRIDES:
        grid = extended(field, inside, stride)
        cells = failing_cells(grid, MARGIN, stale)
        if not len(cells):
            break
    return grid.cells_in_field(cells)


def _relax(vectors: np.ndarray, cells: np.ndarray, number: int) -> Iterator[Block]:
    """One round; yields the blocks that were changed."""
    radius = _RADIUS + _GROWTH * number
    pad = int(np.ceil(radius)) + 1
    for group in _groups(cells, vectors.shape[:-1]):
        low = np.maximum(group.min(axis=0) - pad, 0)
        high = np.minimum(group.max(axis=0) + 2 + pad, vectors.shape[:-1])
        where = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        weight = _bump(group - low, tuple(high - low), radius)
        vectors[where] = _flow(vectors[where], weight, 2 + number // 4)
        if number >= _PATIENCE:
            vectors[where] *= 1 - 0.1 * weight[..., None]
        yield where


def _groups(cells: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """``cells`` in groups that lie apart."""
    tiles = tuple((cells // _TILE).T)
    marks = np.zeros([-(-n // _TILE) for n in shape], bool)
    marks[tiles] = True
    around = np.ones((3,) * len(shape))
    names = ndimage.label(ndimage.binary_dilation(marks, around), around)[0][tiles]
    for name in np.unique(names):
        yield cells[names == name]


def _bump(cells: np.ndarray, shape: tuple[int, ...], radius: float) -> np.ndarray:
    """1 at the corners of ``cells``, falling smoothly to 0 at ``radius`` nodes from them and on the outermost nodes."""
    away = np.ones(shape, bool)
    for corner in np.ndindex(*[2] * len(shape)):
        away[tuple((cells + corner).T)] = False
    near = np.clip(1 - ndimage.distance_transform_edt(away) / radius, 0, 1)
    weight = near**2 * (3 - 2 * near)
    framed = np.zeros(shape)
    inner = (slice(1, -1),) * len(shape)
    framed[inner] = weight[inner]
    return framed


def _flow(vectors: np.ndarray, weight: np.ndarray, times: int) -> np.ndarray:
    """Heat flow of (*S, d) values: each time towards the mean of the neighbors by 0.8 ``weight``."""
    u, share = torch.from_numpy(vectors.copy()), torch.from_numpy(0.8 * weight)[..., None]
    d = weight.ndim
    inner = [slice(1, -1)] * d
    for _ in range(times):
        mean = torch.zeros_like(u[tuple(inner)])
        for axis in range(d):
            for side in (slice(0, -2), slice(2, None)):
                at = list(inner)
                at[axis] = side
                mean += u[tuple(at)] / (2 * d)
        u[tuple(inner)] += share[tuple(inner)] * (mean - u[tuple(inner)])
    return u.numpy()


def _difference(vectors: np.ndarray, original: np.ndarray | None, touched: np.ndarray, rounds: int) -> Repair:
    if original is None:
        return NOT_REPAIRED
    length = np.linalg.norm(vectors[touched] - original[touched], axis=-1)
    return Repair(float(length.sum() / touched.size), float(length.max(initial=0.0)), rounds)
