"""Read images, labels and fields, and check that they can be used."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import DRDMError, FallbackWarning, ImageError, SettingError
from ..spatial.coordinates import direction_matrix
from ..spatial.model_grid import bounding_box, overlap, same_grid
from .apart import ReadApart, read_apart
from .detached import files_of_image
from .dicom import read_series, series_files
from .files import path_problem, shown
from .geometry import nifti_axes, require_right_angles
from .integrity import require_room, require_whole_file, too_large
from .label_maps import label_warning, mask_warning
from .multiframe import read_dicom_file
from .plain_headers import is_plain

# ITK prints its own warnings to standard error; whatever matters is raised as an error here.
sitk.ProcessObject.SetGlobalWarningDisplay(False)

# Integers up to here have their own 64-bit floating-point number, and whether an integer type is narrower.
_MOST_EXACT = 2**53
_WIDE = (sitk.sitkInt64, sitk.sitkUInt64)
# Largest number of 32-bit floating point, in which networks and interpolation compute.
_LARGEST = 3.4028234e38

# Files of more bytes are checked while they are read, if ITK's reader prints no lines of its own about damage.
_CHECKED_MEANWHILE = 2**24
_SILENT = ("NiftiImageIO", "NrrdImageIO")

LABEL_GEOMETRIES = ("file", "image")

# Least overlap of the bounding boxes of a label and its image, as a fraction of the smaller box.
LEAST_OVERLAP = 0.5


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str = "image") -> Iterator[None]:
    """Turn any error in the block into one about a file, so that it concerns this file only.

    Libraries raise errors of many kinds for damaged files.

    Args:
        what: kind of file in error messages, such as ``"image"``.

    Raises:
        ImageError: the file cannot be read. Errors for the user, with their own messages, are not changed.
    """
    name = shown(os.fspath(path), 4096)
    try:
        yield
    except DRDMError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"There is not enough memory for the {what} '{name}'; close other programs, or use a smaller one."
        ) from error
    except Exception as error:
        reason = f", {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise ImageError(
            f"The {what} '{name}' cannot be read ({type(error).__name__}{reason}), because it is damaged or unusual; "
            "copy or export it again."
        ) from error


def _read(path: Path, what: str, series: str = "") -> sitk.Image:
    problem = path_problem(path)
    if problem:
        raise ImageError(f"The {what} '{shown(str(path))}' cannot be read: {problem}; check the path.")
    try:
        if path.is_dir():
            return read_series(path, series)
        if not path.is_file():
            raise ImageError(f"There is no {what} '{path}'; check the path.")
        if path.stat().st_size == 0:
            raise ImageError(f"The {what} '{path}' is empty; copy or export it again.")
        apart = None if is_plain(path) else read_apart(path, what)
        if apart is not None and apart.kind != "GDCMImageIO":
            return require_right_angles(_read_and_checked(path, what, apart), str(path))
        with _checked_meanwhile(path, what) as kind:
            if kind == "GDCMImageIO":
                return read_dicom_file(path)
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            with nifti_axes(path):
                reader.ReadImageInformation()
                require_room(reader, path, what)
                image: sitk.Image = reader.Execute()
    except OSError as error:
        raise ImageError(
            f"The {what} '{path}' cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from error
    except RuntimeError as error:
        raise ImageError(
            f"The {what} '{path}' cannot be read, because it is damaged, incomplete, or not an image that ITK knows; "
            "copy or export it again."
        ) from error
    return require_right_angles(image, str(path))


@contextlib.contextmanager
def _checked_meanwhile(path: Path, what: str) -> Iterator[str]:
    """Check that a file is whole; a large one on another thread while the block reads it.

    Yields:
        ITK's name for the reader of the file.

    Raises:
        ImageError: the file is damaged, which is also said in the place of what the block says of it.
    """
    large = path.stat().st_size >= _CHECKED_MEANWHILE
    kind = sitk.ImageFileReader.GetImageIOFromFileName(str(path)) if large else ""
    if kind not in _SILENT:
        yield require_whole_file(path, what)
        return
    with ThreadPoolExecutor(1, "check") as pool:
        check = pool.submit(require_whole_file, path, what)
        try:
            yield kind
        except Exception:
            # It knows better what is wrong with a damaged file.
            check.result()
            raise
        check.result()


def _read_and_checked(path: Path, what: str, apart: ReadApart) -> sitk.Image:
    """Return an image that another process has read, if its file is whole."""
    if apart.too_large:
        raise too_large(path, what)
    image = apart.image
    size = None
    if image is not None:
        size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if apart.kind:
        require_whole_file(path, what, apart.kind, size)
    if image is None:
        raise RuntimeError("The image was not read.")
    return image


def read_voxels(path: str | os.PathLike[str], what: str = "image") -> sitk.Image:
    """Read any image file, or a folder with a DICOM series, with one value per voxel or several.

    Args:
        what: kind of file in error messages.

    Raises:
        ImageError: it is missing or damaged, or has a shear.
    """
    with reading(path, what):
        return _read(Path(path), what)


def image_files(path: str | os.PathLike[str], series: str = "") -> list[Path]:
    """List the files that :func:`read_image` reads: the file itself, or those of the DICOM series in their order.

    A detached header is followed by the files with its voxels.

    Args:
        series: UID of the series, for a folder with several.

    Raises:
        ImageError: the folder contains no series, or several and none is chosen.
    """
    path = Path(path)
    with reading(path):
        return [Path(name) for name in series_files(path, series)] if path.is_dir() else files_of_image(path)


def read_image(path: str | os.PathLike[str], series: str = "", *, need_contrast: bool = True) -> sitk.Image:
    """Read a single-channel 2D or 3D image.

    Args:
        path: any file that SimpleITK reads, or a folder with a DICOM series.
        series: UID of the series to read, for a folder with several.
        need_contrast: raise an error if all voxels are equal.

    Raises:
        ImageError: the image is missing or damaged, or cannot be used (see :func:`require_scalar_image`).

    Warns:
        FallbackWarning: it has only two values and contrast is needed.
    """
    path = Path(path)
    with reading(path):
        image = require_scalar_image(_read(path, "image", series), str(path), need_contrast=need_contrast)
    if need_contrast and (problem := mask_warning(image, str(path))):
        warnings.warn(problem, FallbackWarning, stacklevel=2)
    return image


def require_scalar_image(image: sitk.Image, name: str = "image", *, need_contrast: bool = True) -> sitk.Image:
    """Check that an image can be deformed.

    Args:
        name: name of the image in error messages.
        need_contrast: raise an error if all voxels are equal.

    Returns:
        The image, or its 3D part if it is 4D with a single time point.

    Raises:
        ImageError: it has color, vector or complex pixels, several time points, NaN or infinite voxels, integers beyond
            2^53, numbers beyond 3.4e38, a shear, or no contrast.

    Warns:
        FallbackWarning: its axes are not exactly at right angles, see :func:`require_right_angles`.
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
    if _beyond_exact(image):
        raise ImageError(f"'{name}' has integers beyond 2^53, which cannot be interpolated; rescale its values first.")
    image = require_right_angles(image, name)
    statistics.Execute(image)
    lowest, highest = statistics.GetMinimum(), statistics.GetMaximum()
    if max(highest, -lowest, highest - lowest) > _LARGEST:
        raise ImageError(f"'{name}' has a range of values beyond 3.4e38; rescale its values first.")
    if need_contrast and not highest > lowest:
        raise ImageError(f"'{name}' has no contrast (all its voxels are equal); choose another image.")
    return image


