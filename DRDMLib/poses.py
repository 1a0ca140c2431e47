"""Estimate the spread of poses among scans, and carry it onto the grid of a model.

Every scan is registered to the mean of all scans by an affine map, without labels. Only what both show counts: a scan
that ends within the anatomy, such as a crop, says nothing about what lies beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from scipy.linalg import expm, logm

from .diffusion.poses import PoseSpread, spread_of
from .runtime.threads import one_thread_each
from .spatial.coordinates import direction_matrix, thick_axes
from .spatial.model_grid import ModelGrid, image_extent, nearest_axes

# Number of scans from which a spread is estimated, and of those that are registered; they are evenly chosen.
FEWEST, MOST = 10, 40
# Voxels along the longest side of the grid on which scans are registered.
_SIDE = 40
# Rounds of registration to the mean, which is sharper each time, before those of the halves; and the side of the blocks
# that the halves consist of, voxels.
_ROUNDS, _BLOCK = 2, 8
# Where fewer of the scans see anything, the mean does not count.
_SEEN = 0.5
# Semi-axes of the ellipsoid that counts, as a share of the grid's half sides.
_MIDDLE = 0.8
# Largest logarithm of a map; beyond it a registration has failed.
_FARTHEST = 0.7
# Bins of the mutual information, the share of the voxels that it is computed from, the largest step (voxels) and number
# of steps.
_BINS, _SHARE, _STEP, _ITERATIONS = 24, 0.5, 1.0, 40


def estimate_poses(
    images: Iterable[sitk.Image], on_scan: Callable[[int, int], None] | None = None
) -> PoseSpread | None:
    """Estimate the spread of poses among scans of one kind.

    Args:
        images: single-channel, of any grids; read one by one. At most ``MOST`` of them should be given. Those that have
            another dimension than most are left out.
        on_scan: called with (done, total); may raise to cancel.

    Returns:
        The spread in the axes of the images, or ``None`` if too few can be registered.
    """
    read = [_upright(image) for image in images]
    dimensions = [scan.GetDimension() for scan, _ in read]
    d = max(dimensions, key=dimensions.count, default=0)
    scans = [scan for scan, _ in read if scan.GetDimension() == d]
    if len(scans) < FEWEST:
        return None
    extent = np.median([image_extent(scan) for scan in scans], axis=0)
    free = _free(np.median([one for scan, one in read if scan.GetDimension() == d], axis=0))
    spacing = float(extent.max()) / _SIDE
    grid = _grid(extent / spacing)
    scans = [_small(scan, spacing) for scan in scans]
    maps: list[sitk.AffineTransform | None] = [_identity(d) for _ in scans]
    tasks, done = (_ROUNDS + 2) * len(scans), 0
    halves = []
    for number in range(_ROUNDS + 2):
        if number <= _ROUNDS:
            mean, mask = _mean(scans, maps, grid)
        # First the whole, and then each half of it by itself.
        half = mask if number < _ROUNDS else mask * _blocks(grid, number - _ROUNDS)
        found = []
        for scan, start in zip(scans, maps, strict=True):
            # With one thread, since the metric's last bits depend on the number of threads and on their order.
            with one_thread_each(torch.device("cpu")):
                found.append(None if start is None else _registered(mean, half, scan, start, free, coarse=number == 0))
            done += 1
            if on_scan is not None:
                on_scan(done, tasks)
        if number < _ROUNDS:
            maps = _centered(found)
        else:
            halves.append(found)
    good = [pair for pair in zip(*halves, strict=True) if None not in pair]
    if len(good) < FEWEST:
        return None
    plane = np.eye(d)[[axis for axis in range(d) if free[axis * (d + 1)]]]
    spread = spread_of(*(np.stack([_numbers(one, plane) for one in maps]) for maps in zip(*good, strict=True)))
    return spread if len(plane) == d else spread.carried(plane.T, plane, plane.T)


def _numbers(one: sitk.AffineTransform, plane: np.ndarray) -> np.ndarray:
    """Return the logarithm of a map within a plane, row by row, and its shift as a fraction of the longest side."""
    shift = plane @ np.asarray(one.GetTranslation()) / _SIDE
    return np.concatenate([(plane @ _logarithm(one) @ plane.T).ravel(), shift])


def _blocks(grid: sitk.Image, parity: int) -> sitk.Image:
    """Return the mask of every second block of a grid, as on a chessboard."""
    axes = np.meshgrid(*[np.arange(n) // _BLOCK for n in grid.GetSize()[::-1]], indexing="ij")
    mask = sitk.GetImageFromArray((np.sum(axes, axis=0) % 2 == parity).astype(np.uint8))
    mask.CopyInformation(grid)
    return mask


def pose_on_grid(pose: float | PoseSpread, grid: ModelGrid, image: sitk.Image) -> float | PoseSpread:
    """Carry the spread of a population onto a model grid; an amount stays as it is.

    Args:
        pose: an amount, or the spread in the axes of the image.
        grid: the model's grid on the image.

    Returns:
        The spread in the axes of the model's tensors, shifts as fractions of its sides; 0 where it has another
        dimension.
    """
    if not isinstance(pose, PoseSpread):
        return pose
    spread = pose
    m = 2 if grid.stack else grid.ndim
    axes = grid.direction[:, :m]
    if spread.ndim == 3:
        if grid.ndim == 2:
            return 0.0
        axes = axes.T @ patient_axes(image)
    else:
        if m == 3:
            return 0.0
        axes = np.eye(2)
    sides = np.asarray(grid.spacing[:m]) * np.asarray(grid.size[:m])
    if grid.axes == "kji":
        axes, sides = axes[::-1], sides[::-1]
    scale = image_extent(image).max() / sides[:, None]
    return spread.carried(axes / sides[:, None], axes.T * sides, axes * scale)


def patient_axes(image: sitk.Image) -> np.ndarray:
    """Return the image's axes in the order and with the signs of the patient's (L, P, S), as columns (3, 3)."""
    direction = direction_matrix(image)
    return np.stack([sign * direction[:, axis] for axis, sign in nearest_axes(direction)], axis=1)


def _upright(image: sitk.Image) -> tuple[sitk.Image, tuple[float, ...]]:
    """Return an image in the order of the patient's axes, around the origin, and its spacing.

    A single slice becomes a 2D image. Large images become smaller, so that many fit into memory; the spacing is that
    from before.
    """
    if image.GetDimension() == 3 and 1 in image.GetSize():
        axis = image.GetSize().index(1)
        order = [a for a in range(3) if a != axis] + [axis]
        array = sitk.GetArrayFromImage(sitk.PermuteAxes(image, order))[0]
        spacing = [image.GetSpacing()[a] for a in order[:2]]
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
    d = image.GetDimension()
    if d == 3:
        nearest = nearest_axes(direction_matrix(image))
        image = sitk.PermuteAxes(image, [axis for axis, _ in nearest])
        image = sitk.Flip(image, [sign < 0 for _, sign in nearest])
    else:
        image = sitk.Image(image)
    image.SetDirection(np.eye(d).ravel().tolist())
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)])
    small = sitk.BinShrink(image, [max(1, n // (2 * _SIDE)) for n in image.GetSize()])
    return sitk.Cast(small, sitk.sitkFloat32), image.GetSpacing()


def _grid(extent: np.ndarray) -> sitk.Image:
    """Return an empty image of an extent around the origin, with voxels of side 1."""
    size = [max(2, round(side)) for side in extent]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetOrigin([-(n - 1) / 2 for n in size])
    return grid


def _small(image: sitk.Image, spacing: float) -> sitk.Image:
    """Return an image in units of ``spacing``, with voxels that are not much smaller, and values 0 to 1."""
    factors = [max(1, round(spacing / s)) for s in image.GetSpacing()]
    factors = [min(f, n) for f, n in zip(factors, image.GetSize(), strict=True)]
    small = sitk.BinShrink(image, factors)
    low, high = np.percentile(sitk.GetArrayViewFromImage(small), [0.5, 99.5])
    small = (small - float(low)) / max(float(high - low), 1e-6)
    result: sitk.Image = sitk.Clamp(small, sitk.sitkFloat32, 0.0, 1.0)
    result.SetSpacing([s / spacing for s in result.GetSpacing()])
    result.SetOrigin([o / spacing for o in result.GetOrigin()])
    return result


def _free(spacing: np.ndarray) -> list[float]:
    """Return 1 for each number of an affine map that scans of a spacing can tell, and 0 for the others.

    Thick slices tell the map within their plane, and the shift across it.
    """
    d = len(spacing)
    matrix = np.ones((d, d))
    if d == 3 and any(thick_axes(spacing.tolist())):
        across = int(np.argmax(spacing))
        matrix[across] = matrix[:, across] = 0
    return [*matrix.ravel().tolist(), *[1.0] * d]


def _identity(d: int) -> sitk.AffineTransform:
    return sitk.AffineTransform(d)


def _mean(
    scans: Sequence[sitk.Image], maps: Sequence[sitk.AffineTransform | None], grid: sitk.Image
) -> tuple[sitk.Image, sitk.Image]:
    """Return the mean of the aligned scans, and the mask of where enough of them see anything."""
    total = np.zeros(grid.GetSize()[::-1])
    seen = np.zeros_like(total)
    used = 0
    for scan, one in zip(scans, maps, strict=True):
        if one is None:
            continue
        used += 1
        values = sitk.GetArrayFromImage(sitk.Resample(scan, grid, one, sitk.sitkLinear, -1.0))
        total += np.where(values >= 0, values, 0)
        seen += values >= 0
    mean = sitk.GetImageFromArray((total / np.maximum(seen, 1)).astype(np.float32))
    mask = sitk.GetImageFromArray(((seen >= _SEEN * used) & _middle(total.shape)).astype(np.uint8))
    mean.CopyInformation(grid)
    mask.CopyInformation(grid)
    return mean, mask


def _middle(shape: tuple[int, ...]) -> np.ndarray:
    """Return which voxels lie within the ellipsoid in the middle of a grid."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside: np.ndarray = np.sum(np.square(axes), axis=0) <= _MIDDLE**2
    return inside


