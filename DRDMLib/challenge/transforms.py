"""Read what registration programs write: transforms and displacement fields, as one transform from fixed to moving."""

from __future__ import annotations

import importlib
import itertools
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, SettingError
from ..io.files import path_problem, shown
from ..io.images import LEAST_OVERLAP, read_voxels, reading
from ..io.integrity import too_large
from ..io.transforms import EITHER_SUFFIXES, TRANSFORM_SUFFIXES, read_transform
from ..spatial.coordinates import index_to_physical
from ..spatial.model_grid import overlap
from .nifti_fields import from_fsl, from_niftyreg, header, is_fsl, is_niftyreg

CONVENTIONS = ("mm", "voxels")
_ARRAYS = (".npy", ".npz")
# Bytes of an array for each displacement, and of its header.
_MOST_BYTES, _MOST_HEADER = 16, 2**16


def read_result(
    paths: Sequence[Path], grid: sitk.Image, convention: str = "mm", target: sitk.Image | None = None
) -> sitk.Transform:
    """Read the result of a registration.

    Args:
        paths: files in the order in which they are applied to a point of the fixed image. Transforms as ITK, SimpleITK,
            3D Slicer and ANTs write them (.h5, .tfm, .txt, .mat, .xfm), parameter files of elastix (with the package
            ``itk-elastix``), displacement fields in any image format, fields of NiftyReg and FNIRT (FSL), and NumPy
            arrays (.npy, .npz).
        grid: the fixed image, or an image with its grid; for a transform of the other direction the moving image.
        convention: of displacement fields and arrays. ``"mm"``: millimeters, LPS; NIfTI files with the intent code
            1006 (displacement) are RAS. ``"voxels"``: voxels along the axes of the array, as voxelmorph writes them.
        target: the image into which the result maps, the moving image; fields of FNIRT need its grid.

    Returns:
        Transform from points of the fixed to points of the moving image (LPS, millimeters).

    Raises:
        ImageError: a file is missing, cannot be read, or has another dimension or place than the fixed image.
        SettingError: the convention is not known.
    """
    if convention not in CONVENTIONS:
        raise SettingError(f"There is no convention '{convention}'; use 'mm' or 'voxels'.")
    parts = [_read(path, grid, convention, target) for path in paths]
    # A composite transform applies the last one first.
    return sitk.CompositeTransform(parts[::-1]) if len(parts) > 1 else parts[0]


def _read(path: Path, grid: sitk.Image, convention: str, target: sitk.Image | None) -> sitk.Transform:
    problem = path_problem(path)
    if problem:
        raise ImageError(f"The result '{shown(str(path))}' cannot be read: {problem}; check the path.")
    if not path.is_file():
        raise ImageError(f"There is no result '{path}'; check the path.")
    with reading(path, "result"):
        return _read_file(path, grid, convention, target)


def _read_file(path: Path, grid: sitk.Image, convention: str, target: sitk.Image | None) -> sitk.Transform:
    suffix = path.suffix.lower()
    if suffix in _ARRAYS:
        return _from_array(_load(path, grid), path, grid, convention)
    if suffix in (*TRANSFORM_SUFFIXES, *EITHER_SUFFIXES):
        transform = _from_elastix(path, grid) if _is_elastix(path) else read_transform(path, "result")
        if transform.GetDimension() != grid.GetDimension():
            raise _other_dimension(path, transform.GetDimension(), grid)
        return transform
    return _from_image(path, grid, convention, target)


def _other_dimension(path: Path, dimension: int, grid: sitk.Image) -> ImageError:
    return ImageError(
        f"'{path}' is {dimension}D but the fixed image is {grid.GetDimension()}D; choose the result of this pair."
    )


def _from_image(path: Path, grid: sitk.Image, convention: str, target: sitk.Image | None) -> sitk.Transform:
    """Read a displacement field from an image file."""
    image = read_voxels(path, "result")
    known = is_niftyreg(image) or is_fsl(image)
    if is_niftyreg(image):
        image = from_niftyreg(image, path)
    elif is_fsl(image):
        image = from_fsl(image, path, target)
    d, count = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if convention == "voxels" and known:
        raise ImageError(f"'{path}' says itself what its values mean; leave out '--convention voxels'.")
    if convention == "voxels":
        if header(image, "intent_code") == "1006":
            raise ImageError(
                f"'{path}' says itself that it is in millimeters (NIfTI intent 1006); leave out '--convention voxels'."
            )
        array = sitk.GetArrayFromImage(image)
        # With axes x, y, z and the components last, as nibabel reads such files.
        array = array.T if count == 1 else np.moveaxis(array, -1, 0).T
        return _from_array(array, path, grid, convention)
    if count == 1 and d == grid.GetDimension() + 1 and image.GetSize()[-1] == grid.GetDimension():
        raise ImageError(
            f"'{path}' is an array of displacements without their meaning; if they are voxels, as from voxelmorph, "
            "add '--convention voxels'."
        )
    if count == 1:
        raise ImageError(f"'{path}' is an image and not a displacement field; choose the transform of the result.")
    if d != grid.GetDimension():
        raise _other_dimension(path, d, grid)
    if count != d:
        raise ImageError(
            f"'{path}' has {count} values per voxel and {d} dimensions; choose a displacement field with one value "
            "per dimension."
        )
    if overlap(image, grid) < LEAST_OVERLAP:
        raise ImageError(
            f"The field '{path}' does not lie at the fixed image (they overlap by {overlap(image, grid):.0%} of the "
            "smaller one); choose the result of this pair."
        )
    return _transform(image, path)


