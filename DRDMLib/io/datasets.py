"""Find the cases of a dataset: an nnU-Net v2 raw dataset, folders of images or DICOM series, or a list of files."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import FallbackWarning, ImageError, SettingError
from .dicom import cut_files, is_dicom
from .files import file_names, image_stem, listed, path_problem, shown
from .folders import folder_called, folders_below, image_count, images_in, other_files
from .nnunet import group_channels, read_description
from .tables import TABLES, WORKBOOKS, existing, read_table, workbook_error

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


@dataclass
class Dataset:
    """The cases of a dataset, and what is to be said about it.

    Attributes:
        cases: the cases, with different names that can be names of files.
        notes: sentences about missing labels, changed names and cases that cannot be used.
        missing_labels: the one of them about missing labels; empty if none is missing.
        unused: files and folders that are not used.
    """

    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing_labels: str = ""
    unused: list[str] = field(default_factory=list)

    def unused_sentence(self) -> str:
        """Name a few of the files that are not used; empty if all are used."""
        return unused_sentence(self.unused)


def unused_sentence(unused: list[str]) -> str:
    """Name a few of the files that are not used; empty if there are none."""
    return f"Not used: {listed(unused)}." if unused else ""


def find_cases(dataset: str | Path, subject_pattern: str | None = None, *, labels: bool = True) -> list[Case]:
    """Find the cases of a dataset.

    Files that are not used, missing labels and changed names are shown as warnings (``FallbackWarning``).

    Args:
        dataset: folder of an nnU-Net v2 raw dataset (imagesTr, labelsTr; also with the names of the Decathlon and of
            Learn2Reg), a folder with ``images`` (and ``labels`` with the same file names), a folder of images or DICOM
            series at any depth, a table (columns image, label, subject, name), or a text file with one path per line.
            Paths are relative to the folder of the file.
        subject_pattern: regular expression for the case's name; its first group (or the whole match) is the subject. By
            default the subject comes from the table or the DICOM header, or else from a BIDS name (``sub-01``);
            otherwise each case is a subject of its own.
        labels: whether labels are wanted; otherwise nothing is said of missing ones.

    Returns:
        The cases, with different names that can be names of files (see :func:`DRDMLib.io.files.file_name`). Those of a
        folder are sorted by name, those of a file are in its order.

    Raises:
        ImageError: the dataset does not exist, contains no image, or its table or dataset.json has a slip.
        SettingError: the pattern is not a regular expression.
    """
    found = read_dataset(dataset, subject_pattern)
    for text in [*found.notes, found.unused_sentence()]:
        if text and (labels or text != found.missing_labels):
            warnings.warn(text, FallbackWarning, stacklevel=2)
    return found.cases


def read_dataset(dataset: str | Path, subject_pattern: str | None = None) -> Dataset:
    """Find the cases of a dataset, and what is to be said about it; arguments and errors as :func:`find_cases`."""
    path = Path(dataset)
    if path.is_dir() and folder_called(path, "imagesTr"):
        found = _nnunet(path)
    elif path.is_dir() and (images := folder_called(path, "images")):
        found = _images_and_labels(path, images)
    elif path.is_dir():
        found = Dataset(_folder(path, _Labels(None)), unused=other_files(path, path))
    elif path.is_file() and path.suffix.lower() in TABLES:
        found = _listed(path)
    elif path.is_file() and path.suffix.lower() in WORKBOOKS:
        raise workbook_error(path)
    elif path.is_file():
        found = Dataset([Case(image_stem(path), path)])
    else:
        raise ImageError(f"There is no dataset '{path}'; give a folder with images/ and labels/, or a list of files.")
    found.cases = [case for case in found.cases if not _is_left_out(case, found)]
    if not found.cases:
        raise _no_cases(path, found)
    found.cases = [replace(case, subject=_subject(case, subject_pattern)) for case in found.cases]
    _give_file_names(found)
    return found


def _no_cases(path: Path, found: Dataset) -> ImageError:
    if found.notes:
        return ImageError(found.notes[-1])
    if path.is_file():
        return ImageError(f"There are no images in the list '{path}'; write the path of one image in each line.")
    unused = f" ({listed(found.unused)} cannot be used)" if found.unused else ""
    return ImageError(f"There are no images in '{path}'{unused}; put them into '{path / 'images'}'.")


def _is_left_out(case: Case, found: Dataset) -> bool:
    """Whether a path of a case cannot be used on this system; the reason is added to the notes."""
    paths = (case.image, case.label, *case.channels)
    problem = next(filter(None, (path_problem(path) for path in paths if path is not None)), "")
    if problem:
        found.notes.append(f"Left out: '{shown(case.name)}': {problem}; rename the file.")
    return bool(problem)


def _give_file_names(found: Dataset) -> None:
    """Change names that cannot be names of files on every system, and say so."""
    names = file_names([case.name for case in found.cases])
    changed = []
    for k, (case, name) in enumerate(zip(found.cases, names, strict=True)):
        if name != _composed(case.name):
            changed.append((case.name, name))
        found.cases[k] = replace(case, name=name)
    if changed:
        old, new = changed[0]
        more = f" {len(changed) - 1} more names were changed as well." if len(changed) > 1 else ""
        found.notes.append(
            f"The case '{shown(old)}' is called '{shown(new)}' in the results, because names must be different and "
            f"valid as file names.{more}"
        )


def _composed(name: str) -> str:
    """Return a name with composed letters (Unicode NFC), so that names from macOS and from elsewhere are the same."""
    return unicodedata.normalize("NFC", name)


def nnunet_description(dataset: str | Path) -> dict[str, Any]:
    """Read ``dataset.json`` of an nnU-Net raw dataset; empty if there is none.

    Raises:
        ImageError: it cannot be read; the message says where the slip is.
    """
    return read_description(Path(dataset))


def _subject(case: Case, pattern: str | None) -> str:
    if pattern:
        try:
            found = re.search(pattern, case.name)
        except re.error as error:
            raise SettingError(
                f"'{pattern}' is not a valid regular expression ({error}); correct the subject pattern."
            ) from error
        if found:
            return _composed(next((group for group in found.groups() if group), found.group()))
    bids = _BIDS.search(case.name)
    return _composed(case.subject or (bids.group(1) if bids else case.name))


class _Labels:
    """The label files in a folder, and those in all folders below it, by the name of their image."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._used: set[str] = set()
        self.unused: list[Path] = []
        if folder is None:
            return
        for below in [folder, *folders_below(folder)]:
            for file in images_in(below):
                name = _composed(_name_from_path(folder, file.with_name(image_stem(file))))
                if name in self._files:
                    self.unused.append(file)
                self._files.setdefault(name, file)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def get(self, name: str) -> Path | None:
        """Return the label of an image, which counts as used from now on."""
        name = _composed(name)
        if name in self._files:
            self._used.add(name)
        return self._files.get(name)

    def report(self, found: Dataset, root: Path, place: str) -> None:
        """Add the labels that are not used to a dataset, and say how many cases have one.

        Args:
            place: name of the folder.
        """
        unused = [*self.unused, *(file for name, file in self._files.items() if name not in self._used)]
        found.unused += [file.relative_to(root).as_posix() for file in sorted(unused)]
        labeled = sum(case.label is not None for case in found.cases)
        if labeled < len(found.cases):
            found.missing_labels = (
                f"{labeled} of {len(found.cases)} labels found in '{place}'; a label needs the same name as its image."
            )
            found.notes.append(found.missing_labels)


