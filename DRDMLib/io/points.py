"""Read lists of points, and write them again with other positions: tables and markups files of 3D Slicer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ImageError
from .files import shown
from .images import reading

# RAS to LPS.
FLIP = np.asarray([-1.0, -1.0, 1.0])
POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")


class Landmarks(NamedTuple):
    """Points with names.

    Attributes:
        names: one for each point.
        points: (K, d), LPS, millimeters.
    """

    names: list[str]
    points: np.ndarray


class PointFile(NamedTuple):
    """The points of a file, and the file with other ones.

    Attributes:
        names: one for each point.
        points: (K, 2) or (K, 3), LPS, millimeters.
        rewritten: takes points like ``points`` and returns the text of the file with them; all else stays.
    """

    names: list[str]
    points: np.ndarray
    rewritten: Callable[[np.ndarray], str]


def read_points(path: Path, dimension: int) -> Landmarks:
    """Read points from a table or a markups file of 3D Slicer.

    A table (``.csv``) has the columns ``x``, ``y`` and ``z`` (LPS, millimeters) and perhaps ``name``; without a first
    line of names, its first columns are the coordinates. Lists of points for elastix can be read, too. ``.fcsv`` and
    ``.mrk.json`` name their coordinate system.

    Raises:
        ImageError: the file is missing, or is no such file.
    """
    found = read_point_file(path, dimension)
    return Landmarks(found.names, found.points[:, :dimension])


def read_point_file(path: Path, dimension: int) -> PointFile:
    """Read points as :func:`read_points`, with what is needed to write them again.

    Raises:
        ImageError: the file is missing, or is no such file.
    """
    with reading(path, "list of points"):
        return _read(path, dimension)


def _read(path: Path, dimension: int) -> PointFile:
    try:
        if path.name.lower().endswith(".json"):
            found = _markups(json.loads(path.read_bytes()))
        else:
            text = path.read_text(encoding="utf-8-sig")
            found = _fcsv(text) if path.suffix.lower() == ".fcsv" else _table(text)
    except OSError as error:
        raise ImageError(
            f"The points '{shown(str(path))}' cannot be read ({error.strerror}); check the path."
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration, csv.Error) as error:
        raise ImageError(
            f"'{path}' is not a list of points; use a table with columns x, y and z (LPS, millimeters), or a markups "
            "file of 3D Slicer (.mrk.json, .fcsv)."
        ) from error
    if not len(found.points) or not np.isfinite(found.points).all() or found.points.shape[1] < dimension:
        raise ImageError(f"'{path}' has no points with {dimension} coordinates; choose another file.")
    return found


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _with_cells(line: str, separator: str, columns: list[int], values: np.ndarray) -> str:
    """Replace cells of a line of a table with numbers."""
    row = next(csv.reader([line], delimiter=separator))
    for column, value in zip(columns, values.tolist(), strict=True):
        row[column] = _number(value)
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="").writerow(row)
    return out.getvalue()


def _table(text: str) -> PointFile:
    every = text.splitlines()
    used = [number for number, line in enumerate(every) if line.strip() and not line.startswith("#")]
    between_spaces = every[used[0]].strip() == "point"
    if between_spaces:
        # The format of elastix: this word, the number of points, and their coordinates between spaces.
        used = used[2:]
        for number in used:
            every[number] = ",".join(every[number].split())
    separator = next((s for s in ";\t" if s in every[used[0]]), ",")
    rows = [[cell.strip() for cell in next(csv.reader([every[k]], delimiter=separator))] for k in used]
    head = [cell.lower() for cell in rows[0]]
    if "x" in head and "y" in head:
        columns = [head.index(axis) for axis in "xyz" if axis in head]
        named = next((head.index(name) for name in ("name", "label") if name in head), None)
        rows, used = rows[1:], used[1:]
    else:
        columns, named = list(range(min(3, len(rows[0])))), None
    points = np.asarray([[float(row[c]) for c in columns] for row in rows])

    def rewritten(moved: np.ndarray) -> str:
        lines = list(every)
        for number, values in zip(used, moved, strict=True):
            lines[number] = _with_cells(every[number], separator, columns, values)
            if between_spaces:
                lines[number] = lines[number].replace(",", " ")
        return "\n".join(lines) + "\n"

    return PointFile([str(k + 1) if named is None else row[named] for k, row in enumerate(rows)], points, rewritten)


def _fcsv(text: str) -> PointFile:
    system = "RAS"
    columns = ["id", "x", "y", "z"]
    rows, used = [], []
    every = text.splitlines()
    for number, line in enumerate(every):
        key, _, value = line.removeprefix("#").partition("=")
        if line.startswith("#") and key.strip().lower() == "coordinatesystem":
            system = {"0": "RAS", "1": "LPS"}.get(value.strip(), value.strip().upper())
        elif line.startswith("#") and key.strip().lower() == "columns":
            columns = [name.strip().lower() for name in value.split(",")]
        elif line.strip() and not line.startswith("#"):
            rows.append(next(csv.reader([line])))
            used.append(number)
    places = [columns.index(axis) for axis in "xyz"]
    label = columns.index("label") if "label" in columns else 0
    points = np.asarray([[float(row[c]) for c in places] for row in rows]).reshape(-1, 3)

    def rewritten(moved: np.ndarray) -> str:
        lines = list(every)
        for number, values in zip(used, _to_lps(moved, system), strict=True):
            lines[number] = _with_cells(every[number], ",", places, values)
        return "\n".join(lines) + "\n"

    return PointFile([row[label] for row in rows], _to_lps(points, system), rewritten)


def _markups(content: Any) -> PointFile:
    names: list[str] = []
    parts, controls, systems = [], [], []
    for markup in content["markups"]:
        system = str(markup.get("coordinateSystem", "LPS")).upper()
        control = [c for c in markup["controlPoints"] if c.get("positionStatus", "defined") == "defined"]
        names += [str(c.get("label", c.get("id", ""))) for c in control]
        system = {"0": "RAS", "1": "LPS"}.get(system, system)
        parts.append(_to_lps(np.asarray([c["position"] for c in control], float).reshape(-1, 3), system))
        controls += control
        systems += [system] * len(control)

    def rewritten(moved: np.ndarray) -> str:
        if any(markup.get("type") in ("ROI", "Plane") for markup in content["markups"]):
            raise ImageError("A box or a plane cannot be deformed; save its corners as a list of points.")
        for one, system, point in zip(controls, systems, moved, strict=True):
            one["position"] = _to_lps(point, system).tolist()
        for markup in content["markups"]:
            # Lengths and angles of the original; 3D Slicer measures them again.
            for measured in markup.get("measurements", []):
                measured.pop("value", None)
        return json.dumps(content, indent=4) + "\n"

    return PointFile(names, np.concatenate(parts), rewritten)


def _to_lps(points: np.ndarray, system: str) -> np.ndarray:
    """Convert points from a coordinate system to LPS; the same step leads back."""
    if system not in ("RAS", "LPS"):
        raise ValueError(system)
    return points * FLIP if system == "RAS" else points
