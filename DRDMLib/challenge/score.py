"""Measure the result of a registration against the truth, beside no registration and what interpolation allows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import ImageError
from ..invertibility.metrics import measure
from ..spatial.coordinates import to_index, to_points
from .cases import COUNTS
from .conventions import LooksLike, apply, recognize
from .truth import Truth

# At more voxels than this, only every n-th one is measured.
_MOST_VOXELS = 2**22
# Points that are tried for other conventions, and for the floor.
_SAMPLE = 1500
_WORST = 10


@dataclass(frozen=True)
class Figures:
    """How far a transform is from the truth. Errors are lengths in the moving image, millimeters.

    Attributes:
        body: mean, median, 95th percentile and maximum over the voxels that count.
        landmarks: the same at the landmarks; empty without any.
        labels: for each value, ``dice`` and ``hausdorff95`` (millimeters; ``None`` where one label is empty).
    """

    body: dict[str, float]
    landmarks: dict[str, float]
    labels: dict[int, dict[str, float | None]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert the figures to a dictionary for a report."""
        return {"body": self.body, "landmarks": self.landmarks, "labels": {str(k): v for k, v in self.labels.items()}}


@dataclass(frozen=True)
class Score:
    """The score of a result.

    Attributes:
        result, before, floor: the result; no registration; what the truth itself loses when it is saved as a field at
            the voxels of the fixed image and interpolated between them.
        folded_fraction, min_jacobian: folds of the result, by central differences on the grid of the fixed image.
        looks_like: another convention that fits much better.
        inverse_consistency: mean, median, ... distance after going to the moving image and back; empty without a
            backward transform.
        worst: places with the largest errors: point on the fixed image (LPS), error before and after.
        landmark_errors, landmark_before: of each landmark, millimeters.
        grid: the voxels that were measured: the fixed image, or every n-th voxel of it.
        errors, before_errors: at these voxels, in array order; NaN where they do not count.
        step: n.
    """

    result: Figures
    before: Figures
    floor: Figures
    folded_fraction: float
    min_jacobian: float
    looks_like: LooksLike | None
    inverse_consistency: dict[str, float]
    worst: list[dict[str, Any]]
    landmark_errors: np.ndarray
    landmark_before: np.ndarray
    grid: sitk.Image
    errors: np.ndarray
    before_errors: np.ndarray
    step: int


def score(
    result: sitk.Transform, truth: Truth, convention: str = "mm", backward: sitk.Transform | None = None
) -> Score:
    """Measure a result.

    Args:
        result: from points of the fixed to points of the moving image.
        convention: with which it was read; only for the search for another one.
        backward: from points of the moving to points of the fixed image, to measure inverse consistency.

    Raises:
        ImageError: nothing of the case counts, or the result has NaN or infinite values.
    """
    step = max(1, int(np.ceil((truth.fixed.GetNumberOfPixels() / _MOST_VOXELS) ** (1 / truth.fixed.GetDimension()))))
    every = tuple(slice(None, None, step if n > 2 * step else 1) for n in truth.fixed.GetSize())
    grid = truth.fixed[every] if step > 1 else truth.fixed
    counts = sitk.GetArrayFromImage(truth.counted[every] if step > 1 else truth.counted) == COUNTS
    if not counts.any():
        raise ImageError(
            f"Nothing of the case '{truth.record['name']}' counts, because all of its body comes from outside of the "
            "moving image; make an easier case."
        )
    moved, wanted = _displacements(result, grid), _displacements(truth.transform, grid)
    if not np.isfinite(moved).all():
        raise ImageError("The result has NaN or infinite values at voxels of the fixed image; compute it again.")
    errors = np.where(counts, np.linalg.norm(moved - wanted, axis=-1), np.nan)
    before = np.where(counts, np.linalg.norm(wanted, axis=-1), np.nan)
    at_landmarks = np.linalg.norm(apply(result, truth.on_fixed) - truth.on_moving, axis=1)
    before_landmarks = np.linalg.norm(truth.on_fixed - truth.on_moving, axis=1)
    points = _sample(grid, counts)
    metrics = measure(grid, lambda start, stop: moved[start:stop].astype(np.float32))
    there_and_back: dict[str, float] = {}
    if backward is not None:
        there_and_back = summary(np.linalg.norm(apply(backward, apply(result, points)) - points, axis=1))
    identity = sitk.Transform(grid.GetDimension(), sitk.sitkIdentity)
    return Score(
        Figures(summary(errors[counts]), summary(at_landmarks), label_figures(result, truth)),
        Figures(summary(before[counts]), summary(before_landmarks), label_figures(identity, truth)),
        Figures(
            summary(interpolation_errors(truth.transform, _between(points, truth.fixed), truth.fixed)),
            summary(interpolation_errors(truth.transform, truth.on_fixed, truth.fixed)),
            label_figures(truth.transform, truth),
        ),
        metrics.folded_fraction,
        metrics.min_jacobian,
        recognize(result, truth.transform, points, truth.fixed, convention),
        there_and_back,
        _worst_places(errors, before, grid),
        at_landmarks,
        before_landmarks,
        grid,
        errors,
        before,
        step,
    )


