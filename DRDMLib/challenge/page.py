"""Write a score: JSON, tables, the error map, and one page with pictures, histogram and the worst places."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..drawing import Plane, SlicePicture, Style, contrast_window
from ..io.files import to_json, write_text
from ..output import write_image
from ..pages import fill_page, picture_uri
from .score import Figures, Score
from .truth import Truth

STYLE = Style(side=300, lines=12)
_BINS = 40
# Part of the picture's color that is the error's.
_OVERLAY = 0.6
# From no error to a large one: dark blue, cyan, yellow, red.
_COLORS = np.asarray([[20, 30, 110], [40, 170, 220], [250, 220, 60], [220, 40, 40]], float)
_SUMMARY = {"mean": "mean", "median": "median", "p95": "95 %", "max": "largest"}


def report(score: Score, truth: Truth, files: list[str], convention: str) -> dict[str, Any]:
    """Return the score as a dictionary for ``score.json``."""
    return {
        "case": truth.record["name"],
        "recipe": truth.record["recipe"]["name"],
        "level": truth.record["level"],
        "model": truth.record["model"],
        "files": files,
        "convention": convention,
        "result": score.result.to_dict(),
        "before": score.before.to_dict(),
        "floor": score.floor.to_dict(),
        "folded_fraction": score.folded_fraction,
        "min_jacobian": score.min_jacobian,
        "inverse_consistency": score.inverse_consistency,
        "looks_like": None if score.looks_like is None else score.looks_like._asdict(),
        "landmarks": len(truth.names),
        "not_counted": truth.record["not_counted"],
        "every_nth_voxel": score.step,
        "worst": score.worst,
    }


def rows(score: Score) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Return the figures as a table: name, unit, before registration, result, floor."""

    def get(figures: Figures, part: str, key: str) -> float | None:
        values: dict[str, float] = getattr(figures, part)
        return values.get(key)

    table: list[tuple[str, str, float | None, float | None, float | None]] = []
    for part, what in (("landmarks", "error at landmarks"), ("body", "error over the body")):
        for key, name in _SUMMARY.items():
            before, result, floor = (get(f, part, key) for f in (score.before, score.result, score.floor))
            if result is not None:
                table.append((f"{what}, {name}", "mm", before, result, floor))
    for value, own in score.result.labels.items():
        before_label, floor_label = score.before.labels[value], score.floor.labels[value]
        for key, name, unit in (("dice", "Dice", ""), ("hausdorff95", "95 % Hausdorff distance", "mm")):
            table.append((f"label {value}, {name}", unit, before_label[key], own[key], floor_label[key]))
    table.append(("folded voxels", "%", 0.0, 100 * score.folded_fraction, None))
    table.append(("smallest Jacobian determinant", "", 1.0, score.min_jacobian, None))
    for key, name in _SUMMARY.items():
        if key in score.inverse_consistency:
            table.append((f"there and back, {name}", "mm", 0.0, score.inverse_consistency[key], None))
    return table


def text_table(score: Score) -> str:
    """Return the figures as text for a terminal."""
    lines = [f"{'':42}{'before':>10}{'result':>10}{'floor':>10}"]
    for name, unit, *values in rows(score):
        shown = "".join(f"{'-' if v is None else f'{v:.3f}':>10}" for v in values)
        lines.append(f"{name + (f' ({unit})' if unit else ''):42}{shown}")
    return "\n".join(lines)


def write_score(folder: Path, score: Score, truth: Truth, content: dict[str, Any]) -> Path:
    """Write a score into a folder.

    Args:
        content: see :func:`report`.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    write_text(folder / "score.json", to_json(content, indent=1) + "\n")
    write_text(folder / "score.csv", _csv(["figure", "unit", "before", "result", "floor"], rows(score)))
    axes = "xyz"[: truth.fixed.GetDimension()]
    order = np.argsort(-score.landmark_errors, kind="stable")
    at = [
        (name, *(round(float(v), 4) for v in point), float(before), float(error))
        for name, point, before, error in zip(
            truth.names, truth.on_fixed, score.landmark_before, score.landmark_errors, strict=True
        )
    ]
    head = ["name", *(f"fixed_{axis}" for axis in axes), "before_mm", "error_mm"]
    write_text(folder / "landmarks.csv", _csv(head, [at[k] for k in order]))
    write_image(folder / "errors.nii.gz", _on_grid(_filled(score.errors), score.grid))
    return write_text(folder / "score.html", page(score, truth, content))


def _csv(head: list[str], table: list[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table)
    return text.getvalue()


def page(score: Score, truth: Truth, content: dict[str, Any]) -> str:
    """Return a page that needs no other file."""
    known = score.before_errors[np.isfinite(score.before_errors)]
    own = score.errors[np.isfinite(score.errors)]
    # One scale for both, so that a result worse than nothing is seen as such.
    top = float(max(np.percentile(known, 99), 1e-3))
    bins = np.linspace(0, max(float(np.percentile(own, 99)), top), _BINS + 1)
    data = {
        "title": f"{content['case']}: {', '.join(content['files'])}",
        "rows": [list(row) for row in rows(score)],
        "looks_like": None if score.looks_like is None else score.looks_like.text,
        "not_counted": content["not_counted"],
        "landmarks": content["landmarks"],
        "step": score.step,
        "top": top,
        "colors": _COLORS.astype(int).tolist(),
        "bins": bins.tolist(),
        "before": _shares(known, bins),
        "result": _shares(own, bins),
        "pictures": _pictures(score, top),
        "worst": score.worst,
    }
    return fill_page("DRDMLib.challenge", "score_page.html", str(data["title"]), data)


def _shares(values: np.ndarray, bins: np.ndarray) -> list[float]:
    counts = np.histogram(values.clip(bins[0], bins[-1]), bins)[0]
    return [round(float(count) / max(1, len(values)), 5) for count in counts]


def _pictures(score: Score, top: float) -> list[dict[str, str]]:
    """Draw slices through the worst place: the fixed image, and the errors before and after over it."""
    window = contrast_window(sitk.GetArrayViewFromImage(score.grid))
    index = score.worst[0]["index"]
    d, size = score.grid.GetDimension(), score.grid.GetSize()
    planes = [Plane()] if d == 2 else [Plane(axis, index[axis]) for axis in (2, 1, 0) if min(np.delete(size, axis)) > 1]
    counts = _on_grid(np.isfinite(score.errors).astype(np.float32), score.grid)
    pictures = []
    for plane in planes:
        gray = SlicePicture(score.grid, plane, STYLE, window)
        shown: dict[str, np.ndarray] = {"fixed": gray.upright()}
        inside = SlicePicture(counts, plane, STYLE, (0, 1)).rgb[..., :1] > 127
        for name, errors in (("before", score.before_errors), ("result", score.errors)):
            values = SlicePicture(_on_grid(_filled(errors), score.grid), plane, STYLE, (0, top)).rgb[..., 0] / 255
            color = np.stack([np.interp(values, np.linspace(0, 1, len(_COLORS)), c) for c in _COLORS.T], axis=-1)
            mixed = np.where(inside, (1 - _OVERLAY) * gray.rgb + _OVERLAY * color, gray.rgb).astype(np.uint8)
            shown[name] = plane.upright(mixed, score.grid)
        pictures.append({name: picture_uri(rgb) for name, rgb in shown.items()})
    return pictures


def _filled(errors: np.ndarray) -> np.ndarray:
    filled: np.ndarray = np.nan_to_num(errors, nan=0.0).astype(np.float32)
    return filled


def _on_grid(values: np.ndarray, grid: sitk.Image) -> sitk.Image:
    image: sitk.Image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid)
    return image
