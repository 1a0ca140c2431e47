"""Make the cases of a challenge: a moving and a fixed image, and the truth in a folder of its own.

``CASES/pairs/NAME`` has what a registration program may see, ``CASES/truth/NAME`` the transform from points of the
fixed to points of the moving image, landmarks and labels on both sides, and which voxels count.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .. import output
from ..deformation import displacement_transform
from ..deforming import make_deformations
from ..invertibility.inverse import inverse_points
from ..io.files import digest_of_files, to_json, write_text
from ..io.images import read_field
from ..io.points import Landmarks
from ..models.model import Model
from ..production.plan import seed_of
from ..production.records import device_described, software
from ..settings import DeformationSettings
from ..spatial.coordinates import inside
from ..spatial.resampling import warp_image, warp_label
from .changes import Recipe, alter, cut, draw_changes, fixed_grid
from .landmarks import choose_landmarks

CASE = "case.json"
FORMAT = 1
# Tissue is brighter than this share of the range of gray values.
_TISSUE = 0.1
# Pieces smaller than this part of the largest one are no part of the body.
_PIECE = 0.02
# Values of counted.nii.gz: the body that counts, the body that is read from outside of the moving image, and what else
# is read from there.
COUNTS, FROM_OUTSIDE, EMPTY_OUTSIDE = 1, 2, 3


@dataclass(frozen=True)
class Scan:
    """The scan of which cases are made.

    Attributes:
        name: of the cases, without suffix.
        label: on the grid of the image.
        points: landmarks of the user.
        source: file names and digests, for the record.
    """

    name: str
    image: sitk.Image
    label: sitk.Image | None = None
    points: Landmarks | None = None
    source: dict[str, Any] = field(default_factory=dict)


def make_cases(
    folder: Path,
    scan: Scan,
    model: Model,
    digest: str,
    recipe: Recipe,
    settings: DeformationSettings,
    *,
    recipe_name: str = "",
    count: int = 1,
    seed: int = 0,
    on_case: Callable[[dict[str, Any]], None] = lambda case: None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write cases into an empty folder.

    Args:
        digest: of the model's file.
        settings: of the deformations; level and pose are those of the recipe.
        on_case: called with the record of each case.

    Returns:
        The records of the cases, as in their files ``case.json``.

    Raises:
        ImageError, ModelError, SettingError, OutputError: as :func:`DRDMLib.deform`, or a file cannot be written.
    """
    cases = []
    for number in range(count):
        level = recipe.levels[number % len(recipe.levels)]

        def progress(done: int, total: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, count * total)

        how = replace(settings, level=level, pose=recipe.pose)
        name = f"{scan.name}_{number:03d}"
        drawn = seed_of(seed, scan.name, (level,), number, 0)
        context = {
            "format": FORMAT,
            "name": name,
            "recipe": {"name": recipe_name, **recipe.to_dict()},
            "level": level,
            "pose": recipe.pose,
            "seed": drawn,
            "model": {"name": model.metadata.name, "digest": digest},
            "software": software(),
            "device": device_described(model.device),
            "source": scan.source,
        }
        cases.append(_make_case(folder, name, scan, model, recipe, how, drawn, context, progress))
        on_case(cases[-1])
    return cases


