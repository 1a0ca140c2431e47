"""Convert, measure and apply displacement fields.

A field is an array (*S, d) in millimeters on the grid of a d-dimensional image, S in array order (z, y, x), channels in
physical order (x, y, z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.labeled_views import LabeledImage


def as_transform(field: np.ndarray, image: sitk.Image) -> sitk.DisplacementFieldTransform:
    """Return a field on the grid of ``image`` as a transform."""
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(field, dtype=np.float64), isVector=True)
    vectors.CopyInformation(image)
    return sitk.DisplacementFieldTransform(vectors)


def sample_transform(transform: sitk.Transform, grid: sitk.Image) -> sitk.Image:
    """Return the displacements of a transform on the grid of ``grid``, mm."""
    sampler = sitk.TransformToDisplacementFieldFilter()
    sampler.SetReferenceImage(grid)
    return sampler.Execute(transform)


def voxel_field(displacement: np.ndarray) -> sitk.Image:
    """Return (d, *S) in voxels, channel k along array axis k, as a displacement field on a grid of 1 mm."""
    vectors = np.moveaxis(displacement.astype(np.float64)[::-1], 0, -1)
    return sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)


def scale_field(ddf: sitk.Image, factor: float) -> sitk.Image:
    """Multiply all displacements by ``factor``."""
    scaled = sitk.GetImageFromArray(sitk.GetArrayFromImage(ddf) * factor, isVector=True)
    scaled.CopyInformation(ddf)
    return scaled


def mean_length(field: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Return the mean displacement, of the voxels ``inside`` if given, mm."""
    return float(np.linalg.norm(field if inside is None else field[inside], axis=-1).mean())


def structures(label: sitk.Image) -> np.ndarray:
    """Return a mask of all labeled voxels; of a slice without a label, of all voxels."""
    inside = sitk.GetArrayViewFromImage(label) > 0
    return inside if inside.any() else ~inside


def beyond_affine(field: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return what the best affine map leaves of the displacements of the voxels ``inside``: (n, d), mm."""
    voxels = np.argwhere(inside).astype(float)
    vectors = field[inside]
    design = np.c_[np.ones(len(voxels)), voxels - voxels.mean(0)]
    return vectors - design @ np.linalg.lstsq(design, vectors, rcond=None)[0]


def resample(image: sitk.Image, transform: sitk.Transform, interpolator: int = sitk.sitkLinear) -> sitk.Image:
    """Resample an image on its own grid; outside, its border is repeated."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(image)
    resampler.SetTransform(transform)
    resampler.SetInterpolator(interpolator)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return resampler.Execute(image)


def random_rigid(image: sitk.Image, rng: np.random.Generator) -> sitk.Transform:
    """Draw a rotation of up to 4 degrees and a shift of up to half a voxel, about the center of the image."""
    ndim = image.GetDimension()
    angles = np.radians(rng.uniform(-4, 4, 3 if ndim == 3 else 1)).tolist()
    transform: Any = sitk.Euler3DTransform() if ndim == 3 else sitk.Euler2DTransform()
    center = [(n - 1) / 2 for n in image.GetSize()]
    transform.SetCenter(image.TransformContinuousIndexToPhysicalPoint(center))
    if ndim == 3:
        transform.SetRotation(*angles)
    else:
        transform.SetAngle(*angles)
    transform.SetTranslation((rng.uniform(-0.5, 0.5, ndim) * image.GetSpacing()).tolist())
    return transform


def deform_pair(
    pair: LabeledImage, rng: np.random.Generator, field: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a field, if given, and a small random rigid motion in one resampling; return image and label (*S)."""
    motion = random_rigid(pair.image, rng)
    if field is not None:
        motion = sitk.CompositeTransform([as_transform(field, pair.image), motion])
    image = resample(pair.image, motion)
    label = resample(pair.label, motion, sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label)
