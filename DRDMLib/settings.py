"""Settings of a deformation, validated on creation."""

from __future__ import annotations

from dataclasses import dataclass

from .diffusion.affine import MAX_POSE
from .diffusion.recovery import STARTS, require_level, start_level, step_schedule
from .errors import SettingError
from .spatial.model_grid import require_plane

DEFAULT_LEVEL = 48
BORDERS = ("closed", "open")


@dataclass(frozen=True)
class DeformationSettings:
    """How to deform an image; the same settings, model, seed and device give the same deformation.

    Attributes:
        level: strength of the deformation: T' of the paper, 0 (weakest) to T-1 (strongest).
        steps: number of recovery steps. ``None`` uses the model's default (12 for the shipped models), which has nearly
            the same effect as one step for each level. Numbers above the number of levels mean one step for each.
        pose: amount of rotation, scaling and shift of the whole image in addition, 0 (none) to 2. At 1 they are at most
            15 degrees, 15 % and 6 % of the side, see :mod:`DRDMLib.diffusion.affine`. A seed gives the same anatomy in
            any pose.
        plane: slice plane for a 2D model on a volume: ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"auto"`` for the
            plane of the acquisition.
        start: level from which recovery counts down: ``"level"`` (as in the paper), or ``"full"`` for T-1 (as in the
            authors' script).
        border: what happens where tissue touches a face of the scan. ``"closed"``: tissue there moves along the face
            only, so that nothing moves in from outside, except by a pose. ``"open"``: it moves freely, and a mirror
            image of the scan moves in.

    Raises:
        SettingError: a setting is out of range.
    """

    level: int = DEFAULT_LEVEL
    steps: int | None = None
    pose: float = 0.0
    plane: str = "auto"
    start: str = "level"
    border: str = "closed"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"{self.steps} recovery steps are too few; use at least 1.")
        if not 0 <= self.pose <= MAX_POSE:
            raise SettingError(f"Pose {self.pose:g} is out of range; use 0 (none) to {MAX_POSE:g}.")
        if self.start not in STARTS:
            raise SettingError(f"start='{self.start}' is not known; use 'level' or 'full'.")
        if self.border not in BORDERS:
            raise SettingError(f"border='{self.border}' is not known; use 'closed' or 'open'.")
        require_plane(self.plane)

    def schedule(self, timesteps: int) -> list[tuple[int, int]]:
        """List the levels that recovery visits, see :func:`DRDMLib.diffusion.recovery.step_schedule`.

        Args:
            timesteps: number of levels of the model, T.

        Raises:
            SettingError: the model does not have this level.
        """
        require_level(self.level, timesteps)
        return step_schedule(timesteps, start_level(self.start, self.level, timesteps), self.steps)