def _add_unused(found: Dataset, root: Path, used: tuple[Path | None, ...]) -> None:
    """Add the other files in the used folders, and the other folders with images, to the unused files."""
    for folder in filter(None, used):
        found.unused += other_files(root, folder)
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p not in used):
        count = image_count(folder)
        found.unused += [f"{folder.name} ({count} images)"] if count else []
    found.unused += [p.name for p in images_in(root)]


def _nnunet(path: Path) -> Dataset:
    images_folder, labels_folder = folder_called(path, "imagesTr"), folder_called(path, "labelsTr")
    assert images_folder is not None
    labels = _Labels(labels_folder)
    images: dict[str, Path] = {}
    found = Dataset()
    for image in images_in(images_folder):
        if images.setdefault(_composed(image_stem(image)), image) != image:
            found.unused.append(image.relative_to(path).as_posix())
    layout = group_channels(images, labels, read_description(path))
    found.notes = layout.notes
    found.unused += [images[name].relative_to(path).as_posix() for name in layout.unused]
    for group in layout.groups:
        first, *others = (images[name] for name in group.channels)
        label = labels.get(group.label)
        found.cases.append(Case(group.name, first, label, tuple(others), subject=group.subject))
    labels.report(found, path, "labelsTr")
    # Its images are directly in imagesTr.
    for p in sorted(p for p in images_folder.iterdir() if not p.name.startswith(".")):
        if p.is_dir() and (count := image_count(p)):
            found.unused.append(f"{p.relative_to(path).as_posix()} ({count} images)")
        elif p.is_file() and not p.suffix and is_dicom(p):
            found.unused.append(p.relative_to(path).as_posix())
    _add_unused(found, path, (images_folder, labels_folder))
    return found


