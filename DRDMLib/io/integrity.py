"""Check that image files are complete.

ITK gives no warning when it fills missing voxels with zeros, or when it turns NaN in NIfTI files into numbers.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError

_CHUNK = 2**24
_NIFTI_FLOATS = {16: "f4", 64: "f8"}
_META_TYPES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# Largest deviation of the distance between two slices of a DICOM series from the median distance, as a fraction of it.
_UNEVEN = 0.1


def require_whole_file(path: Path, what: str) -> None:
    """Check NIfTI, MetaImage and JPEG files for damage that ITK does not detect; other files are not checked.

    Args:
        what: kind of file in error messages, such as ``"image"``.

    Raises:
        ImageError: the file is incomplete or damaged, or has NaN or infinite voxels.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            with path.open("rb") as raw:
                packed = raw.read(2) == b"\x1f\x8b"
            with gzip.open(path, "rb") if packed else path.open("rb") as stream:
                complete = _check_nifti(stream, path, what)
        elif name.endswith(".mha"):
            complete = _check_metaimage(path)
        elif name.endswith((".jpg", ".jpeg")):
            complete = path.read_bytes().rstrip(b"\0").endswith(b"\xff\xd9")
        else:
            complete = True
    except (EOFError, zlib.error, OSError, struct.error, ValueError):
        complete = False
    if not complete:
        raise ImageError(
            f"The {what} '{path}' cannot be read, because it is damaged, incomplete, or not an image; "
            "copy or export it again."
        )


def _check_nifti(stream: Any, path: Path, what: str) -> bool:
    """Whether a NIfTI file contains all its voxels; it is read once, in pieces."""
    start = stream.read(4)
    order = next((o for o in "<>" if struct.unpack(o + "i", start)[0] in (348, 540)), None)
    if order is None:
        return False
    if struct.unpack(order + "i", start)[0] == 348:
        header = start + stream.read(348)
        dims = struct.unpack_from(order + "8h", header, 40)
        kind, bits = struct.unpack_from(order + "2h", header, 70)
        offset = int(struct.unpack_from(order + "f", header, 108)[0])
    else:
        header = start + stream.read(540)
        kind, bits = struct.unpack_from(order + "2h", header, 12)
        dims = struct.unpack_from(order + "8q", header, 16)
        (offset,) = struct.unpack_from(order + "q", header, 168)
    missing = math.prod(max(1, n) for n in dims[1 : 1 + max(0, min(7, dims[0]))]) * bits // 8
    stream.seek(max(offset, len(header)))
    bad = 0
    while missing > 0 and (chunk := stream.read(min(missing, _CHUNK))):
        missing -= len(chunk)
        if kind in _NIFTI_FLOATS:
            complete = len(chunk) // (bits // 8) * (bits // 8)
            values = np.frombuffer(chunk[:complete], order + _NIFTI_FLOATS[kind])
            bad += int(np.count_nonzero(~np.isfinite(values)))
    # Read to the end, so that the checksum of compressed data is verified.
    while stream.read(_CHUNK):
        pass
    if bad:
        raise ImageError(f"The {what} '{path}' has {bad} NaN or infinite voxels; replace them with numbers first.")
    return bool(missing == 0)


def _check_metaimage(path: Path) -> bool:
    """Whether a MetaImage file contains all its voxels."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields:
            line = stream.readline(4096)
            if not line:
                return False
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        header = stream.tell()
    if fields["ElementDataFile"].upper() != "LOCAL":
        return True
    present = path.stat().st_size - header
    if fields.get("CompressedData", "False").lower() == "true":
        return present >= int(fields.get("CompressedDataSize", 0))
    bytes_each = _META_TYPES.get(fields["ElementType"].replace("MET_", "").removeprefix("U").removesuffix("_ARRAY"), 1)
    channels = int(fields.get("ElementNumberOfChannels", 1))
    return present >= math.prod(int(n) for n in fields["DimSize"].split()) * bytes_each * channels


def require_even_slices(files: list[str], folder: Path) -> None:
    """Check that no slice of a DICOM series is missing.

    Args:
        files: the slices in their order.
        folder: name of the series in error messages.

    Raises:
        ImageError: the slices are unevenly spaced, as when one is missing.
    """
    positions = []
    reader = sitk.ImageFileReader()
    for file in files:
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
            text = reader.GetMetaData("0020|0032")
            positions.append([float(v) for v in text.split("\\")])
        except (RuntimeError, ValueError):
            # This kind of file has no position, so there is nothing to compare.
            return
    if len(positions) < 3:
        return
    steps = np.linalg.norm(np.diff(np.asarray(positions), axis=0), axis=1)
    median = float(np.median(steps))
    if median > 0 and np.abs(steps / median - 1).max() > _UNEVEN:
        raise ImageError(
            f"The slices of the DICOM series in '{folder}' are {steps.min():.2f} to {steps.max():.2f} mm apart; "
            "add the missing slices, or resample the series to an even spacing."
        )
