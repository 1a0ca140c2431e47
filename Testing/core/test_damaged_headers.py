"""One bad file does not stop the others: headers that crash their reader, odd names, and errors of any kind."""

import gzip
import os
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from command_helpers import boxes, run_process, scene, write

from DRDMLib.errors import FallbackWarning, ImageError, OutputError
from DRDMLib.io import apart, images
from DRDMLib.io.images import image_files, read_image, read_label
from DRDMLib.io.plain_headers import is_plain
from DRDMLib.loaders import make_bank

# Each of these ends ITK's reader, and with it the process, by a signal.
CRASHES = {
    "crash.mha": (b"NDims = 3", b"NDims = 99999999999"),
    "crash.nrrd": (
        b"space directions: (1,0,0) (0,1.2,0) (0,0,2)",
        b"space directions: (1,0,0) (0,1.2,0) " + b"A" * 5000,
    ),
}


def damaged(folder, name, *, old, new):
    path = write(scene((8, 7, 6)), folder / name)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize("key", [b"ElementType", b"DimSize", b"NDims", b"ElementDataFile"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_without_a_field(tmp_path, key, compressed):
    path = tmp_path / "a.mha"
    sitk.WriteImage(scene((8, 7, 6)), str(path), compressed)
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(key)))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path)
    assert image_files(path) == [path]


@pytest.mark.parametrize("size", [None, b"7", b"99999999"])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_compressed_metaimage_with_another_size_in_its_header(tmp_path, name, size):
    sitk.WriteImage(scene((8, 7, 6)), str(tmp_path / name), True)
    data = tmp_path / ("a.mha" if name == "a.mha" else "a.zraw")
    lines = (tmp_path / name).read_bytes().splitlines(True)
    at = next(k for k, line in enumerate(lines) if line.startswith(b"CompressedDataSize"))
    lines[at : at + 1] = [] if size is None else [b"CompressedDataSize = " + size + b"\n"]
    (tmp_path / name).write_bytes(b"".join(lines))
    if size is None and name == "a.mhd":
        # ITK takes the whole file with the voxels.
        whole = sitk.GetArrayFromImage(scene((8, 7, 6)))
        assert (sitk.GetArrayFromImage(read_image(tmp_path / name)) == whole).all()
        data.write_bytes(data.read_bytes()[:-20])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mha", "a.zraw"])
def test_compressed_metaimage_with_a_flipped_bit(tmp_path, name):
    sitk.WriteImage(scene((8, 7, 6)), str(tmp_path / name.replace("zraw", "mhd")), True)
    data = bytearray((tmp_path / name).read_bytes())
    data[-60] ^= 8
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / name.replace("zraw", "mhd"))


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_compressed_nrrd_with_a_flipped_bit(tmp_path, name):
    sitk.WriteImage(scene((8, 7, 6)), str(tmp_path / name), True)
    path = tmp_path / name if name == "a.nrrd" else tmp_path / "a.raw.gz"
    data = path.read_bytes()
    # Also one of the checksum, and the end in two parts, as bgzip writes them.
    for at in (-60, -6):
        flipped = bytearray(data)
        flipped[at] ^= 8
        path.write_bytes(flipped)
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(tmp_path / name)
    start = data.index(b"\x1f\x8b")
    voxels = gzip.decompress(data[start:])
    path.write_bytes(data[:start] + gzip.compress(voxels[:100]) + gzip.compress(voxels[100:]))
    assert (sitk.GetArrayFromImage(read_image(tmp_path / name)) == sitk.GetArrayFromImage(scene((8, 7, 6)))).all()


@pytest.mark.parametrize("bad", [0, 1])
def test_compressed_slices_with_a_flipped_bit(tmp_path, bad):
    image = scene((8, 7, 2))
    array = sitk.GetArrayFromImage(image)
    sitk.WriteImage(image, str(tmp_path / "a.nhdr"), True)
    for k in range(2):
        packed = bytearray(gzip.compress(array[k].tobytes()))
        packed[-6] ^= 8 * (k == bad)
        (tmp_path / f"s{k}.gz").write_bytes(packed)
    header = (tmp_path / "a.nhdr").read_text()
    (tmp_path / "a.nhdr").write_text(header.replace("a.raw.gz", "LIST\ns0.gz\ns1.gz"))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "a.nhdr")


