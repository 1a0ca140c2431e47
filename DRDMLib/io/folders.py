"""List the images and the other files in folders."""

from __future__ import annotations

from pathlib import Path

from .detached import files_of_image
from .dicom import is_dicom
from .files import SUFFIXES, image_stem

# Files beside images that are no images: descriptions, and the voxels of detached headers.
_COMPANIONS = (".json", ".txt", ".csv", ".tsv", ".md", ".xml", ".pdf", ".bval", ".bvec", ".raw", ".raw.gz", ".zraw")


def folder_called(path: Path, name: str) -> Path | None:
    """Return the folder of this name in another one; upper and lower case do not matter."""
    if (path / name).is_dir():
        return path / name
    return next((p for p in sorted(path.iterdir()) if p.name.lower() == name.lower() and p.is_dir()), None)


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted; of a header and its voxels (.hdr, .img) only the voxels."""
    found = [
        p
        for p in sorted(folder.iterdir())
        if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".") and _is_file_or_broken_link(p)
    ]
    voxels = {image_stem(p) for p in found if p.name.lower().endswith((".img", ".img.gz"))}
    return [p for p in found if not (p.name.lower().endswith(".hdr") and image_stem(p) in voxels)]


def _is_file_or_broken_link(path: Path) -> bool:
    """Whether a path is a file, or a link to a missing one, which must be named and not be overlooked."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def folders_below(folder: Path) -> list[Path]:
    """Return the folders in a folder, at any depth, sorted and without hidden ones."""
    return sorted(p for p in folder.rglob("*") if p.is_dir() and not p.name.startswith("."))


def other_files(root: Path, folder: Path) -> list[str]:
    """Return the files in a folder and below that are neither images nor usual companions of images."""
    found = []
    for below in [folder, *folders_below(folder)]:
        voxels = {file for p in images_in(below) for file in files_of_image(p)}
        found += [
            p.relative_to(root).as_posix()
            for p in sorted(below.iterdir())
            if p.is_file()
            and not p.name.startswith(".")
            and not p.name.lower().endswith((*SUFFIXES, *_COMPANIONS))
            and p not in voxels
            and not is_dicom(p)
        ]
    return found


def image_count(folder: Path) -> int:
    """Count the image files in a folder and below, and DICOM files without a suffix."""
    return sum(
        len(images_in(below)) + sum(not p.suffix and p.is_file() and is_dicom(p) for p in below.iterdir())
        for below in [folder, *folders_below(folder)]
    )
