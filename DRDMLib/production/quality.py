"""The quality page: one HTML file that shows the samples of a run, outliers first."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..deformation import Deformation
from ..drawing import BACKGROUND, GRID_COLOR, GRID_PART, Plane, SlicePicture, fullest_plane
from ..io.files import write_text
from ..models.fit import Fit
from ..pages import fill_page, is_png, png_uri
from ..spatial.coordinates import direction_matrix
from ..spatial.jacobian import jacobian_determinant
from ..spatial.model_grid import image_extent
from ..spatial.resampling import field_on_grid
from . import records
from .plan import AUGMENT, SYNTHESIZE, Plan

PAGE = "quality.html"
# Displacement in percent of the image's longest side; Jacobian determinant.
DISPLACEMENT_BINS = np.linspace(0.0, 15.0, 31)
JACOBIAN_BINS = np.linspace(0.0, 3.0, 31)
_NODES = 40
# Titles of the images of a sample; the grid is drawn on the last one.
_IMAGES = {AUGMENT: ["original", "new version"], SYNTHESIZE: ["original", "moving", "fixed"]}
# Pictures that are put into the page; the others are listed by their figures.
_MOST_PICTURES = 1200
# Distance of the slices above and below the one of the thumbnail, as a fraction of their number.
_SLICE_STEP = 0.15


class Outlier(NamedTuple):
    """How far a sample lies from the others of its strength.

    Attributes:
        score: distance of its most unusual figure from the median, robust standard deviations.
        figure: name of that figure.
        median: median of that figure.
    """

    score: float
    figure: str
    median: float


def find_outliers(rows: list[dict[str, float]], groups: Sequence[object]) -> list[Outlier]:
    """Judge each sample among those of its group.

    Args:
        rows: for each sample the same metrics.
        groups: for each sample its group, such as its strength.
    """
    found: dict[int, Outlier] = {}
    for group in dict.fromkeys(groups):
        members = [k for k, own in enumerate(groups) if own == group]
        keys = sorted(rows[members[0]])
        distances, medians = _distances([rows[k] for k in members])
        for k, away in zip(members, distances, strict=True):
            worst = int(away.argmax())
            found[k] = Outlier(round(float(away[worst]), 2), keys[worst], float(f"{medians[worst]:.4g}"))
    return [found[k] for k in range(len(rows))]


def _distances(rows: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each metric of each sample is from its median, robust standard deviations, and the medians."""
    table = np.asarray([[row[key] for key in sorted(rows[0])] for row in rows], np.float64)
    medians = np.median(table, axis=0)
    away = np.abs(table - medians)
    spread = 1.4826 * np.median(away, axis=0)
    spread = np.where(spread > 0, spread, np.maximum(table.std(axis=0), 1e-9))
    return away / spread, medians


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
    outliers = find_outliers(figures, [tuple(record["levels"]) for record in made])
    for record, row, outlier in zip(made, figures, outliers, strict=True):
        samples.append(
            {
                "name": record["name"],
                "subject": record["subject"],
                "case": record["case"],
                "levels": record["levels"],
                # As text, because JavaScript rounds numbers of more than 53 bits.
                "seed": str(record["seed"]),
                "redrawn": len(record["redrawn"]),
                # Pictures show the version before that, beside the original and with its grid.
                "mirrored": ", ".join(record.get("mirror", {}).get("reflections", [])),
                **({"fit": str(Fit.from_dict(record["fit"]))} if "fit" in record else {}),
                **{key: record["item"][key] for key in ("from_outside",) if key in record["item"]},
                **outlier._asdict(),
                **{key: float(f"{value:.4g}") for key, value in row.items()},
                **record.get("histograms", {}),
            }
        )
    order = sorted(range(len(samples)), key=lambda k: (-samples[k]["score"], samples[k]["name"]))
    samples = [samples[k] for k in order]
    for sample, k in list(zip(samples, order, strict=True))[:_MOST_PICTURES]:
        # A record may name any file of the disk.
        files = records.files_of(folder, made[k]) or {}
        path, parts = files.get("thumbnail"), files.get("layers")
        if parts is not None and is_png(parts):
            sample |= {"layers": png_uri(parts), "has_contours": "label" in files, "tall": _tall(parts)}
        elif path is not None and is_png(path):
            # Runs from before the layers.
            sample["picture"] = png_uri(path)
    data = {
        "title": folder.name,
        "command": plan.settings.command,
        "images": _IMAGES[plan.settings.command],
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


def layers(pictures: list[tuple[sitk.Image, sitk.Image | None]], field: sitk.Image) -> np.ndarray:
    """Draw images, grid and contours as tiles side by side, so that the page can lay them over each other.

    Args:
        pictures: images, and labels on their grids.
        field: displacement field, LPS millimeters, that bends the grid on the last image.

    Returns:
        (rows, columns, 4) uint8 with opacity: all images, the grid, and with labels the contours on each image. Of a
        volume, rows of tiles show several slices, one below the other; the one of the thumbnail is in the middle.
    """
    middle = fullest_plane(*pictures[-1])
    planes, last = [middle], pictures[-1][0]
    if last.GetDimension() == 3:
        count = last.GetSize()[middle.axis]
        steps = (-round(_SLICE_STEP * count), 0, round(_SLICE_STEP * count))
        planes = [Plane(middle.axis, min(count - 1, max(0, middle.layer + step))) for step in steps]
    return np.concatenate([_tiles(pictures, field, plane) for plane in planes], axis=0)


def _tiles(pictures: list[tuple[sitk.Image, sitk.Image | None]], field: sitk.Image, plane: Plane) -> np.ndarray:
    """Draw the tiles of one slice."""
    tiles, contours = [], []
    for image, label in pictures:
        picture = SlicePicture(image, plane)
        tiles.append(_with_opacity(picture.upright_square(), 255))
        lines = SlicePicture(image, plane)
        lines.rgb[:] = BACKGROUND
        if label is not None:
            lines.draw_contours(label)
        contours.append(_with_opacity(lines.upright_square(), 255, besides=BACKGROUND))
    picture.draw_grid(field, alone=True)
    grid = picture.upright_square()
    grid[(grid != GRID_COLOR).any(axis=-1)] = BACKGROUND
    tiles.append(_with_opacity(grid, round(255 * GRID_PART), besides=BACKGROUND))
    with_labels = any(label is not None for _, label in pictures)
    return np.concatenate([*tiles, *(contours if with_labels else [])], axis=1)


def _tall(png: Path) -> float:
    """Return the height of a PNG as a multiple of its width, from its header."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return float(height / width)


def _with_opacity(rgb: np.ndarray, opacity: int, besides: np.ndarray | None = None) -> np.ndarray:
    """Add the opacity to a picture (rows, columns, 3); pixels of the color ``besides`` are transparent."""
    alpha = np.full((*rgb.shape[:2], 1), opacity, np.uint8)
    if besides is not None:
        alpha[(rgb == besides).all(axis=-1)] = 0
    return np.concatenate([np.where(alpha > 0, rgb, 0).astype(np.uint8), alpha], axis=-1)