def test_a_compressed_image_that_asks_for_all_the_memory(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(scene((8, 7, 6)), str(path), True)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 8 7 6", b"DimSize = 90000 90000 9000"))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POINT_DATA 336\n", b""),
        (b"BINARY\n", b""),
        (b"POINT_DATA 336", b"POINT_DATA x"),
        (b"DIMENSIONS 8 7 6", b"DIMENSIONS 8 7 900000000"),
    ],
)
def test_vtk_without_a_line(tmp_path, old, new):
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(damaged(tmp_path, "a.vtk", old=old, new=new))


@pytest.mark.skipif(sys.platform == "win32", reason="files have no names of bytes there")
def test_names_that_are_no_text(tmp_path, tiny_models):
    """Files, folders and names in headers in Latin-1, as on old archives."""
    data, image = tmp_path / "data", scene((24, 22))
    for name in (b"a", b"sub\xff/c", b"z\xe4"):
        place = os.fsencode(data / "images") + b"/" + name + b".nii.gz"
        Path(os.fsdecode(place)).parent.mkdir(parents=True, exist_ok=True)
        write(image, tmp_path / "one.nii.gz")
        os.replace(tmp_path / "one.nii.gz", place)
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt16), str(tmp_path / "s.dcm"))
    os.replace(tmp_path / "s.dcm", os.fsencode(data) + b"/images/sub\xff/s.dcm")
    Path(os.fsdecode(os.fsencode(data) + b"/images/notes\xfc.abc")).write_bytes(b"?")
    write(image, data / "images" / "h.mhd")
    header = data / "images" / "h.mhd"
    os.replace(data / "images" / "h.raw", os.fsencode(data) + b"/images/h\xe4.raw")
    header.write_bytes(header.read_bytes().replace(b"h.raw", b"h\xe4.raw"))
    words = ["--levels", "3:3", "--model", tiny_models[2], "--seed", 1]
    ended = run_process("synthesize", data, "-o", tmp_path / "out", *words)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    for name in ("'z", "'sub"):
        assert f"Left out: {name}" in ended.stderr, ended.stderr
    assert (tmp_path / "out" / "records" / "a_t03-03_000.json").is_file()
    assert (tmp_path / "out" / "dataset.json").is_file()


@pytest.mark.parametrize("what", ["header", "voxels"])
@pytest.mark.parametrize("error", [KeyError("ElementType"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), MemoryError()])
def test_any_error_is_one_of_this_file(tmp_path, monkeypatch, error, what):
    def failing(*_, **__):
        raise error

    path = write(boxes(scene()), tmp_path / "a.nii.gz")
    monkeypatch.setattr(images, "require_whole_file" if what == "header" else "require_right_angles", failing)
    for read in (lambda: read_image(path), lambda: read_label(path, scene())):
        with pytest.raises(ImageError, match=r"'.*a\.nii\.gz'"):
            read()


def test_an_error_for_the_user_keeps_its_words():
    with pytest.raises(OutputError, match=r"^full$"), images.reading("a"):
        raise OutputError("full")


# Crashes.


READ = "import sys, SimpleITK; SimpleITK.ReadImage(sys.argv[1])"


@pytest.mark.parametrize("name", CRASHES)
def test_a_header_that_crashes_its_reader(tmp_path, name):
    old, new = CRASHES[name]
    path = damaged(tmp_path, name, old=old, new=new)
    assert run_process(path, code=READ).returncode not in (0, 1), "this file no longer crashes ITK; find another"
    for read in (read_image, lambda path: read_label(path, scene((8, 7, 6)))):
        with pytest.raises(ImageError, match=f"'.*{name}' cannot be read"):
            read(path)
    assert read_image(write(scene(pixel=sitk.sitkFloat32), tmp_path / "good.tif")).GetSize() == scene().GetSize()


