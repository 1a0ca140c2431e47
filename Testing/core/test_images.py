"""All supported types of files, read and deformed by the real command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from support import rotation, smooth_image

from DRDMLib.cli import main
from DRDMLib.errors import ImageError
from DRDMLib.io.datasets import find_cases
from DRDMLib.io.files import image_stem
from DRDMLib.io.images import read_image, read_label


def write_dicom_series(image: sitk.Image, folder) -> None:
    """Write one file per slice with position, orientation and spacing, like a scanner."""
    folder.mkdir(parents=True)
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetSize()[2]):
        part = image[:, :, k]
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.7",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.8",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in image.TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{v:.8f}" for v in direction[:, :2].T.ravel()),
            "0018|0050": str(image.GetSpacing()[2]),
        }
        for key, value in tags.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"slice {k:03d}.dcm"))
        writer.Execute(part)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_image_files_of_every_type(suffix, tmp_path, tiny_model_path):
    image = smooth_image((30, 26, 22), (1.0, 1.5, 2.0), rotation(10, 20, 30))
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path))
    assert image_stem(path) == "scan"
    out = tmp_path / "out"
    assert main(["deform", str(path), "-o", str(out), "--model", str(tiny_model_path), "--steps", "3"]) == 0
    made = sitk.ReadImage(str(out / "scan_000_image.nii.gz"))
    assert np.allclose(made.GetOrigin(), image.GetOrigin(), atol=1e-3)
    assert np.allclose(made.GetDirection(), image.GetDirection(), atol=1e-5)


def test_a_dicom_series(tmp_path, tiny_model_path):
    image = smooth_image((32, 28, 12), (1.0, 1.0, 3.0), rotation(5, 10, 0))
    write_dicom_series(image, tmp_path / "serie")
    again = read_image(tmp_path / "serie")
    assert again.GetSize() == image.GetSize()
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))
    assert np.allclose(again.GetDirection(), image.GetDirection(), atol=1e-5)
    out = tmp_path / "out"
    arguments = ["deform", str(tmp_path / "serie"), "-o", str(out), "--model", str(tiny_model_path), "--steps", "3"]
    assert main(arguments) == 0
    made = sitk.ReadImage(str(out / "serie_000_image.nii.gz"))
    field = sitk.ReadImage(str(out / "serie_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
    expected = sitk.Resample(
        again, again, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0, sitk.sitkFloat32
    )
    inner = (slice(2, -2), slice(6, -6), slice(6, -6))
    difference = np.abs(sitk.GetArrayFromImage(expected) - sitk.GetArrayFromImage(made))[inner].mean()
    assert difference < 0.005 * np.ptp(sitk.GetArrayFromImage(image))


def test_a_4d_file_with_one_time_point(tmp_path):
    image = smooth_image((20, 18, 16))
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "scan.nii.gz"))
    assert read_image(tmp_path / "scan.nii.gz").GetSize() == image.GetSize()


def test_float_labels_with_whole_values(tmp_path):
    image = smooth_image((20, 18, 16))
    label = sitk.Cast(sitk.BinaryThreshold(image, 100, 10000, 3, 0), sitk.sitkFloat32)
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    read = read_label(tmp_path / "label.nii.gz", image)
    assert read.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(sitk.GetArrayFromImage(read))) == {0, 3}


def test_datasets_of_every_type(tmp_path):
    image = smooth_image((12, 10, 8))
    for folder, names in {"nnunet/imagesTr": ["a_0000", "a_0001", "b_0000"], "plain/images": ["x", "y"]}.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            sitk.WriteImage(image, str(tmp_path / folder / f"{name}.nii.gz"))
    for folder, name in (("nnunet/labelsTr", "a"), ("plain/labels", "y")):
        (tmp_path / folder).mkdir(parents=True)
        sitk.WriteImage(image > 100, str(tmp_path / folder / f"{name}.nii.gz"))
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\nplain/images/x.nii.gz\n\nplain/images/y.nii.gz\n", encoding="utf-8")
    assert [(c.name, c.label is not None) for c in find_cases(tmp_path / "nnunet")] == [("a", True), ("b", False)]
    assert [(c.name, c.label is not None) for c in find_cases(tmp_path / "plain")] == [("x", False), ("y", True)]
    assert [c.name for c in find_cases(listed)] == ["x", "y"]
    assert [c.name for c in find_cases(tmp_path / "plain" / "images" / "x.nii.gz")] == ["x"]


@pytest.mark.parametrize(
    "relative",
    [
        "ct/images",
        "brain_misc/images",
        "cardiac_sunnybrook/images",
    ],
)
def test_simpleitk_gives_the_saved_image_of_real_images(
    shared, relative, tmp_path, tiny_model_path, tiny_model_2d_path
):
    """Test one image of each dataset; hearts with the 2D model."""
    path = sorted((shared / "data" / relative).glob("*.nii.gz"))[0]
    model = tiny_model_2d_path if "cardiac" in relative else tiny_model_path
    assert main(["deform", str(path), "-o", str(tmp_path / "o"), "--model", str(model), "--steps", "4"]) == 0
    image, stem = sitk.ReadImage(str(path)), image_stem(path)
    made = sitk.ReadImage(str(tmp_path / "o" / f"{stem}_000_image.nii.gz"))
    field = sitk.ReadImage(str(tmp_path / "o" / f"{stem}_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
    expected = sitk.Resample(
        image, image, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0, sitk.sitkFloat32
    )
    inside = sitk.Resample(
        sitk.Cast(image, sitk.sitkFloat32) * 0 + 1,
        image,
        sitk.DisplacementFieldTransform(
            sitk.ReadImage(str(tmp_path / "o" / f"{stem}_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
        ),
    )
    interior = sitk.GetArrayFromImage(inside) > 0.999
    a, b = sitk.GetArrayFromImage(expected), sitk.GetArrayFromImage(made).astype(float)
    assert np.abs(a - b)[interior].mean() < 0.005 * np.ptp(sitk.GetArrayFromImage(image).astype(float))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nan_in_the_last_voxel_is_found(suffix, tmp_path):
    """The number of voxels is odd, in case voxels are read in pairs."""
    image = smooth_image((5, 5, 5), pixel=sitk.sitkFloat32)
    image[4, 4, 4] = float("nan")
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    with pytest.raises(ImageError, match="1 NaN"):
        read_image(tmp_path / f"scan{suffix}")


def test_every_sample_of_a_run_has_its_own_seed(tmp_path, tiny_model_path):
    for name in "ab":
        for folder in ("images", "labels"):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
        image = smooth_image((16, 15, 14), seed=ord(name))
        sitk.WriteImage(image, str(tmp_path / "d" / "images" / f"{name}.nii.gz"))
        sitk.WriteImage(image > 100, str(tmp_path / "d" / "labels" / f"{name}.nii.gz"))
    arguments = ["augment", str(tmp_path / "d"), "--model", str(tiny_model_path)]
    arguments += ["--levels", "4", "9", "--steps", "1"]

    def seeds(folder, seed):
        assert main([*arguments, "-o", str(tmp_path / folder), "--seed", str(seed)]) == 0
        return [item["seed"] for item in json.loads((tmp_path / folder / "report.json").read_bytes())["items"]]

    made = seeds("first", 5)
    assert len(set(made)) == len(made) == 4
    assert seeds("again", 5) == made
    assert not set(seeds("other", 6)) & set(made)
