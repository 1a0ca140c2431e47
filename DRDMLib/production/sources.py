"""Read a case: image, other channels, label, and the digests of their files."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError
from ..io.datasets import Case
from ..io.files import digest_of_files
from ..io.images import image_files, read_image, read_label, reading
from ..regions import find_target
from ..settings import RegionSettings
from ..spatial.model_grid import same_grid
from .limits import label_values
from .plan import AUGMENT, Plan


class SourceChanged(ImageError):
    """A file of a case is not the one that the run was planned with."""


@dataclass(frozen=True)
class Source:
    """A case in memory.

    Attributes:
        case: where its files are.
        image: the image, or its first channel.
        label: the label map on the grid of the image, if there is one.
        channels: the other channels, on the same grid.
        digests: kind (image, label, channel_0001, ...) -> ``sha256:...`` of its files.
        files: kind -> path.
        label_geometry: as the label was read, see :func:`DRDMLib.read_label`.
    """

    case: Case
    image: sitk.Image
    label: sitk.Image | None
    channels: tuple[sitk.Image, ...]
    digests: dict[str, str]
    files: dict[str, str]
    label_geometry: str = "file"

    def place(self, region: RegionSettings | None) -> sitk.Image:
        """Return the part of the image for which a model is chosen: its largest region, or all of it.

        Raises:
            ImageError, SettingError: as :func:`DRDMLib.regions.find_target`.
        """
        return self.image if region is None else find_target(self.image, region, self.label).largest

    def apart(self) -> Source:
        """Return a copy for use in another thread; its voxels are copied at the first access.

        Sharing is not safe: SimpleITK may move the voxels of an image that one thread accesses while a filter in
        another thread reads them.
        """
        label = None if self.label is None else sitk.Image(self.label)
        return replace(self, image=sitk.Image(self.image), label=label, channels=tuple(map(sitk.Image, self.channels)))


def source_paths(case: Case) -> dict[str, Path]:
    """Return the paths of the images of a case: kind (image, label, channel_0001, ...) -> path."""
    paths = {"image": case.image} | ({} if case.label is None else {"label": case.label})
    return paths | {f"channel_{k:04d}": path for k, path in enumerate(case.channels, start=1)}


def source_digests(case: Case) -> dict[str, str]:
    """Return the digests of the files of a case, by kind.

    Raises:
        ImageError: it has no image that could be read.
        OSError: a file cannot be read.
    """
    paths = source_paths(case)
    return {k: digest_of_files(image_files(p, case.series if k == "image" else "")) for k, p in paths.items()}


def relative_paths(files: dict[str, str], folder: Path) -> dict[str, str]:
    """Return paths relative to a folder, so that they stay right when both are moved together."""
    found = {}
    for kind, path in files.items():
        # On Windows there is none from one drive to another.
        with contextlib.suppress(ValueError):
            found[kind] = Path(os.path.relpath(path, folder)).as_posix()
    return found


def read_source(
    case: Case, *, need_label: bool, values: dict[int, int] | None = None, label_geometry: str = "file"
) -> Source:
    """Read a case.

    Args:
        need_label: raise an error if the image has no label.
        values: new number of each label value.
        label_geometry: see :func:`DRDMLib.read_label`.

    Raises:
        ImageError: the case cannot be used; also for any unexpected error, which must not stop the other cases.
    """
    with reading(case.image):
        return _read_source(case, need_label, values, label_geometry)


def _read_source(case: Case, need_label: bool, values: dict[int, int] | None, label_geometry: str) -> Source:
    image = read_image(case.image, case.series)
    if need_label and case.label is None:
        raise ImageError(f"The image '{case.image}' has no label of the same name; add one to the labels folder.")
    label = None if case.label is None else read_label(case.label, image, geometry=label_geometry)
    if label is not None and values and any(old != new for old, new in values.items()):
        # Only values in this label: ITK would wrap those that its type cannot hold.
        own = set(label_values(label))
        changed = {float(old): float(new) for old, new in values.items() if old != new and old in own}
        label = sitk.ChangeLabel(label, changed)
    # Only the first channel is recovered by the model; another one may be empty, such as a map of contrast agent.
    channels = tuple(read_image(path, need_contrast=False) for path in case.channels)
    for path, channel in zip(case.channels, channels, strict=True):
        if not same_grid(channel, image):
            raise ImageError(f"The channel '{path}' has another grid than '{case.image}'; resample it to that grid.")
    try:
        digests = source_digests(case)
    except OSError as error:
        raise ImageError(f"'{case.image}' cannot be read again ({error.strerror}); check the disk.") from error
    # Absolute, because a record is also read from another working folder.
    files = {kind: str(path.absolute()) for kind, path in source_paths(case).items()}
    return Source(case, image, label, channels, digests, files, label_geometry)


def read_case(plan: Plan, number: int, label_mapping: dict[int, int]) -> Source:
    """Read a case of a plan.

    Args:
        number: number of the case.
        label_mapping: new number of each label value.

    Raises:
        ImageError: the case cannot be used.
    """
    settings = plan.settings
    return read_source(
        plan.cases[number],
        need_label=settings.command == AUGMENT,
        values=label_mapping,
        label_geometry=settings.label_geometry,
    )
