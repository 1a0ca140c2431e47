"""Write volumes piece by piece, in the format that the name of the file asks for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import DRDMError, OutputError
from .files import atomic_write
from .nifti import write_nifti
from .nrrd import write_nrrd

# Endings of files, without the first dot.
FORMATS = ("nii.gz", "nrrd", "mha")


def write_volume(
    path: str | os.PathLike[str],
    reference: sitk.Image,
    pieces: Iterable[np.ndarray],
    pixel_id: int,
    *,
    components: int = 1,
    noisy: bool = False,
    blocks: bool = False,
) -> Path:
    """Write a volume as NIfTI, NRRD or MetaImage, compressed; equal voxels give equal bytes.

    NIfTI is written while the pieces are made, and NRRD of scalars with ``blocks``; the others need memory for the
    whole volume.

    Args:
        path: name of the file; it ends in one of :data:`FORMATS`.
        reference, pieces, pixel_id, components, noisy: see :func:`DRDMLib.io.nifti.write_nifti`.
        blocks: compress NIfTI and NRRD faster, and on several threads. This gives other bytes, see
            :func:`DRDMLib.io.gzip_writing.write_gzip`.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    if path.name.endswith(".nii.gz"):
        return write_nifti(path, reference, pieces, pixel_id, components=components, noisy=noisy, blocks=blocks)
    if blocks and path.name.endswith(".nrrd"):
        return write_nrrd(path, reference, pieces, pixel_id, components=components, noisy=noisy)
    shape = reference.GetSize()[::-1]
    voxels = np.concatenate([np.atleast_1d(piece).reshape(-1) for piece in pieces])
    if components > 1:
        voxels = np.moveaxis(voxels.reshape(components, *shape), 0, -1)
    image = sitk.GetImageFromArray(voxels.reshape(*shape, *([components] if components > 1 else [])), components > 1)
    image.CopyInformation(reference)
    failure = OutputError(f"'{path}' cannot be written; check the disk, or use --format nii.gz for this image.")
    return write_itk(path, sitk.Cast(image, pixel_id), failure)


def write_itk(path: Path, image: sitk.Image, failure: DRDMError) -> Path:
    """Write an image with ITK in the format of the file's name, compressed, completely or not at all.

    Args:
        failure: error that is raised if ITK cannot write the image.

    Raises:
        DRDMError: ``failure``.
        OutputError: the folder cannot be written to.
    """
    with atomic_write(path) as partial:
        # ITK takes the format from the ending.
        written = partial.with_name(partial.name + "".join(path.suffixes[-2:]))
        try:
            sitk.WriteImage(image, str(written), useCompression=True)
            os.replace(written, partial)
        except RuntimeError as error:
            raise failure from error
        finally:
            written.unlink(missing_ok=True)
    return path
