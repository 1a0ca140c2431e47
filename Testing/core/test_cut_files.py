"""Files of every format that were cut off, or have voxels that are no numbers, are refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import scene

from DRDMLib.errors import ImageError
from DRDMLib.io import images
from DRDMLib.io.files import SUFFIXES
from DRDMLib.io.images import image_files, read_image

# Written file, file that is cut, whether it is compressed, and pixel type.
VOLUMES = [
    ("a.nii", "a.nii", False),
    ("a.nii.gz", "a.nii.gz", False),
    ("a.hdr", "a.img", False),
    ("a.img.gz", "a.img.gz", False),
    ("a.nrrd", "a.nrrd", False),
    ("a.nrrd", "a.nrrd", True),
    ("a.nhdr", "a.raw", False),
    ("a.nhdr", "a.raw.gz", True),
    ("a.mha", "a.mha", False),
    ("a.mha", "a.mha", True),
    ("a.mhd", "a.raw", False),
    ("a.mhd", "a.zraw", True),
    ("a.tif", "a.tif", False),
    ("a.tiff", "a.tiff", True),
    ("a.gipl", "a.gipl", False),
    ("a.gipl.gz", "a.gipl.gz", False),
    ("a.vtk", "a.vtk", False),
    ("a.mrc", "a.mrc", False),
    ("a.h5", "a.h5", False),
    ("a.mnc", "a.mnc", False),
    ("a.rec", "a.rec", False),
    ("a.spr", "a.sdt", False),
    ("a.dcm", "a.dcm", False),
    ("a.dcm", "a.dcm", True),
]
PICTURES = [
    ("a.png", "a.png", False),
    ("a.jpg", "a.jpg", False),
    ("a.jp2", "a.jp2", False),
    ("a.dcm", "a.dcm", False),
    ("a.tif", "a.tif", True),
]
CUTS = [0.1, 0.5, 0.9, -100, -9]


def check_cuts(image, folder, name, data, compressed):
    path = folder / name
    sitk.WriteImage(image, str(path), compressed)
    whole = (folder / data).read_bytes()
    assert read_image(path).GetSize() == image.GetSize() or data.endswith(".dcm")
    for cut in CUTS:
        (folder / data).write_bytes(whole[: int(cut * len(whole)) if cut > 0 else cut])
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(path)


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize(("name", "data", "compressed"), VOLUMES)
def test_cut_volume(tmp_path, capfd, monkeypatch, name, data, compressed, meanwhile):
    """Large files are checked while they are read, which is the same for who reads them."""
    monkeypatch.setattr(images, "_CHECKED_MEANWHILE", 0 if meanwhile else 2**60)
    check_cuts(
        scene(pixel=sitk.sitkUInt16 if name.endswith(".dcm") else sitk.sitkInt16), tmp_path, name, data, compressed
    )
    if data.endswith((".tif", ".tiff", ".h5", ".mha", ".raw", ".zraw")):
        assert capfd.readouterr().err == "", "a reader prints lines of its own"


@pytest.mark.parametrize(("name", "data", "compressed"), PICTURES)
def test_cut_picture(tmp_path, name, data, compressed):
    check_cuts(scene((64, 60), sitk.sitkUInt8), tmp_path, name, data, compressed)


def test_cut_biorad(tmp_path):
    """BioRad's images have 8 bits, or 16 without a sign."""
    check_cuts(scene(pixel=sitk.sitkUInt8), tmp_path, "a.pic", "a.pic", False)


METAIMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
DimSize = 8 7 6
ElementType = MET_SHORT
ElementDataFile = """
NRRD = """NRRD0004
type: int16
dimension: 3
sizes: 8 7 6
encoding: raw
endian: little
data file: """
EACH = "\n".join(f"s{k:02d}.raw" for k in range(6))
HEADERS = {
    "list.mhd": f"{METAIMAGE}LIST\n{EACH}\n",
    "pattern.mhd": f"{METAIMAGE}s%02d.raw 0 5 1\n",
    "list.nhdr": f"{NRRD}LIST\n{EACH}\n",
    "pattern.nhdr": f"{NRRD}s%02d.raw 0 5 1\n",
}


@pytest.mark.parametrize("name", list(HEADERS))
def test_voxels_in_a_file_for_each_slice(tmp_path, name):
    volume = scene((8, 7, 6))
    (tmp_path / name).write_text(HEADERS[name])
    slices = [tmp_path / f"s{k:02d}.raw" for k in range(6)]
    for k, path in enumerate(slices):
        path.write_bytes(sitk.GetArrayFromImage(volume[:, :, k]).tobytes())
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name)), sitk.GetArrayFromImage(volume))
    assert image_files(tmp_path / name) == [tmp_path / name, *slices]
    slices[3].write_bytes(slices[3].read_bytes()[:-10])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / name)
    slices[3].unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("data", ["list.raw", "a b.raw", "ü.raw", "sub/a.raw"])
def test_names_of_detached_voxels(data, tmp_path):
    sitk.WriteImage(scene((8, 7, 6)), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text(encoding="utf-8")
    (tmp_path / data).parent.mkdir(exist_ok=True)
    (tmp_path / "a.raw").rename(tmp_path / data)
    (tmp_path / "a.mhd").write_text(text.replace("a.raw", data), encoding="utf-8")
    assert read_image(tmp_path / "a.mhd").GetSize() == (8, 7, 6)
    assert image_files(tmp_path / "a.mhd")[1:] == [tmp_path / data]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.mhd", ["a.mhd", "a.raw"]),
        ("a.nhdr", ["a.nhdr", "a.raw"]),
        ("a.hdr", ["a.hdr", "a.img"]),
        ("a.img.gz", ["a.img.gz", "a.hdr.gz"]),
        ("a.spr", ["a.spr", "a.sdt"]),
        ("a.nrrd", ["a.nrrd"]),
        ("a.mha", ["a.mha"]),
        ("a.nii.gz", ["a.nii.gz"]),
    ],
)
def test_files_of_an_image(tmp_path, name, parts):
    sitk.WriteImage(scene(), str(tmp_path / name))
    assert image_files(tmp_path / name) == [tmp_path / part for part in parts]


def test_the_usual_suffixes_are_cut():
    """The others are rare formats, most of which ITK reads but does not write."""
    cut = {name[1:] for name, _, _ in VOLUMES + PICTURES}
    usual = {".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".tif", ".tiff", ".jpg"}
    assert usual <= cut and usual <= set(SUFFIXES)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "a.nii",
        "a.nii.gz",
        "a.hdr",
        "a.img.gz",
        "a.nrrd",
        "a.nhdr",
        "a.mha",
        "a.mhd",
        "a.tif",
        "a.gipl",
        "a.vtk",
        "a.mrc",
        "a.h5",
    ],
)
def test_voxels_that_are_no_numbers(tmp_path, name, bad):
    image = scene(pixel=sitk.sitkFloat32)
    image[5, 6, 7] = float(bad)
    sitk.WriteImage(image, str(tmp_path / name))
    with pytest.raises(ImageError, match="1 NaN or infinite"):
        read_image(tmp_path / name)


def test_text_vtk(tmp_path):
    lines = ["# vtk DataFile Version 3.0", "made by hand", "ASCII", "DATASET STRUCTURED_POINTS", "DIMENSIONS 4 3 2"]
    lines += ["SPACING 1 1 1", "ORIGIN 0 0 0", "POINT_DATA 24", "SCALARS values float 1", "LOOKUP_TABLE default"]
    text = "\n".join([*lines, *map(str, range(24))])
    path = tmp_path / "a.vtk"
    path.write_text(text)
    assert sitk.GetArrayFromImage(read_image(path)).ravel().tolist() == list(range(24))
    path.write_text(text[:-3])
    with pytest.raises(ImageError, match="incomplete"):
        read_image(path)


def test_png_with_a_flipped_bit(tmp_path):
    path = tmp_path / "a.png"
    sitk.WriteImage(scene((64, 60), sitk.sitkUInt8), str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="incomplete"):
        read_image(path)
