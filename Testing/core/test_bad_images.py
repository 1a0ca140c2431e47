"""Invalid images and labels: the command prints one clear line and changes no file."""

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write

# Images that cannot be read.


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "no/such/folder/scan.mha"])
def test_missing_file(deform_refused, tmp_path, name):
    deform_refused(tmp_path / name, says="there is no image")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".dcm"])
def test_empty_file(deform_refused, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.touch()
    deform_refused(path, says="empty")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".tif", ".txt"])
def test_text_file_with_an_image_suffix(deform_refused, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.write_text("This is not an image.\n" * 50)
    deform_refused(path, says="cannot be read")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.97], ids=["a tenth", "half", "nearly all"])
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_truncated_file(deform_refused, tmp_path, suffix, compressed, keep):
    if suffix.startswith(".nii") and compressed != (suffix == ".nii.gz"):
        pytest.skip("the name determines the compression")
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(scene(pixel=sitk.sitkFloat32), str(path), compressed)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    deform_refused(path, says="incomplete|cannot be read")


def test_nifti_without_its_last_voxels(deform_refused, tmp_path):
    path = write(scene(), tmp_path / "scan.nii")
    path.write_bytes(path.read_bytes()[:-100])
    deform_refused(path, says="incomplete")


def test_truncated_jpeg(deform_refused, tiny_models, tmp_path):
    path = write(scene((64, 64), pixel=sitk.sitkUInt8), tmp_path / "scan.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    deform_refused(path, says="incomplete|cannot be read", model=tiny_models[2])


def test_nifti_with_scaled_integers_is_read(drdm, tmp_path, tiny_models):
    """Such a file is smaller than its voxels in memory, but not truncated."""
    path = write(scene(), tmp_path / "scan.nii")
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(0.5).tobytes()  # scl_slope
    path.write_bytes(data)
    outcome = drdm("deform", path, "-o", tmp_path / "out", "--level", 2, "--model", tiny_models[3])
    assert outcome.status == 0, outcome.err


# Images that cannot be used.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_nan_and_infinite_voxels(deform_refused, tmp_path, suffix, bad):
    image = scene(pixel=sitk.sitkFloat32)
    image[5, 6, 7] = float(bad)
    deform_refused(write(image, tmp_path / f"scan{suffix}"), says="NaN")


@pytest.mark.parametrize("value", [0, 7])
def test_constant_image(deform_refused, tmp_path, value):
    image = sitk.Image((12, 11, 10), sitk.sitkInt16) + value
    deform_refused(write(image, tmp_path / "scan.nii.gz"), says="contrast")


def test_color_picture(deform_refused, tiny_models, tmp_path):
    rgb = sitk.Compose([scene((20, 20), pixel=sitk.sitkUInt8)] * 3)
    deform_refused(write(rgb, tmp_path / "photo.png"), says="single-channel", model=tiny_models[2])


def test_vector_volume(deform_refused, tmp_path):
    vectors = sitk.Compose([scene(pixel=sitk.sitkFloat32)] * 3)
    deform_refused(write(vectors, tmp_path / "vectors.nii.gz"), says="3 values per voxel")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_several_time_points(deform_refused, tmp_path, suffix):
    series = sitk.JoinSeries([scene(), scene() + 1, scene() + 2])
    deform_refused(write(series, tmp_path / f"cine{suffix}"), says="one time point")


# DICOM folders.


def write_series(folder, number, slices=6):
    """Write a tiny MR series; return its files in order."""
    volume = scene((16, 14, slices))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    folder.mkdir(exist_ok=True)
    root = "1.2.826.0.1.3680043.2.1125"
    files = []
    for k in range(slices):
        one = volume[:, :, k]
        tags = {
            "0008|0018": f"{root}.{number}.{k + 1}",
            "0008|0060": "MR",
            "0018|0050": "2",
            "0020|000d": f"{root}.1",
            "0020|000e": f"{root}.{number}",
            "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{2 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        files.append(folder / f"{number}_{k}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(one)
    return files


def test_dicom_series_is_deformed(drdm, tmp_path, tiny_models):
    write_series(tmp_path / "series", 7)
    outcome = drdm("deform", tmp_path / "series", "-o", tmp_path / "out", "--level", 2, "--model", tiny_models[3])
    assert outcome.status == 0, outcome.err
    assert sitk.ReadImage(str(tmp_path / "out" / "series_000_image.nii.gz")).GetSize() == (16, 14, 6)


@pytest.mark.parametrize("content", [None, "notes.txt", "fake.dcm"])
def test_folder_without_dicom(deform_refused, tmp_path, content):
    folder = tmp_path / "series"
    folder.mkdir()
    if content:
        (folder / content).write_text("no image\n" * 40)
    deform_refused(folder, says="no DICOM images")


def test_folder_with_two_dicom_series(deform_refused, tmp_path):
    write_series(tmp_path / "series", 7)
    write_series(tmp_path / "series", 8)
    deform_refused(tmp_path / "series", says="2 DICOM series")


@pytest.mark.parametrize("damage", ["slice cut short", "slice missing"])
def test_dicom_series_with_a_gap(deform_refused, tmp_path, damage):
    """Without a check, the slices would be spread evenly over the gap, with wrong geometry."""
    file = write_series(tmp_path / "series", 7)[2]
    if damage == "slice missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    deform_refused(tmp_path / "series", says="slice|incomplete|cannot be read")


# Labels.


def test_missing_label(deform_refused, scan, tmp_path):
    deform_refused(scan, "--label", tmp_path / "none.nii.gz", says="there is no label")


def test_truncated_label(deform_refused, scan, tmp_path):
    label = write(boxes(scene()), tmp_path / "label.nrrd")
    label.write_bytes(label.read_bytes()[: label.stat().st_size // 2])
    deform_refused(scan, "--label", label, says="label .* cannot be read")


def test_label_of_another_dimension(deform_refused, scan, tmp_path):
    label = write(boxes(scene((26, 22))), tmp_path / "label.nii.gz")
    deform_refused(scan, "--label", label, says="2D but the image is 3D")


def test_label_outside_the_image(deform_refused, scan, tmp_path):
    label = boxes(scene())
    label.SetOrigin((400.0, 20.0, 30.0))
    deform_refused(
        scan, "--label", write(label, tmp_path / "label.nii.gz"), says="lies in another place.*--label-geometry"
    )


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_label_with_fractional_values(deform_refused, scan, tmp_path, value):
    label = sitk.Cast(boxes(scene()), sitk.sitkFloat32)
    label[3, 4, 5] = float(value)
    deform_refused(scan, "--label", write(label, tmp_path / "label.nrrd"), says="fractional")


def test_label_of_vectors(deform_refused, scan, tmp_path):
    label = sitk.Compose([boxes(scene())] * 3)
    deform_refused(scan, "--label", write(label, tmp_path / "label.nii.gz"), says="several values")


def test_label_on_another_grid_is_resampled(drdm, scan, tmp_path, tiny_models):
    image = scene()
    grid = sitk.Image([2 * n for n in image.GetSize()], sitk.sitkUInt8)
    grid.SetSpacing([s / 2 for s in image.GetSpacing()])
    grid.SetOrigin([o - s / 4 for o, s in zip(image.GetOrigin(), image.GetSpacing(), strict=True)])
    fine = sitk.Resample(boxes(image), grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    label = write(fine, tmp_path / "label.nrrd")
    same = write(boxes(image), tmp_path / "same.nii.gz")
    for name, path in (("out", label), ("out2", same)):
        outcome = drdm("deform", scan, "-o", tmp_path / name, "--level", 9, "--label", path, "--model", tiny_models[3])
        assert outcome.status == 0, outcome.err
    made = sitk.ReadImage(str(tmp_path / "out" / "scan_000_label.nii.gz"))
    assert made.GetSize() == image.GetSize()
    assert np.allclose(made.GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.allclose(made.GetSpacing(), image.GetSpacing(), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(made), array_of(tmp_path / "out2" / "scan_000_label.nii.gz"))
