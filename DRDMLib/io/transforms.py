"""Read transforms that ITK knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .apart import read_apart
from .files import path_problem, shown
from .images import reading

# Formats of transforms, and those that may hold a transform or an image.
TRANSFORM_SUFFIXES = (".tfm", ".txt", ".mat", ".xfm")
EITHER_SUFFIXES = (".h5", ".hdf5", ".hdf")


class NoTransformError(ImageError):
    """A file has no transform, or one that ITK does not know."""


def read_transform(path: Path, what: str = "transform") -> sitk.Transform:
    """Read a transform as ITK, SimpleITK, 3D Slicer and ANTs write them.

    It is read in another process first, because some damaged files crash the reader.

    Args:
        what: kind of file in error messages.

    Raises:
        NoTransformError: it is no transform, or one that ITK does not know.
        ImageError: the file is missing, crashes its reader, or has NaN or infinite values.
    """
    problem = path_problem(path)
    if problem:
        raise ImageError(f"The {what} '{shown(str(path))}' cannot be read: {problem}; check the path.")
    with reading(path, what):
        if not path.is_file():
            raise ImageError(f"There is no {what} '{path}'; check the path.")
        apart = read_apart(path, what, transform=True)
        try:
            if apart is not None and not apart.kind:
                raise RuntimeError
            transform: sitk.Transform = sitk.ReadTransform(str(path))
        except RuntimeError as error:
            raise NoTransformError(
                f"'{path}' is not a transform that ITK knows; save it as .tfm, .h5 or as a displacement field."
            ) from error
        if not all(np.isfinite(values).all() for values in _values(transform)):
            raise ImageError(f"The {what} '{path}' has NaN or infinite values; create it again.")
    return transform


def _values(transform: sitk.Transform) -> Iterator[np.ndarray]:
    """Yield all numbers of a transform."""
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        for number in range(composite.GetNumberOfTransforms()):
            yield from _values(composite.GetNthTransform(number))
        return
    yield np.asarray(transform.GetFixedParameters(), float)
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        # Its parameters would be a tuple of as many Python objects.
        yield from sitk.GetArrayViewFromImage(sitk.DisplacementFieldTransform(transform).GetDisplacementField())
    else:
        yield np.asarray(transform.GetParameters(), float)
