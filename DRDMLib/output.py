"""Write the results of a run, and the report that lists them."""

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
from .io.files import finite, output_error, read_object, write_text
from .io.nifti import write_nifti
from .io.volumes import write_volume
from .settings import pose_entry
from .spatial.coordinates import direction_matrix
from .spatial.resampling import field_component, field_on_grid, numpy_type, slabs, warped_slabs

REPORT = "report.json"
# Voxels. Of larger scans the field is saved on its coarse grid, unless the full one is asked for: with a vector for
# each voxel it is several times as large as the scan, and holds nothing more.
_MOST_VOXELS = 32_000_000
# What a report with a field on its coarse grid says of the files of fields.
_ABOUT_FIELDS = {
    "ddf": "the displacement field with a vector for each voxel of the image",
    "field": "the displacement field on its coarse grid, linear between the nodes; outside the grid it is what it "
    "is on the outermost nodes, zero or an affine map: the map that made the image and the labels",
    "inverse": "the inverse field with a vector for each voxel of the image, accurate at the voxels",
}
_ABOUT_FIGURES = {
    "metrics": "of the field at the voxels of the image",
    "certified_invertible": "proven for the field on its coarse grid and for its samples at the voxels of the image, "
    "as a ddf holds them; not for the inverse",
}


def holds_a_run(folder: Path) -> SettingError:
    """Return the error for a folder that already contains a run, when resuming was not requested."""
    return SettingError(f"'{folder}' already contains a run; add --resume to continue it, or choose a new folder.")


def require_empty_folder(folder: str | os.PathLike[str], besides: tuple[str, ...] = ()) -> Path:
    """Require that a folder is empty or does not exist yet; nothing is created.

    Args:
        besides: files whose names start with one of these are ignored.

    Raises:
        OutputError: it is a file, is not empty, or cannot be read.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"The output '{path}' is a file; choose a folder with -o.")
    try:
        if path.exists() and not all(p.name.startswith(besides) for p in path.iterdir()):
            raise OutputError(f"The output folder '{path}' is not empty; choose a new one with -o.")
    except OSError as error:
        raise output_error(path, error) from error
    return path


def make_output_folder(folder: str | os.PathLike[str], besides: tuple[str, ...] = ()) -> Path:
    """Create a folder unless it exists, and check that it is empty and can be written to.

    Arguments as in :func:`require_empty_folder`.

    Raises:
        OutputError: it is a file, is not empty, or cannot be written to.
    """
    path = require_empty_folder(folder, besides)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".drdm-probe"
        # What a killed process left there may be a link; it must not be followed.
        probe.unlink(missing_ok=True)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise output_error(path, error) from error
    return path


def _array_slabs(image: sitk.Image) -> Iterable[np.ndarray]:
    view = sitk.GetArrayViewFromImage(image)
    for start, stop in slabs(image.GetSize()):
        yield view[start:stop]


def write_image(path: Path, image: sitk.Image, *, fast: bool = False) -> Path:
    """Write a scalar image in the format of the file's name, see :mod:`DRDMLib.io.volumes`.

    Args:
        fast: compress a large image faster, and on several threads. Its file then has other bytes than without; those
            of runs, whose records hold digests, must stay what they are.
    """
    return write_volume(path, image, _array_slabs(image), image.GetPixelID(), **_how(image, image, fast))


def write_warped(path: Path, image: sitk.Image, deformation: Deformation, *, fast: bool = False) -> Path:
    """Deform an image and write the result; as ``.nii.gz`` slab by slab to save memory.

    Args:
        fast: see :func:`write_image`.
    """
    reference = deformation.reference
    pieces = warped_slabs(image, reference, deformation.grid_transform)
    return write_volume(path, reference, pieces, image.GetPixelID(), **_how(image, reference, fast))


def _how(image: sitk.Image, grid: sitk.Image, fast: bool) -> dict[str, bool]:
    """Return how a scalar image is compressed, which is written on a grid; see :func:`write_image`."""
    if not (fast and is_large(grid)):
        return {}
    return {"blocks": True, "noisy": numpy_type(image.GetPixelID()).kind == "f"}


def _written_grid(reference: sitk.Image) -> sitk.Image:
    """Return the grid of a field's file: that of the image, or two equal slices for a volume of a single slice.

    ITK reads a NIfTI file with one slice of vectors as a 2D image, which no longer fits the volume.
    """
    if reference.GetDimension() < 3 or reference.GetSize()[2] > 1:
        return reference
    grid = sitk.Image([*reference.GetSize()[:2], 2], sitk.sitkUInt8)
    grid.SetSpacing(reference.GetSpacing())
    grid.SetDirection(reference.GetDirection())
    grid.SetOrigin(reference.GetOrigin())
    return grid


def _repeated(pieces: Iterable[np.ndarray], reference: sitk.Image) -> Iterable[np.ndarray]:
    """Return the pieces of a field for the grid of :func:`_written_grid`."""
    if reference.GetDimension() < 3 or reference.GetSize()[2] > 1:
        return pieces
    return (piece for piece in pieces for _ in range(2))


def _write_vectors(path: Path, pieces: Iterable[np.ndarray], reference: sitk.Image, fast: bool) -> Path:
    """Write a field on the grid of an image; the pieces are slabs of its components, one component after the other."""
    return write_volume(
        path,
        _written_grid(reference),
        _repeated(pieces, reference),
        sitk.sitkVectorFloat32,
        components=reference.GetDimension(),
        noisy=True,
        blocks=fast and is_large(reference),
    )


def is_large(image: sitk.Image) -> bool:
    """Whether the field of a scan is saved on its coarse grid (:func:`write_field`) by default."""
    return bool(image.GetNumberOfPixels() > _MOST_VOXELS)


def about_fields(files: dict[str, Path | None]) -> dict[str, Any]:
    """Say in a report which file of a field is which, and what the proof covers; nothing without a coarse field.

    Args:
        files: as of :func:`version_entry`.
    """
    if files.get("field") is None:
        return {}
    return {"fields": {kind: text for kind, text in _ABOUT_FIELDS.items() if files.get(kind)} | _ABOUT_FIGURES}


def write_ddf(path: Path, deformation: Deformation, *, fast: bool = False) -> Path:
    """Write the field on the image's grid as an ITK displacement field: 32-bit, millimeters, LPS.

    For a volume of a single slice the file has two equal ones, because ITK would read it as a 2D image otherwise.

    Args:
        fast: see :func:`write_image`.
    """
    reference = deformation.reference
    d = reference.GetDimension()
    pieces = itertools.chain.from_iterable(field_component(deformation.field, k, reference) for k in range(d))
    return _write_vectors(path, pieces, reference, fast)


def write_voxel_ddf(path: Path, deformation: Deformation) -> Path:
    """Write the field in voxels, for training with PyTorch: ``nibabel`` reads an array (X, Y[, Z], d), 32-bit.

    Component k is the displacement along array axis k, in voxels, from a voxel of the new image to its position in the
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


