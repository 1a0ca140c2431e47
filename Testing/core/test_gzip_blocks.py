"""Large volumes are compressed in blocks on several threads: every reader reads them, and the bytes never differ."""

import gzip
import io
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, names_in, scene, write

from DRDMLib import output
from DRDMLib.errors import ImageError
from DRDMLib.io import gzip_writing
from DRDMLib.io.integrity import require_whole_file
from DRDMLib.io.plain_headers import is_plain
from DRDMLib.io.volumes import write_volume


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(gzip_writing, "_BLOCK", 1000)


@pytest.fixture
def threads():
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    yield sitk.ProcessObject.SetGlobalDefaultNumberOfThreads
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def blocks_of(data, pieces, **how):
    raw = io.BytesIO()
    parts = np.array_split(np.frombuffer(data, np.uint8), pieces)
    gzip_writing.write_gzip(raw, parts, blocks=True, **how)
    return raw.getvalue()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 12345])
@pytest.mark.parametrize("how", [{}, {"noisy": True}, {"stored": True}], ids=str)
def test_the_bytes_depend_on_nothing_but_the_data(small_blocks, threads, size, how):
    data = np.random.default_rng(0).integers(0, 7, size).astype(np.uint8).tobytes()
    made = set()
    for count in (1, 2, 5):
        threads(count)
        made |= {blocks_of(data, pieces, **how) for pieces in (1, 3, 50)}
    (packed,) = made
    assert gzip.decompress(packed) == data
    # One stream, so that readers that stop at its end read all.
    plain = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert plain.decompress(packed) == data and plain.eof and plain.unused_data == b""


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("pixel", [sitk.sitkInt16, sitk.sitkUInt8, sitk.sitkFloat32])
def test_every_reader_reads_the_same_as_from_itk(small_blocks, tmp_path, ending, components, pixel):
    image = scene((26, 22, 18), pixel)
    image.SetOrigin([1.25, -20.0, 30.123456789])
    image.SetSpacing([0.1234567890123, 1.0, 2.5])
    image.SetDirection([0, -1, 0, 1, 0, 0, 0, 0, 1])
    if components > 1:
        pixel = {sitk.sitkInt16: sitk.sitkVectorInt16, sitk.sitkUInt8: sitk.sitkVectorUInt8}.get(
            pixel, sitk.sitkVectorFloat32
        )
        image = sitk.Compose(image, image + 1, image * 2)
    view = np.moveaxis(np.atleast_3d(sitk.GetArrayFromImage(image)), -1, 0) if components > 1 else None
    whole = sitk.GetArrayFromImage(image)
    pieces = [whole[:5], whole[5:]] if view is None else [part for k in view for part in (k[:7], k[7:])]
    paths = [tmp_path / f"{name}.{ending}" for name in ("blocks", "before", "itk")]
    for path, blocks in zip(paths[:2], (True, False), strict=True):
        write_volume(path, image, pieces, pixel, components=components, blocks=blocks)
    sitk.WriteImage(image, str(paths[2]), useCompression=True)
    made, before, reference = (sitk.ReadImage(str(path)) for path in paths)
    assert paths[0].read_bytes() != paths[1].read_bytes()
    for other in (before, reference):
        assert made.GetPixelID() == other.GetPixelID() and made.GetSize() == other.GetSize()
        assert made.GetSpacing() == other.GetSpacing() and made.GetOrigin() == other.GetOrigin()
        assert made.GetDirection() == other.GetDirection()
        assert np.array_equal(sitk.GetArrayFromImage(made), sitk.GetArrayFromImage(other))
    # Our own readers trust the file, and refuse it where it is cut off.
    assert is_plain(paths[0])
    kind = {"nii.gz": "NiftiImageIO", "nrrd": "NrrdImageIO"}[ending]
    require_whole_file(paths[0], "image", kind)
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(paths[0].read_bytes()[:-1500])
    with pytest.raises(ImageError):
        require_whole_file(cut, "image", kind)


def test_nibabel_reads_it(small_blocks, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = scene()
    path = write_volume(tmp_path / "a.nii.gz", image, [sitk.GetArrayFromImage(image)], image.GetPixelID(), blocks=True)
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj).T, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_deform_and_apply_write_the_same_voxels(tmp_path, drdm, tiny_models, monkeypatch, small_blocks, ending):
    image = scene()
    scan, label = write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")
    quick = ["--model", tiny_models[3], "--device", "cpu", "--steps", 1, "--level", 30, "--no-picture", "--full-field"]
    arguments = ["deform", scan, "--label", label, "--inverse", "--format", ending, *quick, "--channel", scan]
    assert drdm(*arguments, "-o", tmp_path / "a").status == 0
    assert drdm("apply", tmp_path / "a" / f"scan_000_ddf.{ending}", scan, "-o", tmp_path / "apply-a").status == 0
    monkeypatch.setattr(output, "_MOST_VOXELS", 100)
    assert drdm(*arguments, "-o", tmp_path / "b").status == 0
    assert drdm("apply", tmp_path / "b" / f"scan_000_ddf.{ending}", scan, "-o", tmp_path / "apply-b").status == 0
    kinds = ("image", "label", "ddf", "inverse", "channel_scan")
    assert set(names_in(tmp_path / "b")) >= {f"scan_000_{kind}.{ending}" for kind in kinds}
    names = [(f"{f}", f"scan_000_{kind}.{ending}") for f in ("",) for kind in kinds] + [("apply-", "scan.nii.gz")]
    for folder, name in names:
        one, two = (tmp_path / f"{folder}{case}" / name for case in "ab")
        first, second = sitk.ReadImage(str(one)), sitk.ReadImage(str(two))
        assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second)), name
        assert first.GetOrigin() == second.GetOrigin() and first.GetPixelID() == second.GetPixelID()
        assert one.read_bytes() != two.read_bytes(), name


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_nothing_is_left_when_it_fails(small_blocks, threads, tmp_path, ending):
    threads(3)
    image = scene()

    def pieces():
        yield sitk.GetArrayFromImage(image)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path / f"a.{ending}", image, pieces(), image.GetPixelID(), blocks=True)
    assert not list(tmp_path.iterdir())
