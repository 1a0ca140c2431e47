"""The quality page: one HTML file that shows what a run has made, the strangest samples first."""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..deformation import Deformation
from ..errors import OutputError
from ..io.files import write_text
from ..spatial.coordinates import direction_matrix
from ..spatial.jacobian import jacobian_determinant
from ..spatial.model_grid import image_extent
from ..spatial.resampling import field_on_grid
from . import records
from .plan import Plan

PAGE = "quality.html"
SIDE = 144
# Displacement, per cent of the image's longest side; Jacobian determinant.
DISPLACEMENT_BINS = np.linspace(0.0, 15.0, 31)
JACOBIAN_BINS = np.linspace(0.0, 3.0, 31)
_COLOURS = np.asarray(
    [[255, 202, 40], [239, 83, 80], [102, 187, 106], [171, 71, 188], [255, 112, 67], [38, 198, 218], [236, 64, 122]],
    np.uint8,
)
_GRID = np.asarray([79, 195, 247], np.uint8)
_LINES = 12
_NODES = 40
# Pictures that are put into the page; the others are listed by their figures.
_MOST_PICTURES = 1200


def outlier_scores(rows: list[dict[str, float]]) -> list[float]:
    """How far each sample lies from the others: the largest distance from the median in robust standard deviations.

    Args:
        rows: the same figures of each sample.
    """
    if not rows:
        return []
    table = np.asarray([[row[key] for key in sorted(rows[0])] for row in rows], np.float64)
    away = np.abs(table - np.median(table, axis=0))
    spread = 1.4826 * np.median(away, axis=0)
    spread = np.where(spread > 0, spread, np.maximum(table.std(axis=0), 1e-9))
    return [round(float(score), 2) for score in (away / spread).max(axis=1)]


def write_quality_page(folder: Path, plan: Plan, written: list[dict[str, Any]]) -> Path:
    """Write ``quality.html``: histograms, pictures, outliers first, a filter by subject; it needs no other file.

    Args:
        written: the records of all samples, those that were given up too.
    """
    made = [record for record in written if record["status"] == records.DONE]
    figures = []
    for record in made:
        m = record["item"]["metrics"]
        figures.append({key: m[key] for key in ("mean_mm", "max_mm", "min_jacobian", "folded_fraction")})
    samples = []
    for record, row, score in zip(made, figures, outlier_scores(figures), strict=True):
        samples.append(
            {
                "name": record["name"],
                "subject": record["subject"],
                "case": record["case"],
                "levels": record["levels"],
                "seed": record["seed"],
                "redrawn": len(record["redrawn"]),
                "score": score,
                **{key: float(f"{value:.4g}") for key, value in row.items()},
                **record.get("histograms", {}),
            }
        )
    order = sorted(range(len(samples)), key=lambda k: (-samples[k]["score"], samples[k]["name"]))
    samples = [samples[k] for k in order]
    for sample, k in list(zip(samples, order, strict=True))[:_MOST_PICTURES]:
        path = folder / made[k]["files"].get("thumbnail", "")
        if path.is_file():
            sample["picture"] = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    data = {
        "title": folder.name,
        "command": plan.settings.command,
        "model": made[0]["model"]["name"] if made else "",
        "samples": samples,
        "lost": [
            {"name": r["name"], "subject": r["subject"], "reason": r["reason"]}
            for r in written
            if r["status"] != records.DONE
        ],
        "bins": {
            "displacement_percent": [round(float(v), 3) for v in DISPLACEMENT_BINS],
            "jacobian": [round(float(v), 3) for v in JACOBIAN_BINS],
        },
    }
    # Within a script element only "</" could end it early.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = (resources.files(__package__) / "quality_page.html").read_text(encoding="utf-8")
    page = template.replace("{{title}}", html.escape(folder.name)).replace("{{data}}", text)
    return write_text(folder / PAGE, page)


def histograms(deformation: Deformation) -> dict[str, list[int]]:
    """How many nodes of a coarse grid over the image move how far, and what the determinants there are."""
    reference = deformation.reference
    size = [min(_NODES, n) for n in reference.GetSize()]
    coarse = sitk.Image(size, sitk.sitkUInt8)
    extent = image_extent(reference)
    spacing = extent / np.asarray(size)
    coarse.SetSpacing(spacing.tolist())
    coarse.SetDirection(reference.GetDirection())
    first = [0.5 * n / m - 0.5 for n, m in zip(reference.GetSize(), size, strict=True)]
    coarse.SetOrigin(reference.TransformContinuousIndexToPhysicalPoint(first))
    field = field_on_grid(deformation.field, coarse, 0, size[-1])
    determinants = jacobian_determinant(field, coarse.GetSpacing(), direction_matrix(coarse))
    percent = 100 * np.sqrt((field.astype(np.float64) ** 2).sum(axis=-1)) / float(extent.max())
    return {
        "displacement_percent": _counts(percent, DISPLACEMENT_BINS),
        "jacobian": _counts(determinants, JACOBIAN_BINS),
    }


