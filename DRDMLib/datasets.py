"""What `DATASET` may be: an nnU-Net v2 raw dataset, a folder with images/ (and labels/), or a list of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError
from .images import image_stem

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".tif", ".tiff", ".jpg")


@dataclass(frozen=True)
class Case:
    """One image of a dataset, and its label if there is one."""

    name: str
    image: Path
    label: Path | None = None


def _images_in(folder: Path) -> list[Path]:
    found = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".")]
    series = [p for p in sorted(folder.iterdir()) if p.is_dir() and any(p.glob("*.dcm"))]
    return found + series


def _labels_by_stem(folder: Path) -> dict[str, Path]:
    return {image_stem(p): p for p in _images_in(folder)} if folder.is_dir() else {}


def find_cases(dataset: str | Path) -> list[Case]:
    """The cases of a dataset, sorted by name.

    Args:
        dataset: folder of an nnU-Net v2 raw dataset (imagesTr, labelsTr; the first channel is taken), a folder with
            ``images`` (and ``labels`` of equal names), a folder of images, or a text file with one path a line,
            relative to it.

    Raises:
        ImageError: there is no such thing, or no image in it.
    """
    path = Path(dataset)
    if path.is_dir() and (path / "imagesTr").is_dir():
        labels = _labels_by_stem(path / "labelsTr")
        cases = []
        for image in _images_in(path / "imagesTr"):
            stem = image_stem(image)
            name, _, channel = stem.rpartition("_")
            if channel == "0000":
                cases.append(Case(name, image, labels.get(name)))
    elif path.is_dir():
        folder = path / "images" if (path / "images").is_dir() else path
        labels = _labels_by_stem(path / "labels")
        cases = [Case(image_stem(p), p, labels.get(image_stem(p))) for p in _images_in(folder)]
    elif path.is_file() and path.suffix.lower() in (".txt", ".csv", ".lst"):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise ImageError(f"The list '{path}' is not a text file; write one path a line.") from error
        files = [path.parent / line for line in lines if line and not line.startswith("#")]
        cases = [Case(image_stem(p), p) for p in files]
    elif path.is_file():
        cases = [Case(image_stem(path), path)]
    else:
        raise ImageError(f"There is no dataset '{path}'; give a folder with images/ and labels/, or a list of files.")
    if not cases:
        raise ImageError(f"There are no images in '{path}'; put them into '{path / 'images'}'.")
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ImageError(f"Two images of '{path}' are called '{twice}'; give them different names.")
    return cases
