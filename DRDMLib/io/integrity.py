"""Is a file whole? ITK fills what is missing with zeros, and turns NaN in NIfTI files into numbers, without a word."""

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
# Slices of a DICOM series may lie this share of their distance away from where an even spacing puts them.
_UNEVEN = 0.1


def require_whole_file(path: Path, what: str) -> None:
    """Check NIfTI, MetaImage and JPEG files for what ITK does not notice.

    Raises:
        ImageError: the file is cut short or damaged, or holds NaN or infinite voxels.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            with path.open("rb") as raw:
                packed = raw.read(2) == b"\x1f\x8b"
            with gzip.open(path, "rb") if packed else path.open("rb") as stream:
                whole = _check_nifti(stream, path, what)
        elif name.endswith(".mha"):
            whole = _whole_metaimage(path)
        elif name.endswith((".jpg", ".jpeg")):
            whole = path.read_bytes().rstrip(b"\0").endswith(b"\xff\xd9")
        else:
            whole = True
    except (EOFError, zlib.error, OSError, struct.error, ValueError):
        whole = False
    if not whole:
        raise ImageError(f"The {what} '{path}' cannot be read: it is damaged, cut short, or not an image.")


def _check_nifti(stream: Any, path: Path, what: str) -> bool:
    """Whether all voxels are there; one pass in pieces."""
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
    left = math.prod(max(1, n) for n in dims[1 : 1 + max(0, min(7, dims[0]))]) * bits // 8
    stream.seek(max(offset, len(header)))
    bad = 0
    while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
        left -= len(chunk)
        if kind in _NIFTI_FLOATS:
            whole = len(chunk) // (bits // 8) * (bits // 8)
            values = np.frombuffer(chunk[:whole], order + _NIFTI_FLOATS[kind])
            bad += int(np.count_nonzero(~np.isfinite(values)))
    # To the end, so that a checksum of compressed data is looked at.
    while stream.read(_CHUNK):
        pass
    if bad:
        raise ImageError(f"The {what} '{path}' has {bad} NaN or infinite voxels; replace them by numbers first.")
    return bool(left == 0)


def _whole_metaimage(path: Path) -> bool:
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
    here = path.stat().st_size - header
    if fields.get("CompressedData", "False").lower() == "true":
        return here >= int(fields.get("CompressedDataSize", 0))
    bytes_each = _META_TYPES.get(fields["ElementType"].replace("MET_", "").removeprefix("U").removesuffix("_ARRAY"), 1)
    channels = int(fields.get("ElementNumberOfChannels", 1))
    return here >= math.prod(int(n) for n in fields["DimSize"].split()) * bytes_each * channels


def require_even_slices(files: list[str], folder: Path) -> None:
    """Check that no slice of a DICOM series is missing.

    Raises:
        ImageError: a slice is missing, or they are unevenly spaced.
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
            # No position in this kind of file: nothing to compare.
            return
    if len(positions) < 3:
        return
    steps = np.linalg.norm(np.diff(np.asarray(positions), axis=0), axis=1)
    usual = float(np.median(steps))
    if usual > 0 and np.abs(steps / usual - 1).max() > _UNEVEN:
        raise ImageError(
            f"The DICOM series in '{folder}' has slices {steps.min():.2f} to {steps.max():.2f} mm apart; "
            "add the slices that are missing, or resample it to an even spacing."
        )
