"""Find the stack that the slices of a DICOM series or the frames of a DICOM file are, or say why they are none.

The attributes are those of DICOM PS3.3, C.7.6.2 (image plane).
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import FallbackWarning, ImageError

# Largest deviation of the distance between two slices from the median distance, as a fraction of it.
_UNEVEN = 0.1
# Largest distance of a slice from its place in an even stack: millimeters, and as a fraction of the spacing of the
# slices (along the normal) or of the pixels (within the plane).
_DISPLACED, _DISPLACED_FRACTION = 0.5, 0.25
# Largest difference of direction cosines, and relative difference of pixel spacings.
_TURN, _STRETCH = 1e-3, 1e-3
# Largest cosine of the angle between rows and columns (half a degree), and error of the length of a direction.
_OBLIQUE = 8.7e-3
# Shortest distance between two positions in millimeters, and as a fraction of the median one.
_SAME, _SAME_FRACTION = 1e-3, 0.01


@dataclass(frozen=True)
class Slice:
    """The header of a slice or frame.

    Attributes:
        position: of the center of the first pixel (3,), in millimeters, LPS.
        orientation: direction cosines of rows and columns (6,).
        spacing: of the pixels along a row and along a column, in millimeters.
        size: columns and rows.
        scale: slope and intercept of the stored values.
        pixel: SimpleITK pixel type.
        frames: number of frames in the file.
        gap: spacing of the slices according to the header, 0 if there is none.
        thickness: of the slices, 0 if there is none.
        number: instance number, or "".
        has_spacing: whether the header has a pixel spacing.
    """

    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float]
    size: tuple[int, int]
    scale: tuple[float, float]
    pixel: int = 0
    frames: int = 1
    gap: float = 0.0
    thickness: float = 0.0
    number: str = ""
    has_spacing: bool = True


@dataclass(frozen=True)
class Stack:
    """An even stack of slices at right angles.

    Attributes:
        order: the slices from the first to the last position along the normal.
        direction: matrix (3, 3) with the axes in its columns.
        origin: position of the first slice.
        spacing: of the voxels, in millimeters.
    """

    order: list[int]
    direction: np.ndarray
    origin: np.ndarray
    spacing: tuple[float, float, float]


def numbers(text: str, count: int) -> np.ndarray | None:
    """Read several numbers that are separated by backslashes; None if they are not finite or not that many."""
    try:
        values = np.asarray([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def number(text: Any, default: float = 0.0) -> float:
    """Read a number; the default if there is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return default


def find_stack(slices: list[Slice], name: str, parts: str) -> Stack:
    """Find the stack that slices or frames are.

    Args:
        name: of the series or file, in error messages.
        parts: what the slices are called in error messages.
    """
    whole = f"{name} is not one volume"
    apart = "put those of one volume in a folder of their own" if parts == "slices" else "export one volume at a time"
    sizes = sorted({one.size for one in slices})
    if len(sizes) > 1:
        found = ", ".join(f"{x} x {y}" for x, y in sizes[:3])
        raise ImageError(f"{whole}: its {parts} have {len(sizes)} sizes ({found} pixels); {apart}.")
    pixels = np.asarray([one.spacing for one in slices])
    if np.abs(pixels / pixels[0] - 1).max() > _STRETCH:
        raise ImageError(
            f"{whole}: the pixel spacing of its {parts} is from {pixels.min():g} to {pixels.max():g} mm; {apart}."
        )
    if len(slices) > 1 and not all(one.has_spacing for one in slices):
        warnings.warn(f"{name} has no pixel spacing; {pixels[0, 0]:g} mm is assumed.", FallbackWarning, stacklevel=4)
    direction = _direction(slices, whole, parts, apart)
    positions = [one.position for one in slices if one.position is not None]
    if not positions:
        return _stack_without_positions(slices, direction, name, parts)
    if len(positions) < len(slices):
        raise ImageError(
            f"{whole}: {len(slices) - len(positions)} of its {len(slices)} {parts} have no position; {apart}."
        )
    places = np.asarray(positions) @ direction
    order = np.argsort(places[:, 2], kind="stable").tolist()
    places = places[order]
    shift = float(np.linalg.norm(places[:, :2] - places[0, :2], axis=1).max())
    if shift > min(_DISPLACED, _DISPLACED_FRACTION * float(pixels[0].min())):
        raise ImageError(
            f"{whole} with right angles: its {parts} are shifted by up to {shift:.1f} mm within their plane "
            "(as with a tilted gantry); resample them to a right-angled grid with another program first."
        )
    step = _even_step(places[:, 2], whole, parts, apart) if len(slices) > 1 else slices[0].gap or slices[0].thickness
    expected = max(slices[0].gap, slices[0].thickness)
    if len(slices) == 2 and slices[0].gap and step > 1.5 * expected:
        # With three and more, a missing slice shows in the other distances.
        raise ImageError(
            f"{whole}: its two {parts} are {step:.2f} mm apart, but the spacing in the header is {expected:.2f} mm; "
            "add the missing ones."
        )
    origin = np.asarray(positions)[order[0]]
    return Stack(order, direction, origin, (*slices[0].spacing, step))


