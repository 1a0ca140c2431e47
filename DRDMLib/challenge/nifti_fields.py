"""Read the fields of NiftyReg and FSL, which keep their meaning in the header of the NIfTI file.

NiftyReg writes vectors in world coordinates (RAS, millimeters) at the voxels of the fixed image: positions in the
moving image (``reg_transform -def``) or displacements (``-disp``). FNIRT of FSL writes them in coordinates of its own:
the voxel index times the voxel size, with the first axis reversed in images whose axes are right-handed (neurological);
either positions in the moving image or displacements to them, and the file does not say which.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..io.points import FLIP
from ..spatial.coordinates import to_points

# NIfTI's intent code of a displacement field of FNIRT, and of coefficients of FNIRT and TOPUP.
_FNIRT_FIELD = "2006"
_FSL_COEFFICIENTS = ("2007", "2008", "2009", "2016", "2017")
# Values of intent_p1 in files of NiftyReg.
_POSITIONS, _DISPLACEMENTS = 0, 1


def header(image: sitk.Image, name: str) -> str:
    """Return an entry of the header of a NIfTI file; empty if there is none."""
    return str(image.GetMetaData(name)) if image.HasMetaDataKey(name) else ""


def is_niftyreg(image: sitk.Image) -> bool:
    """Return whether an image is a transform of NiftyReg."""
    return header(image, "intent_name").strip("\0 ").upper().startswith("NREG")


def is_fsl(image: sitk.Image) -> bool:
    """Return whether an image is a field of FNIRT, or the coefficients of one."""
    return header(image, "intent_code") in (_FNIRT_FIELD, *_FSL_COEFFICIENTS)


def from_niftyreg(image: sitk.Image, path: Path) -> sitk.Image:
    """Convert a field of NiftyReg to displacements.

    Returns:
        Displacement field on the same grid: vector image, LPS, millimeters.

    Raises:
        ImageError: it holds control points or velocities, or has another number of components.
    """
    kind, d = float(header(image, "intent_p1") or "nan"), image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() != d or kind not in (_POSITIONS, _DISPLACEMENTS):
        raise ImageError(
            f"'{path}' is a transform of NiftyReg with control points or velocities; convert it with "
            "'reg_transform -def' or '-disp'."
        )
    vectors = sitk.GetArrayFromImage(image).astype(np.float64) * FLIP[:d]
    if kind == _POSITIONS:
        vectors -= _positions(image)
    return _field(vectors, image)


def from_fsl(image: sitk.Image, path: Path, moving: sitk.Image | None) -> sitk.Image:
    """Convert a field of FNIRT to displacements.

    Args:
        image: as it was read: 4D with three components along the last axis, or 3D with three values per voxel.
        moving: the moving image, whose grid belongs to the meaning of the field.

    Returns:
        Displacement field on the same grid: vector image, LPS, millimeters.

    Raises:
        ImageError: it holds coefficients, or has another shape.
    """
    if header(image, "intent_code") in _FSL_COEFFICIENTS:
        raise ImageError(
            f"'{path}' holds coefficients of FNIRT; write the field with 'fnirt --fout' or with "
            "'fnirtfileutils --in=... --ref=... --out=...'."
        )
    if image.GetDimension() == 4 and image.GetNumberOfComponentsPerPixel() == 1 and image.GetSize()[3] == 3:
        image = sitk.Compose([image[..., k] for k in range(3)])
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3 or moving is None:
        raise ImageError(f"'{path}' is not a field of FNIRT with three volumes; choose the file of 'fnirt --fout'.")
    vectors = sitk.GetArrayFromImage(image).astype(np.float64)
    index = _indices(image)
    own = _to_fsl(index, image).reshape(vectors.shape)
    # Positions spread over the whole image, displacements do not; so the larger spread says which they are.
    spread, without = (float(v.std(axis=(0, 1, 2)).sum()) for v in (vectors, vectors - own))
    positions = vectors if spread > without else vectors + own
    there = to_points(_from_fsl(positions.reshape(-1, 3), moving), moving)
    return _field((there - to_points(index, image)).reshape(vectors.shape), image)


def _to_fsl(index: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Convert voxel indices (K, 3) to FSL's coordinates, millimeters."""
    index = index.copy()
    if _reversed(image):
        index[:, 0] = image.GetSize()[0] - 1 - index[:, 0]
    coordinates: np.ndarray = index * np.asarray(image.GetSpacing())
    return coordinates


def _from_fsl(coordinates: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Convert FSL's coordinates (K, 3), millimeters, to voxel indices."""
    index: np.ndarray = coordinates / np.asarray(image.GetSpacing())
    if _reversed(image):
        index[:, 0] = image.GetSize()[0] - 1 - index[:, 0]
    return index


def _reversed(image: sitk.Image) -> bool:
    """Return whether FSL reverses the first axis; the handedness of LPS and RAS is the same."""
    return float(np.linalg.det(np.asarray(image.GetDirection()).reshape(3, 3))) > 0


def _indices(image: sitk.Image) -> np.ndarray:
    """Return the index of each voxel, (K, d) in x, y, z, in array order."""
    shape = image.GetSize()[::-1]
    index: np.ndarray = np.indices(shape).reshape(len(shape), -1).T[:, ::-1].astype(np.float64)
    return index


def _positions(image: sitk.Image) -> np.ndarray:
    """Return the position of each voxel, (*S, d), LPS, millimeters."""
    d = image.GetDimension()
    points: np.ndarray = to_points(_indices(image), image).reshape(*image.GetSize()[::-1], d)
    return points


def _field(vectors: np.ndarray, image: sitk.Image) -> sitk.Image:
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(image)
    return field