@pytest.mark.parametrize("command", ["synthesize", "train", "fit"])
def test_crashing_files_are_left_out_by_every_command(tmp_path, tiny_models, command):
    """In real processes; on resuming, too."""
    data = tmp_path / "data"
    files = [damaged(data / "images", name, old=old, new=new) for name, (old, new) in CRASHES.items()]
    files += [write(scene((14, 13, 12)), data / "images" / f"{name}.nii.gz") for name in "bde"]
    words = {
        "synthesize": [data, "-o", tmp_path / "out", "--model", tiny_models[3], "--levels", "3:3"],
        "train": [data, "-o", tmp_path / "out", "--ndim", 3, "--size", 16, "--width", 8, "--hold-out", 2]
        + ["--iterations", 1, "--device", "cpu"],
        "fit": [*files, "--model", tiny_models[3]],
    }[command]
    for again in ([], ["--resume"])[: 1 if command == "fit" else 2]:
        ended = run_process(command, *words, *again)
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
        for name in CRASHES:
            assert f"images/{name}' cannot be read" in ended.stderr, ended.stderr


def test_a_bank_leaves_crashing_files_out(tmp_path, tiny_models):
    name, (old, new) = next(iter(CRASHES.items()))
    damaged(tmp_path / "images", name, old=old, new=new)
    write(scene((14, 13, 12)), tmp_path / "images" / "b.nii.gz")
    with pytest.warns(FallbackWarning, match="Left out: 'crash'"):
        bank = make_bank(
            tmp_path, tmp_path / "bank", model=str(tiny_models[3]), levels=(4,), copies=1, steps=1, device="cpu"
        )
    assert bank.names == ["b"]


def test_the_reader_is_ended_with_its_process_and_starts_again(tmp_path):
    path = write(scene(pixel=sitk.sitkFloat32), tmp_path / "a.tif")
    assert apart.read_apart(path, "image").kind == "TIFFImageIO"
    process = apart._READER._process
    assert process is not None and process.poll() is None
    process.kill()
    process.wait()
    assert apart.read_apart(path, "image").kind == "TIFFImageIO"
    code = (
        "import sys; from pathlib import Path; from DRDMLib.io import apart; apart.read_apart(Path(sys.argv[1]),"
        " 'image'); print(apart._READER._process.pid)"
    )
    ended = run_process(path, code=code)
    assert ended.returncode == 0 and ended.stderr == ""
    if sys.platform.startswith("linux"):
        assert not Path(f"/proc/{ended.stdout.strip()}").exists()


def test_no_library_of_the_working_folder_is_loaded_by_the_reader(tmp_path, monkeypatch):
    (tmp_path / "SimpleITK.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    apart._READER.close()
    assert apart.read_apart(write(scene(pixel=sitk.sitkFloat32), tmp_path / "a.tif"), "image").image is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.tif", "a.gipl", "a.vtk", "a.mrc", "a.h5", "a.hdr", "a.nrrd"])
@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkVectorFloat32])
def test_an_image_that_was_read_apart_is_the_same(tmp_path, name, pixel):
    image = scene(pixel=sitk.sitkFloat32)
    image = sitk.Compose([image] * 3) if pixel == sitk.sitkVectorFloat32 else sitk.Cast(image, pixel)
    image.SetSpacing((0.1 + 0.2, 1 / 3, 2.0))
    try:
        sitk.WriteImage(image, str(tmp_path / name))
    except RuntimeError:
        pytest.skip("ITK does not write this type")
    made = apart.read_apart(tmp_path / name, "image").image
    itk = sitk.ReadImage(str(tmp_path / name))
    assert (sitk.GetArrayFromImage(made) == sitk.GetArrayFromImage(itk)).all()
    for get in ("GetPixelID", "GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetNumberOfComponentsPerPixel"):
        assert getattr(made, get)() == getattr(itk, get)(), get


