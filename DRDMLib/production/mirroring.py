"""Mirror images among the versions of a training set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..diffusion.seeds import Purpose, derived_seed
from ..errors import ImageError, SettingError
from ..levels import REFLECTIONS
from ..spatial.reflection import reflected_image

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r|lh|rh)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Mirroring:
    """How versions are mirrored after they have been deformed.

    Attributes:
        reflections: some of :data:`DRDMLib.levels.REFLECTIONS`; each is made in half of the versions.
        sides: pairs of label values, of the left and the right side of the body. They change places in versions in
            which the body is mirrored, that is after an odd number of reflections; two of them only turn it. ``None``
            if nobody has said which.

    Raises:
        SettingError: a reflection is not known, or the pairs are not valid.
    """

    reflections: tuple[str, ...]
    sides: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        unknown = next((one for one in self.reflections if one not in REFLECTIONS), None)
        if unknown is not None:
            raise SettingError(f"A scan cannot be mirrored '{unknown}'; use {', '.join(REFLECTIONS)}.")
        values = [value for pair in self.sides or () for value in pair]
        if len(set(values)) < len(values) or min(values, default=1) < 1:
            raise SettingError("Each label of --sides has one partner; give pairs of different values such as 17:53.")

    def drawn(self, seed: int) -> Mirroring:
        """Draw the reflections of a version."""
        numbers = np.random.default_rng(derived_seed(seed, Purpose.MIRROR)).random(len(REFLECTIONS))
        chosen = [one for one, number in zip(REFLECTIONS, numbers, strict=True) if number < 0.5]
        return replace(self, reflections=tuple(one for one in chosen if one in self.reflections))

    def for_labels(self, mapping: dict[int, int]) -> Mirroring:
        """Return the same for label maps with new values.

        Args:
            mapping: new number of each value that the label maps have.

        Raises:
            ImageError: no label map has one of the values.
        """
        sides = self.sides or ()
        missing = next((value for pair in sides for value in pair if value not in mapping), None)
        if missing is not None:
            present = ", ".join(str(value) for value in sorted(mapping) if value) or "none"
            raise ImageError(f"No label has the value {missing} of --sides; the labels have {present}.")
        return replace(self, sides=tuple((mapping[a], mapping[b]) for a, b in sides))

    def image(self, image: sitk.Image) -> sitk.Image:
        """Make all reflections of an image."""
        return reflected_image(image, self.reflections) if self.reflections else image

    def label(self, label: sitk.Image) -> sitk.Image:
        """Make all reflections of a label map; labels of the two sides change places where the body is mirrored."""
        mirrored = self.image(label)
        if not self.sides or len(self.reflections) % 2 == 0:
            return mirrored
        values = {float(a): float(b) for pair in self.sides for a, b in (pair, pair[::-1])}
        exchanged: sitk.Image = sitk.ChangeLabel(mirrored, values)
        return exchanged

    def require_sides(self, names: Iterable[str]) -> None:
        """Check that somebody has said which labels change places, if their names speak of sides.

        Args:
            names: of the labels.

        Raises:
            SettingError: nobody has. It cannot be known: the left ventricle of a heart stays what it is, while a left
                hippocampus becomes a right one.
        """
        named = next((name for name in names if _SIDE.search(name.replace("_", " "))), None)
        if self.sides is None and named is not None:
            raise SettingError(
                f"The label '{named}' names a side; say which labels change places in a mirror image, such as "
                "--sides 17:53 18:54, or --sides none if all stay what they are, as the ventricles of a heart do."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for records and reports."""
        sides = None if self.sides is None else [list(pair) for pair in self.sides]
        return {"reflections": list(self.reflections), "sides": sides}

    @staticmethod
    def of(values: dict[str, Any] | None) -> Mirroring | None:
        """Read the values that :meth:`to_dict` returned; ``None`` for none."""
        if values is None:
            return None
        sides = values["sides"]
        return Mirroring(tuple(values["reflections"]), None if sides is None else tuple((a, b) for a, b in sides))