def _registered(
    mean: sitk.Image,
    mask: sitk.Image,
    scan: sitk.Image,
    start: sitk.AffineTransform | None,
    free: list[float],
    *,
    coarse: bool,
) -> sitk.AffineTransform | None:
    """Find the affine map from points of the mean to points of a scan; ``None`` if the registration fails.

    Args:
        start: where to begin; ``None`` for the center of the scan.
        free: see :func:`_free`.
        coarse: begin on a coarser grid.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SHARE, seed=1)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_STEP if coarse else _STEP / 2, _STEP / 50, _ITERATIONS, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerWeights(free)
    method.SetShrinkFactorsPerLevel([2, 1] if coarse else [1])
    method.SetSmoothingSigmasPerLevel([1, 0] if coarse else [0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    first = sitk.AffineTransform(start) if start is not None else _identity(mean.GetDimension())
    method.SetInitialTransform(first, inPlace=True)
    try:
        method.Execute(mean, scan)
    except RuntimeError:
        # Nothing overlaps any more.
        return None
    matrix = np.asarray(first.GetMatrix()).reshape(2 * (mean.GetDimension(),))
    if np.linalg.det(matrix) <= 0 or np.abs(_logarithm(first)).max() > _FARTHEST:
        return None
    return first


def _logarithm(one: sitk.AffineTransform) -> np.ndarray:
    d = one.GetDimension()
    return np.real(logm(np.asarray(one.GetMatrix()).reshape(d, d)))


def _centered(maps: Sequence[sitk.AffineTransform | None]) -> list[sitk.AffineTransform | None]:
    """Take the mean map away from all maps, so that the mean image does not drift."""
    good = [one for one in maps if one is not None]
    if not good:
        return list(maps)
    d = good[0].GetDimension()
    back = expm(-np.mean([_logarithm(one) for one in good], axis=0))
    shift = np.mean([one.GetTranslation() for one in good], axis=0)
    centered: list[sitk.AffineTransform | None] = []
    for one in maps:
        if one is None:
            centered.append(None)
            continue
        changed = sitk.AffineTransform(d)
        changed.SetMatrix((np.asarray(one.GetMatrix()).reshape(d, d) @ back).ravel().tolist())
        changed.SetTranslation((np.asarray(one.GetTranslation()) - shift).tolist())
        centered.append(changed)
    return centered
