"""Settings of a deformation, validated on creation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from .diffusion.affine import MAX_POSE
from .diffusion.poses import PoseSpread
from .diffusion.recovery import STARTS, require_level, start_level, step_schedule
from .errors import ImageError, SettingError
from .levels import AUTO_POSE, DEFAULT_LEVEL, Level, require_strength
from .spatial.model_grid import require_plane
from .spatial.region import Region

BORDERS = ("auto", "closed", "open")
BONES = ("auto", "rigid", "free")

# See :class:`DeformationSettings`.
Pose: TypeAlias = float | str | PoseSpread


def pose_entry(pose: Pose) -> Any:
    """Return a pose as plain values, for records and reports."""
    return pose.to_dict() if isinstance(pose, PoseSpread) else pose


def pose_of(values: Any) -> Pose:
    """Read the values that :func:`pose_entry` returned.

    Raises:
        SettingError: they are not valid.
    """
    return PoseSpread.from_dict(values) if isinstance(values, dict) else values


@dataclass(frozen=True)
class RegionSettings:
    """Where an image is deformed; everything else stays as it is.

    Attributes:
        regions: boxes. If there are none and ``around`` is ``None``, the whole image is deformed, except for ``keep``.
        around: values of labels; each image is deformed in boxes around these labels of its own label map. An empty
            tuple means all labels.
        margin: largest distance from a box at which anything moves, millimeters. By default it follows from the
            displacement. Where it is too small for the displacement, the displacement is made smaller.
        keep: values of labels that do not move, such as bones.
        keep_mask: path of a mask that does not move; it is used for every image.

    Raises:
        SettingError: there are both regions and ``around``, or the margin is not above 0.
    """

    regions: tuple[Region, ...] = ()
    around: tuple[int, ...] | None = None
    margin: float | None = None
    keep: tuple[int, ...] = ()
    keep_mask: str = ""

    def __post_init__(self) -> None:
        if self.regions and self.around is not None:
            raise SettingError("Give either a region or labels to deform around, not both.")
        if self.margin is not None and not 0 < self.margin < float("inf"):
            raise SettingError(f"A margin of {self.margin:g} mm is out of range; use more than 0.")
        if self.margin is not None and not self.regions and self.around is None:
            raise SettingError("A margin needs a region; give one with --region or --around.")

    def renumbered(self, mapping: dict[int, int]) -> RegionSettings:
        """Return the settings for label maps with new values.

        Args:
            mapping: new number of each value that the label maps have.

        Raises:
            ImageError: none of the labels to deform around, or none of those to keep, exists.
        """
        changed = {}
        for name, option in (("around", "--around"), ("keep", "--keep")):
            values: tuple[int, ...] = getattr(self, name) or ()
            found = tuple(mapping[value] for value in values if value in mapping)
            if values and not found:
                present = ", ".join(str(value) for value in sorted(mapping) if value) or "none"
                raise ImageError(
                    f"No label has the value {', '.join(map(str, values))} of {option}; the labels have {present}."
                )
            if values:
                changed[name] = found
        return replace(self, **changed)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for records and reports."""
        around: Any = None if self.around is None else list(self.around) or "all"
        return {
            "boxes": [list(region.numbers) for region in self.regions],
            "around": around,
            "margin": self.margin,
            "keep": list(self.keep),
            "keep_mask": self.keep_mask,
        }

    @staticmethod
    def of(values: dict[str, Any] | None) -> RegionSettings | None:
        """Read the values that :meth:`to_dict` returned; ``None`` for none.

        Raises:
            SettingError: they are not valid.
        """
        if values is None:
            return None
        try:
            around = values["around"]
            return RegionSettings(
                tuple(Region.of(numbers) for numbers in values["boxes"]),
                None if around is None else () if around == "all" else tuple(map(int, around)),
                values["margin"],
                tuple(map(int, values["keep"])),
                str(values["keep_mask"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError("The record has no valid 'region'; choose the unchanged file of a run.") from error


@dataclass(frozen=True)
class DeformationSettings:
    """How to deform an image; the same settings, model, seed and device give the same deformation.

    Attributes:
        level: strength of the deformation: T' of the paper, 0 (weakest) to T-1 (strongest); or a word that means the
            same for every model, ``"subtle"``, ``"medium"`` or ``"strong"``, see :mod:`DRDMLib.models.strength`.
        steps: number of recovery steps. ``None`` uses the model's default (6 for the shipped models), which has nearly
            the same effect as one step for each level. Numbers above the number of levels mean one step for each.
        pose: amount of rotation, scaling and shift of the whole image in addition, 0 (none) to 2. At 1 they are at most
            15 degrees, 15 % and 6 % of the side, see :mod:`DRDMLib.diffusion.affine`. A
            :class:`DRDMLib.diffusion.poses.PoseSpread` draws from a population; ``"auto"`` from that of the model, if
            it has one, and in a batch of ten scans or more from that of the scans. A seed gives the same anatomy in any
            pose.
        plane: slice plane for a 2D model on a volume: ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"auto"`` for the
            plane of the acquisition.
        start: level from which recovery counts down: ``"level"`` (as in the paper), or ``"full"`` for T-1 (as in the
            authors' script).
        border: what happens where tissue touches a face of the scan. ``"closed"``: tissue there moves along the face
            only, so that nothing moves in from outside, except by a pose or toward another scan. ``"open"``: it moves
            freely, and a mirror image of the scan moves in. ``"auto"``: closed, but open for a 2D model on the slices
            of a volume, where closed faces would keep copies of hearts from covering the shapes of other people.
        region: where the image is deformed; ``None`` for the whole image. A pose moves the whole image in any case.
        bones: whether bone in CT stays rigid. ``"auto"``: in images whose values are Hounsfield units, but not with a
            2D model on the slices of a volume. ``"rigid"``: in any image; bone is what is above 300. ``"free"``: bone
            is deformed like everything else. A pose turns, scales and shifts bone in any case.

    Raises:
        SettingError: a setting is out of range.
    """

    level: Level = DEFAULT_LEVEL
    steps: int | None = None
    pose: Pose = 0.0
    plane: str = "auto"
    start: str = "level"
    border: str = "auto"
    region: RegionSettings | None = None
    bones: str = "auto"

    def __post_init__(self) -> None:
        require_strength(self.level)
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"{self.steps} recovery steps are too few; use at least 1.")
        if isinstance(self.pose, str):
            if self.pose != AUTO_POSE:
                raise SettingError(f"The pose '{self.pose}' is not known; use 'auto', or 0 (none) to {MAX_POSE:g}.")
        elif not isinstance(self.pose, PoseSpread) and not 0 <= self.pose <= MAX_POSE:
            raise SettingError(f"Pose {self.pose:g} is out of range; use 0 (none) to {MAX_POSE:g}, or 'auto'.")
        if self.start not in STARTS:
            raise SettingError(f"start='{self.start}' is not known; use 'level' or 'full'.")
        if self.border not in BORDERS:
            raise SettingError(f"border='{self.border}' is not known; use 'auto', 'closed' or 'open'.")
        if self.bones not in BONES:
            raise SettingError(f"bones='{self.bones}' is not known; use 'auto', 'rigid' or 'free'.")
        require_plane(self.plane)

    def closes_faces(self, *, slices: bool) -> bool:
        """Whether nothing crosses faces of the scan that tissue touches, except by a pose or toward another scan.

        Args:
            slices: whether a 2D model deforms the slices of a volume.
        """
        return self.border == "closed" or (self.border == "auto" and not slices)

    def region_entry(self) -> dict[str, Any]:
        """Return the entry ``region`` of a record; nothing for the whole image."""
        return {} if self.region is None else {"region": self.region.to_dict()}

    def drawn_pose(self) -> float | PoseSpread:
        """Return the pose, which must not be a word by now.

        Raises:
            SettingError: it is ``"auto"``, see :func:`DRDMLib.models.population.with_pose`.
        """
        if isinstance(self.pose, str):
            raise SettingError(f"The pose '{self.pose}' is not known yet; choose the model first.")
        return self.pose

    def poses_entry(self) -> dict[str, Any]:
        """Return the entry ``poses`` of a run: the spread that poses are drawn from; nothing without one."""
        return {"poses": self.pose.to_dict()} if isinstance(self.pose, PoseSpread) else {}

    def bones_entry(self) -> dict[str, str]:
        """Return the entry ``bones`` of a record; nothing for free bones, as in records from before this setting."""
        return {} if self.bones == "free" else {"bones": self.bones}

    def schedule(self, timesteps: int) -> list[tuple[int, int]]:
        """List the levels that recovery visits, see :func:`DRDMLib.diffusion.recovery.step_schedule`.

        Args:
            timesteps: number of levels of the model, T.

        Raises:
            SettingError: the model does not have this level, or the level is a word, see
                :func:`DRDMLib.models.strength.with_level`.
        """
        return step_schedule(timesteps, start_level(self.start, self.number(timesteps), timesteps), self.steps)

    def number(self, timesteps: int) -> int:
        """Return the level, which must be a number by now.

        Args:
            timesteps: number of levels of the model, T.

        Raises:
            SettingError: the model does not have this level, or the level is a word.
        """
        if not isinstance(self.level, int):
            raise SettingError(f"The level '{self.level}' is not a number yet; choose the model first.")
        require_level(self.level, timesteps)
        return self.level
