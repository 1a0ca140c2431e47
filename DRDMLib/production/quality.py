"""The quality page: one HTML file that shows the samples of a run, outliers first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..deformation import Deformation
from ..drawing import SlicePicture, fullest_plane
from ..io.files import write_text
from ..models.fit import Fit
from ..pages import fill_page, is_png, png_uri
from ..spatial.coordinates import direction_matrix
from ..spatial.jacobian import jacobian_determinant
from ..spatial.model_grid import image_extent
from ..spatial.resampling import field_on_grid
from . import records
from .plan import Plan

PAGE = "quality.html"
# Displacement in percent of the image's longest side; Jacobian determinant.
DISPLACEMENT_BINS = np.linspace(0.0, 15.0, 31)
JACOBIAN_BINS = np.linspace(0.0, 3.0, 31)
_NODES = 40
# Pictures that are put into the page; the others are listed by their figures.
_MOST_PICTURES = 1200


def outlier_scores(rows: list[dict[str, float]]) -> list[float]:
    """Score how far each sample lies from the others: its largest distance from the median, robust standard deviations.

    Args:
        rows: for each sample the same metrics.
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
                # As text, because JavaScript rounds numbers of more than 53 bits.
                "seed": str(record["seed"]),
                "redrawn": len(record["redrawn"]),
                **({"fit": str(Fit.from_dict(record["fit"]))} if "fit" in record else {}),
                "score": score,
                **{key: float(f"{value:.4g}") for key, value in row.items()},
                **record.get("histograms", {}),
            }
        )
    order = sorted(range(len(samples)), key=lambda k: (-samples[k]["score"], samples[k]["name"]))
    samples = [samples[k] for k in order]
    for sample, k in list(zip(samples, order, strict=True))[:_MOST_PICTURES]:
        # A record may name any file of the disk.
        path = (records.files_of(folder, made[k]) or {}).get("thumbnail")
        if path is not None and is_png(path):
            sample["picture"] = png_uri(path)
    data = {
        "title": folder.name,
        "command": plan.settings.command,
        "model": ", ".join(dict.fromkeys(record["model"]["name"] for record in made)),
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
    return write_text(folder / PAGE, fill_page("DRDMLib.production", "quality_page.html", folder.name, data))


def histograms(deformation: Deformation) -> dict[str, list[int]]:
    """Count displacements and Jacobian determinants over a coarse grid on the image, in the bins of this module."""
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
    """Count values in bins; values outside count in the first or last bin."""
    return [int(n) for n in np.histogram(values.clip(bins[0], bins[-1]), bins)[0]]


def thumbnail(pictures: list[tuple[sitk.Image, sitk.Image | None]], field: sitk.Image) -> np.ndarray:
    """Draw images side by side with contours of their labels, the last one with the grid that the field bends.

    Args:
        pictures: images, and labels on their grids.
        field: displacement field, LPS millimeters.

    Returns:
        (rows, columns, 3) uint8.
    """
    tiles = []
    plane = fullest_plane(*pictures[-1])
    for number, (image, label) in enumerate(pictures):
        picture = SlicePicture(image, plane)
        if number == len(pictures) - 1:
            picture.draw_grid(field)
        if label is not None:
            picture.draw_contours(label)
        tiles.append(picture.upright_square())
    return np.concatenate(tiles, axis=1)
