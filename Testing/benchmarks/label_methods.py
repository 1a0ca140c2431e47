"""Ways to warp a label map: the library's, its former one, SimpleITK's, and others from the literature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, map_coordinates

from DRDMLib.spatial.coordinates import to_index, to_points
from DRDMLib.spatial.label_vote import warp_by_vote
from DRDMLib.spatial.resampling import slab_resampler, slabs, warp_label
from DRDMLib.spatial.thin_structures import restore_thin

# Label map, grid of the result, transform from its points to those of the label map -> voxels, array order.
Warp = Callable[[sitk.Image, sitk.Image, sitk.Transform], np.ndarray]

# Voxels around the box of a label that are computed with it.
_MARGIN = 4


def mapped_layer(reference: sitk.Image, z: int, transform: sitk.Transform, label: sitk.Image) -> np.ndarray:
    """Find the positions in ``label`` of the voxels of a layer of ``reference``: indices (K, 3), not rounded."""
    size = reference.GetSize()
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        [size[0], size[1], 1],
        reference.TransformIndexToPhysicalPoint([0, 0, z]),
        reference.GetSpacing(),
        reference.GetDirection(),
    )
    index = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), z, indexing="xy"), -1).reshape(-1, 3)
    return to_index(to_points(index, reference) + sitk.GetArrayViewFromImage(field).reshape(-1, 3), label)


def points_within(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the numbers of the points (K, 3) in a box, axis by axis because most lie outside."""
    chosen = np.arange(len(points))
    for axis in range(points.shape[1]):
        own = points[chosen, axis]
        chosen = chosen[(own > low[axis]) & (own < high[axis])]
    return chosen


def nearest(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """Take the nearest voxel, as TorchIO and MONAI do."""
    parts = []
    for start, stop in slabs(reference.GetSize()):
        resampler = slab_resampler(reference, start, stop)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        resampler.SetUseNearestNeighborExtrapolator(True)
        parts.append(sitk.GetArrayFromImage(resampler.Execute(label)))
    return np.concatenate(parts)


def nearest_joined(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """Take the nearest voxel, and join thin structures: the library's former way."""
    warped = nearest(label, reference, transform)
    restore_thin(sitk.GetArrayFromImage(label), label, warped, reference, transform)
    return warped


def simpleitk(interpolator: int) -> Warp:
    """Use an interpolator of SimpleITK."""

    def warp(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.Resample(label, reference, transform, interpolator))

    return warp


def one_hot(sigma: float) -> Warp:
    """Interpolate each label, blurred by ``sigma`` voxels, with cubic B-splines; the largest wins."""
    return _label_by_label(lambda mask: gaussian_filter(mask.astype(float), sigma) if sigma else mask.astype(float), 3)


def signed_distances() -> Warp:
    """Interpolate the signed distance of each label with cubic B-splines; the largest wins."""

    def inside(mask: np.ndarray) -> np.ndarray:
        distance = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))
        clipped: np.ndarray = 0.5 + distance.clip(-2, 2)
        return clipped

    return _label_by_label(inside, 3)


def _label_by_label(membership: Callable[[np.ndarray], np.ndarray], order: int) -> Warp:
    """Warp the membership (0 to 1, one half at the border) of each label in its box; the largest one wins."""

    def warp(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
        size = reference.GetSize()
        points = np.concatenate([mapped_layer(reference, z, transform, label) for z in range(size[2])])[:, ::-1]
        source = np.pad(sitk.GetArrayFromImage(label), _MARGIN, mode="edge")
        best, result = np.full(len(points), 0.5), np.zeros(len(points), source.dtype)
        for value, box in enumerate(find_objects(source), start=1):
            if box is None:
                continue
            low = np.asarray([max(0, s.start - _MARGIN) for s in box])
            part = source[tuple(slice(a, s.stop + _MARGIN) for a, s in zip(low, box, strict=True))] == value
            start = low - _MARGIN
            chosen = points_within(points, start, start + part.shape - 1)
            share = map_coordinates(membership(part), (points[chosen] - start).T, order=order, mode="nearest")
            better = share > best[chosen]
            best[chosen[better]], result[chosen[better]] = share[better], value
        return result.reshape(size[::-1])

    return warp


def vote(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """Let the voxels around vote, without joining thin structures afterwards."""
    return warp_by_vote(sitk.GetArrayFromImage(label), label, reference, transform)


def ours(label: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """Use the library."""
    return sitk.GetArrayFromImage(warp_label(label, reference, transform))


METHODS: dict[str, Warp] = {
    "nearest voxel (TorchIO, MONAI)": nearest,
    "nearest voxel, thin parts joined (before)": nearest_joined,
    "linear vote (SimpleITK LabelLinear)": simpleitk(sitk.sitkLabelLinear),
    "SimpleITK LabelGaussian": simpleitk(sitk.sitkLabelGaussian),
    "cubic B-spline of one-hot": one_hot(0),
    "cubic B-spline, blurred by 0.5": one_hot(0.5),
    "cubic B-spline, blurred by 0.7": one_hot(0.7),
    "signed distances": signed_distances(),
    "ours, without joining": vote,
    "ours": ours,
}
