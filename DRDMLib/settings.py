"""Settings of a deformation, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from .diffusion.affine import MAX_POSE
from .diffusion.recovery import STARTS, require_level, start_level, step_schedule
from .errors import SettingError
from .spatial.model_grid import require_plane

DEFAULT_LEVEL = 48


@dataclass(frozen=True)
class DeformationSettings:
    """How to deform an image; the same settings, model, seed and device give the same deformation.

    Attributes:
        level: T', 0 (nothing) to T-1 (strongest).
        steps: recovery steps; ``None`` takes as many as have the effect of one for each level (12 for the shipped
            models). With as many as the model has levels, or more, there is one for each.
        pose: how much the whole is also rotated, scaled and shifted, 0 to 2; at 1 by up to 15 degrees, 15 % and 6 %
            of the side, see :mod:`DRDMLib.diffusion.affine`. A seed gives the same anatomy in any pose.
        plane: for a 2D model on a volume: ``"axial"``, ``"coronal"``, ``"sagittal"`` or ``"auto"``.
        start: recovery counts down from ``"level"`` as in the paper, or from the top, ``"full"``, as in the authors'
            script.

    Raises:
        SettingError: a setting is out of its range.
    """

    level: int = DEFAULT_LEVEL
    steps: int | None = None
    pose: float = 0.0
    plane: str = "auto"
    start: str = "level"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"{self.steps} recovery steps are too few; use at least 1.")
        if not 0 <= self.pose <= MAX_POSE:
            raise SettingError(f"Pose {self.pose:g} is out of range; use 0 (none) to {MAX_POSE:g}.")
        if self.start not in STARTS:
            raise SettingError(f"start='{self.start}' is not known; use 'level' or 'full'.")
        require_plane(self.plane)

    def schedule(self, timesteps: int) -> list[tuple[int, int]]:
        """The levels that recovery visits, see :func:`DRDMLib.diffusion.recovery.step_schedule`.

        Args:
            timesteps: number of levels of the model.

        Raises:
            SettingError: the model does not have this level.
        """
        require_level(self.level, timesteps)
        return step_schedule(timesteps, start_level(self.start, self.level, timesteps), self.steps)
