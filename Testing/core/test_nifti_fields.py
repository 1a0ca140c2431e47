"""Fields of NiftyReg and FSL, written from their formulas with a writer of this file, judged by points of SimpleITK."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support import rotation, smooth_image

from DRDMLib.challenge.transforms import read_result
from DRDMLib.errors import ImageError

FLIP = np.asarray([-1.0, -1.0, 1.0])


def pair(neurological: bool) -> tuple[sitk.Image, sitk.Image]:
    """A fixed and a moving image; the handedness of the axes of the fixed image is as wanted, of the moving one not."""
    fixed = smooth_image(
        (12, 10, 8), (2.0, 1.5, 2.5), rotation(10, -20, 30) @ np.diag([1 if neurological else -1, 1, 1])
    )
    moving = smooth_image(
        (14, 9, 11), (1.8, 2.0, 1.5), rotation(0, 15, -10) @ np.diag([-1 if neurological else 1, 1, 1])
    )
    moving.SetOrigin((np.asarray(fixed.GetOrigin()) + (3.0, -2.0, 1.0)).tolist())
    return fixed, moving


def affine_of(image: sitk.Image) -> np.ndarray:
    """Matrix from voxel index to RAS."""
    matrix = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    matrix[:3, :3] = FLIP[:, None] * direction * np.asarray(image.GetSpacing())
    matrix[:3, 3] = FLIP * image.GetOrigin()
    return matrix


def write_nifti(path: Path, image: sitk.Image, array: np.ndarray, intent: int, name: str = "", p1: float = 0.0) -> Path:
    """Write an array (x, y, z, ...) as 32-bit NIfTI-1 with the geometry of an image in sform."""
    head = bytearray(352)
    shape = array.shape
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<3f", head, 56, p1, 0.0, 0.0)
    struct.pack_into("<h", head, 68, intent)
    struct.pack_into("<2h", head, 70, 16, 32)
    handed = 1.0 if np.linalg.det(affine_of(image)[:3, :3]) > 0 else -1.0
    struct.pack_into("<8f", head, 76, handed, *image.GetSpacing(), 1, 1, 1, 1)
    struct.pack_into("<3f", head, 108, 352.0, 1.0, 0.0)
    head[123] = 2
    struct.pack_into("<2h", head, 252, 0, 1)
    struct.pack_into("<12f", head, 280, *affine_of(image)[:3].ravel())
    head[328 : 328 + len(name)] = name.encode()
    head[344:348] = b"n+1\0"
    path.write_bytes(bytes(head) + array.astype("<f4").tobytes(order="F"))
    return path


def truth(fixed: sitk.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index (K, 3) of every voxel, x fastest, its LPS position, and where a bent map takes it."""
    index = np.indices(fixed.GetSize()[::-1]).reshape(3, -1).T[:, ::-1].astype(float)
    lps = index @ (FLIP[:, None] * affine_of(fixed)[:3, :3]).T + fixed.GetOrigin()
    center = lps.mean(axis=0)
    turned = (lps - center) @ rotation(5, -4, 8).T + center + (2.0, -1.0, 3.0)
    return index, lps, turned + 1.5 * np.sin(lps[:, ::-1] / 9.0)


def volume(values: np.ndarray, fixed: sitk.Image) -> np.ndarray:
    """(K, 3) in the order of ``truth`` as (x, y, z, 3)."""
    return values.reshape(*fixed.GetSize()[::-1], 3).transpose(2, 1, 0, 3)


def fsl(lps: np.ndarray, image: sitk.Image) -> np.ndarray:
    """FSL's coordinates of points: scaled voxels, the first axis reversed where RAS and index have one handedness."""
    matrix = affine_of(image)
    index = np.linalg.solve(matrix[:3, :3], (lps * FLIP - matrix[:3, 3]).T).T
    if np.linalg.det(matrix[:3, :3]) > 0:
        index[:, 0] = image.GetSize()[0] - 1 - index[:, 0]
    return index * image.GetSpacing()


def check(path: Path, fixed: sitk.Image, moving: sitk.Image, lps: np.ndarray, there: np.ndarray) -> None:
    found = read_result([path], fixed, target=moving)
    assert np.abs([found.TransformPoint(p) for p in lps[::7].tolist()] - there[::7]).max() < 1e-3


@pytest.mark.parametrize("neurological", [False, True])
def test_fields_of_niftyreg(tmp_path, neurological):
    fixed, moving = pair(neurological)
    _index, lps, there = truth(fixed)
    for kind, values in enumerate((there * FLIP, (there - lps) * FLIP)):
        array = volume(values, fixed)[:, :, :, None]
        path = write_nifti(tmp_path / f"{kind}.nii", fixed, array, 1007, "NREG_TRANS", kind)
        check(path, fixed, moving, lps, there)


@pytest.mark.parametrize("neurological", [False, True])
def test_fields_of_fnirt(tmp_path, neurological):
    fixed, moving = pair(neurological)
    _index, lps, there = truth(fixed)
    absolute = fsl(there, moving)
    for name, values in (("abs", absolute), ("rel", absolute - fsl(lps, fixed))):
        check(write_nifti(tmp_path / f"{name}.nii", fixed, volume(values, fixed), 2006), fixed, moving, lps, there)


def test_what_cannot_be_read_is_named(tmp_path):
    fixed, moving = pair(False)
    values = np.zeros((*fixed.GetSize(), 3))
    cases = {
        "coefficients.nii": (write_nifti(tmp_path / "coefficients.nii", fixed, values, 2007), "coefficients of FNIRT"),
        "one.nii": (write_nifti(tmp_path / "one.nii", fixed, values[..., 0], 2006), "three volumes"),
        "grid.nii": (
            write_nifti(tmp_path / "grid.nii", fixed, values[:, :, :, None], 1007, "NREG_TRANS", 2),
            "control points",
        ),
    }
    for path, words in cases.values():
        with pytest.raises(ImageError, match=words):
            read_result([path], fixed, target=moving)
    field = write_nifti(tmp_path / "field.nii", fixed, values, 2006)
    with pytest.raises(ImageError, match="convention"):
        read_result([field], fixed, "voxels", target=moving)
