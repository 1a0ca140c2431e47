"""The files that a run writes, and the report that lists them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .deformation import Deformation
from .errors import OutputError, SettingError
from .io.files import output_error, read_object, write_text
from .io.nifti import write_nifti
from .spatial.coordinates import direction_matrix
from .spatial.resampling import field_component, field_on_grid, slabs, warped_slabs

REPORT = "report.json"


def holds_a_run(folder: Path) -> SettingError:
    """The error for a folder that already holds a run, when the user has not asked to resume it."""
    return SettingError(f"'{folder}' holds a run already; add --resume to continue it, or name a new folder.")


def require_empty_folder(folder: str | os.PathLike[str], besides: tuple[str, ...] = ()) -> Path:
    """Require a folder that is empty or does not exist yet; nothing is created.

    Args:
        besides: beginnings of the names of files that do not count.

    Raises:
        OutputError: it is a file, or holds something.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"The output '{path}' is a file; name a folder with -o.")
    try:
        if path.exists() and not all(p.name.startswith(besides) for p in path.iterdir()):
            raise OutputError(f"The output folder '{path}' is not empty; name a new one with -o, nothing was changed.")
    except OSError as error:
        raise output_error(path, error) from error
    return path


def make_output_folder(folder: str | os.PathLike[str], besides: tuple[str, ...] = ()) -> Path:
    """Make an empty folder that can be written to, unless it exists. Arguments as in :func:`require_empty_folder`.

    Raises:
        OutputError: it is a file, holds something, or cannot be written to.
    """
    path = require_empty_folder(folder, besides)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".drdm-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise output_error(path, error) from error
    return path


def _array_slabs(image: sitk.Image) -> Iterable[np.ndarray]:
    view = sitk.GetArrayViewFromImage(image)
    for start, stop in slabs(image.GetSize()):
        yield view[start:stop]


def write_image(path: Path, image: sitk.Image) -> Path:
    """Write a scalar image as ``.nii.gz``."""
    return write_nifti(path, image, _array_slabs(image), image.GetPixelID())


def write_warped(path: Path, image: sitk.Image, deformation: Deformation) -> Path:
    """Deform an image straight into a file, slab by slab."""
    pieces = warped_slabs(image, deformation.reference, deformation.transform)
    return write_nifti(path, deformation.reference, pieces, image.GetPixelID())


def write_ddf(path: Path, deformation: Deformation) -> Path:
    """Write the field on the image's grid: an ITK displacement field, 32-bit, millimetres, LPS."""
    reference = deformation.reference
    d = reference.GetDimension()
    pieces = itertools.chain.from_iterable(field_component(deformation.field, k, reference) for k in range(d))
    return write_nifti(path, reference, pieces, sitk.sitkVectorFloat32, components=d, noisy=True)


def write_voxel_ddf(path: Path, deformation: Deformation) -> Path:
    """Write the field in voxels, for training in torch: ``nibabel`` reads an array (X, Y[, Z], d), 32-bit.

    Component k is the way along array axis k, in voxels, from a voxel of the new image to where to read in the
    original: ``new[i] = original[i + u[i]]``.
    """
    reference = deformation.reference
    d = reference.GetDimension()
    to_voxels = np.linalg.inv(direction_matrix(reference)) / np.reshape(reference.GetSpacing(), (d, 1))

    def pieces() -> Iterable[np.ndarray]:
        for k in range(d):
            for start, stop in slabs(reference.GetSize()):
                block = field_on_grid(deformation.field, reference, start, stop)
                yield (block @ to_voxels[k].astype(np.float32)).astype(np.float32)

    return write_nifti(path, reference, pieces(), sitk.sitkFloat32, frames=d, noisy=True)


def write_field(path: Path, deformation: Deformation) -> Path:
    """Write the coarse field that reaches past the image: an ITK displacement field, 32-bit, millimetres, LPS."""
    field = deformation.field
    view = sitk.GetArrayViewFromImage(field)
    pieces = (view[..., k].astype(np.float32) for k in range(view.shape[-1]))
    return write_nifti(path, field, pieces, sitk.sitkVectorFloat32, components=view.shape[-1], noisy=True)


def write_inverse(path: Path, deformation: Deformation) -> Path:
    """Write the inverse of the saved field on the image's grid: vector image, 32-bit, millimetres, LPS.

    It takes points of the original to points of the new image, and is right at the voxels' centres.
    """
    reference = deformation.reference
    d = reference.GetDimension()
    # A view does not keep the image's memory: the image must have a name for as long.
    inverse = deformation.inverse_ddf
    whole = sitk.GetArrayViewFromImage(inverse)
    pieces = (whole[start:stop, ..., k] for k in range(d) for start, stop in slabs(reference.GetSize()))
    return write_nifti(path, reference, pieces, sitk.sitkVectorFloat32, components=d, noisy=True)


def report_entry(deformation: Deformation, files: dict[str, Path | None], folder: Path) -> dict[str, Any]:
    """The report's entry for one deformation; file names are relative to ``folder``."""
    return {
        **{kind: None if path is None else path.relative_to(folder).as_posix() for kind, path in files.items()},
        "seed": deformation.seed,
        "level": deformation.level,
        "steps": deformation.steps,
        "pose": deformation.pose,
        "seconds": round(deformation.seconds, 3),
        "metrics": deformation.metrics.to_dict(),
        "repair": {"mean_mm": deformation.repaired.mean_mm, "max_mm": deformation.repaired.max_mm},
    }


def write_report(folder: Path, model: str, items: list[dict[str, Any]], **more: Any) -> Path:
    """Write ``report.json``."""
    text = json.dumps({"model": model, **more, "items": items}, indent=2)
    return write_text(folder / REPORT, text + "\n")


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a run.

    Raises:
        OutputError: it is damaged.
    """
    path = folder / REPORT
    try:
        return read_object(path, ("items", "model"))
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' is damaged, so this run cannot be resumed; name a new folder.") from error
