"""Read what a file says of the positions of its voxels, and put axes right that are not quite at right angles.

ITK's images have axes at right angles. Other readers keep a shear, prefer another of NIfTI's two transforms, or ignore
its units, so that they see the same file at another place.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import FallbackWarning, ImageError
from ..spatial.coordinates import direction_matrix

# Axes that are farther from right angles than ``_ROUNDING`` (as the cosine of the angle) are made orthonormal, and axes
# that are farther than ``_MOST_DEGREES`` are refused. ITK has the same tolerance for rounding in NIfTI files.
_ROUNDING = 1e-4
_MOST_DEGREES = 0.5
_NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")
PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"
_LOCK = threading.Lock()


@dataclass(frozen=True)
class NiftiForms:
    """The transforms of a NIfTI file: voxel indices to RAS, (4, 4) each, in the file's own unit.

    Attributes:
        sform, qform: ``None`` if their code is 0.
        base: what nibabel uses where both codes are 0: the first axis runs to the left, and 0 is the center.
        size: (X, Y, Z).
    """

    sform: np.ndarray | None
    qform: np.ndarray | None
    base: np.ndarray
    size: tuple[int, int, int]


def nifti_forms(path: Path) -> NiftiForms | None:
    """Read the transforms of a NIfTI file; ``None`` if it is no NIfTI file or its header is damaged."""
    if not path.name.lower().endswith(_NIFTI_SUFFIXES):
        return None
    if path.name.lower().endswith((".img", ".img.gz")):
        path = path.with_name(path.name[: path.name.lower().rindex(".img")] + ".hdr")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            return _parse(stream.read(540))
    except (OSError, EOFError, struct.error, ValueError, zlib.error):
        return None


def _parse(header: bytes) -> NiftiForms | None:
    order = next((o for o in "<>" if struct.unpack_from(o + "i", header)[0] in (348, 540)), None)
    if order is None:
        return None
    if struct.unpack_from(order + "i", header)[0] == 348:
        if header[344:347] not in (b"n+1", b"ni1"):
            return None
        dim = struct.unpack_from(order + "8h", header, 40)
        pixdim = struct.unpack_from(order + "8f", header, 76)
        q_code, s_code = struct.unpack_from(order + "2h", header, 252)
        values = struct.unpack_from(order + "18f", header, 256)
    else:
        dim = struct.unpack_from(order + "8q", header, 16)
        pixdim = struct.unpack_from(order + "8d", header, 104)
        q_code, s_code = struct.unpack_from(order + "2i", header, 344)
        values = struct.unpack_from(order + "18d", header, 352)
    size = tuple(max(1, int(n)) if k < dim[0] else 1 for k, n in enumerate(dim[1:4]))
    steps = np.abs(np.asarray(pixdim[1:4], float))
    steps[steps == 0] = 1
    base = np.diag([-steps[0], steps[1], steps[2], 1.0])
    base[:3, 3] = -base[:3, :3] @ ((np.asarray(size) - 1) / 2)
    sform = np.vstack([np.reshape(values[6:], (3, 4)), [0, 0, 0, 1]])
    qform = _qform(values[:3], values[3:6], steps, -1.0 if pixdim[0] < 0 else 1.0)
    return NiftiForms(
        sform if s_code > 0 and _usable(sform) else None,
        qform if q_code > 0 and _usable(qform) else None,
        base,
        (size[0], size[1], size[2]),
    )


def _usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine)) > 0


def _qform(bcd: tuple[float, ...], offset: tuple[float, ...], steps: np.ndarray, handed: float) -> np.ndarray:
    b, c, d = bcd
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    turn = np.asarray(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * steps * np.asarray([1, 1, handed])
    affine[:3, 3] = offset
    return affine


def skew(matrix: np.ndarray) -> float:
    """Compute how far the columns of a matrix are from right angles: the largest cosine between two of them."""
    unit = matrix / np.linalg.norm(matrix, axis=0)
    cosines = unit.T @ unit
    return float(np.abs(cosines - np.diag(np.diag(cosines))).max())


def nearest_orthonormal(matrix: np.ndarray) -> np.ndarray:
    """Compute the orthonormal matrix that is nearest to the directions of the columns of a matrix."""
    left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    return np.asarray(left @ right)


def require_right_angles(image: sitk.Image, name: str) -> sitk.Image:
    """Check that the axes of an image are at right angles.

    Axes that are up to 0.5 degrees off are replaced with the nearest orthonormal ones; the origin stays.

    Raises:
        ImageError: the axes are farther off: the image has a shear.

    Warns:
        FallbackWarning: the axes were replaced.
    """
    direction = direction_matrix(image)
    off = skew(direction)
    lengths = np.linalg.norm(direction, axis=0)
    if off <= _ROUNDING and np.abs(lengths - 1).max() <= _ROUNDING:
        return image
    if off > _ROUNDING:
        _report_skew(off, name)
    image = sitk.Image(image)
    image.SetSpacing((lengths * np.asarray(image.GetSpacing())).tolist())
    image.SetDirection(nearest_orthonormal(direction).ravel().tolist())
    return image


def _report_skew(off: float, name: str) -> None:
    """Say that axes are made orthonormal, or refuse them."""
    degrees = math.degrees(math.asin(min(1.0, off)))
    if degrees > _MOST_DEGREES:
        raise ImageError(
            f"The axes of '{name}' are not at right angles ({degrees:.1f} degrees off: a shear); "
            "resample it to a grid with orthonormal axes first."
        )
    warnings.warn(
        f"The axes of '{name}' are not exactly at right angles ({degrees:.2g} degrees off); the nearest orthonormal "
        "axes are used.",
        FallbackWarning,
        stacklevel=2,
    )


@contextmanager
def nifti_axes(path: Path) -> Iterator[None]:
    """Within this context, ITK reads a NIfTI file whose axes are slightly off right angles.

    ITK refuses such files, or takes the other transform in the header without a word.

    Raises:
        ImageError: the file has a shear, and no other transform.

    Warns:
        FallbackWarning: the nearest orthonormal axes are used, or the shear is not.
    """
    forms = nifti_forms(path)
    off = 0.0 if forms is None or forms.sform is None else skew(forms.sform[:3, :3])
    if forms is None or forms.sform is None or off <= _ROUNDING:
        yield
        return
    if forms.qform is not None and not (_small(off) and _agree(forms.sform, forms.qform, forms.size)):
        warnings.warn(
            f"The sform of '{path}' has a shear or lies elsewhere than its qform; the position given by the qform is "
            "used.",
            FallbackWarning,
            stacklevel=3,
        )
        yield
        return
    _report_skew(off, str(path))
    if forms.qform is not None:
        yield
        return
    with _LOCK:
        before = os.environ.get(PERMISSIVE)
        os.environ[PERMISSIVE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[PERMISSIVE]
            else:
                os.environ[PERMISSIVE] = before


def _small(off: float) -> bool:
    return math.degrees(math.asin(min(1.0, off))) <= _MOST_DEGREES


def _agree(a: np.ndarray, b: np.ndarray, size: tuple[int, ...]) -> bool:
    """Whether two affines agree on all voxels, to half a voxel and what half a degree makes."""
    return distance_in_voxels(a, b, size) <= 0.5 + math.radians(_MOST_DEGREES) * max(size)


def distance_in_voxels(a: np.ndarray, b: np.ndarray, size: tuple[int, ...]) -> float:
    """Compute the largest distance between the positions that two affines give a voxel, in voxels of the first.

    Args:
        a, b: (4, 4), voxel indices to positions.
        size: (X, Y, Z).
    """
    corners = np.asarray(np.meshgrid(*[[0, n - 1] for n in size], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm((np.linalg.inv(a) @ b @ corners - corners)[:3], axis=0).max())


def other_affines(path: Path) -> list[np.ndarray]:
    """Return the affines (4, 4), voxel indices to RAS, that other readers may see in a file.

    For NIfTI these are the sform and the qform as they are written, in the file's unit, or nibabel's choice where both
    codes are 0. For other files it is ITK's own, with a shear where there is one.
    """
    forms = nifti_forms(path)
    if forms is not None:
        named = [form for form in (forms.sform, forms.qform) if form is not None]
        return named or [forms.base]
    affine = itk_geometry(str(path))[0]
    return [] if affine is None else [affine]


@lru_cache(maxsize=4096)
def itk_geometry(path: str) -> tuple[np.ndarray | None, tuple[int, ...] | None]:
    """Read the affine (4, 4), voxel indices to RAS, and the size (X, Y, Z) that ITK sees in a file, if it reads it."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        if not Path(path).is_file():
            return None, None
        reader.ReadImageInformation()
    except (OSError, RuntimeError):
        return None, None
    d = min(3, reader.GetDimension())
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:d, :d]
    affine[:d, :d], affine[:d, 3] = direction * reader.GetSpacing()[:d], reader.GetOrigin()[:d]
    affine[:2] *= -1
    return affine, tuple([*reader.GetSize()[:d], 1][:3])
