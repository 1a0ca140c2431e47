"""Read multi-frame DICOM files by the position and the scale of each frame.

ITK takes both from the first frame only. The attributes are those of DICOM PS3.3, C.7.6.16 (functional groups), C.8.4
(nuclear medicine) and C.8.8.3 (dose).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .integrity import require_room
from .slice_stack import Slice, find_stack, is_at, number, numbers, placed, reversed_stack

_MEASURES = ("PixelSpacing", "SpacingBetweenSlices", "SliceThickness")
# What distinguishes the frames of a nuclear medicine image besides their slice.
_VECTORS = ("EnergyWindow", "Detector", "Phase", "Rotation", "RRInterval", "TimeSlot", "AngularView", "TimeSlice")


def read_dicom_file(path: Path) -> sitk.Image:
    """Read a DICOM file; the frames of a multi-frame file are placed and scaled one by one.

    Raises:
        ImageError: the frames are not one even stack at right angles, or pydicom is not installed.
        RuntimeError: ITK cannot read the file.

    Warns:
        FallbackWarning: the frames have no positions, so the spacing in the header is used.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    require_room(reader, path, "image")
    frames = reader.GetSize()[2] if reader.GetDimension() > 2 else 1
    if frames == 1 or reader.GetNumberOfComponents() > 1:
        single: sitk.Image = reader.Execute()
        return single
    name = f"The DICOM file '{path}'"
    header = _multiframe_header(path, name)
    slices = _frames(header, frames, name)
    stack = find_stack(slices, name, "frames")
    image: sitk.Image = reader.Execute()
    scales = [one.scale for one in slices]
    one_scale = len(set(scales)) == 1
    if one_scale and stack.order == list(range(frames)):
        return placed(image, stack)
    if one_scale and stack.order == list(range(frames))[::-1] and is_at(image, reversed_stack(stack)):
        return image
    volume = sitk.GetArrayFromImage(image)
    if not one_scale:
        slopes, intercepts = np.asarray(scales).T[:, :, None, None]
        volume = _stored_values(path, name).reshape(volume.shape) * slopes + intercepts
    return placed(sitk.GetImageFromArray(volume[stack.order]), stack)


def _multiframe_header(path: Path, name: str) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImageError(
            f"{name} has several frames, whose positions only pydicom can read; install it (pip install pydicom), "
            "or convert the file to NIfTI with another program."
        ) from error
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise ImageError(f"{name} has a damaged header; copy or export it again.") from error


def _stored_values(path: Path, name: str) -> np.ndarray:
    """Read the values of all frames without slope and intercept."""
    import pydicom

    try:
        values: np.ndarray = pydicom.dcmread(path).pixel_array
    except Exception as error:
        raise ImageError(
            f"{name} has a slope for each frame and a compression that pydicom cannot decode here; "
            "install pylibjpeg with its plugins, or save the file without compression."
        ) from error
    return values


def _frames(header: Any, count: int, name: str) -> list[Slice]:
    """Read position, orientation, pixel spacing and scale of each frame of a multi-frame file."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if groups and len(groups) != count:
        raise ImageError(f"{name} has {count} frames but {len(groups)} descriptions of frames; export it again.")
    if not groups:
        return _frames_without_groups(header, count, name)

    def one(group: Any) -> Slice:
        def value(sequence: str, tag: str) -> Any:
            for owner in (_first(group, sequence), _first(shared, sequence), header):
                found = None if owner is None else owner.get(tag)
                if found is not None:
                    return found
            return None

        scaling = "PixelValueTransformationSequence"
        return _frame(
            header,
            value("PlanePositionSequence", "ImagePositionPatient"),
            value("PlaneOrientationSequence", "ImageOrientationPatient"),
            {tag: value("PixelMeasuresSequence", tag) for tag in _MEASURES},
            (number(value(scaling, "RescaleSlope"), 1.0), number(value(scaling, "RescaleIntercept"))),
        )

    return [one(group) for group in groups]


def _first(dataset: Any, sequence: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = None if dataset is None else dataset.get(sequence)
    return items[0] if items else None


def _frame(
    header: Any, position: Any, orientation: Any, measures: Any, scale: tuple[float, float] = (1.0, 0.0)
) -> Slice:
    """Make the description of a frame from the values of its tags, which are None where a tag is missing."""
    # PixelSpacing gives the distance of rows first.
    between_rows, between_columns = (float(v) for v in measures.get("PixelSpacing") or (1.0, 1.0))
    return Slice(
        position=None if position is None else numbers("\\".join(map(str, position)), 3),
        orientation=None if orientation is None else numbers("\\".join(map(str, orientation)), 6),
        spacing=(between_columns, between_rows),
        size=(int(header.Columns), int(header.Rows)),
        scale=scale,
        gap=abs(number(measures.get("SpacingBetweenSlices"))),
        thickness=abs(number(measures.get("SliceThickness"))),
        has_spacing=bool(measures.get("PixelSpacing")),
    )


def _frames_without_groups(header: Any, count: int, name: str) -> list[Slice]:
    """Describe the frames of doses, of nuclear medicine and of older multi-frame files."""
    vectors = [header.get(f"{vector}Vector") for vector in _VECTORS]
    several = any(len(set(np.atleast_1d(vector).tolist())) > 1 for vector in vectors if vector is not None)
    if several or any(header.get(tag) for tag in ("FrameTime", "FrameTimeVector", "CineRate")):
        raise ImageError(
            f"{name} is not one volume: its frames are images of different times or kinds; export one volume at a time."
        )
    owner = _first(header, "DetectorInformationSequence") or header
    position = owner.get("ImagePositionPatient") or header.get("ImagePositionPatient")
    orientation = owner.get("ImageOrientationPatient") or header.get("ImageOrientationPatient")
    offsets = header.get("GridFrameOffsetVector")
    if offsets is None and owner is not header and header.get("SpacingBetweenSlices"):
        offsets = np.arange(count) * float(header.SpacingBetweenSlices)
    places: list[Any] = [None] * count
    if offsets is not None and position and orientation and len(offsets) == count:
        cosines = np.asarray(orientation, dtype=float)
        normal = np.cross(cosines[:3], cosines[3:])
        # Offsets that do not begin with 0 are coordinates along the patient's axis.
        normal = normal * normal[2] if float(offsets[0]) else normal
        start = np.asarray(position, dtype=float)
        places = [start + normal * (float(offset) - float(offsets[0])) for offset in offsets]
    return [_frame(header, place, orientation, header) for place in places]
