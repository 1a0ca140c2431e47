"""Find the files with the voxels of an image whose header is a file of its own.

The formats are MetaImage (``.mhd``), NRRD (``.nhdr``), Analyze and NIfTI (``.hdr`` and ``.img``), and Stimulate
(``.spr`` and ``.sdt``).
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

# Lines of a header; what follows are voxels, or no header at all.
_MOST_LINES = 10_000
# Formats of C's printf for one integer, which name several files.
_PATTERN = re.compile(r"%0?\d{0,2}[diu]")


def files_of_image(path: Path) -> list[Path]:
    """List the files that an image consists of: the file itself, then those with its voxels, in their order.

    Files that do not exist are left out, as are those of a header that cannot be understood.
    """
    with contextlib.suppress(OSError, ValueError, OverflowError):
        return [path, *dict.fromkeys(file for file in _data_files(path) if file != path and file.is_file())]
    return [path]


def _data_files(path: Path) -> list[Path]:
    name = path.name.lower()
    if name.endswith((".mhd", ".mha")):
        return metaimage_data(path)[1]
    if name.endswith((".nhdr", ".nrrd")):
        return nrrd_data(path)[1]
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        return _other_half(path)
    return [path.with_suffix(suffix) for suffix in (".sdt", ".SDT")] if name.endswith(".spr") else []


def metaimage_data(path: Path) -> tuple[dict[str, str], list[Path], int]:
    """Read the header of a MetaImage file.

    Returns:
        Its fields; the files with the voxels, none if they follow in the file itself; and the length of the header.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        for _ in range(_MOST_LINES):
            line = stream.readline(4096)
            key, _, value = _text(line).partition("=")
            fields[key.strip()] = value.strip()
            if not line or key.strip() == "ElementDataFile":
                break
        start = stream.tell()
        data = fields.get("ElementDataFile", "")
        names: list[str] = []
        if data.startswith("LIST"):
            names = _names(stream.read(2**24))
        elif "%" in data:
            names = _numbered(data)
        elif data and data.upper() != "LOCAL":
            names = [data]
    return fields, [path.parent / name for name in names], start


def nrrd_data(path: Path) -> tuple[dict[str, str], list[Path], int]:
    """Read the header of an NRRD file; returns the same as :func:`metaimage_data`, with lower-case fields."""
    fields: dict[str, str] = {}
    names: list[str] = []
    with path.open("rb") as stream:
        for _ in range(_MOST_LINES):
            line = stream.readline(4096).strip()
            if not line:
                break
            key, _, value = _text(line).partition(":")
            fields[key.strip().lower()] = value.strip()
            if key.strip().lower() in ("data file", "datafile") and value.strip().startswith("LIST"):
                names = _names(stream.read(2**24))
                break
        start = stream.tell()
    data = fields.get("data file", fields.get("datafile", ""))
    if not names and data:
        names = _numbered(data) if "%" in data else [data]
    return fields, [path.parent / name for name in names], start


def _names(data: bytes) -> list[str]:
    """Split a list of files, one in each line."""
    return [line.strip() for line in _text(data).splitlines() if line.strip()]


def _text(data: bytes) -> str:
    """Decode a header; names of files may have letters of any language."""
    return data.decode("utf-8", "surrogateescape")


def _numbered(text: str) -> list[str]:
    """Return the file names of a pattern, its first and last number, and the step: ``slice%03d.raw 1 40 1``."""
    found = re.fullmatch(r"(.+?)\s+(-?\d+)\s+(-?\d+)(?:\s+(-?\d+))?(?:\s+\d+)?", text)
    place = _PATTERN.search(found[1]) if found else None
    if not found or not place:
        return []
    before, after = found[1][: place.start()], found[1][place.end() :]
    first, last, step = int(found[2]), int(found[3]), int(found[4] or 1) or 1
    numbers = range(first, last + (1 if step > 0 else -1), step)[:_MOST_LINES]
    return [f"{before}{place[0] % number}{after}" for number in numbers]


def _other_half(path: Path) -> list[Path]:
    """Return the possible files of the header (``.hdr``) or of the voxels (``.img``) of an Analyze or NIfTI image."""
    base = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = ".img" if base.suffix.lower() == ".hdr" else ".hdr"
    return [base.with_suffix(name) for name in (kind, kind.upper(), f"{kind}.gz", f"{kind.upper()}.gz")]
