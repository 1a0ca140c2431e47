"""Find the way from one scan toward another: a smooth field that makes the first look like the second.

People differ in ways that random fields and turns do not show, such as the thickness of a heart's wall. Another scan of
the same kind shows one of them, and needs no label: it is moved to the place of the first scan, and the first one is
registered to it, see :mod:`DRDMLib.spatial.greedy_registration`. Versions go only part of this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .diffusion.seeds import Purpose, derived_seed
from .errors import ImageError
from .gray_values import GrayChange, gray_change, gray_may_change
from .io.images import require_scalar_image
from .spatial.coordinates import direction_matrix, index_to_physical
from .spatial.greedy_registration import register, warp
from .spatial.laid_on import laid_on, middle_of, rotation, slice_plane
from .spatial.model_grid import ModelGrid, effective_dimension, from_millimeters, image_extent

_VECTORS = sitk.sitkVectorFloat64
WHOLE_SCANS = "Versions toward other scans are made of whole scans; leave out the region, or --toward."
# Least and largest share of the way that a version goes.
LEAST_SHARE, MOST_SHARE = 0.2, 1.0
# Voxels along the longest side of the grid on which scans are registered.
_SIDE = 64
# Semi-axes of the ellipsoid in which scans are compared in the end, as a share of half the side.
_COMPARED = 0.8
# Largest turn of a version, degrees.
_MOST_TURN = 30.0
# A registration counts if the correlation of the two scans is at least this high at its end and has not fallen by more
# than a little. No point of a version moves farther than this share of the longest side; a way that is more than twice
# as far does not count.
_LEAST_LIKENESS, _LOST, _MOST_MOTION = 0.6, 0.01, 0.2


@dataclass(frozen=True)
class Way:
    """The way from one scan to another.

    Attributes:
        field: displacement field on a grid over the scan: vector image, 64-bit, millimeters, LPS. A vector at a point
            of the version points to the position in the scan whose value it shows there.
        before, after: correlation of the two scans, laid on each other and registered.
        most: largest share that a version goes.
        gray: how the gray values of the scan become those of the other one; ``None`` in CT, where they are the same on
            every scanner, and between two scans in one place.
        turn: angle by which the other scan was turned about the middle of this one, degrees; the way leads to the
            turned scan.
        plane: the axes of ``field`` within which it was turned, SimpleITK's order.
    """

    field: sitk.Image
    before: float
    after: float
    most: float = MOST_SHARE
    gray: GrayChange | None = None
    turn: float = 0.0
    plane: tuple[int, int] = (0, 1)

    def share(self, seed: int) -> float:
        """Return the share of the way that the version of a seed goes: uniform in ``LEAST_SHARE`` to ``most``."""
        drawn = np.random.default_rng(derived_seed(seed, Purpose.TOWARD)).random()
        return LEAST_SHARE + (self.most - LEAST_SHARE) * float(drawn)

    def gray_share(self, seed: int) -> float:
        """Return the share of the change of gray values that the version of a seed has: uniform in 0 to 1."""
        return float(np.random.default_rng(derived_seed(seed, Purpose.GRAY)).random())

    def turned(self, seed: int) -> float:
        """Return the angle by which the version of a seed is turned toward the other scan, if it has a pose, degrees.

        It is uniform between 0 and the turn of the other scan, or between 0 and 30 degrees where that is larger: ITK
        continues a field for half a voxel around the outermost voxels by their values, which folds there if the turn is
        too large.
        """
        share = float(np.random.default_rng(derived_seed(seed, Purpose.TURN)).random())
        return share * min(max(self.turn, -_MOST_TURN), _MOST_TURN)

    def turns_on_grid(self, seeds: Sequence[int], grid: ModelGrid) -> Tensor | None:
        """Return the turns that the versions of some seeds make, so that they lie between both scans.

        Returns:
            As :meth:`on_grid`; ``None`` if the other scan was not turned.
        """
        if self.turn == 0:
            return None
        size = np.asarray(self.field.GetSize())
        middle = np.asarray(self.field.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
        fields = []
        for seed in seeds:
            turned = sitk.AffineTransform(len(middle))
            back = rotation(self.field, self.plane, -self.turned(seed))
            turned.SetMatrix(back.ravel().tolist())
            turned.SetCenter(middle.tolist())
            # An affine map is linear between the corners of the grid.
            side = np.asarray(grid.spacing) * np.maximum(np.asarray(grid.size) - 1, 1)
            corners = [[2] * len(side), grid.origin, side.tolist(), grid.direction.ravel().tolist()]
            fields.append(from_millimeters(sitk.TransformToDisplacementField(turned, _VECTORS, *corners), grid))
        return torch.cat(fields)

    def on_grid(self, shares: Sequence[float], grid: ModelGrid) -> Tensor:
        """Return shares of the way on the grid of a model: (K, d, *S), or (N, d, *S) for one share of a stack.

        The displacement is a fraction of the side; N is the number of slices.
        """
        way = from_millimeters(self.field, grid)
        if len(shares) == 1:
            return way * shares[0]
        return way * torch.tensor(shares, dtype=way.dtype).view(-1, *[1] * (way.ndim - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        figures = {"before": round(self.before, 4), "after": round(self.after, 4)}
        return figures | ({"turn": self.turn} if self.turn else {})


def find_way(image: sitk.Image, other: sitk.Image, *, in_place: bool = False, turn: float | None = None) -> Way | None:
    """Register a scan to another one of the same kind, without labels.

    The other scan is shifted so that the middle of both fits best. Stacks of thick slices, such as those of hearts, and
    2D images lie as their operators chose, so that they are also turned within their plane, where they fit much better
    then. Scans of other people may be turned a little and larger or smaller; the way contains this. Where the other
    scan shows nothing, the field continues smoothly.

    Args:
        image, other: single-channel, of the same dimension, with any grids.
        in_place: the other scan shows the same patient in the same place, such as another phase of the heartbeat or of
            breathing; it is neither shifted nor turned, so that the way is the motion between the two.
        turn: angle by which the other scan is turned, degrees, if it is known.

    Returns:
        The way, or ``None`` if the two cannot be registered: they do not become alike, or parts would move too far.

    Raises:
        ImageError: one of them is 2D, or a single slice, and the other is not.
    """
    image, other = require_scalar_image(image), require_scalar_image(other)
    if effective_dimension(image) != effective_dimension(other):
        raise ImageError("A scan with many slices and a single slice cannot be compared; choose scans of one kind.")
    if effective_dimension(image) < image.GetDimension():
        flat = find_way(_only_slice(image), _only_slice(other), in_place=in_place, turn=turn)
        if flat is None:
            return None
        gray = flat.gray and replace(flat.gray, factor=_as_volume(flat.gray.factor, image))
        first, second = (axis for axis in range(3) if axis != image.GetSize().index(1))
        return replace(flat, field=_as_volume(flat.field, image), gray=gray, plane=(first, second))
    spacing = float(image_extent(image).max()) / _SIDE
    (fixed, _), (moving, scale) = _small(other, spacing), _small(image, spacing)
    plane = slice_plane(image)
    if in_place:
        turn = 0.0
        fixed = sitk.Resample(fixed, moving, sitk.Transform(), sitk.sitkLinear, -1.0)
    else:
        if turn is None and (plane is None or slice_plane(other) is None):
            turn = 0.0
        fixed, turn = laid_on(fixed, moving, plane or (0, 1), turn)
    values, seen = sitk.GetArrayFromImage(fixed), sitk.GetArrayFromImage(fixed) >= 0
    if not seen.any() or not np.ptp(values[seen]) > 0:
        return None
    own = sitk.GetArrayFromImage(moving)
    # Nothing pulls where the other scan shows nothing.
    values = np.where(seen, values, own)
    found = register(values.astype(np.float64), own.astype(np.float64), moving.GetSpacing()[::-1])
    moved = warp(own, found)
    vectors = np.moveaxis(found[::-1], 0, -1) @ index_to_physical(moving).T
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(moving)
    middle = middle_of(values.shape, _COMPARED) & seen
    if not middle.any():
        return None
    before, after = _correlation(own, values, middle), _correlation(moved, values, middle)
    farthest = float(np.sqrt(np.square(vectors).sum(axis=-1)).max())
    most = min(MOST_SHARE, _MOST_MOTION * float(image_extent(image).max()) / max(farthest, 1e-9))
    if not after >= max(_LEAST_LIKENESS, before - _LOST) or most < MOST_SHARE / 2:
        return None
    gray = None
    if not in_place and gray_may_change(image) and gray_may_change(other):
        gray = gray_change(moving, values, seen, found, scale)
    return Way(field, before, after, most, gray, turn, plane or (0, 1))


def _small(image: sitk.Image, spacing: float) -> tuple[sitk.Image, tuple[float, float]]:
    """Return an image with voxels of about ``spacing``, at most, and values 0 to 1; and what is 0 and 1."""
    factors = [max(1, min(n, round(spacing / s))) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    small = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
    low, high = np.percentile(sitk.GetArrayViewFromImage(small), [0.5, 99.5])
    width = max(float(high - low), 1e-6)
    scaled = (small - float(low)) / width
    return sitk.Clamp(scaled, sitk.sitkFloat32, 0.0, 1.0), (float(low), float(low) + width)


def _only_slice(image: sitk.Image) -> sitk.Image:
    """Return the slice of a volume with a single one, as a 2D image around the origin."""
    axis = image.GetSize().index(1)
    slices = [0 if a == axis else slice(None) for a in range(3)]
    flat: sitk.Image = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[tuple(slices[::-1])])
    flat.SetSpacing([s for a, s in enumerate(image.GetSpacing()) if a != axis])
    return flat


def _as_volume(flat: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Return a field of the slice of a volume, or other values there, as those of the volume."""
    axis = image.GetSize().index(1)
    others = [a for a in range(3) if a != axis]
    direction = direction_matrix(image)
    values = sitk.GetArrayFromImage(flat)
    vectors = flat.GetNumberOfComponentsPerPixel() > 1
    if vectors:
        values = values @ direction[:, others].T
    volume = sitk.GetImageFromArray(np.expand_dims(values, 2 - axis), isVector=vectors)
    spacing, start = np.asarray(image.GetSpacing()), np.zeros(3)
    spacing[others], start[others] = flat.GetSpacing(), flat.GetOrigin()
    volume.SetSpacing(spacing.tolist())
    volume.SetDirection(image.GetDirection())
    volume.SetOrigin((np.asarray(image.GetOrigin()) + direction @ start).tolist())
    return volume


def _correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    a, b = first[mask] - first[mask].mean(), second[mask] - second[mask].mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12))
