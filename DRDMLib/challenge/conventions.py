"""Recognize results that are good but follow another convention: inverted, RAS, in voxels, or with axes swapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..spatial.coordinates import direction_matrix, index_to_physical, to_index, to_points

# An alternative is named only where its error is at most this part of that of the result.
_PART = 0.5
# With an error of less than this part of that of no registration, a result is right as it is.
_GOOD = 0.01


class LooksLike(NamedTuple):
    """A convention that fits the truth much better than the one that was assumed.

    Attributes:
        name: short name.
        text: a sentence for the user.
        mean_mm: mean error over the body with this convention.
    """

    name: str
    text: str
    mean_mm: float


_TEXTS = {
    "inverse": "This looks like the inverse: it maps points of the moving to points of the fixed image; export the "
    "transform of the other direction.",
    "RAS": "This looks like RAS coordinates; files of ITK are LPS, so change the signs of x and y.",
    "voxels": "These look like displacements in voxels; multiply by the spacing (and the directions of the axes), or "
    "use '--convention voxels'.",
    "voxels, reversed": "These look like displacements in voxels with the components in the order z, y, x; reverse "
    "them and multiply by the spacing (and the directions of the axes).",
    "millimeters": "These look like displacements in millimeters; leave out '--convention voxels'.",
    "swapped": "The components seem to be in the order z, y, x; reverse their order.",
    "axes": "These look like millimeters along the axes of the image; multiply by the directions of the axes.",
    "transposed": "The axes of the array seem to be z, y, x in place of x, y, z; transpose it.",
    "positions": "These look like positions and not displacements; subtract the position of each voxel.",
    "positions, RAS": "These look like positions in RAS and not displacements; convert them to LPS and subtract the "
    "position of each voxel.",
}


def apply(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """Map points (K, d), LPS, millimeters."""
    mapped: np.ndarray = np.asarray([transform.TransformPoint(point) for point in points.tolist()]).reshape(
        points.shape
    )
    return mapped


def recognize(
    result: sitk.Transform, truth: sitk.Transform, points: np.ndarray, grid: sitk.Image, convention: str
) -> LooksLike | None:
    """Look for a convention in which a result is much better than as it was given.

    Args:
        result, truth: from points of the fixed to points of the moving image.
        points: points of the body in the fixed image that count, (K, d), LPS, millimeters.
        grid: the fixed image.
        convention: with which the result was read.

    Returns:
        The best alternative that at least halves the error and is better than no registration, or ``None``.
    """
    if not len(points):
        return None
    target = apply(truth, points)
    mapped = apply(result, points)
    as_given = float(np.linalg.norm(mapped - target, axis=1).mean())
    before = float(np.linalg.norm(points - target, axis=1).mean())
    errors: dict[str, float] = {}
    for name, there, wanted in _alternatives(result, points, mapped, target, grid, convention):
        errors[name] = min(float(np.linalg.norm(there - wanted, axis=1).mean()), errors.get(name, np.inf))
    name = min(errors, key=lambda key: errors[key])
    if as_given <= _GOOD * before or errors[name] > _PART * as_given or errors[name] >= before:
        return None
    return LooksLike(name, _TEXTS[name], errors[name])


def _alternatives(
    result: sitk.Transform,
    points: np.ndarray,
    mapped: np.ndarray,
    target: np.ndarray,
    grid: sitk.Image,
    convention: str,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield names of conventions, the positions (K, d) that they give, and those that are right."""
    d = points.shape[1]
    flip = np.asarray([-1.0, -1.0, 1.0][:d])
    moved, to_mm = mapped - points, index_to_physical(grid)
    yield "inverse", apply(result, target), points
    # Either the vectors alone are RAS, or the whole transform is, as with matrices.
    yield "RAS", points + flip * moved, target
    yield "RAS", flip * apply(result, flip * points), target
    if convention == "voxels":
        voxels = moved @ np.linalg.inv(to_mm).T
        yield "millimeters", points + voxels, target
        # An array with the axes z, y, x was read with its components in this order, too.
        yield "millimeters", points + voxels[:, ::-1], target
        yield "swapped", points + voxels[:, ::-1] @ to_mm.T, target
        if len(set(grid.GetSize())) == 1:
            turned = to_points(to_index(points, grid)[:, ::-1], grid)
            voxels = (apply(result, turned) - turned) @ np.linalg.inv(to_mm).T
            yield "transposed", points + voxels @ to_mm.T, target
            yield "transposed", points + voxels[:, ::-1] @ to_mm.T, target
    else:
        yield "voxels", points + moved @ to_mm.T, target
        yield "voxels, reversed", points + moved[:, ::-1] @ to_mm.T, target
        yield "swapped", points + moved[:, ::-1], target
        yield "axes", points + moved @ direction_matrix(grid).T, target
        yield "positions", moved, target
        yield "positions, RAS", flip * moved, target