def has_fractions(image: sitk.Image) -> bool:
    """Whether the voxels of an image are floating-point numbers."""
    return image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)


def _beyond_exact(image: sitk.Image) -> bool:
    """Whether an image has integers that 64-bit floating-point numbers cannot represent."""
    if image.GetPixelID() not in _WIDE:
        return False
    view = sitk.GetArrayViewFromImage(image)
    return int(view.max()) > _MOST_EXACT or int(view.min()) < -_MOST_EXACT


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
    with reading(path, "field"):
        if not path_problem(path) and path.is_dir():
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


def read_label(path: str | os.PathLike[str], image: sitk.Image, *, geometry: str = "file") -> sitk.Image:
    """Read a label map that belongs to an image; it is resampled to the image's grid if its own is different.

    Args:
        geometry: ``"file"``, or ``"image"`` to take the positions of the voxels from the image, for a label of the same
            size whose header was lost.

    Raises:
        ImageError: the label is missing, damaged or not a label map, has another dimension than the image, has its size
            but lies in another place, or overlaps it too little.

    Warns:
        FallbackWarning: the label was resampled, or looks like no label map.
    """
    path = Path(path)
    with reading(path, "label"):
        label = fit_label(_read(path, "label"), image, str(path), geometry=geometry)
    if problem := label_warning(label, image, str(path)):
        warnings.warn(problem, FallbackWarning, stacklevel=2)
    return label


