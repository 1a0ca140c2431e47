"""Landmarks: read those that a user has set, and choose points on strong features of an image."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import ImageError
from ..io.files import shown
from ..spatial.coordinates import index_to_physical, to_index, to_points

# Number of points that are chosen, and of voxels that are looked at.
COUNT = 300
_MOST_VOXELS = 2**22
_MOST_CANDIDATES = 20000
# RAS to LPS.
_FLIP = np.asarray([-1.0, -1.0, 1.0])


class Landmarks(NamedTuple):
    """Points with names.

    Attributes:
        names: one for each point.
        points: (K, d), LPS, millimeters.
    """

    names: list[str]
    points: np.ndarray


def read_points(path: Path, dimension: int) -> Landmarks:
    """Read points from a table or a markups file of 3D Slicer.

    A table (``.csv``) has the columns ``x``, ``y`` and ``z`` (LPS, millimeters) and perhaps ``name``; without a first
    line of names, its first columns are the coordinates. Lists of points for elastix can be read, too. ``.fcsv`` and
    ``.mrk.json`` name their coordinate system.

    Raises:
        ImageError: the file is missing, or is no such file.
    """
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
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        raise ImageError(
            f"'{path}' is not a list of points; use a table with columns x, y and z (LPS, millimeters), or a markups "
            "file of 3D Slicer (.mrk.json, .fcsv)."
        ) from error
    names, points = found
    if not len(points) or not np.isfinite(points).all() or points.shape[1] < dimension:
        raise ImageError(f"'{path}' has no points with {dimension} coordinates; choose another file.")
    return Landmarks(names, points[:, :dimension])


def _table(text: str) -> Landmarks:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines[0].strip() == "point":
        # The format of elastix: this word, the number of points, and their coordinates between spaces.
        lines = [",".join(line.split()) for line in lines[2:]]
    separator = next((s for s in ";\t" if s in lines[0]), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    head = [cell.lower() for cell in rows[0]]
    if "x" in head and "y" in head:
        columns = [head.index(axis) for axis in "xyz" if axis in head]
        named = next((head.index(name) for name in ("name", "label") if name in head), None)
        rows = rows[1:]
    else:
        columns, named = list(range(min(3, len(rows[0])))), None
    points = np.asarray([[float(row[c]) for c in columns] for row in rows])
    return Landmarks([str(k + 1) if named is None else row[named] for k, row in enumerate(rows)], points)


def _fcsv(text: str) -> Landmarks:
    system = "RAS"
    columns = ["id", "x", "y", "z"]
    rows = []
    for line in text.splitlines():
        key, _, value = line.removeprefix("#").partition("=")
        if line.startswith("#") and key.strip().lower() == "coordinatesystem":
            system = {"0": "RAS", "1": "LPS"}.get(value.strip(), value.strip().upper())
        elif line.startswith("#") and key.strip().lower() == "columns":
            columns = [name.strip().lower() for name in value.split(",")]
        elif line.strip() and not line.startswith("#"):
            rows.append(next(csv.reader([line])))
    places = [columns.index(axis) for axis in "xyz"]
    label = columns.index("label") if "label" in columns else 0
    points = np.asarray([[float(row[c]) for c in places] for row in rows]).reshape(-1, 3)
    return Landmarks([row[label] for row in rows], _to_lps(points, system))


def _markups(content: Any) -> Landmarks:
    names, parts = [], []
    for markup in content["markups"]:
        system = str(markup.get("coordinateSystem", "LPS")).upper()
        control = [c for c in markup["controlPoints"] if c.get("positionStatus", "defined") == "defined"]
        names += [str(c.get("label", c.get("id", ""))) for c in control]
        system = {"0": "RAS", "1": "LPS"}.get(system, system)
        parts.append(_to_lps(np.asarray([c["position"] for c in control], float).reshape(-1, 3), system))
    return Landmarks(names, np.concatenate(parts))


def _to_lps(points: np.ndarray, system: str) -> np.ndarray:
    if system not in ("RAS", "LPS"):
        raise ValueError(system)
    return points * _FLIP if system == "RAS" else points


def require_inside(landmarks: Landmarks, image: sitk.Image, path: str) -> None:
    """Check that all points lie in an image.

    Raises:
        ImageError: some lie outside of it.
    """
    outside = ~inside(landmarks.points, image)
    if outside.any():
        first = landmarks.names[int(np.flatnonzero(outside)[0])]
        raise ImageError(
            f"{int(outside.sum())} of {len(outside)} points of '{path}' lie outside of the scan (the first is "
            f"'{shown(first)}'); choose the points of this scan, and check whether they are LPS."
        )


def inside(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Return which points (K, d) lie within the faces of an image: (K,) bool."""
    index = to_index(points, image)
    result: np.ndarray = np.all((index >= -0.5) & (index <= np.asarray(image.GetSize()) - 0.5), axis=1)
    return result


def choose_landmarks(image: sitk.Image, mask: sitk.Image, count: int = COUNT) -> Landmarks:
    """Choose points at corners of structures: where the gray values change strongly in all directions.

    Args:
        mask: on the grid of the image, not zero where points may lie.
        count: largest number of points. They keep a distance, so that they cover the mask.
    """
    size = image.GetSize()
    step = max(1, round((np.prod(size) / _MOST_VOXELS) ** (1 / len(size)) + 0.49))
    every = tuple(slice(None, None, step if n > step else 1) for n in size[::-1])
    values = ndimage.gaussian_filter(sitk.GetArrayViewFromImage(image)[every].astype(np.float32), 1.0)
    allowed = sitk.GetArrayViewFromImage(mask)[every] > 0
    strength = np.where(allowed, _cornerness(values), -1)
    peaks = np.flatnonzero((strength > 0) & (strength == ndimage.maximum_filter(strength, 3)))
    peaks = peaks[np.argsort(-strength.ravel()[peaks], kind="stable")][:_MOST_CANDIDATES]
    steps = np.asarray([s.step or 1 for s in every])
    index = (np.stack(np.unravel_index(peaks, strength.shape), axis=1) * steps)[:, ::-1].astype(np.float64)
    along = index * np.abs(np.linalg.norm(index_to_physical(image), axis=0))
    wide = [n > 1 for n in strength.shape]
    volume = allowed.sum() * np.prod((np.asarray(image.GetSpacing())[::-1] * steps)[wide])
    distance = 0.5 * (volume / count) ** (1 / max(1, sum(wide)))
    chosen: list[int] = []
    for k in range(len(along)):
        if len(chosen) == count:
            break
        if not chosen or np.linalg.norm(along[chosen] - along[k], axis=1).min() >= distance:
            chosen.append(k)
    return Landmarks([f"p{k + 1}" for k in range(len(chosen))], to_points(index[chosen], image))


def _cornerness(values: np.ndarray) -> np.ndarray:
    """Return the determinant of the structure tensor divided by its trace, zero where nothing changes."""
    axes = [axis for axis, n in enumerate(values.shape) if n > 1]
    slopes = [np.gradient(values, axis=axis) for axis in axes]
    smooth = [[ndimage.gaussian_filter(a * b, 1.5) for b in slopes[: k + 1]] for k, a in enumerate(slopes)]
    n = len(axes)
    tensor = np.empty((*values.shape, n, n), np.float32)
    for a in range(n):
        for b in range(n):
            tensor[..., a, b] = smooth[max(a, b)][min(a, b)]
    trace = np.trace(tensor, axis1=-2, axis2=-1)
    result: np.ndarray = np.linalg.det(tensor) / (trace ** (n - 1) + 1e-6 * float(trace.max() or 1) ** (n - 1))
    return result