def _direction(slices: list[Slice], whole: str, parts: str, apart: str) -> np.ndarray:
    given = [one.orientation for one in slices if one.orientation is not None]
    if not given:
        return np.eye(3)
    if len(given) < len(slices):
        raise ImageError(
            f"{whole}: {len(slices) - len(given)} of its {len(slices)} {parts} have no orientation; {apart}."
        )
    kinds: list[np.ndarray] = []
    for one in given:
        if not any(np.abs(one - kind).max() <= _TURN for kind in kinds):
            kinds.append(one)
    if len(kinds) > 1:
        raise ImageError(
            f"{whole}: its {parts} have {len(kinds)} orientations (is a scout or localizer among them?); {apart}."
        )
    rows, columns = given[0][:3], given[0][3:]
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(rows @ columns)) > _OBLIQUE:
        raise ImageError(f"{whole}: the rows and columns of its {parts} are not at right angles; export it again.")
    if abs(rows @ columns) > _TURN:
        angle = np.degrees(np.arcsin(abs(rows @ columns)))
        warnings.warn(
            f"{whole.removesuffix(' is not one volume')}: the rows and columns of its {parts} are {angle:.2f} degrees "
            "off a right angle; right-angled ones are used.",
            FallbackWarning,
            stacklevel=5,
        )
    # GDCM replaces an orientation with such errors of rounding by an axial one.
    rows = rows / lengths[0]
    columns = columns - rows * (rows @ columns)
    columns = columns / np.linalg.norm(columns)
    return np.stack([rows, columns, np.cross(rows, columns)], axis=1)


def _even_step(heights: np.ndarray, whole: str, parts: str, apart: str) -> float:
    """Return the spacing of slices at the given positions along their normal, in ascending order."""
    steps = np.diff(heights)
    same = steps < max(_SAME, _SAME_FRACTION * float(np.median(steps)))
    if same.any():
        groups = Counter(np.concatenate([[0], np.cumsum(~same)]).tolist())
        often = [count for count in groups.values() if count > 1]
        times = "twice" if max(often) == 2 else f"up to {max(often)} times"
        raise ImageError(
            f"{whole}: {len(often)} of {len(groups)} positions occur {times} (echoes, time points or copies?); {apart}."
        )
    step = float(heights[-1] - heights[0]) / len(steps)
    uneven = np.abs(steps / np.median(steps) - 1).max() > _UNEVEN
    displaced = np.abs(heights - heights[0] - step * np.arange(len(heights))).max()
    if uneven or displaced > min(_DISPLACED, _DISPLACED_FRACTION * step):
        raise ImageError(
            f"{whole}: its {parts} are {steps.min():.2f} to {steps.max():.2f} mm apart; "
            "add the missing slices, or resample the series to an even spacing."
        )
    return step


def _stack_without_positions(slices: list[Slice], direction: np.ndarray, name: str, parts: str) -> Stack:
    step = slices[0].gap or slices[0].thickness
    if len(slices) == 1:
        return Stack([0], direction, np.zeros(3), (*slices[0].spacing, step))
    numbers = [one.number for one in slices if one.number]
    if not step or len({one.gap or one.thickness for one in slices}) > 1:
        raise ImageError(
            f"The {parts} of {name[0].lower()}{name[1:]} have neither positions nor one spacing, so their arrangement "
            "is unknown; export them again, or give them as single images."
        )
    if len(set(numbers)) < len(numbers):
        raise ImageError(
            f"{name} is not one volume: its {parts} have no positions, and their numbers occur several times; "
            "put those of one volume in a folder of their own."
        )
    if parts == "frames":
        by = "order in the file"
    else:
        by = "instance numbers" if len(numbers) == len(slices) else "file names"
    warnings.warn(
        f"{name} has no positions of its {parts}; they are ordered by their {by}, with the spacing of {step:g} mm in "
        "the header.",
        FallbackWarning,
        stacklevel=5,
    )
    return Stack(list(range(len(slices))), direction, np.zeros(3), (*slices[0].spacing, step))


def reversed_stack(stack: Stack) -> Stack:
    """Describe the same stack from its last slice to its first."""
    direction = stack.direction * (1, 1, -1)
    last = stack.origin + stack.direction[:, 2] * stack.spacing[2] * (len(stack.order) - 1)
    return Stack(stack.order[::-1], direction, last, stack.spacing)


def is_at(image: sitk.Image, stack: Stack) -> bool:
    """Whether an image has the geometry of a stack."""
    return (
        np.allclose(image.GetDirection(), stack.direction.ravel(), atol=1e-3)
        and np.allclose(image.GetOrigin(), stack.origin, atol=1e-2)
        and np.allclose(image.GetSpacing(), stack.spacing, rtol=1e-4)
    )


def placed(image: sitk.Image, stack: Stack) -> sitk.Image:
    """Give an image the geometry of its slices, unless ITK has found it by itself."""
    if image.GetDimension() == 3 and image.GetSize()[2] > 1 and not is_at(image, stack):
        image.SetDirection(stack.direction.ravel().tolist())
        image.SetOrigin(stack.origin.tolist())
        image.SetSpacing(stack.spacing)
    return image
