"""Read the points and normals of a surface in VTK's XML format, and put others in their place."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_TYPES = {"Float32": "f4", "Float64": "f8", "Int8": "i1", "UInt8": "u1", "String": "i1"}
# Bytes that an array may have, and more for each byte of the file; a bomb has a thousand.
_MOST_BYTES, _PER_BYTE = 2**26, 32


class AsksForTooMuch(Exception):
    """An array is far larger than its file."""


class _Format(NamedTuple):
    """How a file stores its arrays.

    Attributes:
        order: of bytes, ``<`` or ``>``.
        header: type of the lengths before the numbers.
        packed: whether the numbers are compressed with zlib.
        appended: position of the numbers after the XML, and whether they are Base64.
    """

    order: str
    header: str
    packed: bool
    appended: tuple[int, bool] | None


def _attribute(tag: bytes, name: str) -> str:
    found = re.search(rb'\s%s\s*=\s*"([^"]*)"' % name.encode(), tag)
    return found.group(1).decode() if found else ""


def vtp_mesh(
    data: bytes,
) -> tuple[np.ndarray, np.ndarray | None, bool, Callable[[np.ndarray, np.ndarray | None], bytes]]:
    """Read the points of a ``.vtp`` file.

    Returns:
        The points (K, 3) as they are stored, the normals or ``None``, whether the file says that it is RAS, and a
        function that returns the file with other points and normals.

    Raises:
        ValueError, KeyError: the file is no such file, or is stored in a way that cannot be read.
        AsksForTooMuch: an array is far larger than the file.
    """
    top = re.search(rb"<VTKFile\b[^>]*>", data)
    if top is None or _attribute(top.group(), "type") != "PolyData":
        raise ValueError("no surface in VTK's XML format")
    compressor = _attribute(top.group(), "compressor")
    if compressor not in ("", "vtkZLibDataCompressor") or data.count(b"<Piece") != 1:
        raise ValueError("another compressor than zlib, or several pieces")
    appended = re.search(rb'<AppendedData\s+encoding\s*=\s*"(\w+)"\s*>\s*_', data)
    how = _Format(
        ">" if _attribute(top.group(), "byte_order") == "BigEndian" else "<",
        {"": "u4", "UInt32": "u4", "UInt64": "u8"}[_attribute(top.group(), "header_type")],
        bool(compressor),
        None if appended is None else (appended.end(), appended.group(1) == b"base64"),
    )
    limit = len(data) if appended is None else appended.start()
    arrays = list(re.finditer(rb"<(Data)?Array\b[^>]*?(/>|>)", data[:limit]))
    points_at = data.index(b"<Points", 0, limit)
    points = next(m for m in arrays if m.start() > points_at)
    section = re.search(rb"<PointData\b[^>]*?(/>|>.*?</PointData>)", data[:limit], re.DOTALL)
    parts = [points]
    if section is not None:
        parts += [m for m in arrays if section.start() < m.start() < section.end() and _is_normals(m.group())][:1]
    space = next((m for m in arrays if _attribute(m.group(), "Name") == "SPACE"), None)
    ras = space is not None and bytes(_numbers(data, space, how).astype(np.uint8)).upper().startswith(b"RAS")
    values = [_numbers(data, part, how).astype(float).reshape(-1, 3) for part in parts]

    def rewritten(vertices: np.ndarray, normals: np.ndarray | None) -> bytes:
        new = [(p, v) for p, v in zip(parts, (vertices, normals), strict=False) if v is not None]
        out, at = [], 0
        for part, array in sorted(new, key=lambda pair: pair[0].start()):
            out += [data[at : part.start()], _array(part.group(), array, how)]
            at = part.end() if part.group(2) == b"/>" else data.index(b"</DataArray>", part.end()) + 12
        return b"".join([*out, data[at:]])

    return values[0], values[1] if len(values) > 1 else None, ras, rewritten


def _is_normals(tag: bytes) -> bool:
    return _attribute(tag, "Name").lower() == "normals" and _attribute(tag, "NumberOfComponents") == "3"


def _numbers(data: bytes, array: re.Match[bytes], how: _Format) -> np.ndarray:
    """Read the numbers of an array."""
    tag = array.group()
    kind = how.order + _TYPES[_attribute(tag, "type")]
    if _attribute(tag, "format") == "appended":
        if how.appended is None:
            raise ValueError("the appended data are missing")
        start, coded = how.appended[0] + int(_attribute(tag, "offset")), how.appended[1]
        return np.frombuffer(_unpacked(data, start, coded, how), kind)
    content = data[array.end() : data.index(b"</", array.end())].strip()
    if _attribute(tag, "format") == "ascii":
        # Some writers put tags with the range behind the numbers.
        return np.asarray([float(word) for word in content.split(b"<")[0].split()])
    return np.frombuffer(_unpacked(content.split(b"<")[0].strip(), 0, True, how), kind)


def _unpacked(data: bytes, start: int, coded: bool, how: _Format) -> bytes:
    """Decode the numbers that begin at a position: lengths first, then the numbers themselves."""

    def take(at: int, count: int) -> tuple[bytes, int]:
        """Read a number of bytes; Base64 has four characters for three of them."""
        if not coded:
            return data[at : at + count], at + count
        width = (count + 2) // 3 * 4
        return base64.b64decode(data[at : at + width])[:count], at + width

    each = np.dtype(how.header).itemsize
    header = how.order + how.header
    if not how.packed:
        length = int(np.frombuffer(take(start, each)[0], header)[0])
        # The length and the numbers are one piece of Base64.
        return take(start, each + length)[0][each:]
    blocks = int(np.frombuffer(take(start, each)[0], header)[0])
    lengths, at = take(start, each * (3 + blocks))
    sizes = np.frombuffer(lengths, header)[3:].tolist()
    packed = take(at, sum(sizes))[0]
    out, at, left = [], 0, _MOST_BYTES + _PER_BYTE * len(data)
    for size in sizes:
        unpacker = zlib.decompressobj()
        out.append(unpacker.decompress(packed[at : at + size], left))
        left -= len(out[-1])
        if left <= 0:
            raise AsksForTooMuch
        if not unpacker.eof:
            raise ValueError("the numbers are cut off")
        at += size
    return b"".join(out)


def _array(tag: bytes, values: np.ndarray, how: _Format) -> bytes:
    """Write an array into the XML, in the way of the file."""
    tag = re.sub(rb'\s(format|offset|RangeMin|RangeMax)\s*=\s*"[^"]*"', b"", tag).rstrip(b"/>").rstrip()
    raw = values.astype(how.order + _TYPES[_attribute(tag + b">", "type")]).tobytes()
    header = how.order + how.header
    if how.packed:
        packed = zlib.compress(raw)
        lengths = np.asarray([1, len(raw), 0, len(packed)], header).tobytes()
        content = base64.b64encode(lengths) + base64.b64encode(packed)
    else:
        content = base64.b64encode(np.asarray([len(raw)], header).tobytes() + raw)
    return tag + b' format="binary">\n' + content + b"\n</DataArray>"