def _counts(values: np.ndarray, bins: np.ndarray) -> list[int]:
    """What lies outside counts in the first or last bin."""
    return [int(n) for n in np.histogram(values.clip(bins[0], bins[-1]), bins)[0]]


def thumbnail(pictures: list[tuple[sitk.Image, sitk.Image | None]], field: sitk.Image) -> np.ndarray:
    """Images side by side with contours of their labels, the last with the grid that the field bends.

    Returns:
        (rows, columns, 3) uint8.
    """
    tiles = []
    layer = _layer(pictures[-1])
    for number, (image, label) in enumerate(pictures):
        grid = _grid_lines(image, field, layer) if number == len(pictures) - 1 else None
        tiles.append(_tile(image, label, layer, grid))
    return np.concatenate(tiles, axis=1)


def _layer(picture: tuple[sitk.Image, sitk.Image | None]) -> int:
    """The layer with most of the label, or the middle one."""
    image, label = picture
    if image.GetDimension() == 2:
        return 0
    if label is not None:
        counts = np.count_nonzero(sitk.GetArrayViewFromImage(label), axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return int(image.GetSize()[2] // 2)


def _cut(image: sitk.Image, layer: int) -> np.ndarray:
    view = sitk.GetArrayViewFromImage(image)
    return np.array(view if view.ndim == 2 else view[layer])


def _scale(image: sitk.Image) -> tuple[float, float]:
    """Pixels of the picture for each voxel, along rows and columns: true proportions."""
    width, height = (n * s for n, s in zip(image.GetSize()[:2], image.GetSpacing()[:2], strict=True))
    pixels = SIDE / max(width, height)
    return pixels * image.GetSpacing()[1], pixels * image.GetSpacing()[0]


def _tile(image: sitk.Image, label: sitk.Image | None, layer: int, grid: np.ndarray | None) -> np.ndarray:
    grey = _cut(image, layer).astype(np.float32)
    low, high = np.percentile(grey, [0.5, 99.5])
    grey = ((grey - low) / max(float(high - low), 1e-6)).clip(0, 1)
    scale = _scale(image)
    shown = (ndimage.zoom(grey, scale, order=1).clip(0, 1) * 255).astype(np.uint8)
    rgb = np.repeat(shown[..., None], 3, axis=2)
    if grid is not None:
        bent = [ndimage.zoom(g, scale, order=1) for g in grid]
        on = np.zeros(shown.shape, bool)
        for values in bent:
            whole = np.floor(values)
            on[:, 1:] |= whole[:, 1:] != whole[:, :-1]
            on[1:] |= whole[1:] != whole[:-1]
        rgb[on] = (0.45 * rgb[on] + 0.55 * _GRID).astype(np.uint8)
    if label is not None:
        names = ndimage.zoom(_cut(label, layer), scale, order=0)
        edge = np.zeros(names.shape, bool)
        across, down = names[:, 1:] != names[:, :-1], names[1:] != names[:-1]
        for part in (edge[:, 1:], edge[:, :-1]):
            part |= across
        for part in (edge[1:], edge[:-1]):
            part |= down
        edge &= names != 0
        rgb[edge] = _COLOURS[(names[edge].astype(np.int64) - 1) % len(_COLOURS)]
    square = np.full((SIDE, SIDE, 3), 16, np.uint8)
    rows, columns = min(SIDE, rgb.shape[0]), min(SIDE, rgb.shape[1])
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    square[top : top + rows, left : left + columns] = rgb[:rows, :columns]
    return _upright(square, image)


def _upright(picture: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Head or front up, the patient's right or front on the left, as radiologists look at layers."""
    if image.GetDimension() != 3:
        return picture
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    # LPS: rows go down, that is to the back or to the feet.
    (down, sign), (across, side) = ((int(np.abs(c).argmax()), c[np.abs(c).argmax()]) for c in direction[:, 1::-1].T)
    picture = picture[::-1] if (sign > 0) == (down == 2) else picture
    return picture[:, ::-1] if side < 0 and across != 2 else picture


def _grid_lines(image: sitk.Image, field: sitk.Image, layer: int) -> np.ndarray:
    """For each voxel of the layer, where it reads, counted in lines of a regular grid: (2, rows, columns)."""
    d = image.GetDimension()
    whole = d == 2
    block = field_on_grid(field, image, 0 if whole else layer, image.GetSize()[1] if whole else layer + 1)
    block = (block if whole else block[0]).astype(np.float64)
    direction = direction_matrix(image)
    along = block @ direction
    rows, columns = block.shape[:2]
    spacing = image.GetSpacing()
    step = max(rows * spacing[1], columns * spacing[0]) / _LINES
    y = (np.arange(rows)[:, None] * spacing[1] + along[..., 1]) / step
    x = (np.arange(columns)[None] * spacing[0] + along[..., 0]) / step
    return np.stack([y, x])


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write (rows, columns, 3) uint8 as PNG, whatever the file is called.

    Raises:
        OutputError: it cannot be written.
    """
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("PNGImageIO")
    writer.SetFileName(str(path))
    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(rgb), isVector=True)
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise OutputError(f"'{path}' cannot be written; is the disk full? Free some space and run again.") from error
