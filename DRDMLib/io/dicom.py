"""Read DICOM series, after a check that their slices are a stack at right angles.

ITK takes orientation and pixel type from the first slice, and the spacing from the first and the last one. Slices that
do not fit together are read without a warning, and damaged files are left out, so such series are refused here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .files import path_problem
from .integrity import require_room
from .multiframe import read_dicom_file
from .slice_stack import Slice, find_stack, number, numbers, placed

_HEAD = 2**14
# SOP classes without pixels: presentation states, waveforms, raw data, registrations, reports, documents, plans.
_NO_PIXELS = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.34\.|"
    r"5\.1\.4\.1\.1\.(9\.|11\.|66(\.[12356])?$|67|68|88\.|104\.|481\.([3-9]|1\d)$))"
)


def series_files(folder: Path, uid: str = "") -> list[str]:
    """List the files of a DICOM series in GDCM's order.

    Args:
        uid: the series, for a folder with several.

    Raises:
        ImageError: the folder contains no series, or several and none is chosen.
    """
    reader = sitk.ImageSeriesReader
    series = [uid] if uid else reader.GetGDCMSeriesIDs(str(folder))
    files = list(reader.GetGDCMSeriesFileNames(str(folder), series[0])) if series else []
    if not files:
        raise ImageError(
            f"The folder '{folder}' contains no DICOM images; choose an image file or the folder of a DICOM series."
        )
    if len(series) > 1:
        raise ImageError(
            f"The folder '{folder}' contains {len(series)} DICOM series; put the one you want in a folder of its own."
        )
    return files


def read_series(folder: Path, uid: str = "") -> sitk.Image:
    """Read a DICOM series, with slope and intercept of each slice.

    Args:
        uid: the series, for a folder with several.

    Returns:
        The volume; 64-bit floating point if slope, intercept or pixel type of the slices differ.

    Raises:
        ImageError: the folder contains no series or several; a file of it is damaged; or its slices are not one even
            stack at right angles.

    Warns:
        FallbackWarning: the slices have no positions, so the spacing in the header is used.
    """
    files = series_files(folder, uid)
    name = f"The DICOM series {uid} in '{folder}'" if uid else f"The DICOM series in '{folder}'"
    slices = [_read_header(file) for file in files]
    damaged = _cut_file_of(folder, files, uid)
    if damaged is not None:
        raise ImageError(
            f"The DICOM file '{damaged}' is damaged or incomplete, so that a slice may be missing; "
            "copy or export it again, or remove it."
        )
    if max(one.frames for one in slices) > 1:
        if len(files) == 1:
            return read_dicom_file(Path(files[0]))
        raise ImageError(
            f"{name} contains a multi-frame file and other files; put the one you want in a folder of its own."
        )
    stack = find_stack(slices, name, "slices")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([files[k] for k in stack.order])
    if len({(one.scale, one.pixel) for one in slices}) > 1:
        # ITK chooses the pixel type from the first file, and rounds or wraps the values of the others.
        reader.SetOutputPixelType(sitk.sitkFloat64)
    return placed(reader.Execute(), stack)


def cut_files(files: list[Path], series: list[str]) -> list[Path]:
    """Choose the damaged DICOM images of ``files`` that say of no known series that they belong to it.

    Args:
        files: files that GDCM did not assign to a series.
        series: UIDs of the known series.
    """
    return [p for p in files if _is_cut(p) and not _series_named_in(_head(p)) & set(series)]


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file, and has no suffix of another kind."""
    if path.suffix.lower() in (".gz", ".nii", ".nrrd", ".json", ".txt", ".csv", ".png", ".jpg"):
        return False
    return _head(path)[128:132] == b"DICM"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD)
    except OSError:
        return b""


def _series_named_in(head: bytes) -> set[str]:
    """Find the series UIDs (0020,000E) in a part of a file, with explicit or implicit types."""
    found = re.findall(rb"\x20\x00\x0e\x00(?:UI..|....)([0-9.]+)(?=[^0-9.])", head, re.DOTALL)
    return {uid.decode() for uid in found}


def _is_cut(path: Path) -> bool:
    """Whether a file is a DICOM image, or called one, and cannot be read."""
    head = _head(path)
    if path.suffix.lower() != ".dcm" and head[128:132] != b"DICM":
        return False
    if path_problem(path):
        return True
    # The file meta information (SOP class at 0002,0002) is always little endian with explicit types.
    found = re.search(rb"\x02\x00\x02\x00UI..([0-9.]*)", head, re.DOTALL)
    if found and _NO_PIXELS.match(found.group(1).decode()):
        return False
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return True
    return False


def _cut_file_of(folder: Path, files: list[str], uid: str) -> Path | None:
    """Find a damaged file that may be a slice of a series: GDCM leaves such files out without a warning."""
    known = {Path(file).name for file in files}
    own = {uid} if uid else _series_named_in(_head(Path(files[0])))
    for path in sorted(folder.iterdir()):
        if path.name in known or path.name.startswith(".") or not path.is_file():
            continue
        named = _series_named_in(_head(path))
        if (not named or named & own) and _is_cut(path):
            return path
    return None


def _read_header(file: str) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
        require_room(reader, Path(file), "image")
    except RuntimeError as error:
        raise ImageError(
            f"The DICOM file '{file}' is damaged or incomplete; copy or export it again, or remove it."
        ) from error

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""

    size, spacing, direction = reader.GetSize(), reader.GetSpacing(), reader.GetDirection()
    position, orientation = numbers(tag("0020|0032"), 3), numbers(tag("0020|0037"), 6)
    grouped = position is None and len(size) == 3 and bool(np.any(reader.GetOrigin()))
    if grouped:
        # A file with functional groups and a single frame, which ITK interprets correctly.
        position = np.asarray(reader.GetOrigin())
        orientation = np.asarray(direction).reshape(3, 3)[:, :2].T.ravel()
    return Slice(
        position=position,
        orientation=orientation,
        spacing=(spacing[0], spacing[1]),
        size=(size[0], size[1]),
        scale=(number(tag("0028|1053"), 1.0), number(tag("0028|1052"))),
        pixel=reader.GetPixelID(),
        frames=size[2] if len(size) > 2 else 1,
        gap=abs(number(tag("0018|0088"))),
        thickness=abs(number(tag("0018|0050"))),
        number=tag("0020|0013"),
        has_spacing=grouped or any(tag(key) for key in ("0028|0030", "0018|1164", "0018|2010")),
    )