def write_field(path: Path, deformation: Deformation, *, compress: bool = True) -> Path:
    """Write the coarse field, which extends past the image, as an ITK displacement field: 32-bit, millimeters, LPS.

    Args:
        compress: without it, ``.nii.gz`` files are larger but written at once; their content is the same.
    """
    field = deformation.field
    view = sitk.GetArrayViewFromImage(field)
    pieces = (view[..., k].astype(np.float32) for k in range(view.shape[-1]))
    if not compress and path.name.endswith(".nii.gz"):
        return write_nifti(path, field, pieces, sitk.sitkVectorFloat32, components=view.shape[-1], stored=True)
    return write_volume(path, field, pieces, sitk.sitkVectorFloat32, components=view.shape[-1], noisy=True)


def write_inverse(path: Path, deformation: Deformation, *, fast: bool = False) -> Path:
    """Write the inverse of the saved field on the image's grid: vector image, 32-bit, millimeters, LPS.

    It maps points of the original to points of the new image, and is accurate at the centers of the voxels.

    Args:
        fast: see :func:`write_image`.
    """
    reference = deformation.reference
    d = reference.GetDimension()
    # The array view does not keep the image alive, so the image needs a variable of its own.
    inverse = deformation.inverse_ddf
    vectors = sitk.GetArrayViewFromImage(inverse)
    pieces = (vectors[start:stop, ..., k] for k in range(d) for start, stop in slabs(reference.GetSize()))
    return _write_vectors(path, pieces, reference, fast)


def version_entry(deformation: Deformation, files: dict[str, Path | None], folder: Path) -> dict[str, Any]:
    """Make the part of the report's entry for one deformation that needs no computation: files, seed and settings.

    Args:
        files: kind of file -> path, or ``None`` if it was not written.
        folder: the paths in the report are relative to it.
    """
    return {
        **{kind: None if path is None else path.relative_to(folder).as_posix() for kind, path in files.items()},
        "seed": deformation.seed,
        "level": deformation.level,
        **({"strength": deformation.strength} if deformation.strength else {}),
        "steps": deformation.steps,
        "pose": pose_entry(deformation.pose),
        **({"toward": round(deformation.toward, 4)} if deformation.toward else {}),
        **({} if deformation.own_percent is None else {"own_percent": deformation.own_percent}),
        "seconds": round(deformation.seconds, 3),
    }


def report_entry(deformation: Deformation, files: dict[str, Path | None], folder: Path) -> dict[str, Any]:
    """Make the report's entry for one deformation, with its figures; arguments as of :func:`version_entry`."""
    return {
        **version_entry(deformation, files, folder),
        "metrics": deformation.metrics.to_dict(),
        "from_outside": deformation.from_outside,
        "invented_fraction": deformation.invented_fraction,
        "repair": {"mean_mm": deformation.repaired.mean_mm, "max_mm": deformation.repaired.max_mm},
        **({} if deformation.bone_rigidity is None else {"bone_mm": deformation.bone_rigidity.to_dict()}),
        **({} if deformation.target is None else {"region": deformation.target.described(deformation)}),
    }


def write_report(folder: Path, model: str, items: list[dict[str, Any]], **more: Any) -> Path:
    """Write ``report.json`` into a folder."""
    text = json.dumps(finite({"model": model, **more, "items": items}), indent=2)
    return write_text(folder / REPORT, text + "\n")


def read_report(folder: Path) -> dict[str, Any]:
    """Read ``report.json`` of a run.

    Raises:
        OutputError: it is missing or damaged.
    """
    path = folder / REPORT
    try:
        return read_object(path, ("items", "model"))
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' is damaged, so this run cannot be resumed; choose a new folder.") from error
