"""Let ITK write the headers of files whose voxels we write ourselves: those of a tiny image."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import SimpleITK as sitk


def tiny_file(reference: sitk.Image, pixel_id: int, components: int, suffix: str, *, compressed: bool = False) -> bytes:
    """Return the bytes of a file of two voxels along each axis, with the position and axes of an image.

    It may end early where the disk is full, which ITK does not detect.

    Args:
        reference: gives dimension, spacing, origin and direction.
        pixel_id: SimpleITK pixel type.
        components: values per voxel.
        suffix: of the format, such as ``.nrrd``.
        compressed: whether the header says that the voxels are compressed.
    """
    d = reference.GetDimension()
    grid = reference.GetSpacing(), reference.GetOrigin(), reference.GetDirection()
    return _tiny_file(d, pixel_id, components, *grid, suffix, compressed)


@functools.lru_cache(maxsize=64)
def _tiny_file(
    d: int,
    pixel_id: int,
    components: int,
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    direction: tuple[float, ...],
    suffix: str,
    compressed: bool,
) -> bytes:
    tiny = sitk.Image([2] * d, pixel_id, components) if components > 1 else sitk.Image([2] * d, pixel_id)
    tiny.SetSpacing(spacing)
    tiny.SetOrigin(origin)
    tiny.SetDirection(direction)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"header{suffix}"
        sitk.WriteImage(tiny, str(path), useCompression=compressed)
        return path.read_bytes()