def fit_label(label: sitk.Image, image: sitk.Image, name: str = "label", *, geometry: str = "file") -> sitk.Image:
    """Convert a label map to integers on the grid of an image, with nearest-neighbor interpolation.

    Args:
        name: name of the label in error messages.
        geometry: see :func:`read_label`.

    Raises:
        ImageError: it is not a label map, has values beyond 2^53, has another dimension than the image, has its size
            but lies in another place, or their bounding boxes overlap by less than half of the smaller one.

    Warns:
        FallbackWarning: the label was resampled.
    """
    if geometry not in LABEL_GEOMETRIES:
        raise SettingError(f"There is no geometry '{geometry}' of a label; use 'file' or 'image'.")
    if label.GetNumberOfComponentsPerPixel() > 1:
        raise ImageError(f"The label '{name}' has several values per voxel; save it as a label map.")
    label = _drop_single_time_point(label, name)
    if label.GetDimension() != image.GetDimension():
        raise ImageError(
            f"The label '{name}' is {label.GetDimension()}D but the image is {image.GetDimension()}D; "
            "choose the label that belongs to the image."
        )
    label = require_right_angles(_whole_numbers(label, name), name)
    if geometry == "image" and not same_grid(label, image):
        if label.GetSize() != image.GetSize():
            raise ImageError(
                f"The label '{name}' has not the size of the image, so it cannot take its geometry; "
                "use '--label-geometry file', or choose the label that belongs to the image."
            )
        label = sitk.Image(label)
        label.CopyInformation(image)
    return label if same_grid(label, image) else _onto_grid(label, image, name)


def _whole_numbers(label: sitk.Image, name: str) -> sitk.Image:
    """Convert a label map to a type of integers that can hold its values."""
    beyond = f"The label '{name}' has values beyond 2^53, which cannot be kept exactly; renumber them first."
    if not has_fractions(label):
        if _beyond_exact(label):
            raise ImageError(beyond)
        return label
    view = sitk.GetArrayViewFromImage(label)
    if not all(np.array_equal(slab, np.rint(slab)) for slab in view):
        raise ImageError(f"The label '{name}' has fractional or NaN values; save it as a label map of integers.")
    lowest, highest = float(view.min()), float(view.max())
    if max(-lowest, highest) > _MOST_EXACT:
        raise ImageError(beyond)
    if lowest >= 0 and highest < 256:
        kind = sitk.sitkUInt8
    else:
        kind = sitk.sitkInt32 if lowest >= -(2**31) and highest < 2**31 else sitk.sitkInt64
    integers: sitk.Image = sitk.Cast(label, kind)
    return integers


def _onto_grid(label: sitk.Image, image: sitk.Image, name: str) -> sitk.Image:
    """Resample a label map to the grid of an image, and say so."""
    resampled = sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, label.GetPixelID())
    own, whole = bounding_box(label), bounding_box(image)
    step = min(image.GetSpacing())
    apart = max(float(np.abs(a - b).max()) for a, b in zip(own, whole, strict=True)) / step
    if label.GetSize() == image.GetSize():
        if apart > 0.5:
            raise ImageError(
                f"The label '{name}' has the size of the image but lies in another place, as after a lost header; "
                "take the image's geometry with '--label-geometry image' (in Python: geometry=\"image\"), or choose "
                "the label that belongs to the image."
            )
        if apart < 0.1 and np.allclose(direction_matrix(label), direction_matrix(image), atol=1e-2):
            # The same voxels, with rounded positions.
            return resampled
    shared = overlap(label, image)
    if shared < LEAST_OVERLAP:
        raise ImageError(
            f"The label '{name}' is not at the position of the image (they overlap by {shared:.0%} of the smaller "
            "one); choose the label that belongs to the image."
        )
    covers = all((o <= w + step).all() for o, w in ((own[0], whole[0]), (-own[1], -whole[1])))
    part = "" if covers else ", which it covers only in part"
    warnings.warn(
        f"The label '{name}' was resampled to the grid of the image{part}.",
        FallbackWarning,
        stacklevel=3,
    )
    return resampled
