"""DICOM series and multi-frame files: read as their headers say, or refused in their own terms."""

import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from support import smooth_image

from DRDMLib.cli import main
from DRDMLib.errors import FallbackWarning, ImageError
from DRDMLib.io.datasets import find_cases
from DRDMLib.io.images import read_image

pydicom = pytest.importorskip("pydicom")

CLASSES = "1.2.840.10008.5.1.4.1.1."
AXIAL = (1, 0, 0, 0, 1, 0)
VOLUME = sitk.GetArrayFromImage(smooth_image((14, 12, 8)))


def dataset(**tags):
    result = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(result, tag, value)
    return result


def save(values, path, sop_class, **tags):
    """Write a DICOM file with the given pixels, in a study and for a patient that are always the same."""
    made = dataset(SOPClassUID=CLASSES + sop_class, StudyInstanceUID="1.2", PatientID="P", **tags)
    made.Rows, made.Columns = values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 1
    made.PixelData = np.ascontiguousarray(values).astype("<i2").tobytes()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        made.SOPClassUID,
        made.SOPInstanceUID,
    )
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path):
    """Write one file per slice; positions are (0, 0, height) if they are numbers, and None leaves a tag out."""

    def write(values=VOLUME, positions=None, cosines=AXIAL, uid="1.2.9", name="series", sop_class="4", **tags):
        positions = [3 * k for k in range(len(values))] if positions is None else positions
        for k, (pixels, place) in enumerate(zip(values, positions, strict=True)):
            more = {tag: value[k] if isinstance(value, list) else value for tag, value in tags.items()}
            if place is not None:
                more["ImagePositionPatient"] = [0, 0, place] if np.isscalar(place) else list(place)
            one = cosines[k] if isinstance(cosines, list) else cosines
            if one is not None:
                more["ImageOrientationPatient"] = [round(float(v), 6) for v in one]
            more = {"PixelSpacing": [1, 1], "SliceThickness": 1, "InstanceNumber": k + 1, "Modality": "MR"} | more
            more |= {"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.{k + 1}"}
            save(pixels, tmp_path / name / f"{uid}_{k:02d}.dcm", sop_class, **more)
        return tmp_path / name

    return write


def refused(path, says, series=""):
    with pytest.raises(ImageError, match=says) as error:
        read_image(path, series)
    assert "missing slices" not in str(error.value) or "apart" in says


# Series.


def test_order_and_direction_come_from_the_positions(series):
    image = read_image(series(positions=[-3 * k for k in range(8)], cosines=(0, 1, 0, -1, 0, 0)))
    assert np.array_equal(sitk.GetArrayFromImage(image), VOLUME[::-1])
    assert image.GetOrigin() == (0, 0, -21)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("count", [2, 3, 8])
