"""Make a field provably invertible by small local changes.

Where cells fail the certificate, the displacements around them are relaxed: they flow towards the mean of their
neighbors (explicit heat flow), at full strength at the failing cells and fading smoothly to zero a few nodes away.
After each round the cells are tested again, so that nothing is smoothed longer than needed. Cells that still fail are
smoothed in a wider neighborhood. The outermost nodes keep their values, which are zero or those of an affine map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from ..errors import DRDMError
from ..spatial.borders import Face, hold_faces
from ..spatial.field_grid import Block, FieldGrid, positions
from .certificate import failing_cells, failing_samples, proven_at_once
from .device_bounds import DeviceBounds

# After a repair the Jacobian determinant is above this in every point: the map keeps at least this fraction of each
# volume.
MARGIN = 0.01
ROUNDS = 80
# After this many rounds, displacements around cells that still fail also come nearer to those outside of the field.
_PATIENCE = 40
_RADIUS, _GROWTH = 1.5, 0.35
# Failing cells less than this many nodes apart are relaxed together.
_TILE = 8


class Repair(NamedTuple):
    """What a repair changed.

    Attributes:
        mean_mm, max_mm: mean and largest change of the displacement over all nodes of the field, millimeters.
        rounds: number of rounds that were needed.
    """

    mean_mm: float = 0.0
    max_mm: float = 0.0
    rounds: int = 0


NOT_REPAIRED = Repair()


def repair(
    field: FieldGrid, reference: sitk.Image, faces: Sequence[Face] = (), device: torch.device | None = None
) -> Repair:
    """Change a field in place until it and its samples on the grid of ``reference`` are proven to be invertible.

    Args:
        field: its ``vectors`` are changed. It is zero on its border, or affine.
        reference: the image.
        faces: closed faces of the scan; displacements along their normals stay zero there.
        device: an NVIDIA GPU that shares the work; the claim is the same.

    Raises:
        DRDMError: ``ROUNDS`` rounds were not enough, or the field has NaN or infinite values.
    """
    vectors = field.vectors
    inside = positions(field, reference)
    assert inside is not None, "the field was made for this image"
    if device is None and proven_at_once(field, inside, MARGIN):
        return NOT_REPAIRED
    shape = vectors.shape[:-1]
    original: np.ndarray | None = None
    touched = np.zeros(shape, bool)
    # Nodes that were changed since the field (first entry) and its samples (second) were last tested; ``None`` for all.
    stale: list[np.ndarray | None] = [None, None]
    for number in range(ROUNDS):
        bounds = None if device is None else DeviceBounds(field, device)
        cells = failing_cells(field, MARGIN, stale[0], on_device=bounds)
        stale[0] = np.zeros(shape, bool)
        if not len(cells):
            grid, found = failing_samples(field, inside, MARGIN, stale[1], bounds)
            cells = grid.cells_in_field(found) if len(found) else found
            stale[1] = np.zeros(shape, bool)
        if not len(cells):
            return _difference(vectors, original, touched, number)
        if original is None:
            original = vectors.astype(np.float32)
        for where in _relax(field, cells, number):
            hold_faces(field, faces, where)
            for marks in (touched, *stale):
                if marks is not None:
                    marks[where] = True
    raise DRDMError("This deformation cannot be made invertible; choose a lower level or another seed.")


def _relax(field: FieldGrid, cells: np.ndarray, number: int) -> Iterator[Block]:
    """Do one round of relaxation, in place; yields the blocks that were changed."""
    vectors = field.vectors
    outside = field.border_map() if number >= _PATIENCE else None
    radius = _RADIUS + _GROWTH * number
    pad = int(np.ceil(radius)) + 1
    for group in _groups(cells, vectors.shape[:-1]):
        low = np.maximum(group.min(axis=0) - pad, 0)
        high = np.minimum(group.max(axis=0) + 2 + pad, vectors.shape[:-1])
        where = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        weight = _bump(group - low, tuple(high - low), radius)
        vectors[where] = _flow(vectors[where], weight, 2 + number // 4)
        if outside is not None:
            affine = field.displaced_by(outside, where)
            vectors[where] = (vectors[where] - affine) * (1 - 0.1 * weight[..., None]) + affine
        yield where


def _groups(cells: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Divide cells (K, d) into groups that do not touch each other."""
    tiles = tuple((cells // _TILE).T)
    marks = np.zeros([-(-n // _TILE) for n in shape], bool)
    marks[tiles] = True
    neighborhood = np.ones((3,) * len(shape))
    labels = ndimage.label(ndimage.binary_dilation(marks, neighborhood), neighborhood)[0][tiles]
    for label in np.unique(labels):
        yield cells[labels == label]


def _bump(cells: np.ndarray, shape: tuple[int, ...], radius: float) -> np.ndarray:
    """Make weights that are 1 at the corners of ``cells`` and fall smoothly to 0 at ``radius`` nodes from them.

    They are 0 on the outermost nodes.
    """
    outside = np.ones(shape, bool)
    for corner in np.ndindex(*[2] * len(shape)):
        outside[tuple((cells + corner).T)] = False
    nearness = np.clip(1 - ndimage.distance_transform_edt(outside) / radius, 0, 1)
    smooth = nearness**2 * (3 - 2 * nearness)
    weight = np.zeros(shape)
    inner = (slice(1, -1),) * len(shape)
    weight[inner] = smooth[inner]
    return weight


def _flow(vectors: np.ndarray, weight: np.ndarray, times: int) -> np.ndarray:
    """Apply heat flow to (*S, d) values: each time, move by 0.8 ``weight`` towards the mean of the neighbors."""
    u, rate = torch.from_numpy(vectors.copy()), torch.from_numpy(0.8 * weight)[..., None]
    d = weight.ndim
    inner = [slice(1, -1)] * d
    for _ in range(times):
        mean = torch.zeros_like(u[tuple(inner)])
        for axis in range(d):
            for side in (slice(0, -2), slice(2, None)):
                neighbor = list(inner)
                neighbor[axis] = side
                mean += u[tuple(neighbor)] / (2 * d)
        u[tuple(inner)] += rate[tuple(inner)] * (mean - u[tuple(inner)])
    return u.numpy()


def _difference(vectors: np.ndarray, original: np.ndarray | None, touched: np.ndarray, rounds: int) -> Repair:
    if original is None:
        return NOT_REPAIRED
    length = np.linalg.norm(vectors[touched] - original[touched], axis=-1)
    return Repair(float(length.sum() / touched.size), float(length.max(initial=0.0)), rounds)
