"""Find the files with the voxels of an image whose header is a file of its own.

The formats are MetaImage (``.mhd``), NRRD (``.nhdr``), Analyze and NIfTI (``.hdr`` and ``.img``), and Stimulate
(``.spr`` and ``.sdt``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Lines of a header; what follows are voxels, or no header at all.
_MOST_LINES = 10_000
# Bytes; colors, names and extents of segments are long.
_LONGEST_LINE = 2**16
# Of NRRD, without spaces.
_NRRD_FIELDS = {
    *("content", "number", "type", "blocksize", "dimension", "space", "spacedimension", "sizes", "spacings"),
    *("thicknesses", "axismins", "axismaxs", "axismaxes", "spacedirections", "centers", "centerings", "kinds"),
    *("labels", "units", "min", "max", "oldmin", "oldmax", "endian", "encoding", "lineskip", "byteskip"),
    *("sampleunits", "spaceunits", "spaceorigin", "measurementframe", "datafile"),
}
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
        return metaimage_data(path).files
    if name.endswith((".nhdr", ".nrrd")):
        return nrrd_data(path).files
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        return _other_half(path)
    return [path.with_suffix(suffix) for suffix in (".sdt", ".SDT")] if name.endswith(".spr") else []


@dataclass(frozen=True)
class Header:
    """A header of text.

    Attributes:
        pairs: keys and values, in their order; those of NRRD files with lower-case keys.
        files: those with the voxels; none if they follow in the file itself.
        end: length of the header in bytes.
        is_clear: whether all lines have one meaning only: a key at the start, a separator and a value, of printable
            text. Readers do not agree about other ones.
    """

    pairs: list[tuple[str, str]]
    files: list[Path]
    end: int
    is_clear: bool

    @property
    def fields(self) -> dict[str, str]:
        """The values by their keys; of equal keys, the last one counts."""
        return dict(self.pairs)


def metaimage_data(path: Path) -> Header:
    """Read the header of a MetaImage file."""
    pairs: list[tuple[str, str]] = []
    clear, data, names = True, "", []
    with path.open("rb") as stream:
        for line, whole in _lines(stream):
            key, found, value = (part.strip() for part in line.partition("="))
            pairs.append((key, value))
            clear = clear and whole and bool(found) and _is_clear(line) and ":" not in key
            if key == "ElementDataFile":
                data = value
                break
        start = stream.tell()
        if data.startswith("LIST"):
            names = _names(stream.read(2**24))
        elif "%" in data:
            names = _numbered(data)
        elif data and data.upper() != "LOCAL":
            names = [data]
    return Header(pairs, [path.parent / name for name in names], start, clear)


def nrrd_data(path: Path) -> Header:
    """Read the header of an NRRD file. Its first line, and comments, are no pairs."""
    pairs: list[tuple[str, str]] = []
    data, names = "", []
    with path.open("rb") as stream:
        first = stream.readline(16)
        clear = re.fullmatch(rb"NRRD000[1-5]\r?\n", first) is not None
        for line, whole in _lines(stream):
            if not line.strip():
                clear = clear and not line
                break
            key, found, value = (part.strip() for part in line.partition(":"))
            key = {"datafile": "data file"}.get(key.lower(), key.lower())
            clear = clear and whole and line.isprintable()
            if line.startswith("#"):
                continue
            clear = clear and bool(found) and _is_clear(line)
            if value.startswith("="):
                # Values that belong to the program that wrote them. Some readers take those of a field for the field.
                clear = clear and key.replace(" ", "") not in _NRRD_FIELDS
                continue
            pairs.append((key, value))
            if key == "data file":
                data = value
                if value.startswith("LIST"):
                    names = _names(stream.read(2**24))
                    break
        start = stream.tell()
    if not names and data:
        names = _numbered(data) if "%" in data else [data]
    return Header(pairs, [path.parent / name for name in names], start, clear)


def _lines(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """Read lines without their ends, and whether each was read in full and has an end."""
    for _ in range(_MOST_LINES):
        line = stream.readline(_LONGEST_LINE)
        if not line:
            return
        yield _text(line.removesuffix(b"\n").removesuffix(b"\r")), line.endswith(b"\n")


def _is_clear(line: str) -> bool:
    """Whether a line is printable text that begins with its key."""
    return line.isprintable() and line[:1].isalpha()


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
