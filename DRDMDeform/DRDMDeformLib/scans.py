"""Scans of the scene, written into temporary folders for another process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from DRDMLib.io.files import file_name, image_stem

from .deferred import sitk
from .mrml import SceneError, imageFromVolume
from .regions import SceneRegion
from .temporary import temporaryFolder


def writeTemporary(image: sitk.Image, path: Path) -> None:
    """Write an image into a temporary folder.

    Raises:
        SceneError: there is not enough disk space.
    """
    try:
        sitk.WriteImage(image, str(path))
    except RuntimeError as error:
        raise SceneError(
            _("There is not enough disk space in '{folder}' for a temporary copy of the volume.").format(
                folder=path.parent
            )
        ) from error


def writeScan(volumeNode: Any, region: SceneRegion | None) -> Path:
    """Write a volume into a new temporary folder: ``scan.nrrd``, and the label of a region as ``label.nrrd``.

    Raises:
        SceneError: the volume cannot be used, or there is not enough disk space.
    """
    image = imageFromVolume(volumeNode)
    folder = temporaryFolder()
    try:
        writeTemporary(image, folder / "scan.nrrd")
        if region is not None and region.label is not None:
            writeTemporary(region.label, folder / "label.nrrd")
    except SceneError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def caseName(node: Any) -> str:
    """The name of a node as that of a case, without what would be read as the end of a file name (``.seg``)."""
    return image_stem(f"{file_name(node.GetName())}.nrrd")
