"""Warping by a field that is sampled box by box: the values are those of SimpleITK's resampler."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from support import rotation, smooth_image

from DRDMLib.spatial import linear_warp
from DRDMLib.spatial.field_samples import samples_of_transform
from DRDMLib.spatial.resampling import warp_image

OBLIQUE = rotation(20, -10, 35)
WHOLE_NUMBERS = [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkInt32]


def coarse_field(image: sitk.Image, largest: float, seed: int = 0) -> sitk.DisplacementFieldTransform:
    """A random field along the axes of an image, which extends past it and is zero on its border."""
    d, spacing = image.GetDimension(), [3.0 * s for s in image.GetSpacing()]
    size = [n // 3 + 8 for n in image.GetSize()]
    vectors = np.random.default_rng(seed).uniform(-largest, largest, (*size[::-1], d))
    for axis in range(d):
        np.moveaxis(vectors, axis, 0)[[0, -1]] = 0
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.SetSpacing(spacing)
    field.SetDirection(image.GetDirection())
    field.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([-10.5] * d))
    return sitk.DisplacementFieldTransform(field)


def inside(image: sitk.Image, reference: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    ones = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    return sitk.GetArrayFromImage(sitk.Resample(ones, reference, transform, sitk.sitkNearestNeighbor)) > 0


@pytest.mark.parametrize("pixel", [*WHOLE_NUMBERS, sitk.sitkFloat32, sitk.sitkFloat64])
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, 1, -1]), OBLIQUE])
def test_values_are_those_of_a_general_resampler(pixel, direction):
    image = smooth_image((50, 41, 70), (1.0, 1.3, 0.8), direction, pixel=pixel)
    transform = coarse_field(image, 6.0)
    assert samples_of_transform(transform, image) is not None
    warped = warp_image(image, image, transform)
    assert (warped.GetPixelID(), warped.GetOrigin()) == (pixel, image.GetOrigin())
    judge = sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    found, expected = sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(judge)
    within = inside(image, image, transform)
    assert 0.5 < within.mean() < 1
    if pixel in WHOLE_NUMBERS:
        assert (found != np.rint(expected.astype(np.float32)))[within].mean() < 1e-5
    assert np.abs(found - expected)[within].max() <= {sitk.sitkFloat32: 1e-4, sitk.sitkFloat64: 1e-9}.get(pixel, 0.5001)


def test_an_image_on_another_grid():
    """Another image of the same patient, with other voxels and axes."""
    reference = smooth_image((40, 44, 36), (1.0, 1.0, 1.2), OBLIQUE)
    other = smooth_image((30, 31, 33), (1.5, 1.4, 1.3), rotation(0, 5, 0), pixel=sitk.sitkFloat32)
    transform = coarse_field(reference, 4.0)
    found = sitk.GetArrayFromImage(warp_image(other, reference, transform))
    expected = sitk.GetArrayFromImage(sitk.Resample(other, reference, transform, sitk.sitkLinear))
    within = inside(other, reference, transform)
    assert 0.2 < within.mean() < 1
    assert np.abs(found - expected)[within].max() < 1e-3


@pytest.mark.parametrize("size", [(60, 52), (40, 36, 1), (1, 30, 40)])
def test_images_of_one_slice_and_of_two_dimensions(size):
    image = smooth_image(size, (1.0, 1.2, 2.0)[: len(size)], pixel=sitk.sitkFloat32)
    transform = coarse_field(image, 3.0)
    found = sitk.GetArrayFromImage(warp_image(image, image, transform))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear))
    within = inside(image, image, transform)
    assert within.any() and np.abs(found - expected)[within].max() < 1e-3


def test_outside_lies_the_mirror_image():
    """SimpleITK's mirror padding is the judge."""
    image = smooth_image((36, 40, 44), pixel=sitk.sitkFloat32)
    transform = coarse_field(image, 15.0)
    padded = sitk.MirrorPad(image, [30] * 3, [30] * 3)
    expected = sitk.GetArrayFromImage(sitk.Resample(padded, image, transform, sitk.sitkLinear))
    assert inside(image, image, transform).mean() < 0.9
    assert np.abs(sitk.GetArrayFromImage(warp_image(image, image, transform)) - expected).max() < 1e-3


def test_several_threads_compute_the_same(monkeypatch):
    image = smooth_image((70, 66, 68), pixel=sitk.sitkFloat64)
    transform = coarse_field(image, 5.0)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    monkeypatch.setattr(linear_warp, "_MANY_VOXELS", 1000)
    results = []
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            results.append(sitk.GetArrayFromImage(warp_image(image, image, transform)))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert np.array_equal(*results)
