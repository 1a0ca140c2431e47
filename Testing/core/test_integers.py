"""Integers keep their values: in images and labels, through the library, the command line and the loaders."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import array_of, boxes, scene, write
from support import smooth_image

from DRDMLib.deforming import deform
from DRDMLib.errors import ImageError
from DRDMLib.io.images import fit_label, read_image, require_scalar_image
from DRDMLib.loaders.world import displacement_on, ras_affine, warped, world_field

# Numbers of structures in the Allen atlas, and of others that count from hashes or identifiers.
NAMES = {"uint32": 576073732, "int64": 2**53 - 1, "int32": 2**31 - 1, "float64": 2**40 + 1, "float32": 576073728}


def named(image, value, kind):
    """The label map of ``boxes`` with ``value`` in place of 3, of another type."""
    array = sitk.GetArrayFromImage(boxes(image)).astype(kind)
    array[array == 3] = value
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


@pytest.mark.parametrize("kind", ["int32", "uint32"])
def test_saturated_voxels_stay_saturated(kind, tiny_model):
    image = smooth_image((24, 22, 20))
    array = sitk.GetArrayFromImage(image).clip(0).astype(kind)
    array[:, :, :8] = np.iinfo(kind).max
    saturated = sitk.GetImageFromArray(array)
    new = sitk.GetArrayFromImage(deform(saturated, tiny_model, 20, 0, 1).warp(saturated))
    assert (new[:, :, :3] == np.iinfo(kind).max).all() and new.min() >= array.min()


@pytest.mark.parametrize("kind", list(NAMES))
def test_labels_keep_their_numbers(kind, drdm, tmp_path, tiny_models):
    image = scene()
    scan = write(image, tmp_path / "d" / "images" / "scan.nii.gz")
    label = write(named(image, NAMES[kind], kind), tmp_path / "d" / "labels" / "scan.nii.gz")
    more = ("--model", tiny_models[3], "--steps", 1)
    made = drdm("deform", scan, "--label", label, "-o", tmp_path / "out", "--level", 40, *more)
    assert made.status == 0, made.err
    assert set(np.unique(array_of(tmp_path / "out" / "scan_000_label.nii.gz")).tolist()) == {0, 1, NAMES[kind]}
    run = drdm("augment", tmp_path / "d", "-o", tmp_path / "run", "--levels", 20, "--no-quality", *more)
    assert run.status == 0, run.err
    assert str(NAMES[kind]) in (tmp_path / "run" / "dataset.json").read_text()
    assert set(np.unique(array_of(tmp_path / "run" / "labelsTr" / "scan_t20_000.nii.gz")).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
def test_numbers_that_cannot_be_kept_are_refused(kind):
    image = scene()
    with pytest.raises(ImageError, match=r"beyond 2\^53"):
        fit_label(named(image, 2**60, kind), image)
    if kind != "float64":
        with pytest.raises(ImageError, match=r"beyond 2\^53"):
            require_scalar_image(named(image, 2**60, kind))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint32, torch.float64])
def test_loaders_keep_numbers(dtype, tiny_model):
    image = scene(pixel=sitk.sitkFloat32)
    made = deform(image, tiny_model, 40, 0, 1)
    displacement = displacement_on(world_field(made.field, image), ras_affine(image), image.GetSize())
    numbers = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(boxes(image)).T))[None]
    small = warped(numbers, displacement, label=True)
    for value in (576073732, 2**31 - 1, *([2**53 + 1] if dtype == torch.int64 else [])):
        label = torch.where(numbers == 3, value, numbers.to(torch.int64)).to(dtype)
        new = warped(label, displacement, label=True)
        assert new.dtype == dtype
        assert torch.equal(new.to(torch.int64), torch.where(small == 3, value, small.to(torch.int64)))
    if dtype.is_floating_point:
        return
    whole = torch.full(numbers.shape, 2**31 - 1, dtype=torch.int64).to(dtype)
    assert torch.equal(warped(whole, displacement).to(torch.int64), whole.to(torch.int64))
    if dtype == torch.int64:
        with pytest.raises(ImageError, match=r"beyond 2\^53"):
            warped(whole * 2**30, displacement)


def test_small_integers_are_warped_as_before(tmp_path, tiny_model):
    """32-bit integers up to 2^24 have exact 32-bit floats, and give the values of 16-bit integers."""
    image = scene()
    made = deform(image, tiny_model, 40, 0, 1)
    wide = read_image(write(sitk.Cast(image, sitk.sitkInt32), tmp_path / "wide.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(made.warp(wide)), sitk.GetArrayFromImage(made.warp(image)))
