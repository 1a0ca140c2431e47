"""Whether a volume plainly does not fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import nameOf
from .i18n import tr as _
from .volumes import imageDimension


def fitWarnings(volumeNode: Any, model: Mapping[str, Any]) -> list[str]:
    """What speaks against using a model on a volume, a sentence each; empty if nothing does.

    Args:
        volumeNode: scalar volume.
        model: ``name``, ``ndim``, and if known ``anatomy``, ``modality`` and ``extent_mm``: the smallest and largest
            longest side that it is meant for.

    Raises:
        SceneError: the volume cannot be used at all.
    """
    dimension, extent = imageDimension(volumeNode)
    name, volume = str(model.get("name") or "this model"), nameOf(volumeNode)
    ndim = int(model.get("ndim") or 3)
    warnings = []
    if ndim == 3 and dimension == 2:
        warnings.append(
            _("'{volume}' is a single slice, and {name} is for volumes; choose a 2D model.").format(
                volume=volume, name=name
            )
        )
    if ndim == 2 and dimension == 3:
        warnings.append(
            _("{name} is for slices; '{volume}' will be deformed within its slices, all of them alike.").format(
                name=name, volume=volume
            )
        )
    limits = model.get("extent_mm")
    if limits is None:
        return warnings
    low, high = (float(v) for v in limits)
    # A 2D model sees slices: their depth in the stack does not count.
    sides = sorted(extent)[1:] if ndim == 2 and dimension == 2 else extent
    longest = max(sides)
    if not low <= longest <= high:
        subject = " ".join(str(model[key]) for key in ("anatomy", "modality") if model.get(key))
        meant = _("images {low} to {high} mm long").format(low=f"{low:.0f}", high=f"{high:.0f}")
        meant += f" ({subject})" if subject else ""
        advice = _("crop it to the region first") if longest > high else _("choose another model")
        warnings.append(
            _("'{volume}' is {longest} mm long, but {name} is meant for {meant}; {advice}.").format(
                volume=volume, longest=f"{longest:.0f}", name=name, meant=meant, advice=advice
            )
        )
    return warnings
