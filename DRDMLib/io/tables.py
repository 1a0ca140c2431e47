"""Read lists and tables of files, as people and spreadsheet programs write them."""

from __future__ import annotations

import codecs
import csv
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ImageError
from .files import listed, shown

TABLES = (".csv", ".tsv", ".txt", ".lst")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods")
_COLUMNS = ("image", "label", "subject", "name")
_SEPARATORS = ";\t,|"
# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Largest fraction of control characters in a text.
_FEW = 0.05


@dataclass
class Table:
    """The rows of a list or table.

    Attributes:
        rows: for each image, the values of the columns image, label, subject and name that are filled in.
        notes: sentences about rows and columns that are not used.
        labeled: whether there is a column with labels.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labeled: bool = False


def read_table(path: Path) -> Table:
    """Read a table with a column ``image``, or a text file with one path per line.

    The text may be UTF-8 or UTF-16, with or without a byte-order mark, or Windows-1252. The cells of a table are
    separated by ``;``, ``,``, ``|`` or tabs; its first line may be Excel's ``sep=;``. Empty lines and those that start
    with ``#`` are ignored.

    Raises:
        ImageError: it is not a text, has no column ``image``, or no row can be used.
    """
    table = Table()
    lines = [
        (number, line)
        for number, line in enumerate(re.split(r"\r\n|\r|\n", _decoded(path, table.notes)), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    given = re.fullmatch(r'"?sep=(.)"?\s*', lines[0][1], re.IGNORECASE) if lines else None
    if given:
        lines = lines[1:]
    if not lines:
        return table
    head = lines[0][1]
    separator = _separator(head, given.group(1) if given else "")
    if separator and not _exists(path.parent / head.strip()):
        _read_rows(path, lines, separator, table)
    elif given or (_looks_like_a_table(path, head) and not _exists(path.parent / head.strip())):
        raise ImageError(
            f"The table '{path}' has no column 'image' (its first line is '{shown(head)}'); "
            "call the column with the image files 'image'."
        )
    else:
        table.rows = [{"image": line.strip()} for _, line in lines]
    return table


def _decoded(path: Path, notes: list[str]) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"The list '{path}' cannot be read ({error.strerror}); check the file.") from error
    if data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise workbook_error(path)
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "")
    if not encoding and data.count(0) > len(data) / 4:
        # Letters of most languages in UTF-16 have a byte 0, the second or the first one.
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        if sum(unicodedata.category(c) == "Cc" and c not in "\t\r\n" for c in text) > _FEW * len(text):
            break
        if name == "cp1252":
            notes.append(f"'{path.name}' is not in UTF-8 and was read as Windows-1252; check letters with accents.")
        return text
    raise ImageError(f"The list '{path}' is not a text file in UTF-8, UTF-16 or Windows-1252; save it as UTF-8.")


def workbook_error(path: Path) -> ImageError:
    """Return the error for a spreadsheet in the format of its program."""
    return ImageError(f"'{path}' is a workbook; save its sheet as a table in the format 'CSV UTF-8'.")


def _cells(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    except (csv.Error, TypeError, ValueError):
        return []


def _separator(head: str, given: str) -> str:
    """Return the separator that makes the head of a table have a column ``image``, or an empty string."""
    fitting = [
        (len(columns), separator)
        for separator in dict.fromkeys(given + _SEPARATORS)
        if "image" in (columns := [cell.lower() for cell in _cells(head, separator)])
    ]
    return max(fitting, key=lambda entry: entry[0])[1] if fitting else ""


def _looks_like_a_table(path: Path, head: str) -> bool:
    return path.suffix.lower() in (".csv", ".tsv") and any(separator in head for separator in _SEPARATORS)


def _read_rows(path: Path, lines: list[tuple[int, str]], separator: str, table: Table) -> None:
    """Add the rows of a table whose first line is its head."""
    # Without strict, a quote that is never closed would swallow all rows after it.
    reader = csv.reader((line for _, line in lines), delimiter=separator, strict=True)
    columns = [cell.strip().lower() for cell in next(reader)]
    twice = next((name for name in _COLUMNS if columns.count(name) > 1), None)
    if twice is not None:
        raise ImageError(f"The table '{path}' has two columns '{twice}'; rename one of them.")
    unknown = [name for name in columns if name and name not in _COLUMNS]
    if unknown:
        table.notes.append(
            f"Not used in '{path.name}': the columns {listed(unknown)}; known are {', '.join(_COLUMNS)}."
        )
    table.labeled = "label" in columns
    left_out = []
    try:
        for cells in reader:
            number = lines[reader.line_num - 1][0]
            row = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}
            if any(cell.strip() for cell in cells[len(columns) :]):
                left_out.append(
                    f"Line {number} of '{path}' has more cells than the table has columns; put it in quotes."
                )
            elif "image" in row:
                table.rows.append({name: row[name] for name in _COLUMNS if name in row})
            elif row:
                left_out.append(f"Line {number} of the table '{path}' has no image; fill in the column 'image'.")
    except csv.Error as error:
        number = lines[min(reader.line_num, len(lines)) - 1][0]
        raise ImageError(
            f"The table '{path}' cannot be read near line {number} ({error}); correct its quotation marks."
        ) from error
    if left_out and not table.rows:
        raise ImageError(left_out[0])
    if left_out:
        more = f" So are {len(left_out) - 1} more lines." if len(left_out) > 1 else ""
        table.notes.append(f"Left out: {left_out[0]}{more}")


def existing(folder: Path, text: str) -> Path:
    """Return the path that a cell means, relative to the folder of its table.

    Where there is no such file, backslashes are read as slashes and letters with accents are taken as composed or not
    (Unicode NFC, NFD), as other systems write them.
    """
    for slashes in dict.fromkeys((text, text.replace("\\", "/"))):
        for form in (slashes, unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes)):
            if _exists(folder / form):
                return folder / form
    return folder / text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # The name is too long, or has a character that names cannot have.
        return False
