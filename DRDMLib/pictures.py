"""Pictures: what a deformation did, and what a network in training does now. Needs matplotlib (extra ``cli``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .deformation import Deformation, displacement_transform
from .diffusion.fields import warp
from .diffusion.forward import random_ddf
from .diffusion.recovery import recover
from .errors import SettingError
from .invertibility.metrics import folded_fraction
from .io.files import atomic_write
from .io.images import fit_label
from .models.model import Model
from .spatial.coordinates import direction_matrix
from .spatial.jacobian import jacobian_determinant
from .spatial.resampling import field_on_grid, warp_image, warp_label

PREVIEW_LEVELS = (16, 48, 79)
_BACKGROUND, _INK = "#101418", "#e8edf2"


def require_matplotlib() -> Any:
    """Matplotlib with its file-only backend.

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


def _save(figure: Any, path: Path) -> None:
    try:
        with atomic_write(path) as partial:
            figure.savefig(partial, format="png", dpi=110, facecolor=figure.get_facecolor())
    finally:
        require_matplotlib().close(figure)


def _slice_of(volume: np.ndarray, axis: int, at: int) -> np.ndarray:
    return volume if volume.ndim == 2 else np.take(volume, at, axis=axis)


def _show_grid(axes: Any, ddf: np.ndarray, spacing: tuple[float, float], lines: int = 24) -> None:
    """Draw where straight grid lines go; ``ddf`` (rows, columns, 2) in voxels, first the row."""
    rows, columns = ddf.shape[:2]
    y = np.arange(rows)[:, None] + ddf[..., 0]
    x = np.arange(columns)[None] + ddf[..., 1]
    step = max(1.0, max(rows * spacing[0], columns * spacing[1]) / lines)
    for values, unit in ((y, spacing[0]), (x, spacing[1])):
        levels = np.arange(-2 * step, values.max() * unit + 2 * step, step) / unit
        axes.contour(values, levels=levels, colors="#4fc3f7", linewidths=0.7)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_facecolor(_BACKGROUND)


