"""Scans of the scene, written into temporary folders for another process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from DRDMLib.io.files import file_name, image_stem

from .deferred import sitk
from .job import Job
from .mrml import SceneError, imageFromVolume
from .regions import SceneRegion
from .temporary import temporaryFolder

if TYPE_CHECKING:
    from DRDMLib.toward import Way


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


def imageToward(volumeNode: Any, toward: Any, region: SceneRegion | None = None) -> sitk.Image:
    """The image of a volume that versions of another one go toward.

    Raises:
        SceneError: it cannot be used, is the same volume, or only a region is to be deformed.
    """
    if region is not None:
        raise SceneError(_("Only whole scans go toward another scan; leave out toward, or region."))
    if toward is volumeNode:
        raise SceneError(
            _("'{name}' is the scan that is deformed; choose another one to go toward.").format(name=toward.GetName())
        )
    return imageFromVolume(toward)


def wayToward(volumeNode: Any, toward: Any) -> Way:
    """The way from a volume to another one of the same kind.

    Raises:
        SceneError: one of them cannot be used, or they cannot be registered.
    """
    # Deferred, since it imports scientific packages.
    from DRDMLib import find_way

    way = find_way(imageFromVolume(volumeNode), imageToward(volumeNode, toward))
    if way is None:
        raise SceneError(
            _("The scan '{name}' cannot be registered to the volume; choose another scan of the same kind.").format(
                name=toward.GetName()
            )
        )
    return way


def nameToward(job: Job, folder: Path, name: str) -> None:
    """Let a job that fails name the volume that versions go toward, and not its temporary file."""

    def rename(job: Job) -> None:
        job.text = job.text.replace(str(folder / "toward.nrrd"), name)

    job.onFinished(rename)


def writeScan(volumeNode: Any, region: SceneRegion | None, toward: Any = None) -> Path:
    """Write a volume into a new temporary folder as ``scan.nrrd``.

    The label of a region is written as ``label.nrrd``, and the volume that versions go toward as ``toward.nrrd``.

    Raises:
        SceneError: a volume cannot be used, or there is not enough disk space.
    """
    image = imageFromVolume(volumeNode)
    other = None if toward is None else imageToward(volumeNode, toward, region)
    folder = temporaryFolder()
    try:
        writeTemporary(image, folder / "scan.nrrd")
        if region is not None and region.label is not None:
            writeTemporary(region.label, folder / "label.nrrd")
        if other is not None:
            writeTemporary(other, folder / "toward.nrrd")
    except SceneError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def caseName(node: Any) -> str:
    """The name of a node as that of a case, without what would be read as the end of a file name (``.seg``)."""
    return image_stem(f"{file_name(node.GetName())}.nrrd")
