"""Write NIfTI files piece by piece.

ITK's writer needs a second copy of a complete displacement field in memory, and does not detect a full disk. Here ITK
only writes the header, for a tiny image with the same pixel type and orientation, so that its conventions are kept. The
voxels are compressed piece by piece. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import OutputError
from .files import atomic_write
from .gzip_writing import write_gzip
from .itk_header import tiny_file

_HEADER_BYTES = 352
_DIM_OFFSET = 40


def _header(reference: sitk.Image, pixel_id: int, components: int, frames: int) -> bytes:
    """Make a NIfTI-1 header as ITK writes it, for an image on the grid of ``reference``."""
    d = reference.GetDimension()
    header = bytearray(tiny_file(reference, pixel_id, components, ".nii")[:_HEADER_BYTES])
    if len(header) < _HEADER_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    order = "<" if header[0] == 0x5C else ">"
    if order != "<" or max(reference.GetSize()) > 32767:
        raise OutputError(
            "The image is too large for NIfTI (more than 32767 voxels along an axis); crop or resample it first."
        )
    dims = list(struct.unpack_from("<8h", header, _DIM_OFFSET))
    dims[1 : 1 + d] = reference.GetSize()
    if frames:
        dims[0], dims[d + 1] = d + 1, frames
    struct.pack_into("<8h", header, _DIM_OFFSET, *dims)
    return bytes(header)


def write_nifti(
    path: str | os.PathLike[str],
    reference: sitk.Image,
    pieces: Iterable[np.ndarray],
    pixel_id: int,
    *,
    components: int = 1,
    frames: int = 0,
    noisy: bool = False,
    stored: bool = False,
    blocks: bool = False,
) -> Path:
    """Write a ``.nii.gz`` file.

    Args:
        path: name of the file, which should end in ``.nii.gz``.
        reference: gives size and geometry.
        pieces: the voxels in file order: slabs along the slowest axis; for vectors, first all slabs of the first
            component, then those of the second, and so on.
        pixel_id: SimpleITK pixel type.
        components: values per voxel.
        frames: length of an additional axis after those of ``reference`` (the slowest in the file); 0 for none.
        noisy: the values hardly repeat, like interpolated floating-point numbers. The file is then compressed three
            times faster to about the same size.
        stored: put the bytes into the file as they are, without compression, for a program that reads it at once.
        blocks: compress faster, and on several threads, see :func:`DRDMLib.io.gzip_writing.write_gzip`.

    Raises:
        OutputError: the disk is full, the folder cannot be written to, or the image is too large for NIfTI.
    """
    path = Path(path)
    with atomic_write(path) as partial, partial.open("wb") as raw:
        header = _header(reference, pixel_id, components, frames)
        write_gzip(raw, itertools.chain([header], pieces), noisy=noisy, stored=stored, blocks=blocks)
    return path