def deformation_picture(result: Deformation, path: Path, *, label: sitk.Image | None = None) -> Path:
    """Before, diffused, recovered, the deformed grid and the Jacobian determinant, in one PNG.

    Volumes are shown in two planes. The label, if given, is drawn as a contour that moves with the image.
    """
    plt = require_matplotlib()
    d = result.reference.GetDimension()
    # However the voxels are stored, the patient is shown the same way round.
    image = sitk.DICOMOrient(result.reference, "LPS") if d == 3 else result.reference
    random = displacement_transform(result.random_field)
    volumes = [image, warp_image(image, image, random), warp_image(image, image, result.transform)]
    arrays = [sitk.GetArrayFromImage(v) for v in volumes]
    contours: list[np.ndarray | None] = [None] * 3
    middle = [n // 2 for n in arrays[0].shape]
    if label is not None:
        label = fit_label(label, image)
        labels = [label, warp_label(label, image, random), warp_label(label, image, result.transform)]
        contours = [sitk.GetArrayFromImage(v) for v in labels]
        if contours[0] is not None and contours[0].any():
            middle = [int(c) for c in np.argwhere(contours[0] > 0).mean(axis=0)]
    ddf = field_on_grid(result.field, image, 0, image.GetSize()[-1]).astype(np.float64)
    direction = direction_matrix(image)
    jacobian = jacobian_determinant(ddf, image.GetSpacing(), direction)
    spacing = image.GetSpacing()[::-1]
    in_voxels = (ddf @ direction)[..., ::-1] / np.asarray(spacing)
    planes = [0] if d == 2 else sorted(range(3), key=lambda a: spacing[a] * arrays[0].shape[a])[:2]

    low, high = np.percentile(arrays[0], [0.5, 99.5])
    figure, grid = plt.subplots(
        len(planes),
        5,
        figsize=(15, 3.1 * len(planes) + 0.7),
        squeeze=False,
        layout="constrained",
        facecolor=_BACKGROUND,
    )
    titles = [
        "original",
        f"diffused (level {result.level})",
        "recovered: a new version",
        "its grid",
        "Jacobian determinant",
    ]
    for row, plane in zip(grid, planes, strict=True):
        in_plane = [a for a in range(d) if a != plane] if d == 3 else [0, 1]
        aspect = spacing[in_plane[0]] / spacing[in_plane[1]]

        def cut(volume: np.ndarray, plane: int = plane) -> np.ndarray:
            return _slice_of(volume, plane, middle[plane]) if d == 3 else volume

        for axes, array, contour in zip(row[:3], arrays, contours, strict=True):
            axes.imshow(cut(array), cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bicubic")
            if contour is not None and cut(contour).any():
                axes.contour(cut(contour) > 0, levels=[0.5], colors="#ffca28", linewidths=1.2)
        _show_grid(row[3], cut(in_voxels)[..., in_plane], (spacing[in_plane[0]], spacing[in_plane[1]]))
        row[3].set_aspect(aspect)
        shown = row[4].imshow(cut(jacobian), cmap="RdBu_r", vmin=0, vmax=2, aspect=aspect)
        bar = figure.colorbar(shown, ax=row[4], shrink=0.85)
        bar.ax.tick_params(colors=_INK)
        if plane != 0 and direction[2, 2] > 0:
            # Rows count upwards in the patient: head up, as radiologists look at it.
            for axes in row:
                axes.invert_yaxis()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, color=_INK, fontsize=11)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    m = result.metrics
    figure.suptitle(
        f"{result.model}, level {result.level}, seed {result.seed}:  displacement {m.mean_mm:.1f} mm on average, "
        f"{m.max_mm:.1f} mm at most;  folded voxels {m.folded_fraction:.2%}",
        color=_INK,
        fontsize=11,
    )
    _save(figure, path)
    return path


def _middle(volume: Tensor) -> np.ndarray:
    """Central slice of (*S) for display."""
    return (volume if volume.ndim == 2 else volume[volume.shape[0] // 2]).cpu().numpy()


def training_picture(model: Model, images: Tensor, path: Path) -> Path:
    """One image over several levels: original, diffused, recovered, and the grids of both; one row a level.

    Args:
        images: (M, 1, *S) uint8 on the model's grid; the first is shown.
    """
    plt = require_matplotlib()
    image = images[:1].float().to(model.device) / 255
    figure, grid = plt.subplots(
        len(PREVIEW_LEVELS), 5, figsize=(13, 2.7 * len(PREVIEW_LEVELS)), layout="constrained", facecolor=_BACKGROUND
    )
    m = model.metadata
    for row, level in zip(grid, PREVIEW_LEVELS, strict=True):
        generator = torch.Generator(model.device).manual_seed(level)
        draw = partial(random_ddf, control_size=m.control_size, noise_grids=m.noise_grids)
        scale = m.velocity_scale
        drawn = draw(m.size, m.ndim, level, generator, velocity_scale=scale, amplitude=m.amplitude)
        recovered = recover(model, image, drawn, level=level)
        pictures = [image, warp(image, drawn, padding="zeros"), warp(image, recovered, padding="zeros")]
        titles = [
            f"level {level}",
            f"folded {float(folded_fraction(drawn)):.2%}",
            f"folded {float(folded_fraction(recovered)):.2%}",
        ]
        for axes, picture, title in zip(row[:3], pictures, titles, strict=True):
            axes.imshow(_middle(picture[0, 0]), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, color=_INK, fontsize=9)
        for axes, field in zip(row[3:], (drawn, recovered), strict=True):
            in_plane = field[0, -2:] * m.size
            cut = in_plane if m.ndim == 2 else in_plane[:, m.size // 2]
            _show_grid(axes, cut.permute(1, 2, 0).cpu().numpy(), (1.0, 1.0))
            axes.set_aspect(1)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    _save(figure, path)
    return path