def _images_and_labels(path: Path, images_folder: Path) -> Dataset:
    labels_folder = folder_called(path, "labels")
    labels = _Labels(labels_folder)
    found = Dataset(_folder(images_folder, labels))
    if labels_folder is not None:
        labels.report(found, path, "labels")
    _add_unused(found, path, (images_folder, labels_folder))
    return found


def _folder(folder: Path, labels: _Labels) -> list[Case]:
    """Find the images and DICOM series in a folder and in all folders below it; the latter are named by their path."""
    images = images_in(folder)
    slices = [p for p in images if p.name.lower().endswith(".dcm")]
    cases = [Case(image_stem(p), p, labels.get(image_stem(p))) for p in images if p not in slices]
    cases += _series(folder, folder, labels)
    for below in folders_below(folder):
        for p in images_in(below):
            if not p.name.lower().endswith(".dcm"):
                name = _name_from_path(folder, p.with_name(image_stem(p)))
                cases.append(Case(name, p, labels.get(name)))
        cases += _series(folder, below, labels)
    return sorted(cases, key=lambda case: case.name)


def _name_from_path(root: Path, path: Path) -> str:
    return "-".join(path.relative_to(root).parts) or root.resolve().name


def _series(root: Path, folder: Path, labels: _Labels) -> Iterator[Case]:
    """Find the DICOM series in one folder; their files may have any suffix or none."""
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if not any(p.suffix.lower() == ".dcm" or is_dicom(p) for p in files):
        return
    slices = (p for p in files if p.suffix.lower() == ".dcm" or is_dicom(p))
    odd = next((p for p in (folder, *slices) if path_problem(p)), None)
    if odd is not None:
        # ITK cannot list this folder; its case is left out, with the reason.
        yield Case(_name_from_path(root, folder), odd)
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


def _listed(path: Path) -> Dataset:
    table = read_table(path)
    found = Dataset(notes=table.notes)
    for row in table.rows:
        image = existing(path.parent, row["image"])
        label = existing(path.parent, row["label"]) if "label" in row else None
        found.cases.append(Case(row.get("name") or image_stem(image), image, label, subject=row.get("subject", "")))
    labeled = sum(case.label is not None for case in found.cases)
    if table.labeled and labeled < len(found.cases):
        found.missing_labels = f"{labeled} of {len(found.cases)} labels found in the table '{path.name}'."
        found.notes.append(found.missing_labels)
    return found
