"""Images and a label map that are warped together have the voxels that each has when it is warped alone."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from support import smooth_image

from DRDMLib import deform
from DRDMLib.spatial import resampling
from DRDMLib.spatial.resampling import warp_image, warp_label, warp_together


def noisy(like: sitk.Image, kind: int, seed: int) -> sitk.Image:
    values = 900 * np.random.default_rng(seed).standard_normal(like.GetSize()[::-1])
    image = sitk.Cast(sitk.GetImageFromArray(values), kind)
    image.CopyInformation(like)
    return image


def striped(like: sitk.Image) -> sitk.Image:
    """A label map with thick and thin parts."""
    label = np.zeros(like.GetSize()[::-1], np.uint8)
    label[..., 5:9] = 3
    label[..., 12] = 7
    label[4:-4:5, ..., 20:26] = 1
    image = sitk.GetImageFromArray(label)
    image.CopyInformation(like)
    return image


def voxels(image: sitk.Image) -> bytes:
    return sitk.GetArrayFromImage(image).tobytes()


@pytest.mark.parametrize("size", [(48, 44, 40), (90, 80, 70), (60, 50)])
@pytest.mark.parametrize("pose", [0.0, 1.5])
def test_together_as_alone_to_the_bit(size, pose, tiny_model, tiny_model_2d):
    like = smooth_image(size)
    model = tiny_model if len(size) == 3 else tiny_model_2d
    made = deform(like, model, level=40, seed=2, steps=2, pose=pose)
    images = [noisy(like, kind, n) for n, kind in enumerate((sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkInt32))]
    images.append(noisy(like, sitk.sitkFloat64, 8))
    label = striped(like)
    together, warped = made.warp_together(images, label)
    for one, image in zip(together, images, strict=True):
        assert one.GetPixelID() == image.GetPixelID() and voxels(one) == voxels(made.warp(image))
    assert warped is not None and voxels(warped) == voxels(made.warp_label(label))
    alone, nothing = made.warp_together(images[:1], None)
    assert nothing is None and voxels(alone[0]) == voxels(together[0])


def test_the_field_is_sampled_once(tiny_model, monkeypatch):
    like = smooth_image((90, 80, 70))
    made = deform(like, tiny_model, level=40, seed=2, steps=2)
    images, label = [noisy(like, sitk.sitkInt16, n) for n in range(3)], striped(like)
    sampled = 0
    original = resampling.LinearWarp.positions

    def counted(self, where):
        nonlocal sampled
        sampled += int(np.prod([part.stop - part.start for part in where]))
        return original(self, where)

    monkeypatch.setattr(resampling.LinearWarp, "positions", counted)
    made.warp_together(images, label)
    assert sampled == like.GetNumberOfPixels()


def test_other_grids_regions_and_fields_of_zeros(tiny_model):
    like = smooth_image((40, 36, 32))
    other = smooth_image((20, 40, 30), spacing=(2.0, 0.9, 1.1))
    label = striped(like)
    field = deform(like, tiny_model, level=40, seed=2, steps=2).grid_transform
    zeros = sitk.DisplacementFieldTransform(deform(like, tiny_model, level=0, seed=2, steps=1).field)
    small = sitk.Image([14, 14, 14], sitk.sitkVectorFloat64)
    small.SetOrigin(like.TransformIndexToPhysicalPoint((10, 10, 10)))
    values = np.zeros((14, 14, 14, 3))
    values[4:-4, 4:-4, 4:-4] = 0.7
    local = sitk.GetImageFromArray(values, isVector=True)
    local.CopyInformation(small)
    for transform in (field, zeros, sitk.DisplacementFieldTransform(local), sitk.Transform(3, sitk.sitkIdentity)):
        images, warped = warp_together([like, other], label, like, transform)
        assert voxels(images[0]) == voxels(warp_image(like, like, transform))
        assert voxels(images[1]) == voxels(warp_image(other, like, transform))
        assert warped is not None and voxels(warped) == voxels(warp_label(label, like, transform))
        images, _ = warp_together([like], label, like, transform)
        assert voxels(images[0]) == voxels(warp_image(like, like, transform))