def summary(values: np.ndarray) -> dict[str, float]:
    """Return mean, median, 95th percentile and maximum; nothing for no values."""
    if not values.size:
        return {}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _displacements(transform: sitk.Transform, grid: sitk.Image) -> np.ndarray:
    """Return the displacements at the voxels of a grid: (*S, d), array order, LPS millimeters."""
    return sitk.GetArrayFromImage(
        sitk.TransformToDisplacementField(
            transform,
            sitk.sitkVectorFloat64,
            grid.GetSize(),
            grid.GetOrigin(),
            grid.GetSpacing(),
            grid.GetDirection(),
        )
    )


def _sample(grid: sitk.Image, counts: np.ndarray) -> np.ndarray:
    """Choose some of the voxels that count, and return their centers (K, d)."""
    index = np.flatnonzero(counts)
    if len(index) > _SAMPLE:
        index = np.sort(np.random.default_rng(0).choice(index, _SAMPLE, replace=False))
    return to_points(np.stack(np.unravel_index(index, counts.shape), axis=1)[:, ::-1].astype(float), grid)


def _between(points: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """Move points to the corners of their voxels, the farthest from the centers, but not out of the grid."""
    index = to_index(points, grid)
    return to_points(np.minimum(index + 0.5, np.asarray(grid.GetSize()) - 1), grid)


def interpolation_errors(truth: sitk.Transform, points: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """Return what is lost at points (K, d) when the truth is sampled at the voxels of a grid: (K,), millimeters."""
    if not len(points):
        return np.zeros(0)
    last = np.maximum(np.asarray(grid.GetSize()) - 2, 0)
    index = to_index(points, grid)
    low = np.clip(np.floor(index), 0, last)
    part = np.clip(index - low, 0, 1)
    displaced = np.zeros_like(points)
    for bits in itertools.product((0, 1), repeat=points.shape[1]):
        weight = np.where(bits, part, 1 - part).prod(axis=1)
        nodes = to_points(low + bits, grid)
        displaced += weight[:, None] * (apply(truth, nodes) - nodes)
    result: np.ndarray = np.linalg.norm(points + displaced - apply(truth, points), axis=1)
    return result


def label_figures(transform: sitk.Transform, truth: Truth) -> dict[int, dict[str, float | None]]:
    """Compare the moving label, resampled with a transform, with the fixed label, where the image counts."""
    if truth.fixed_label is None or truth.moving_label is None:
        return {}
    moved = sitk.GetArrayFromImage(
        sitk.Resample(truth.moving_label, truth.fixed, transform, sitk.sitkNearestNeighbor, 0)
    )
    fixed = sitk.GetArrayFromImage(truth.fixed_label)
    # What the truth reads from outside of the moving image is no fault of the result.
    known = sitk.GetArrayViewFromImage(truth.counted) <= COUNTS
    spacing = truth.fixed.GetSpacing()[::-1]
    return {
        int(value): _overlap((moved == value) & known, (fixed == value) & known, spacing)
        for value in np.union1d(np.unique(fixed), np.unique(sitk.GetArrayViewFromImage(truth.moving_label)))
        if value != 0
    }


def _overlap(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float | None]:
    total = int(a.sum()) + int(b.sum())
    dice = 2 * int((a & b).sum()) / total if total else None
    if not a.any() or not b.any():
        return {"dice": dice, "hausdorff95": None}
    box = ndimage.find_objects((a | b).astype(np.int8))[0]
    # One voxel around it, so that surfaces at the ends of the box are surfaces.
    surfaces = [part & ~ndimage.binary_erosion(part) for part in (np.pad(x[box], 1) for x in (a, b))]
    distances = [ndimage.distance_transform_edt(~surfaces[1 - k], sampling=spacing)[surfaces[k]] for k in (0, 1)]
    return {"dice": dice, "hausdorff95": float(max(np.percentile(part, 95) for part in distances))}


def _worst_places(errors: np.ndarray, before: np.ndarray, grid: sitk.Image) -> list[dict[str, Any]]:
    """List places with large errors, the largest first, at a distance from each other."""
    filled = np.nan_to_num(errors, nan=-1.0)
    size = np.asarray(grid.GetSize()) * np.asarray(grid.GetSpacing())
    distance = size.max() / 10
    candidates = np.flatnonzero(filled >= np.percentile(filled[filled >= 0], 80))
    candidates = candidates[np.argsort(-filled.ravel()[candidates], kind="stable")]
    index = np.stack(np.unravel_index(candidates, errors.shape), axis=1)
    points = to_points(index[:, ::-1].astype(float), grid)
    worst: list[dict[str, Any]] = []
    left = np.ones(len(points), bool)
    while left.any() and len(worst) < _WORST:
        k = int(np.argmax(left))
        place = tuple(index[k])
        worst.append(
            {
                "lps": [round(float(x), 3) for x in points[k]],
                "index": [int(i) for i in place[::-1]],
                "error_mm": float(errors[place]),
                "before_mm": float(before[place]),
            }
        )
        left &= np.linalg.norm(points - points[k], axis=1) >= distance
    return worst
