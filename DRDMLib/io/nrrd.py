"""Write NRRD files piece by piece, compressed on several threads.

As in :mod:`DRDMLib.io.nifti`, ITK writes the header, for a tiny image with the same pixel type and orientation.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .files import atomic_write
from .gzip_writing import write_gzip
from .itk_header import tiny_file


def write_nrrd(
    path: str | os.PathLike[str],
    reference: sitk.Image,
    pieces: Iterable[np.ndarray],
    pixel_id: int,
    *,
    components: int = 1,
    noisy: bool = False,
) -> Path:
    """Write a ``.nrrd`` file.

    Args:
        path, reference, pieces, pixel_id, components, noisy: see :func:`DRDMLib.io.nifti.write_nifti`. Vectors need
            memory for the whole volume, because all components of a voxel come together in the file.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    with atomic_write(path) as partial, partial.open("wb") as raw:
        raw.write(_header(reference, pixel_id, components))
        if components > 1:
            planes = np.concatenate([np.ravel(piece) for piece in pieces]).reshape(components, -1)
            pieces = [np.ascontiguousarray(planes.T)]
        write_gzip(raw, pieces, noisy=noisy, blocks=True)
    return path


def _header(reference: sitk.Image, pixel_id: int, components: int) -> bytes:
    """Make a header as ITK writes it, for an image on the grid of ``reference``."""
    lines, found, _ = tiny_file(reference, pixel_id, components, ".nrrd", compressed=True).partition(b"\n\n")
    if not found:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sizes = b" ".join(b"%d" % n for n in ([components] if components > 1 else []) + list(reference.GetSize()))
    return re.sub(rb"(?m)^sizes: .*$", b"sizes: " + sizes, lines) + found
