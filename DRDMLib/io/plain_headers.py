"""Recognize files whose headers are as the usual programs write them, so that ITK's readers can be trusted with them.

ITK's readers crash on some damaged headers, which ends the process. A header that this module knows in full has only
values within their limits. All other files are tried first in a process of their own, see :mod:`DRDMLib.io.apart`.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from .detached import Header, metaimage_data, nrrd_data

# Bits of NIfTI's types.
_NIFTI_BITS = {
    **{2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16},
    **{768: 32, 1024: 64, 1280: 64, 1792: 128, 2304: 32},
}
_META_TYPES = (
    *("CHAR", "SHORT", "INT", "LONG", "LONG_LONG", "UCHAR", "USHORT", "UINT", "ULONG", "ULONG_LONG"),
    *("FLOAT", "DOUBLE"),
)
_NRRD_TYPES = re.compile(
    r"(signed |unsigned )?(char|short|short int|int|long long|long long int)|u?int(8|16|32|64)(_t)?|uchar|ushort|uint"
    r"|longlong|ulonglong|float|double"
)
_NRRD_KINDS = ("domain", "space", "vector", "covariant-vector", "list", "point", "none", "???", "rgb-color")
_NRRD_SPACES = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)|[lr][ap][si]", re.IGNORECASE)
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?"
_VECTOR = re.compile(rf"none|\(\s*{_NUMBER}(\s*,\s*{_NUMBER}){{1,3}}\s*\)")
_LONGEST, _MOST_SIDE, _MOST_SIZE = 2000, 2**20, 1e9


def is_plain(path: Path) -> bool:
    """Whether a file is a NIfTI, MetaImage or NRRD image with a header that is known in full."""
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
            return _is_plain_nifti(path)
        if name.endswith((".mha", ".mhd")):
            return _is_plain_text(metaimage_data(path), _META_FIELDS, _META_NEEDED, "NDims")
        if name.endswith((".nrrd", ".nhdr")):
            return _is_plain_text(nrrd_data(path), _NRRD_FIELDS, _NRRD_NEEDED, "dimension")
    except Exception:
        # Whatever cannot be understood is not plain.
        return False
    return False


def _is_plain_nifti(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith((".img", ".img.gz")):
        path = path.with_name(path.name[: name.rindex(".img")] + (".hdr.gz" if name.endswith(".gz") else ".hdr"))
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with cast(BinaryIO, gzip.open(path)) if packed else path.open("rb") as stream:
        header = stream.read(352)
        order = "<" if header[:4] == struct.pack("<i", 348) else ">"
        if header[:4] not in (struct.pack("<i", 348), struct.pack(">i", 348)):
            return False
        if header[344:348] not in (b"n+1\0", b"ni1\0"):
            return False
        count, *sides = struct.unpack_from(order + "8h", header, 40)
        kind, bits = struct.unpack_from(order + "2h", header, 70)
        (offset,) = struct.unpack_from(order + "f", header, 108)
        places = [*struct.unpack_from(order + "8f", header, 76), *struct.unpack_from(order + "18f", header, 256)]
        if not 1 <= count <= 5 or not all(1 <= n <= 32767 for n in sides[:count]):
            return False
        if any(n not in (0, 1) for n in sides[count:]) or _NIFTI_BITS.get(kind) != bits:
            return False
        if not all(math.isfinite(value) and abs(value) < _MOST_SIZE for value in [offset, *places]):
            return False
        if header[344:348] == b"ni1\0":
            return bool(offset >= 0 and offset == int(offset))
        if len(header) < 352 or offset < 352 or offset != int(offset):
            return False
        return header[348] == 0 or _are_extensions(stream, order, int(offset) - 352)


def _are_extensions(stream: BinaryIO, order: str, room: int) -> bool:
    """Whether NIfTI extensions, each with its own length, fill no more than ``room`` bytes."""
    while room >= 16:
        (size,) = struct.unpack(order + "i", stream.read(4))
        if size == 0:
            return True
        if size < 16 or size % 16 or size > room or len(stream.read(size - 4)) < size - 4:
            return False
        room -= size
    return True


def _is_whole(text: str, low: int = 0, high: int = 2**40) -> bool:
    return bool(re.fullmatch(r"\d{1,13}", text)) and low <= int(text) <= high


def _are_numbers(text: str, count: int) -> bool:
    words = text.split()
    return len(words) == count and all(re.fullmatch(_NUMBER, w) and abs(float(w)) < _MOST_SIZE for w in words)


def _are_sides(text: str, count: int) -> bool:
    return len(text.split()) == count and all(_is_whole(word, 1, _MOST_SIDE) for word in text.split())


def _is_truth(text: str, count: int) -> bool:
    return text in ("True", "False")


def _is_file(text: str, count: int) -> bool:
    return bool(text) and not text.startswith("LIST") and "%" not in text and text.isprintable()


_META_FIELDS: dict[str, Callable[[str, int], bool]] = {
    "ObjectType": lambda text, _: text == "Image",
    "NDims": lambda text, count: text == str(count),
    "BinaryData": lambda text, _: text == "True",
    "BinaryDataByteOrderMSB": _is_truth,
    "ElementByteOrderMSB": _is_truth,
    "CompressedData": _is_truth,
    "CompressedDataSize": lambda text, _: _is_whole(text),
    "TransformMatrix": lambda text, count: _are_numbers(text, count * count),
    "Rotation": lambda text, count: _are_numbers(text, count * count),
    "Orientation": lambda text, count: _are_numbers(text, count * count),
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), _are_numbers),
    **dict.fromkeys(("ElementSpacing", "ElementSize"), _are_numbers),
    "AnatomicalOrientation": lambda text, _: bool(re.fullmatch(r"[RLAPSI?]{1,4}", text)),
    "Modality": lambda text, _: bool(re.fullmatch(r"MET_MOD_[A-Z]{2,6}", text)),
    "HeaderSize": lambda text, _: _is_whole(text),
    "ElementNumberOfChannels": lambda text, _: _is_whole(text, 1, 16),
    "DimSize": _are_sides,
    "ElementType": lambda text, _: text.removeprefix("MET_").removesuffix("_ARRAY") in _META_TYPES,
    "ElementDataFile": _is_file,
}
_META_NEEDED = {"NDims", "DimSize", "ElementType", "ElementDataFile"}


def _is_plain_text(
    header: Header, known: dict[str, Callable[[str, int], bool]], needed: set[str], dimension: str
) -> bool:
    """Whether a header has known fields only, each once, with values within their limits.

    Args:
        needed: fields that must be there.
        dimension: field with the number of dimensions.
    """
    fields = header.fields
    if not header.is_clear or len(fields) < len(header.pairs) or not set(fields) >= needed:
        return False
    if not _is_whole(fields[dimension], 2, 4):
        return False
    count = int(fields[dimension])
    return all(key in known and len(value) < _LONGEST and known[key](value, count) for key, value in header.pairs)


def _are_vectors(text: str, count: int) -> bool:
    return re.fullmatch(rf"({_VECTOR.pattern})(\s+({_VECTOR.pattern}))*", text) is not None


_NRRD_FIELDS: dict[str, Callable[[str, int], bool]] = {
    "type": lambda text, _: _NRRD_TYPES.fullmatch(text) is not None,
    "dimension": lambda text, count: text == str(count),
    "space": lambda text, _: _NRRD_SPACES.fullmatch(text) is not None,
    "sizes": _are_sides,
    "spacings": _are_numbers,
    "space directions": lambda text, count: _are_vectors(text, count) and len(re.findall(r"none|\(", text)) == count,
    "space origin": lambda text, _: _VECTOR.fullmatch(text) is not None and text != "none",
    "kinds": lambda text, count: len(text.split()) == count and all(w.lower() in _NRRD_KINDS for w in text.split()),
    "endian": lambda text, _: text in ("little", "big"),
    "encoding": lambda text, _: text in ("raw", "gzip", "gz"),
    "data file": _is_file,
}
_NRRD_NEEDED = {"type", "dimension", "sizes", "encoding"}
