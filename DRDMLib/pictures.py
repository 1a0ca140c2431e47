"""Figures: what a deformation did, and what a network in training does now. Needs matplotlib (extra ``cli``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .deformation import Deformation, displacement_transform
from .diffusion.fields import warp
from .diffusion.forward import ForwardProcess
from .diffusion.recovery import recover
from .drawing import (
    BACKGROUND,
    FIGURE,
    RESULT,
    Plane,
    SlicePicture,
    contrast_window,
    fullest_plane,
    joined_if_many,
    upright_slice,
)
from .errors import SettingError
from .invertibility.metrics import folded_fraction
from .io.files import atomic_write
from .io.images import fit_label
from .models.model import Model
from .pages import write_png
from .spatial.coordinates import direction_matrix, to_index, to_points
from .spatial.jacobian import jacobian_determinant
from .spatial.model_grid import ModelGrid, field_image, image_extent
from .spatial.resampling import field_on_grid, warp_image, warp_label

PREVIEW_LEVELS = (16, 48, 79)
_INK = "#e8edf2"


def require_matplotlib() -> Any:
    """Load matplotlib with its backend for files.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SettingError("Pictures need matplotlib; install it with: pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Make a dark figure with empty tiles: the figure, and its axes (rows, columns)."""
    plt = require_matplotlib()
    color = tuple(BACKGROUND / 255)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", facecolor=color)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, grid


def _title(axes: Any, text: str, size: int) -> None:
    axes.set_title(text, color=_INK, fontsize=size)


def _save(figure: Any, path: Path) -> None:
    try:
        with atomic_write(path) as partial:
            figure.savefig(partial, format="png", dpi=110, facecolor=figure.get_facecolor())
    finally:
        require_matplotlib().close(figure)


def deformation_picture(result: Deformation, path: Path, *, label: sitk.Image | None = None) -> Path:
    """Draw the image before, diffused and recovered, the deformed grid and the Jacobian determinant into one PNG.

    Volumes are shown in two planes. The contours of the label, if given, move with the image; one with very many
    values is shown by its outline.

    Raises:
        SettingError: matplotlib is not installed.
        ImageError: the label does not belong to the image.
    """
    # However the voxels are stored, the patient is shown the same way round.
    flat = result.reference.GetDimension() == 2
    image = result.reference if flat else sitk.DICOMOrient(result.reference, "LPS")
    if label is not None:
        label = fit_label(label, result.reference)
        label = joined_if_many(label if flat else sitk.DICOMOrient(label, "LPS"))
    versions = _versions(result, image, label)
    determinants = _determinants(result.field, image)
    window = contrast_window(sitk.GetArrayViewFromImage(image))
    extent = image_extent(image)
    # The two largest planes.
    thin = [2] if flat else sorted((2, 1, 0), key=lambda axis: float(extent[axis]))[:2]
    figure, grid = _figure(len(thin), 5, (15, 3.1 * len(thin) + 0.7))
    for row, axis in zip(grid, thin, strict=True):
        plane = fullest_plane(image, label, axis)
        for axes, (version, outline) in zip(row, versions, strict=False):
            picture = SlicePicture(version, plane, FIGURE, window)
            if outline is not None:
                picture.draw_contours(outline)
            axes.imshow(picture.upright())
        picture.draw_grid(result.field, alone=True)
        row[3].imshow(picture.upright())
        _show_determinants(row[4], determinants, plane)
    titles = ["original", f"diffused (level {result.level})", "recovered: a new version", "its grid"]
    for axes, title in zip(grid[0], [*titles, "Jacobian determinant"], strict=True):
        _title(axes, title, 11)
    m = result.metrics
    figure.suptitle(
        f"{result.model}, level {result.level}, seed {result.seed}:  displacement {m.mean_mm:.1f} mm on average, "
        f"{m.max_mm:.1f} mm at most;  folded voxels {m.folded_fraction:.2%}",
        color=_INK,
        fontsize=11,
    )
    _save(figure, path)
    return path


def version_picture(
    image: sitk.Image,
    field: sitk.Image,
    path: Path,
    labels: tuple[sitk.Image, sitk.Image] | None = None,
    *,
    where_it_moves: bool = False,
) -> Path:
    """Draw the original, the new version, and the new version with the bent grid into one PNG, without matplotlib.

    Volumes are shown in up to three planes, one below the other.

    Args:
        image: the original.
        field: displacement field, LPS millimeters.
        labels: label map of the original and of the new version, on the grid of the image; drawn as contours.
        where_it_moves: show the slices where most moves, in place of those with most of the label.

    Raises:
        OutputError: the file cannot be written.
    """
    flat = image.GetDimension() == 2
    size, extent = np.asarray(image.GetSize()), image_extent(image)
    # Planes through less than a tenth of the longest side are stripes.
    axes = [2] if flat else [a for a in (2, 1, 0) if min(np.delete(extent, a)) > 0.1 * extent.max()]
    center = _center_of_motion(field, image) if where_it_moves and not flat else None
    transform = displacement_transform(field)
    rows = []
    for axis in axes or [int(np.argmin(size))]:
        plane = fullest_plane(image, None if labels is None else labels[0], axis)
        if center is not None:
            plane = Plane(axis, int(np.clip(round(center[axis]), 0, size[axis] - 1)))
        before = image if flat else upright_slice(image, plane)
        after = warp_image(image, before, transform)
        outlines = [joined_if_many(one if flat else upright_slice(one, plane)) for one in labels or ()]
        shown = Plane(int(np.argmin(before.GetSize())) if not flat else 2, 0)
        window = contrast_window(shown.cut(before))
        tiles = []
        for number, picture in enumerate((before, after, after)):
            drawn = SlicePicture(picture, shown, RESULT, window)
            if number == 2:
                drawn.draw_grid(field)
            elif outlines:
                drawn.draw_contours(outlines[number])
            tiles.append(drawn.upright_square())
        rows.append(np.concatenate(tiles, axis=1))
    with atomic_write(path) as partial:
        write_png(partial, np.concatenate(rows))
    return path


def _center_of_motion(field: sitk.Image, image: sitk.Image) -> np.ndarray:
    """Compute the voxel index (d,) of the image around which most moves."""
    vectors = sitk.GetArrayViewFromImage(field)
    weight = np.square(vectors).sum(axis=-1)
    if not weight.any():
        return np.asarray([(n - 1) / 2 for n in image.GetSize()])
    sums = [weight.sum(axis=tuple(b for b in range(weight.ndim) if b != axis)) for axis in range(weight.ndim)]
    index = np.asarray([[np.average(np.arange(len(one)), weights=one) for one in sums[::-1]]])
    center: np.ndarray = to_index(to_points(index, field), image)[0]
    return center


def _versions(
    result: Deformation, image: sitk.Image, label: sitk.Image | None
) -> list[tuple[sitk.Image, sitk.Image | None]]:
    """The image and its label as they are, diffused, and recovered."""
    versions = [(image, label)]
    for transform in (displacement_transform(result.random_field), result.grid_transform):
        outline = None if label is None else warp_label(label, image, transform)
        versions.append((warp_image(image, image, transform), outline))
    return versions


def _determinants(field: sitk.Image, image: sitk.Image) -> sitk.Image:
    """The Jacobian determinant of a displacement field at each voxel of ``image``."""
    ddf = field_on_grid(field, image, 0, image.GetSize()[-1]).astype(np.float64)
    values = sitk.GetImageFromArray(jacobian_determinant(ddf, image.GetSpacing(), direction_matrix(image)))
    values.CopyInformation(image)
    return values


def _show_determinants(axes: Any, determinants: sitk.Image, plane: Plane) -> None:
    across, down = plane.in_plane
    spacing = determinants.GetSpacing()
    picture = plane.upright(plane.cut(determinants), determinants)
    shown = axes.imshow(picture, cmap="RdBu_r", vmin=0, vmax=2, aspect=spacing[down] / spacing[across])
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.85)
    bar.set_ticks([0, 0.5, 1, 1.5, 2], labels=["0", "0.5\ngrew", "1", "1.5\nshrank", "2"])
    bar.ax.tick_params(colors=_INK, labelsize=8)