def _transform(field: sitk.Image, path: Path) -> sitk.Transform:
    if not all(np.isfinite(part).all() for part in sitk.GetArrayViewFromImage(field)):
        raise ImageError(f"The result '{path}' has NaN or infinite values; compute it again.")
    # Casting makes a copy, whose voxels the transform takes.
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _load(path: Path, grid: sitk.Image) -> np.ndarray:
    """Read an array of NumPy that is not larger than displacements on a grid can be."""
    most = _MOST_HEADER + _MOST_BYTES * grid.GetDimension() * grid.GetNumberOfPixels()
    try:
        # Mapped, so that no memory is used for values that are not in the file.
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if len(loaded.files) != 1:
                raise ImageError(f"'{path}' has {len(loaded.files)} arrays; save the displacements as a single one.")
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > most:
                raise too_large(path, "array")
            loaded = loaded[loaded.files[0]]
        return np.asarray(loaded, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ImageError(
            f"'{path}' is not a NumPy array of numbers; save the displacements with numpy.save."
        ) from error


def _from_array(array: np.ndarray, path: Path, grid: sitk.Image, convention: str) -> sitk.Transform:
    """Make a transform from displacements on the voxels of the fixed image.

    Axes of length 1 are left out. The components are the first or the last axis. The others are x, y, z as in nibabel,
    or z, y, x as in SimpleITK, whichever fits; where both fit, they are x, y, z for voxels and z, y, x for millimeters.
    In voxels the components are in the order of the axes, in millimeters they are x, y, z (LPS).
    """
    d, size = grid.GetDimension(), grid.GetSize()
    forms = list(itertools.product(("last", "first"), ("xyz", "zyx") if convention == "voxels" else ("zyx", "xyz")))
    squeezed = array if array.ndim == d + 1 else array.squeeze()
    for components, order in forms:
        vectors = squeezed if components == "last" else np.moveaxis(squeezed, 0, -1)
        if vectors.ndim == d + 1 and vectors.shape == (*(size if order == "xyz" else size[::-1]), d):
            break
    else:
        raise ImageError(
            f"The array '{path}' has the shape {array.shape}, which does not fit the fixed image of {size} voxels; it "
            f"needs {d} displacements for each voxel."
        )
    if order == "xyz":
        vectors = vectors.transpose(*range(d - 1, -1, -1), d)
    if convention == "voxels":
        along = vectors if order == "xyz" else vectors[..., ::-1]
        vectors = along @ index_to_physical(grid).T
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, np.float64), isVector=True)
    field.CopyInformation(grid)
    return _transform(field, path)


def _is_elastix(path: Path) -> bool:
    if path.suffix.lower() != ".txt":
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return b"(Transform " in start


def _from_elastix(path: Path, grid: sitk.Image) -> sitk.Transform:
    """Read a parameter file of elastix, as its displacements at the voxels of the fixed image."""
    try:
        itk: Any = importlib.import_module("itk")
    except ImportError as error:
        raise ImageError(
            f"'{path}' is a parameter file of elastix; install the package 'itk-elastix' to read it, or save the "
            "result as a displacement field with 'transformix -def all'."
        ) from error
    try:
        parameters = itk.ParameterObject.New()
        parameters.ReadParameterFile(str(path))
        moving = itk.image_from_array(np.zeros(grid.GetSize()[::-1], np.float32))
        moving.SetSpacing(grid.GetSpacing())
        moving.SetOrigin(grid.GetOrigin())
        moving.SetDirection(itk.matrix_from_array(np.asarray(grid.GetDirection()).reshape([grid.GetDimension()] * 2)))
        # It also writes the field into a folder, by default the current one.
        with tempfile.TemporaryDirectory(prefix="drdm-") as folder:
            found = itk.transformix_deformation_field(moving, parameters, output_directory=folder)
        field = sitk.GetImageFromArray(np.asarray(itk.array_from_image(found), np.float64), isVector=True)
        field.SetSpacing(tuple(found.GetSpacing()))
        field.SetOrigin(tuple(found.GetOrigin()))
        field.SetDirection(np.asarray(itk.array_from_matrix(found.GetDirection())).ravel().tolist())
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ImageError(
            f"'{path}' could not be read by itk-elastix; save the result as a displacement field with "
            "'transformix -def all'."
        ) from error
    return _transform(field, path)
