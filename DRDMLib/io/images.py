"""Read images, labels and fields, and check that they can be used."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..spatial.model_grid import overlap, same_grid
from .integrity import require_even_slices, require_whole_file

# ITK prints its own warnings to standard error; whatever matters is raised as an error here.
sitk.ProcessObject.SetGlobalWarningDisplay(False)

# Least overlap of the bounding boxes of a label and its image, as a fraction of the smaller box.
LEAST_OVERLAP = 0.5

# Suffixes of the files that SimpleITK reads.
SUFFIXES = (
    *(".nii.gz", ".nii", ".img.gz", ".img", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"),
    *(".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".j2k", ".bmp", ".lsm", ".gipl", ".gipl.gz", ".vtk"),
    *(".mnc", ".mrc", ".rec", ".h5", ".hdf5", ".hdf", ".pic", ".spr"),
)
_DOUBLE_SUFFIXES = (".seg.nrrd", ".nii.gz", ".img.gz", ".gipl.gz")
# Other suffixes have a letter; numbers after a dot are part of the name ("1.2.840.1").
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def image_stem(path: str | os.PathLike[str]) -> str:
    """Return a file name without its image suffix (``scan.nii.gz`` -> ``scan``)."""
    name = Path(path).name
    suffix = next((suffix for suffix in _DOUBLE_SUFFIXES if name.lower().endswith(suffix)), "")
    stem = name[: -len(suffix)] if suffix else _SUFFIX.sub("", name)
    return stem or "image"


def _series_files(folder: Path, uid: str = "") -> list[str]:
    reader = sitk.ImageSeriesReader
    series = [uid] if uid else reader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise ImageError(
            f"The folder '{folder}' contains no DICOM images; choose an image file or the folder of a DICOM series."
        )
    if len(series) > 1:
        raise ImageError(
            f"The folder '{folder}' contains {len(series)} DICOM series; put the one you want in a folder of its own."
        )
    files = list(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    require_even_slices(files, folder)
    return files


def _read(path: Path, what: str, series: str = "") -> sitk.Image:
    if path.is_dir():
        reader: Any = sitk.ImageSeriesReader()
        reader.SetFileNames(_series_files(path, series))
    elif path.is_file():
        if path.stat().st_size == 0:
            raise ImageError(f"The {what} '{path}' is empty; copy or export it again.")
        require_whole_file(path, what)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
    else:
        raise ImageError(f"There is no {what} '{path}'; check the path.")
    try:
        image: sitk.Image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(
            f"The {what} '{path}' cannot be read, because it is damaged, incomplete, or not an image that ITK knows; "
            "copy or export it again."
        ) from error
    return image


def image_files(path: str | os.PathLike[str], series: str = "") -> list[Path]:
    """List the files that :func:`read_image` reads: the file itself, or those of the DICOM series in their order.

    Args:
        series: UID of the series, for a folder with several.

    Raises:
        ImageError: the folder contains no series, or several and none is chosen.
    """
    path = Path(path)
    return [Path(name) for name in _series_files(path, series)] if path.is_dir() else [path]


def read_image(path: str | os.PathLike[str], series: str = "", *, need_contrast: bool = True) -> sitk.Image:
    """Read a single-channel 2D or 3D image.

    Args:
        path: any file that SimpleITK reads, or a folder with a DICOM series.
        series: UID of the series to read, for a folder with several.
        need_contrast: raise an error if all voxels are equal.

    Raises:
        ImageError: the image is missing or damaged, or cannot be used (see :func:`require_scalar_image`).
    """
    path = Path(path)
    return require_scalar_image(_read(path, "image", series), str(path), need_contrast=need_contrast)


def require_scalar_image(image: sitk.Image, name: str = "image", *, need_contrast: bool = True) -> sitk.Image:
    """Check that an image can be deformed.

    Args:
        name: name of the image in error messages.
        need_contrast: raise an error if all voxels are equal.

    Returns:
        The image, or its 3D part if it is 4D with a single time point.

    Raises:
        ImageError: it has color, vector or complex pixels, several time points, NaN or infinite voxels, or no contrast.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ImageError(
            f"'{name}' has {image.GetNumberOfComponentsPerPixel()} values per voxel (color or vectors); "
            "convert it to a single-channel image first."
        )
    image = _drop_single_time_point(image, name)
    if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise ImageError(f"'{name}' has complex voxels; save its magnitude first.")
    statistics = sitk.MinimumMaximumImageFilter()
    if has_fractions(image):
        # Slice by slice, because a mask of a whole CT image would be large.
        bad = sum(int(np.count_nonzero(~np.isfinite(part))) for part in sitk.GetArrayViewFromImage(image))
        if bad:
            raise ImageError(f"'{name}' has {bad} NaN or infinite voxels; replace them with numbers first.")
    statistics.Execute(image)
    if need_contrast and not statistics.GetMaximum() > statistics.GetMinimum():
        raise ImageError(f"'{name}' has no contrast (all its voxels are equal); choose another image.")
    return image