def _make_case(
    folder: Path,
    name: str,
    scan: Scan,
    model: Model,
    recipe: Recipe,
    settings: DeformationSettings,
    seed: int,
    context: dict[str, Any],
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    def write_field(path: Path) -> Path:
        made = next(make_deformations(scan.image, model, settings, (seed,), on_step=on_step))
        return output.write_field(path, made)

    return write_case(folder, name, scan, recipe, seed, context, write_field)


def write_case(
    folder: Path,
    name: str,
    scan: Scan,
    recipe: Recipe,
    seed: int,
    context: dict[str, Any],
    write_field: Callable[[Path], Path],
) -> dict[str, Any]:
    """Write one case with a field that is made or known.

    Args:
        folder: of all cases.
        seed: of the changes.
        context: what the record says of the field and of how it was made.
        write_field: writes the displacement field (LPS, millimeters) and returns its path.

    Returns:
        The record of the case.

    Raises:
        OutputError: a file cannot be written.
    """
    pair, truth = folder / "pairs" / name, folder / "truth" / name
    for new in (pair, truth):
        output.make_output_folder(new)
    # The field as it is saved, with 32 bits, is the truth.
    field_path = write_field(truth / "field.nii.gz")
    saved = read_field(field_path)
    transform = displacement_transform(sitk.Cast(saved, sitk.sitkVectorFloat64))
    changes = draw_changes(recipe, scan.image, seed)
    moving, grid = cut(scan.image, changes), fixed_grid(scan.image, changes)
    fixed = alter(warp_image(scan.image, grid, transform), changes)
    counted = _counted(scan.image, moving, grid, transform)
    files = {
        "moving": output.write_image(pair / "moving.nii.gz", moving),
        "fixed": output.write_image(pair / "fixed.nii.gz", fixed),
        "field": field_path,
        "counted": output.write_image(truth / "counted.nii.gz", counted),
    }
    if scan.label is not None:
        label = scan.label if moving is scan.image else cut(scan.label, changes)
        files["moving_label"] = output.write_image(truth / "moving_label.nii.gz", label)
        warped = warp_label(scan.label, grid, transform)
        files["fixed_label"] = output.write_image(truth / "fixed_label.nii.gz", warped)
    landmarks = scan.points or choose_landmarks(moving, _body(moving))
    on_fixed = inverse_points(saved, landmarks.points)
    counts = inside(landmarks.points, moving) & inside(on_fixed, grid)
    if scan.points is None:
        # Only those of the user are kept where they do not count.
        names = [name for name, count in zip(landmarks.names, counts, strict=True) if count]
        landmarks, on_fixed = Landmarks(names, landmarks.points[counts]), on_fixed[counts]
        counts = counts[counts]
    files["landmarks"] = write_text(truth / "landmarks.csv", _table(landmarks, on_fixed, counts))
    voxels = sitk.GetArrayViewFromImage(counted)
    lost, body = int((voxels == FROM_OUTSIDE).sum()), int(np.isin(voxels, (COUNTS, FROM_OUTSIDE)).sum())
    record = context | {
        "dimension": scan.image.GetDimension(),
        "changes": changes.to_dict(),
        "not_counted": {
            "voxels": lost / max(1, body),
            "landmarks": float(1 - counts.mean()) if len(counts) else 0.0,
        },
        "landmarks": {"count": len(counts), "given": scan.points is not None},
        "files": {kind: path.relative_to(folder).as_posix() for kind, path in files.items()},
        "digests": {kind: digest_of_files([path]) for kind, path in files.items()},
    }
    write_text(truth / CASE, to_json(record, indent=1) + "\n")
    return record


def _counted(scan: sitk.Image, moving: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Mark the body on the grid of the fixed image: what counts, and what is read from outside the moving image."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(grid)
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    whole = sitk.Image(moving.GetSize(), sitk.sitkUInt8) + 1
    whole.CopyInformation(moving)
    from_inside = sitk.GetArrayFromImage(resampler.Execute(whole))
    resampler.SetUseNearestNeighborExtrapolator(True)
    body = sitk.GetArrayFromImage(resampler.Execute(_body(scan)))
    values = np.where(from_inside > 0, np.where(body > 0, COUNTS, 0), np.where(body > 0, FROM_OUTSIDE, EMPTY_OUTSIDE))
    counted = sitk.GetImageFromArray(values.astype(np.uint8))
    counted.CopyInformation(grid)
    return counted


def _body(image: sitk.Image) -> sitk.Image:
    """Return the mask of what is brighter than a tenth of the range of gray values, with its holes filled."""
    view = sitk.GetArrayViewFromImage(image)
    low, high = np.percentile(view.ravel()[:: max(1, view.size // 2**22)].astype(np.float64), [0.5, 99.5])
    if not high > low:
        low, high = float(view.min()), float(view.max())
    mask = view > low + _TISSUE * (high - low)
    names, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(names.ravel())
        sizes[0] = 0
        mask = (sizes >= _PIECE * int(np.max(sizes)))[names]
    mask = _filled(mask)
    body = sitk.GetImageFromArray(mask.astype("u1"))
    body.CopyInformation(image)
    return body


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill holes, also those that are open at the ends of the scan: what is enclosed in a slice along any axis."""
    filled: np.ndarray = ndimage.binary_fill_holes(mask)
    for axis in range(3) if mask.ndim == 3 else ():
        slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, axis, 0)]
        filled |= np.stack(slices, axis)
    return filled


def _table(landmarks: Landmarks, on_fixed: np.ndarray, counts: Sequence[bool] | np.ndarray) -> str:
    axes = "xyz"[: on_fixed.shape[1]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(f"fixed_{a}" for a in axes), *(f"moving_{a}" for a in axes), "counts"])
    for name, at, to, count in zip(landmarks.names, on_fixed, landmarks.points, counts, strict=True):
        writer.writerow([name, *(f"{v:.6f}" for v in (*at, *to)), int(count)])
    return text.getvalue()
