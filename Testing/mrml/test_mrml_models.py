"""Deformations made by models."""

import numpy as np
import pytest
import SimpleITK as sitk
from DRDMDeformLib.mrml import (
    addVariants,
    apply,
    enablePreview,
    imageFromVolume,
    labelFromSegmentation,
    volumeFromImage,
)
from scenes import add_segmentation, dice, image_of, interior, linear_parent, placed_volume
from support import rotation, smooth_image

import DRDMLib
from DRDMLib.io.resources import resource


def hardened_by_slicer(scene, volume, transform):
    clone = type(volume)()
    scene.AddNode(clone)
    clone.CopyContent(volume)
    clone.SetAndObserveTransformNodeID(transform.GetID())
    clone.HardenTransform()
    return imageFromVolume(clone)


def check(scene, volume, result, label=None):
    """Check that the scene agrees with DRDMLib: the volume to 1 % of its range, the labels to a Dice of 0.99."""
    world = imageFromVolume(volume)
    transform = addVariants(scene, volume, [result.field], [{"seed": result.seed, "level": result.level}])[0]
    shown = hardened_by_slicer(scene, volume, transform)
    want = sitk.Resample(world, shown, result.transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    inside = interior(world, shown, result.transform)
    scale = np.ptp(sitk.GetArrayFromImage(world).astype(float))
    # Slicer rounds integer values.
    rounding = 0.51 if "integer" in world.GetPixelIDTypeAsString() else 0.0
    miss = np.abs(sitk.GetArrayFromImage(shown).astype(float) - sitk.GetArrayFromImage(want))[inside]
    assert miss.max() <= 0.01 * scale + rounding
    copy = imageFromVolume(apply(transform, [volume])[0])
    assert np.abs(sitk.GetArrayFromImage(copy).astype(float) - sitk.GetArrayFromImage(result.warp(world))).max() <= 1
    assert result.metrics.max_mm > 0.5
    if label is not None:
        parent = volume.GetParentTransformNode()
        segmentation = add_segmentation(scene, label, parent)
        enablePreview(transform, [segmentation])
        hardened = apply(transform, [segmentation], originalGrid=False)[0]
        got = sitk.GetArrayFromImage(labelFromSegmentation(hardened, volume).image)
        warped = sitk.GetArrayFromImage(result.warp_label(label)) if parent is None else None
        values = [v for v in np.unique(sitk.GetArrayFromImage(label)) if v]
        for number, value in enumerate(values, start=1):
            if warped is not None:
                assert dice(got == number, warped == value) >= 0.99


@pytest.mark.parametrize("geometry", ["plain", "oblique", "anisotropic"])
def test_a_volume_deformed_by_a_model(scene, tiny_model, geometry):
    image = image_of(geometry)
    check(scene, placed_volume(scene, image), DRDMLib.deform(image, tiny_model, level=30, steps=3))


def test_a_volume_under_a_rotation_is_deformed_in_world_space(scene, tiny_model):
    image = image_of("anisotropic")
    volume = placed_volume(scene, image, linear_parent(scene, rotation(20, 10, -30), (5.0, 60.0, -20.0)).node)
    check(scene, volume, DRDMLib.deform(imageFromVolume(volume), tiny_model, level=30, steps=3))


def test_a_single_slice_and_a_stack_deformed_by_a_2d_model(scene, tiny_model_2d):
    for size in ((48, 40, 1), (48, 40, 6)):
        image = smooth_image(size, (1.0, 1.0, 6.0), rotation(10, 0, 0), pixel=sitk.sitkFloat32)
        volume = volumeFromImage(scene, image, "heart")
        result = DRDMLib.deform(imageFromVolume(volume), tiny_model_2d, level=30, steps=3)
        transform = addVariants(scene, volume, [result.field], [{}])[0]
        got = sitk.GetArrayFromImage(imageFromVolume(apply(transform, [volume])[0]))
        assert np.allclose(got, sitk.GetArrayFromImage(result.warp(image)), atol=1e-3 * np.ptp(got))
        assert not np.allclose(got, sitk.GetArrayFromImage(image), atol=1.0)


def test_the_shipped_sample_with_the_shipped_model(scene):
    image = DRDMLib.read_image(resource("Sample", "sample.nii.gz"))
    label = DRDMLib.read_label(resource("Sample", "sample_label.nii.gz"), image)
    result = DRDMLib.deform(image, level=24, steps=4, device="cpu")
    check(scene, volumeFromImage(scene, image, "sample"), result, label)


def test_a_real_scan(scene, shared):
    scans = sorted((shared / "data" / "hippocampus" / "images").glob("*.nii*"))
    if not scans:
        pytest.skip("no hippocampus scans in the reference data")
    label = shared / "data" / "hippocampus" / "labels" / scans[0].name.replace("_0000", "")
    image = DRDMLib.read_image(scans[0])
    result = DRDMLib.deform(image, level=24, steps=2, device="cpu")
    check(
        scene,
        volumeFromImage(scene, image, "hippocampus"),
        result,
        DRDMLib.read_label(label, image) if label.is_file() else None,
    )
