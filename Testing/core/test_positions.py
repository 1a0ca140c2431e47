"""Files that readers see at different places: shears, NIfTI's transforms, labels without a header, single slices."""

import struct
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write
from support import rotation, smooth_image

import DRDMLib
from DRDMLib.errors import FallbackWarning, ImageError, SettingError
from DRDMLib.io.geometry import nearest_orthonormal, nifti_forms, other_affines
from DRDMLib.io.images import fit_label, read_field, read_image, read_label
from DRDMLib.loaders import PairDataset
from DRDMLib.loaders.placement import FileGeometry
from DRDMLib.loaders.world import ras_affine

SIZE = (28, 24, 20)


def nifti(path, sform=None, s_code=1, q_code=0, quaternion=(0, 0, 0), steps=(1, 1, 1), unit=2, values=None):
    """Write a NIfTI-1 file field by field, as other programs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SIZE, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, *steps)
    struct.pack_into("<2f", header, 108, 352, 1)
    header[123] = unit
    struct.pack_into("<2h", header, 252, q_code, s_code)
    struct.pack_into("<6f", header, 256, *quaternion, 3, -4, 5)
    struct.pack_into("<12f", header, 280, *np.asarray(np.eye(4) if sform is None else sform, float)[:3].ravel())
    header[344:348] = b"n+1\0"
    values = sitk.GetArrayFromImage(scene(SIZE)) if values is None else values
    path.write_bytes(bytes(header) + np.ascontiguousarray(values, "<i2").tobytes())
    return path


def sheared(amount):
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 1], affine[:3, 3] = amount, (10, -20, -30)
    return affine


# Axes that are not at right angles.


def test_nifti_axes_with_a_rounding_are_read_and_it_is_said(tmp_path):
    path = nifti(tmp_path / "scan.nii", sheared(0.004))
    with pytest.warns(FallbackWarning, match=r"0\.23 degrees off"):
        image = read_image(path)
    direction = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    assert np.allclose(direction, nearest_orthonormal(np.diag([-1, -1, 1]) @ sheared(0.004)[:3, :3]), atol=1e-5)
    assert image.GetOrigin() == pytest.approx((-10, 20, -30)) and image.GetSpacing() == pytest.approx((1, 1, 1))


def test_a_nifti_shear_is_refused_or_said(tmp_path):
    with pytest.raises(ImageError, match="not at right angles"):
        read_image(nifti(tmp_path / "a.nii", sheared(0.15)))
    # A scanner's qform beside a sform with a shear, as after an affine registration.
    with pytest.warns(FallbackWarning, match="qform is used"):
        image = read_image(nifti(tmp_path / "b.nii", sheared(0.15), 2, 1))
    assert image.GetOrigin() == pytest.approx((-3, 4, 5))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_shears_in_other_files(suffix, tmp_path):
    image = scene(SIZE)
    for amount in (0.004, 0.15):
        image.SetDirection([1, amount, 0, 0, 1, 0, 0, 0, 1])
        write(image, tmp_path / f"{amount}{suffix}")
    with pytest.warns(FallbackWarning, match="right angles"):
        read = read_image(tmp_path / f"0.004{suffix}")
    assert np.reshape(read.GetDirection(), (3, 3))[0, 1] == pytest.approx(0.002, abs=1e-5)
    for use in (read_image, lambda path: DRDMLib.deform(sitk.ReadImage(str(path)))):
        with pytest.raises(ImageError, match="shear"):
            use(tmp_path / f"0.15{suffix}")
    field = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True)
    field.SetDirection([1, 0.15, 0, 0, 1, 0, 0, 0, 1])
    with pytest.raises(ImageError, match="shear"):
        read_field(write(field, tmp_path / f"field{suffix}"))


def test_right_angles_are_left_alone(tmp_path):
    image = smooth_image(SIZE, (1, 1.3, 1.9), rotation(15, -10, 25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in (".nii.gz", ".nrrd", ".mha"):
            read = read_image(write(image, tmp_path / f"scan{suffix}"))
            assert np.allclose(read.GetDirection(), image.GetDirection(), atol=1e-6)


def test_the_transforms_of_a_nifti_file_are_those_of_nibabel(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    turn = (0.1, -0.2, 0.3)
    for name, how in {
        "both": {"sform": sheared(0), "s_code": 2, "q_code": 1, "quaternion": turn, "steps": (1, 1.3, 1.9)},
        "qform": {"s_code": 0, "q_code": 1, "quaternion": turn, "steps": (1, 1.3, 1.9)},
        "none": {"s_code": 0, "q_code": 0, "steps": (1, 1.3, 1.9)},
    }.items():
        path = nifti(tmp_path / f"{name}.nii", **how)
        header = nibabel.load(path).header
        assert np.allclose(other_affines(path)[0], header.get_best_affine(), atol=1e-6)
        if how["q_code"]:
            assert np.allclose(nifti_forms(path).qform, header.get_qform(), atol=1e-6)


# Labels.


def test_a_label_without_its_header_is_refused_or_takes_that_of_the_image(drdm, tmp_path, tiny_models):
    image = scene(SIZE)
    image.SetOrigin((-14, -6, 0))
    label = boxes(image)
    scan = write(image, tmp_path / "d" / "images" / "scan.nii.gz")
    lost = write(sitk.GetImageFromArray(sitk.GetArrayFromImage(label)), tmp_path / "d" / "labels" / "scan.nii.gz")
    with pytest.raises(ImageError, match="lost header"):
        read_label(lost, image)
    fitted = read_label(lost, image, geometry="image")
    assert fitted.GetOrigin() == image.GetOrigin()
    assert np.array_equal(sitk.GetArrayFromImage(fitted), sitk.GetArrayFromImage(label))
    arguments = ("deform", scan, "--label", lost, "--model", tiny_models[3], "--level", 0)
    refused = drdm(*arguments, "-o", tmp_path / "no")
    assert refused.status == 2 and "--label-geometry image" in refused.err
    made = drdm(*arguments, "-o", tmp_path / "out", "--label-geometry", "image")
    assert made.status == 0, made.err
    assert np.array_equal(array_of(tmp_path / "out" / "scan_000_label.nii.gz"), sitk.GetArrayFromImage(label))
    # The option is kept in the records, so that samples can be made again.
    run = tmp_path / "run"
    options = ("--levels", 20, "--steps", 1, "--model", tiny_models[3], "--no-quality", "--label-geometry", "image")
    done = drdm("augment", tmp_path / "d", "-o", run, *options)
    assert done.status == 0, done.err
    record = run / "records" / "scan_t20_000.json"
    again = drdm("regenerate", record, "-o", tmp_path / "again", "--model", tiny_models[3])
    assert again.status == 0, again.err
    with pytest.raises(SettingError, match="no geometry"):
        fit_label(label, image, geometry="none")
    with pytest.raises(ImageError, match="size"):
        fit_label(label[1:], image, geometry="image")


def test_a_label_on_another_grid_is_resampled_with_a_word():
    image = scene(SIZE)
    label = boxes(image)
    # The same voxels in another order, and positions with a rounding.
    flipped = sitk.Flip(label, [True, False, False])
    rounded = sitk.Image(label)
    rounded.SetOrigin((np.asarray(label.GetOrigin()) + 0.01).tolist())
    with pytest.warns(FallbackWarning, match="resampled to the grid of the image"):
        assert np.array_equal(sitk.GetArrayFromImage(fit_label(flipped, image)), sitk.GetArrayFromImage(label))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(sitk.GetArrayFromImage(fit_label(rounded, image)), sitk.GetArrayFromImage(label))
    with pytest.warns(FallbackWarning, match="only in part"):
        part = fit_label(label[:, :, 4:], image)
    assert np.array_equal(sitk.GetArrayFromImage(part)[4:], sitk.GetArrayFromImage(label)[4:])


# Volumes of one slice.


def test_fields_of_a_volume_of_one_slice_can_be_used(drdm, tmp_path, tiny_models):
    image = smooth_image((40, 36, 1), (1, 1, 5), origin=(3, 4, 50))
    scan = write(image, tmp_path / "d" / "images" / "scan.nii.gz")
    options = ("--model", tiny_models[2], "--steps", 2)
    assert drdm("deform", scan, "-o", tmp_path / "out", "--level", 40, "--inverse", *options).status == 0
    for kind in ("ddf", "inverse"):
        path = tmp_path / "out" / f"scan_000_{kind}.nii.gz"
        assert read_field(path).GetOrigin() == pytest.approx((3, 4, 50))
        assert drdm("evaluate", path).status == 0
    field = sitk.ReadImage(str(tmp_path / "out" / "scan_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
    again = sitk.Resample(image, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    saved = array_of(tmp_path / "out" / "scan_000_image.nii.gz")
    inner = (0, slice(8, -8), slice(8, -8))
    assert np.abs(sitk.GetArrayFromImage(again) - saved)[inner].max() < 1
    assert np.abs(sitk.GetArrayFromImage(image).astype(float) - saved)[inner].max() > 20
    made = drdm("synthesize", tmp_path / "d", "-o", tmp_path / "pairs", "--levels", "40:40", "--no-quality", *options)
    assert made.status == 0, made.err
    assert PairDataset(tmp_path / "pairs")[0]["ddf"].shape == (3, 40, 36, 1)


# Which reader has seen an image.


def geometry_with(*others):
    return FileGeometry(SIZE, np.diag([-1.0, -1, 1, 1]), others)


def test_an_image_is_recognized_by_any_reader_after_crops_flips_and_resampling():
    turned = np.asarray([[0, -1, 0, 50], [1, 0, 0, -60], [0, 0, 1, 7], [0, 0, 0, 1.0]])
    one, two = geometry_with(), geometry_with(turned)
    crop, flip, finer = np.eye(4), np.diag([-1.0, 1, 1, 1]), np.diag([0.5, 0.7, 1, 1])
    crop[:3, 3], flip[0, 3] = (3, 0, 5), SIZE[0] - 1
    tilt = np.eye(4)
    tilt[:3, :3] = rotation(5, 10, -5)
    for step, shape in ((np.eye(4), SIZE), (crop, (20, 24, 10)), (flip, SIZE), (finer, (50, 30, 20)), (tilt, SIZE)):
        assert one.to_world("a", one.affine @ step, shape) is None
        assert two.to_world("a", two.affine @ step, shape) is None
        assert np.allclose(two.to_world("a", turned @ step, shape), turned @ np.linalg.inv(two.affine))
    # A tensor without an affine has the voxels as its world.
    assert np.allclose(one.to_world("a", np.eye(4), SIZE), np.linalg.inv(one.affine))


def test_an_image_at_another_place_is_refused():
    one = geometry_with()
    moved, far = one.affine.copy(), one.affine.copy()
    moved[0, 3], far[0, 3] = 6, 500
    for affine, shape in ((moved, SIZE), (far, SIZE), (far, (10, 10, 10))):
        with pytest.raises(ImageError, match="not where the image lies"):
            one.to_world("a", affine, shape)
    # It was read at the right place, and moved by a transform since.
    assert one.to_world("a", moved, SIZE, one.affine, SIZE) is None
    with pytest.raises(ImageError, match="not where the image lies"):
        one.to_world("a", moved, SIZE, moved, SIZE)


def test_a_crop_that_could_be_from_two_readers_needs_the_original_affine():
    other = np.diag([-1.0, 1, 1, 1])
    other[1, 3] = -(SIZE[1] - 1) + 4
    two = geometry_with(other)
    crop = other.copy()
    crop[:3, 3] += (-3, 6, 5)
    with pytest.raises(ImageError, match="different places"):
        two.to_world("a", crop, (10, 10, 10))
    assert np.allclose(two.to_world("a", crop, (10, 10, 10), other, SIZE), other @ np.linalg.inv(two.affine))


def test_a_file_in_microns_is_one_file_in_two_units(tmp_path):
    path = nifti(tmp_path / "a.nii", np.diag([10.0, 10, 10, 1]), steps=(10, 10, 10), unit=3)
    affine = ras_affine(read_image(path))
    assert affine[2, 2] == pytest.approx(0.01)
    geometry = FileGeometry(SIZE, affine, tuple(other_affines(path)))
    assert np.allclose(geometry.to_world("a", np.diag([10.0, 10, 10, 1]), SIZE)[:3, :3], 1000 * np.eye(3))
