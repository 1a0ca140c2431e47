"""Find the cases of a dataset: an nnU-Net v2 raw dataset, folders of images or DICOM series, or a list of files."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import ImageError, SettingError
from .dicom import cut_files, is_dicom
from .images import image_stem

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".tif", ".tiff", ".jpg")
_PATIENT, _DESCRIPTION = "0010|0020", "0008|103e"
# BIDS: all file names of one subject start with sub-<label>.
_BIDS = re.compile(r"(sub-[^_\W]+)")


@dataclass(frozen=True)
class Case:
    """One image of a dataset, with its label if there is one.

    Attributes:
        name: unique within the dataset.
        image: an image file, or the folder of a DICOM series.
        label: file of the label map.
        channels: further images on the same grid that are deformed with it (nnU-Net's channels 0001, 0002, ...).
        series: UID of the DICOM series, if the folder contains several.
        subject: the person in the image; all cases of a subject stay in the same split.
    """

    name: str
    image: Path
    label: Path | None = None
    channels: tuple[Path, ...] = ()
    series: str = ""
    subject: str = ""


def find_cases(dataset: str | Path, subject_pattern: str | None = None) -> list[Case]:
    """Find the cases of a dataset.

    Args:
        dataset: folder of an nnU-Net v2 raw dataset (imagesTr, labelsTr), a folder with ``images`` (and ``labels`` with
            the same file names), a folder of images or DICOM series at any depth, a table (``.csv``, columns image,
            label, subject, name), or a text file with one path per line. Paths are relative to the folder of the file.
        subject_pattern: regular expression for the case's name; its first group (or the whole match) is the subject. By
            default the subject comes from the table or the DICOM header, or else from a BIDS name (``sub-01``);
            otherwise each case is a subject of its own.

    Returns:
        The cases, with different names. Those of a folder are sorted by name, those of a file are in its order.

    Raises:
        ImageError: the dataset does not exist, contains no image, or has two images of the same name.
        SettingError: the pattern is not a regular expression.
    """
    path = Path(dataset)
    if path.is_dir() and (path / "imagesTr").is_dir():
        cases = _nnunet(path)
    elif path.is_dir() and (path / "images").is_dir():
        cases = _folder(path / "images", path / "labels")
    elif path.is_dir():
        cases = _folder(path, None)
    elif path.is_file() and path.suffix.lower() in (".txt", ".csv", ".lst"):
        cases = _listed(path)
    elif path.is_file():
        cases = [Case(image_stem(path), path)]
    else:
        raise ImageError(f"There is no dataset '{path}'; give a folder with images/ and labels/, or a list of files.")
    if not cases:
        raise ImageError(f"There are no images in '{path}'; put them into '{path / 'images'}'.")
    counts = Counter(case.name for case in cases)
    duplicate = next((name for name, count in counts.items() if count > 1), None)
    if duplicate is not None:
        raise ImageError(f"Two images of '{path}' are called '{duplicate}'; give them different names.")
    return [replace(case, subject=_subject(case, subject_pattern)) for case in cases]


def nnunet_description(dataset: str | Path) -> dict[str, Any]:
    """Read ``dataset.json`` of an nnU-Net raw dataset; empty if it is missing or damaged."""
    path = Path(dataset) / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _subject(case: Case, pattern: str | None) -> str:
    if pattern:
        try:
            found = re.search(pattern, case.name)
        except re.error as error:
            raise SettingError(
                f"'{pattern}' is not a valid regular expression ({error}); correct the subject pattern."
            ) from error
        if found:
            return next((group for group in found.groups() if group), found.group())
    bids = _BIDS.search(case.name)
    return case.subject or (bids.group(1) if bids else case.name)


def _images_in(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.iterdir())
        if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file()
    ]


def _labels_by_stem(folder: Path) -> dict[str, Path]:
    return {image_stem(p): p for p in _images_in(folder)} if folder.is_dir() else {}


def _nnunet(path: Path) -> list[Case]:
    labels = _labels_by_stem(path / "labelsTr")
    channels: dict[str, dict[str, Path]] = {}
    for image in _images_in(path / "imagesTr"):
        name, _, channel = image_stem(image).rpartition("_")
        if re.fullmatch(r"\d{4}", channel):
            channels.setdefault(name, {})[channel] = image
    cases = []
    for name, found in sorted(channels.items()):
        first, *others = (found[channel] for channel in sorted(found))
        if "0000" in found:
            cases.append(Case(name, first, labels.get(name), tuple(others)))
    return cases


def _folder(folder: Path, labels: Path | None) -> list[Case]:
    """Find the images and DICOM series in a folder and in all folders below it; the latter are named by their path."""
    images = _images_in(folder)
    slices = [p for p in images if p.name.lower().endswith(".dcm")]
    by_stem = {} if labels is None else _labels_by_stem(labels)
    cases = [Case(image_stem(p), p, by_stem.get(image_stem(p))) for p in images if p not in slices]
    cases += _series(folder, folder, by_stem)
    for below in sorted(p for p in folder.rglob("*") if p.is_dir() and not p.name.startswith(".")):
        cases += [
            Case(_name_from_path(folder, p.with_name(image_stem(p))), p)
            for p in _images_in(below)
            if not p.name.lower().endswith(".dcm")
        ]
        cases += _series(folder, below, by_stem)
    return sorted(cases, key=lambda case: case.name)


def _name_from_path(root: Path, path: Path) -> str:
    return "-".join(path.relative_to(root).parts) or root.resolve().name


def _series(root: Path, folder: Path, labels: dict[str, Path]) -> Iterator[Case]:
    """Find the DICOM series in one folder; their files may have any suffix or none."""
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if not any(p.suffix.lower() == ".dcm" or is_dicom(p) for p in files):
        return
    reader = sitk.ImageSeriesReader
    found = reader.GetGDCMSeriesIDs(str(folder))
    singles = [p for p in files if p.suffix.lower() == ".dcm"]
    if folder == root and found and len(singles) > 1 and not _one_volume(reader, folder, found):
        # Separate 2D images: every file is a case, as with any other kind of file.
        for p in sorted(singles):
            yield Case(image_stem(p), p, labels.get(image_stem(p)), subject=_tag(p, _PATIENT))
        return
    listed: set[str] = set()
    for number, series in enumerate(found, start=1):
        names = reader.GetGDCMSeriesFileNames(str(folder), series)
        listed.update(Path(name).name for name in names)
        first = Path(names[0])
        name = image_stem(first) if len(files) == 1 and folder == root else _name_from_path(root, folder)
        if len(found) > 1:
            description = re.sub(r"\W+", "-", _tag(first, _DESCRIPTION)).strip("-")
            name = "-".join(part for part in (name, str(number), description) if part)
        image = first if len(files) == 1 else folder
        uid = series if len(found) > 1 else ""
        yield Case(name, image, labels.get(name), series=uid, subject=_tag(first, _PATIENT))
    # Damaged files become cases too, so that a run names them; GDCM leaves them out.
    for p in sorted(cut_files([p for p in files if p.name not in listed], list(found))):
        yield Case(_name_from_path(root, p.with_name(image_stem(p))), p)


def _one_volume(reader: Any, folder: Path, series: Any) -> bool:
    """Whether a series has several files, so that the files are the slices of a volume."""
    return any(len(reader.GetGDCMSeriesFileNames(str(folder), one)) > 1 for one in series)


def _tag(file: Path, tag: str) -> str:
    """Read one tag of a DICOM header; empty if it is missing."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        return reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""
    except RuntimeError:
        return ""


def _listed(path: Path) -> list[Case]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"The list '{path}' is not a text file; write one path per line.") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if path.suffix.lower() == ".csv" and lines:
        dialect = ";" if lines[0].count(";") > lines[0].count(",") else ","
        header = [word.strip().lower() for word in next(csv.reader(lines[:1], delimiter=dialect))]
        if "image" in header:
            return [_row(path, dict(zip(header, row))) for row in csv.reader(lines[1:], delimiter=dialect)]  # noqa: B905
    return [Case(image_stem(path.parent / line), path.parent / line) for line in lines]


def _row(path: Path, row: dict[str, str]) -> Case:
    values = {key: value.strip() for key, value in row.items() if value.strip()}
    if "image" not in values:
        raise ImageError(f"A row of the table '{path}' has no image; fill in the column 'image'.")
    image = path.parent / values["image"]
    label = path.parent / values["label"] if "label" in values else None
    return Case(values.get("name") or image_stem(image), image, label, subject=values.get("subject", ""))