def test_plain_headers_are_recognized(tmp_path):
    for name in ("a.nii", "a.nii.gz", "a.hdr", "a.mha", "a.mhd", "a.nrrd", "a.nhdr"):
        assert is_plain(write(scene(), tmp_path / name)), name
    oblique = scene()
    oblique.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    assert is_plain(write(oblique, tmp_path / "b.nrrd")) and is_plain(write(oblique, tmp_path / "b.mha"))
    assert not is_plain(write(sitk.Cast(scene(), sitk.sitkFloat32), tmp_path / "a.tif"))
    text = (tmp_path / "a.mhd").read_text()
    for old, new in (("MET_SHORT", "MET_OTHER"), ("NDims = 3", "NDims = 30"), ("ObjectType", "Object"), ("LOCAL", "")):
        (tmp_path / "c.mhd").write_text(text.replace(old, new) if old in text else text + "\nX = 1")
        assert is_plain(tmp_path / "c.mhd") == (old == "LOCAL")


CRASHING = "space directions: (1,0,0) (0,1.2,0) "
# Changes of a header after which two ways to read it give different fields.
UNCLEAR = {
    "a longer line": ("endian: little\n", f"endian: little\n{CRASHING}(0,0,2){' ' * 5000}{'A' * 5000}\n"),
    "a line of spaces": ("endian: little\n", f"endian: little\n  \n{CRASHING}{'A' * 5000}\n"),
    "a tabulator": ("endian: little\n", f"endian: little\n\t\n{CRASHING}{'A' * 5000}\n"),
    "two ends of lines": ("endian: little", "endian: little\vspacings: 1 1 1"),
    "a carriage return": ("endian: little", "endian: little\rspacings: 1 1 1"),
    "a value of a field": ("endian: little", "endian: little\nsizes:=9 9 9"),
    "another name": ("endian: little", "endian: little\nSpace  Directions:=9 9 9"),
    "spaces in front": ("endian: little", " endian: little"),
    "a null": ("endian: little", "endian: little\0"),
    "no colon": ("endian: little", "endian: little\nsizes"),
    "twice": ("endian: little", "endian: little\nendian: little"),
    "two files": ("endian: little", "endian: little\ndata file: a.raw\ndatafile: b.raw"),
    "a later magic": ("NRRD0004", "NRRD0009"),
}


@pytest.mark.parametrize("change", UNCLEAR)
def test_a_header_that_can_be_read_in_two_ways_is_not_plain(tmp_path, change):
    path = write(scene((8, 7, 6)), tmp_path / "a.nrrd")
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    text = (head + b"\n").decode()
    assert is_plain(path)
    if CRASHING in UNCLEAR[change][1]:
        text = "".join(line for line in text.splitlines(True) if not line.startswith("space directions"))
    old, new = UNCLEAR[change]
    assert old in text
    path.write_bytes(text.replace(old, new).encode() + b"\n" + voxels)
    assert not is_plain(path)
    try:
        read_image(path)
    except ImageError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("NDims = 3", "NDims = 3" + " " * 70_000),
        ("NDims = 3", "NDims = 3\vOffset = 1"),
        ("NDims = 3", "NDims = 3\rX = 1"),
        ("NDims = 3", " NDims = 3"),
        ("NDims = 3", "NDims = 3\n"),
        ("NDims = 3", "NDims = 3\nDimSize: 9 9 9 = 3"),
        ("NDims = 3", "NDims = 3\nComment"),
        ("NDims = 3", "NDims = 3\nNDims = 3"),
    ],
)
def test_a_metaimage_header_that_can_be_read_in_two_ways_is_not_plain(tmp_path, old, new):
    path = write(scene((8, 7, 6)), tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    assert not is_plain(path)


def test_colors_and_names_of_segments_are_plain(tmp_path):
    path = write(scene((8, 7, 6)), tmp_path / "a.seg.nrrd")
    data = path.read_bytes().replace(b"\n\n", f"\n# by hand\nSegment0_Tags:={'T' * 5000}|é|\n\n".encode(), 1)
    path.write_bytes(data)
    assert is_plain(path) and read_image(path).GetSize() == (8, 7, 6)
    path.write_bytes(data.replace(b"encoding", b"Encoding").replace(b"type", b"TYPE"))
    assert is_plain(path)