def test_positions_that_occur_twice(series, count):
    """Echoes, time points, copies."""
    refused(series(VOLUME[:count], [3 * (k // 2) for k in range(count)]), "positions occur twice")


@pytest.mark.parametrize("count", [2, 8])
def test_one_position_for_all(series, count):
    refused(series(VOLUME[:count], [0] * count), "1 of 1 positions occur")


def test_tilted_gantry(series):
    angle = np.radians(15)
    refused(series(cosines=(1, 0, 0, 0, np.cos(angle), -np.sin(angle))), "shifted by up to 5.4 mm within their plane")


def test_drifting_slices(series):
    refused(series(positions=[(0.5 * k, 0, 3 * k) for k in range(8)]), "shifted by up to 3.5 mm")


@pytest.mark.parametrize("place", [0, 4, 7])
def test_scout_in_a_series(series, place):
    cosines = [AXIAL] * 8
    cosines[place] = (1, 0, 0, 0, 0, -1)
    refused(series(cosines=cosines), "2 orientations")


def test_planes_of_a_localizer(series):
    cosines = [AXIAL, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]
    refused(series(VOLUME[:3], [0, 0, 0], cosines), "3 orientations")


def test_slices_of_two_sizes(series):
    refused(series([*VOLUME[:4], *VOLUME[4:, :9]]), "2 sizes")


def test_two_pixel_spacings(series):
    refused(series(PixelSpacing=[[1, 1]] * 5 + [[1, 1.2]] * 3), "pixel spacing of its slices is from 1 to 1.2 mm")


def test_missing_position(series):
    refused(series(positions=[None, *range(7)]), "1 of its 8 slices have no position")


def test_distances_that_grow_slowly(series):
    """Each distance is within a tenth of the median, but the middle slices would be 0.7 mm off."""
    distances = np.linspace(2.8, 3.2, 15)
    refused(series(np.tile(VOLUME, (2, 1, 1)), [0, *np.cumsum(distances).round(4)]), "2.80 to 3.20 mm apart")


def test_two_slices_with_a_gap(series):
    refused(series(VOLUME[:2], [0, 30], SpacingBetweenSlices=3), "30.00 mm apart, but .* 3.00 mm")
    assert read_image(series(VOLUME[:2], [0, 3], SpacingBetweenSlices=3, name="good")).GetSpacing()[2] == 3


@pytest.mark.parametrize(("tags", "spacing"), [({}, 1), ({"SpacingBetweenSlices": 4}, 4)])
def test_spacing_of_the_header_without_positions(series, tags, spacing):
    folder = series(positions=[None] * 8, cosines=None, **tags)
    with pytest.warns(FallbackWarning, match=f"no positions .* spacing of {spacing} mm"):
        image = read_image(folder)
    assert image.GetSpacing() == (1, 1, spacing)
    assert np.array_equal(sitk.GetArrayFromImage(image), VOLUME)


def test_neither_positions_nor_spacing(series):
    refused(series(positions=[None] * 8, cosines=None, SliceThickness=None), "arrangement is unknown")


def test_no_pixel_spacing(series):
    with pytest.warns(FallbackWarning, match="no pixel spacing"):
        read_image(series(PixelSpacing=None))


@pytest.mark.parametrize("error", [0.002, 0.006])
def test_rounded_orientation(series, error):
    """GDCM takes an axial orientation instead."""
    with pytest.warns(FallbackWarning, match="off a right angle"):
        image = read_image(series(cosines=(0.8, 0.6, 0, -0.6 + error, 0.8, 0)))
    axes = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(axes[:, 0], (0.8, 0.6, 0), atol=1e-6)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("slopes", [[1 + 7 * k for k in range(8)], [1 + 0.5 * k for k in range(8)]])
@pytest.mark.parametrize("sop_class", ["4", "128"], ids=["MR", "PET"])
def test_slope_of_each_slice(series, slopes, sop_class):
    """ITK chooses the pixel type by the first slice, and rounds or wraps the others."""
    folder = series(sop_class=sop_class, RescaleSlope=[str(s) for s in slopes], RescaleIntercept="0")
    image = read_image(folder)
    assert image.GetPixelID() == sitk.sitkFloat64
    assert np.allclose(sitk.GetArrayFromImage(image), VOLUME * np.reshape(slopes, (8, 1, 1)))


@pytest.mark.parametrize("keep", [100, 400, 700, 0.97])
@pytest.mark.parametrize("number", [0, 7])
def test_cut_file_at_an_end_of_a_series(series, number, keep):
    """GDCM leaves such a file out, and the rest would be an even stack."""
    folder = series()
    file = sorted(folder.iterdir())[number]
    data = file.read_bytes()
    file.write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    refused(folder, f"{file.name}' is damaged")


def test_files_without_pixels_beside_a_series(series):
    folder = series()
    header = pydicom.dcmread(folder / "1.2.9_00.dcm")
    del header.PixelData, header.Rows, header.Columns
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CLASSES + "481.3"
    header.SeriesInstanceUID = "1.2.10"
    header.save_as(folder / "structures.dcm")
    (folder / "notes.txt").write_text("no image")
    assert read_image(folder).GetSize() == (14, 12, 8)
    assert len(find_cases(folder)) == 1


def test_bad_series_of_a_folder_are_named_and_left_out(series, tmp_path, tiny_model_path, capsys):
    series(name="data", SeriesDescription="good")
    series(positions=[3 * (k // 2) for k in range(8)], uid="1.2.8", name="data", SeriesDescription="two echoes")
    cut = series(VOLUME[:1], uid="1.2.7", name="data") / "1.2.7_00.dcm"
    cut.write_bytes(cut.read_bytes()[:-50])
    cases = {case.name: case for case in find_cases(tmp_path / "data")}
    assert sorted(cases) == ["1.2.7_00", "data-1-two-echoes", "data-2-good"]
    refused(tmp_path / "data", "1.2.8 in .* positions occur twice", series="1.2.8")
    assert read_image(tmp_path / "data", "1.2.9").GetSize() == (14, 12, 8)
    arguments = ["synthesize", tmp_path / "data", "-o", tmp_path / "out", "--model", tiny_model_path, "--levels", "8:4"]
    main([*map(str, arguments), "--copies", "1", "--steps", "1"])
    said = capsys.readouterr()
    assert "occur twice" in said.out + said.err
    assert list((tmp_path / "out").rglob("data-2-good*"))


# Multi-frame files.


@pytest.fixture
def multiframe(tmp_path):
    """Write an enhanced MR file."""

    def write(heights, values=VOLUME, slopes=None, cosines=None, sop_class="4.1"):
        measures = dataset(PixelSpacing=[0.8, 0.7], SliceThickness=2.5)
        shared = dataset(PixelMeasuresSequence=[measures])
        shared.PlaneOrientationSequence = [dataset(ImageOrientationPatient=list(AXIAL))]
        frames = []
        for k, height in enumerate(heights):
            frames.append(dataset(PlanePositionSequence=[dataset(ImagePositionPatient=[-5, -6, float(height)])]))
            if slopes:
                scale = dataset(RescaleSlope=str(slopes[k]), RescaleIntercept="-3", RescaleType="US")
                frames[-1].PixelValueTransformationSequence = [scale]
            if cosines:
                frames[-1].PlaneOrientationSequence = [dataset(ImageOrientationPatient=list(cosines[k]))]
        tags = {"SOPInstanceUID": "1.2.9.1", "SeriesInstanceUID": "1.2.9", "Modality": "MR", "InstanceNumber": 1}
        tags |= {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
        return save(values, tmp_path / "frames.dcm", sop_class, NumberOfFrames=len(heights), **tags)

    return write


HEIGHTS = [2.5 * k for k in range(8)]


def test_multiframe_file(multiframe):
    path = multiframe(HEIGHTS)
    image = read_image(path)
    assert np.allclose(image.GetSpacing(), (0.7, 0.8, 2.5))
    assert np.allclose(image.GetOrigin(), (-5, -6, 0))
    assert np.array_equal(sitk.GetArrayFromImage(image), VOLUME)
    path.rename(path.with_suffix(""))
    assert read_image(path.with_suffix("")).GetSize() == (14, 12, 8)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 1, 6, 2, 5, 4]], ids=["descending", "mixed"])
@pytest.mark.parametrize("scaled", [False, True])
def test_frames_are_placed_and_scaled_one_by_one(multiframe, order, scaled):
    slopes = [1 + 0.5 * k for k in range(8)] if scaled else None
    image = read_image(multiframe([HEIGHTS[k] for k in order], slopes=slopes))
    for frame, place in enumerate(order):
        index = image.TransformPhysicalPointToIndex((-5, -6, HEIGHTS[place]))
        values = sitk.GetArrayFromImage(image[:, :, index[2]])
        assert np.allclose(values, VOLUME[frame] * slopes[frame] - 3 if scaled else VOLUME[frame])


def test_multiframe_files_that_are_not_one_volume(multiframe):
    refused(multiframe([h + 10 * (h > 8) for h in HEIGHTS]), "2.50 to 12.50 mm apart")
    refused(multiframe([2.5 * (k % 4) for k in range(8)]), "4 of 4 positions occur twice")
    refused(multiframe(HEIGHTS, cosines=[AXIAL] * 5 + [(1, 0, 0, 0, 0, -1)] * 3), "2 orientations")
    angle = np.radians(15)
    refused(multiframe(HEIGHTS, cosines=[(1, 0, 0, 0, np.cos(angle), -np.sin(angle))] * 8), "within their plane")


def test_multiframe_file_without_pydicom(multiframe, monkeypatch):
    path = multiframe(HEIGHTS)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(path, re.escape("pip install pydicom"))


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"FrameTime": 30, "SpacingBetweenSlices": 1}, "different times"),
        ({"TimeSliceVector": [1, 1, 1, 1, 2, 2, 2, 2]}, "different times"),
        ({}, "arrangement is unknown"),
        ({"GridFrameOffsetVector": [0, 3, 6, 9, 12, 30, 33, 36]}, "3.00 to 18.00 mm apart"),
    ],
)
def test_multiframe_files_without_groups(tmp_path, tags, says):
    tags |= {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": list(AXIAL), "PixelSpacing": [2, 2]}
    tags |= {"SOPInstanceUID": "1.2.9.1", "SeriesInstanceUID": "1.2.9", "NumberOfFrames": 8}
    refused(save(VOLUME, tmp_path / "frames.dcm", "481.2", **tags), says)


def test_dose(tmp_path):
    tags = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": list(AXIAL), "PixelSpacing": [2, 2]}
    tags |= {"SOPInstanceUID": "1.2.9.1", "SeriesInstanceUID": "1.2.9", "NumberOfFrames": 8}
    tags |= {"GridFrameOffsetVector": [3 * k for k in range(8)], "FrameIncrementPointer": 0x3004000C}
    image = read_image(save(VOLUME, tmp_path / "dose.dcm", "481.2", **tags))
    assert image.GetSpacing() == (2, 2, 3)
    assert image.GetOrigin() == (1, 2, 3)


def test_several_multiframe_files_in_a_series(multiframe, tmp_path):
    data = multiframe(HEIGHTS).read_bytes()
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(data)
    assert read_image(folder).GetSize() == (14, 12, 8)
    (folder / "b.dcm").write_bytes(data)
    refused(folder, "a multi-frame file and other files")
