"""Small images, and the ``drdm`` command as a process, for the tests of the command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from support import smooth_image

REPOSITORY = Path(__file__).resolve().parents[2]


def scene(size=(26, 22, 18), pixel=sitk.sitkInt16):
    """A small 2D or 3D image with structure everywhere and anisotropic voxels."""
    return smooth_image(size, (1.0, 1.2, 2.0)[: len(size)], pixel=pixel)


def boxes(image):
    """A label map on the grid of ``image``: 1 in the middle, 3 near one corner, 0 elsewhere."""
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    array[tuple(slice(n // 3, 2 * n // 3) for n in array.shape)] = 1
    array[tuple(slice(1, n // 4) for n in array.shape)] = 3
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def write(image, path):
    """Write an image and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def snapshot(folder):
    """All content of a folder: path -> bytes, or None for a folder."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def command(*arguments, code=None):
    """The command line that runs drdm, or that passes the arguments to ``code`` instead."""
    start = ["-m", "DRDMLib"] if code is None else ["-c", code]
    return [sys.executable, *start, *map(str, arguments)]


def environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}


def run_process(*arguments, code=None, timeout=180):
    """Run drdm in a separate process."""
    return subprocess.run(
        command(*arguments, code=code), capture_output=True, encoding="utf-8", env=environment(), timeout=timeout
    )
