"""Read the vertices and normals of mesh files, and write the file again with other ones; all else stays as it is.

The formats are STL, PLY, legacy VTK and VTK's XML for surfaces (.vtp). Coordinates are LPS unless the file says
``SPACE=RAS``, as 3D Slicer writes it into headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ImageError
from .files import shown
from .images import reading
from .integrity import too_large
from .points import FLIP
from .vtp import AsksForTooMuch, vtp_mesh

MESH_SUFFIXES = (".stl", ".ply", ".vtk", ".vtp")
_VTK_TYPES = {"float": "f4", "double": "f8"}
_PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
_RAS = re.compile(rb"SPACE *= *RAS", re.IGNORECASE)


class Mesh(NamedTuple):
    """The vertices of a mesh file.

    Attributes:
        vertices: (K, 3), LPS, millimeters.
        normals: (K, 3), LPS, of length 1, or ``None`` where the file has none or they follow from the vertices.
        rewritten: takes vertices and normals like these and returns the bytes of the file with them.
    """

    vertices: np.ndarray
    normals: np.ndarray | None
    rewritten: Callable[[np.ndarray, np.ndarray | None], bytes]


def read_mesh(path: Path) -> Mesh:
    """Read the vertices of a mesh.

    Raises:
        ImageError: the file is missing, damaged, or of a kind that cannot be read.
    """
    with reading(path, "mesh"):
        return _read(path)


def _read(path: Path) -> Mesh:
    try:
        data = path.read_bytes()
        mesh, ras = _READERS[path.suffix.lower()](data)
    except OSError as error:
        raise ImageError(f"The mesh '{shown(str(path))}' cannot be read ({error.strerror}); check the path.") from error
    except AsksForTooMuch as error:
        raise too_large(path, "mesh") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ImageError(
            f"'{path}' is not a mesh that can be read; save it as .stl, .ply, legacy .vtk or .vtp with 3D points."
        ) from error
    if not len(mesh.vertices) or not np.isfinite(mesh.vertices).all():
        raise ImageError(f"'{path}' has no vertices, or some that are not finite; export it again.")
    if mesh.normals is not None and (mesh.normals.shape != mesh.vertices.shape or not np.isfinite(mesh.normals).all()):
        raise ImageError(f"'{path}' has other normals than one of finite numbers for each vertex; export it again.")
    return _in_lps(mesh) if ras else mesh


def _in_lps(mesh: Mesh) -> Mesh:
    """Convert a mesh that is stored as RAS."""

    def flipped(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values * FLIP

    def rewritten(vertices: np.ndarray, normals: np.ndarray | None) -> bytes:
        return mesh.rewritten(vertices * FLIP, flipped(normals))

    return Mesh(mesh.vertices * FLIP, flipped(mesh.normals), rewritten)


def _facet_normals(vertices: np.ndarray) -> np.ndarray:
    """Compute the normals (F, 3) of triangles (F, 3, 3)."""
    across = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
    length = np.linalg.norm(across, axis=1, keepdims=True)
    return np.asarray(across / np.where(length > 0, length, 1))


def _stl(data: bytes) -> tuple[Mesh, bool]:
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        facets = np.frombuffer(data, kind, offset=84)

        def binary(vertices: np.ndarray, _: np.ndarray | None) -> bytes:
            new = facets.copy()
            new["corners"] = vertices.reshape(-1, 3, 3)
            new["normal"] = _facet_normals(vertices.reshape(-1, 3, 3))
            return data[:84] + bytes(new.tobytes())

        return Mesh(facets["corners"].reshape(-1, 3).astype(float), None, binary), bool(_RAS.search(data[:80]))
    if not data.lstrip()[:5].lower() == b"solid":
        raise ValueError("neither a binary nor a text STL file")
    number = rb"[^\s]+"
    line = re.compile(rb"(vertex|facet\s+normal)((?:\s+" + number + rb"){3})", re.IGNORECASE)
    found = [m for m in line.finditer(data) if m.group(1).lower() == b"vertex"]
    vertices = np.asarray([[float(x) for x in m.group(2).split()] for m in found]).reshape(-1, 3)

    def text(vertices: np.ndarray, _: np.ndarray | None) -> bytes:
        corners, normals = iter(vertices), iter(_facet_normals(vertices.reshape(-1, 3, 3)))

        def replaced(match: re.Match[bytes]) -> bytes:
            values = next(corners if match.group(1).lower() == b"vertex" else normals)
            return match.group(1) + b" " + " ".join(f"{v:.7g}" for v in values).encode()

        return line.sub(replaced, data)

    return Mesh(vertices, None, text), bool(_RAS.search(data.split(b"\n", 1)[0]))


def _ply(data: bytes) -> tuple[Mesh, bool]:
    end = re.search(rb"end_header\r?\n", data)
    if not data.startswith(b"ply") or end is None:
        raise ValueError("no PLY file")
    header = data[: end.start()].decode("latin-1").splitlines()
    form = next(line.split()[1] for line in header if line.startswith("format"))
    elements = [n for n, line in enumerate(header) if line.startswith("element")]
    first = header[elements[0]].split()
    if first[1] != "vertex":
        raise ValueError("the vertices are not the first element")
    rest = header[elements[0] + 1 : elements[1] if len(elements) > 1 else None]
    fields = [line.split()[1:] for line in rest if line.startswith("property")]
    names, count = [field[-1] for field in fields], int(first[2])
    axes = [names.index(name) for name in "xyz"]
    normal_axes = [names.index(name) for name in ("nx", "ny", "nz")] if {"nx", "ny", "nz"} <= set(names) else None
    ras = bool(_RAS.search(data[: end.start()]))
    if form == "ascii":
        lines = data[end.end() :].split(b"\n", count)
        rows = [line.split() for line in lines[:count]]
        columns = np.asarray([[float(cell) for cell in row] for row in rows])
        tail = lines[count] if len(lines) > count else b""

        def text(vertices: np.ndarray, normals: np.ndarray | None) -> bytes:
            out = [list(row) for row in rows]
            for places, values in ((axes, vertices), (normal_axes, normals)):
                if places is not None and values is not None:
                    for row, one in zip(out, values, strict=True):
                        for place, value in zip(places, one, strict=True):
                            row[place] = f"{value:.7g}".encode()
            return data[: end.end()] + b"\n".join(b" ".join(row) for row in out) + b"\n" + tail

        normals = None if normal_axes is None else columns[:, normal_axes]
        return Mesh(columns[:, axes], normals, text), ras
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}[form]
    table = np.frombuffer(data, [(name, order + _PLY_TYPES[kind]) for kind, name in fields], count, end.end())

    def binary(vertices: np.ndarray, normals: np.ndarray | None) -> bytes:
        new = table.copy()
        for prefix, values in (("", vertices), ("n", normals)):
            if values is not None:
                for axis, column in zip("xyz", values.T, strict=True):
                    new[prefix + axis] = column
        return data[: end.end()] + bytes(new.tobytes()) + data[end.end() + table.nbytes :]

    def columns_of(*of: str) -> np.ndarray:
        return np.stack([table[name] for name in of], axis=1).astype(float)

    normals = None if normal_axes is None else columns_of("nx", "ny", "nz")
    return Mesh(columns_of("x", "y", "z"), normals, binary), ras


class _Numbers(NamedTuple):
    """Numbers of a legacy VTK file: where they are, their values, and their type (empty for text)."""

    start: int
    stop: int
    values: np.ndarray
    kind: str


def _vtk_numbers(data: bytes, start: int, count: int, kind: str, text: bool) -> _Numbers:
    if not text:
        values = np.frombuffer(data, ">" + _VTK_TYPES[kind], count, start)
        return _Numbers(start, start + values.nbytes, values.astype(float), ">" + _VTK_TYPES[kind])
    found = []
    for match in re.compile(rb"\S+").finditer(data, start):
        found.append(float(match.group()))
        if len(found) == count:
            return _Numbers(start, match.end(), np.asarray(found), "")
    raise ValueError("the file ends among its numbers")


def _vtk(data: bytes) -> tuple[Mesh, bool]:
    lines = data.split(b"\n", 3)
    text = {b"ASCII": True, b"BINARY": False}[lines[2].strip().upper()]
    if not lines[0].startswith(b"# vtk DataFile"):
        raise ValueError("no legacy VTK file")
    head = re.search(rb"\nPOINTS\s+(\d+)\s+(\w+)[ \t]*\r?\n", data, re.IGNORECASE)
    if head is None:
        raise ValueError("no points")
    count = int(head.group(1))
    parts = [_vtk_numbers(data, head.end(), 3 * count, head.group(2).decode().lower(), text)]
    section = re.compile(rb"\nPOINT_DATA\s+%d[ \t]*\r?\n" % count).search(data, parts[0].stop - 1)
    if section is not None:
        # An attribute of its own, or one of the arrays of a field.
        named = rb"\nNORMALS\s+\S+\s+(\w+)[ \t]*\r?\n|\nNormals\s+3\s+%d\s+(\w+)[ \t]*\r?\n" % count
        normal = re.compile(named).search(data, section.end() - 1)
        if normal is not None:
            kind = (normal.group(1) or normal.group(2)).decode().lower()
            parts.append(_vtk_numbers(data, normal.end(), 3 * count, kind, text))

    def rewritten(vertices: np.ndarray, normals: np.ndarray | None) -> bytes:
        out, at = [], 0
        for part, values in zip(parts, (vertices, normals), strict=False):
            if values is None:
                continue
            if part.kind:
                new = values.astype(part.kind).tobytes()
            else:
                new = "\n".join(" ".join(f"{v:.7g}" for v in row) for row in values).encode()
            out += [data[at : part.start], new]
            at = part.stop
        return b"".join([*out, data[at:]])

    vertices, *others = (part.values.reshape(-1, 3) for part in parts)
    return Mesh(vertices, others[0] if others else None, rewritten), bool(_RAS.search(lines[1]))


def _vtp(data: bytes) -> tuple[Mesh, bool]:
    vertices, normals, ras, rewritten = vtp_mesh(data)
    return Mesh(vertices, normals, rewritten), ras


_READERS: dict[str, Callable[[bytes], tuple[Mesh, bool]]] = {".stl": _stl, ".ply": _ply, ".vtk": _vtk, ".vtp": _vtp}
