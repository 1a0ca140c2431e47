"""The poses of the people that a model knows: how much they differ in position, angle, size and stretch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ..diffusion.poses import DRAWN, PoseSpread
from ..errors import ModelError, SettingError
from ..io.resources import resource
from ..levels import AUTO_POSE
from ..settings import DeformationSettings
from .metadata import ModelMetadata

# Spreads of the shipped models' training subjects, beside the models; ``Testing/recipes/measure_poses.py`` wrote them.
TABLE = "poses.json"


def poses_of(metadata: ModelMetadata) -> PoseSpread | None:
    """Return the spread of the poses of the people of a model's anatomy; ``None`` if it is not known.

    Raises:
        ModelError: that in the model's file is not valid.
    """
    values = metadata.poses or _shipped().get(metadata.name)
    try:
        return None if values is None else dataclasses.replace(PoseSpread.from_dict(values), drawn=DRAWN)
    except SettingError as error:
        raise ModelError(
            f"The model file of '{metadata.name}' is damaged (its 'poses' are not valid); download or copy it again."
        ) from error


def with_pose(settings: DeformationSettings, metadata: ModelMetadata) -> DeformationSettings:
    """Return the settings with a pose ``"auto"`` replaced by the spread that a model knows, or by none.

    Raises:
        ModelError: as :func:`poses_of`.
    """
    if settings.pose != AUTO_POSE:
        return settings
    return dataclasses.replace(settings, pose=poses_of(metadata) or 0.0)


def _shipped() -> dict[str, Any]:
    with resource("Models", TABLE).open(encoding="utf-8") as stream:
        return dict(json.load(stream))