def has_fractions(image: sitk.Image) -> bool:
    """Whether the voxels of an image are floating-point numbers."""
    return image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)


def _drop_single_time_point(image: sitk.Image, name: str) -> sitk.Image:
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        result: sitk.Image = image[:, :, :, 0]
        return result
    if image.GetDimension() not in (2, 3):
        raise ImageError(
            f"'{name}' has {image.GetDimension()} dimensions; extract a 2D or 3D image (one time point) from it first."
        )
    return image


def read_field(path: str | os.PathLike[str]) -> sitk.Image:
    """Read a displacement field: a vector image with d values per voxel, millimeters, LPS.

    Raises:
        ImageError: the file is missing, damaged, not a displacement field, or has NaN or infinite values.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"'{path}' is a folder; choose the file of a displacement field.")
    field = _read(path, "field")
    if field.GetNumberOfComponentsPerPixel() != field.GetDimension():
        raise ImageError(
            f"'{path}' is not a displacement field (values per voxel: {field.GetNumberOfComponentsPerPixel()}, "
            f"dimensions: {field.GetDimension()}); choose a file with one value per dimension."
        )
    if not all(np.isfinite(slab).all() for slab in sitk.GetArrayViewFromImage(field)):
        raise ImageError(f"The field '{path}' has NaN or infinite values; create it again.")
    return field


def read_label(path: str | os.PathLike[str], image: sitk.Image) -> sitk.Image:
    """Read a label map that belongs to an image; it is resampled to the image's grid if its own is different.

    Raises:
        ImageError: the label is missing, damaged or not a label map, has another dimension than the image, or overlaps
            it too little.
    """
    path = Path(path)
    return fit_label(_read(path, "label"), image, str(path))


def fit_label(label: sitk.Image, image: sitk.Image, name: str = "label") -> sitk.Image:
    """Convert a label map to integers on the grid of an image, with nearest-neighbor interpolation.

    Args:
        name: name of the label in error messages.

    Raises:
        ImageError: it is not a label map, has another dimension than the image, or their bounding boxes overlap by less
            than half of the smaller one.
    """
    if label.GetNumberOfComponentsPerPixel() > 1:
        raise ImageError(f"The label '{name}' has several values per voxel; save it as a label map.")
    label = _drop_single_time_point(label, name)
    if label.GetDimension() != image.GetDimension():
        raise ImageError(
            f"The label '{name}' is {label.GetDimension()}D but the image is {image.GetDimension()}D; "
            "choose the label that belongs to the image."
        )
    if has_fractions(label):
        view = sitk.GetArrayViewFromImage(label)
        if not all(np.array_equal(slab, np.rint(slab)) for slab in view):
            raise ImageError(f"The label '{name}' has fractional or NaN values; save it as a label map of integers.")
        lowest, highest = float(view.min()), float(view.max())
        kind = sitk.sitkUInt8 if lowest >= 0 and highest < 256 else sitk.sitkInt32
        label = sitk.Cast(label, kind)
    if same_grid(label, image):
        return label
    shared = overlap(label, image)
    if shared < LEAST_OVERLAP:
        raise ImageError(
            f"The label '{name}' is not at the position of the image (they overlap by {shared:.0%} of the smaller "
            "one); choose the label that belongs to the image."
        )
    return sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, label.GetPixelID())
