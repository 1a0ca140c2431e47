"""Read the truth of a case, and check that nothing in it has been changed or mixed up."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..deformation import displacement_transform
from ..errors import ImageError
from ..invertibility.inverse import inverse_points
from ..io.files import digest_of_files, read_object
from ..io.images import read_field, read_image, read_label
from .cases import CASE, FORMAT

_NEEDED = ("format", "name", "dimension", "files", "digests", "level", "model")


@dataclass(frozen=True)
class Truth:
    """What is known about a case.

    Attributes:
        record: content of ``case.json``.
        field: displacement field, from the fixed to the moving image: vector image, LPS, millimeters.
        fixed, moving: the images.
        counted: on its grid: 1 where the body counts, 2 and 3 where the truth reads from outside of the moving image.
        names, on_fixed, on_moving: the landmarks that count; the points are (K, d), LPS, millimeters.
        fixed_label, moving_label: labels, if there are any.
    """

    record: dict[str, Any]
    field: sitk.Image
    fixed: sitk.Image
    moving: sitk.Image
    counted: sitk.Image
    names: list[str]
    on_fixed: np.ndarray
    on_moving: np.ndarray
    fixed_label: sitk.Image | None = None
    moving_label: sitk.Image | None = None

    @cached_property
    def transform(self) -> sitk.Transform:
        """Transform from points of the fixed to points of the moving image (LPS, millimeters)."""
        return displacement_transform(self.field)

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """Map points of the moving to points of the fixed image: (K, d) -> (K, d), LPS, millimeters."""
        return inverse_points(self.field, points)


def read_truth(folder: Path) -> Truth:
    """Read the truth of a case.

    Args:
        folder: ``CASES/truth/NAME``; the pair is expected in ``CASES/pairs/NAME``.

    Raises:
        ImageError: it is no such folder, or its files are missing or are not those of the case.
    """
    try:
        record = read_object(folder / CASE, _NEEDED)
        files = {kind: _place(folder, file) for kind, file in record["files"].items()}
        digests = dict(record["digests"])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ImageError(
            f"'{folder}' is not the truth of a case; choose a folder in 'truth' that 'drdm challenge' has made."
        ) from error
    if record["format"] != FORMAT:
        raise ImageError(f"The case '{folder}' was made by another version of DRDM; make it again.")
    for kind, path in files.items():
        if not path.is_file():
            raise ImageError(
                f"'{path}' of the case '{record['name']}' is missing; "
                "keep the folders 'pairs' and 'truth' side by side."
            )
        if digest_of_files([path]) != digests.get(kind):
            raise ImageError(
                f"'{path}' is not the file that belongs to the case '{record['name']}'; "
                "choose the truth of this pair, or make the case again."
            )
    fixed = read_image(files["fixed"], need_contrast=False)
    moving = read_image(files["moving"], need_contrast=False)
    names, on_fixed, on_moving = _landmarks(files["landmarks"])
    labeled = "fixed_label" in files and "moving_label" in files
    return Truth(
        record,
        sitk.Cast(read_field(files["field"]), sitk.sitkVectorFloat64),
        fixed,
        moving,
        read_image(files["counted"], need_contrast=False),
        names,
        on_fixed.reshape(-1, fixed.GetDimension()),
        on_moving.reshape(-1, fixed.GetDimension()),
        read_label(files["fixed_label"], fixed) if labeled else None,
        read_label(files["moving_label"], moving) if labeled else None,
    )


def _place(folder: Path, file: str) -> Path:
    """Return the path of a file of a case; its name in the record is relative to the folder of all cases."""
    path = Path(file)
    return folder / path.name if path.parts[0] == "truth" else folder / ".." / ".." / path


def _landmarks(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["counts"] == "1"]
    points = [
        np.asarray([[float(v) for k, v in row.items() if k.startswith(side)] for row in rows])
        for side in ("fixed_", "moving_")
    ]
    return [row["name"] for row in rows], points[0], points[1]