def training_picture(model: Model, images: Tensor, path: Path) -> Path:
    """Draw one image over several levels: original, diffused, recovered, and the grids of both; one row a level.

    Args:
        images: (M, 1, *S) uint8 on the model's grid; the first is shown, a volume by its middle layer.

    Raises:
        SettingError: matplotlib is not installed.
    """
    figure, grid = _figure(len(PREVIEW_LEVELS), 5, (13, 2.7 * len(PREVIEW_LEVELS)))
    image = images[:1].float().to(model.device) / 255
    m = model.metadata
    # Millimeters do not matter here: one for each voxel.
    space = ModelGrid((m.size,) * m.ndim, (1.0,) * m.ndim, (0.0,) * m.ndim, np.eye(m.ndim), axes=m.axes)
    for row, level in zip(grid, PREVIEW_LEVELS, strict=True):
        generator = torch.Generator(model.device).manual_seed(level)
        drawn = ForwardProcess.of(m).ddf(level, generator)
        recovered = recover(model, image, drawn, level=level)
        original = _preview(image, space)
        row[0].imshow(original.upright())
        _title(row[0], f"level {level}", 9)
        for axes, grid_axes, ddf in zip(row[1:3], row[3:], (drawn, recovered), strict=True):
            picture = _preview(warp(image, ddf, padding="zeros"), space)
            axes.imshow(picture.upright())
            _title(axes, f"folded {float(folded_fraction(ddf)):.2%}", 9)
            picture.draw_grid(field_image(ddf, space), alone=True)
            grid_axes.imshow(picture.upright())
    _save(figure, path)
    return path


def _preview(image: Tensor, space: ModelGrid) -> SlicePicture:
    """The middle layer of (1, 1, *S), values in 0..1, on the model's grid."""
    array = image[0, 0].cpu().numpy()
    volume = sitk.GetImageFromArray(np.ascontiguousarray(array.T if space.axes == "ijk" else array))
    return SlicePicture(volume, fullest_plane(volume, None), FIGURE, window=(0.0, 1.0))
