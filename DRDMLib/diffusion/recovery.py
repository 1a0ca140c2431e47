"""Algorithm 2: pull a deformed image back, step by step, to something plausible that is not the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SettingError
from .fields import compose, invertible_step, self_compose, warp

if TYPE_CHECKING:
    from ..models.model import Model

STARTS = ("level", "full")


def require_level(level: int, timesteps: int) -> None:
    """Raise SettingError unless ``level`` is one of a model with so many levels."""
    if not 0 <= level < timesteps:
        raise SettingError(f"Level {level} is out of range; this model takes 0 to {timesteps - 1}.")


def step_schedule(timesteps: int, level: int, steps: int | None) -> list[tuple[int, int]]:
    """List the levels that recovery visits, each with how often its step is applied.

    Args:
        timesteps: number of levels of the model, T.
        level: where recovery starts; it counts down to 0.
        steps: visit only this many levels, evenly spread; each step is then applied as often as it stands for.

    Raises:
        SettingError: ``level`` or ``steps`` is out of range.
    """
    require_level(level, timesteps)
    levels = list(range(level, -1, -1))
    if steps is None or steps >= len(levels):
        return [(t, 1) for t in levels]
    if steps < 1:
        raise SettingError(f"{steps} recovery steps are too few; use at least 1.")
    edges = [round(i * len(levels) / steps) for i in range(steps + 1)]
    return [(levels[(a + b) // 2], b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def start_level(start: str, level: int | None, timesteps: int) -> int:
    """The level that recovery starts from: ``level`` (the paper), or with ``start="full"`` T-1 (the authors' script).

    Raises:
        SettingError: ``start`` is not known, or ``start="level"`` without a level of the model.
    """
    if start not in STARTS:
        raise SettingError(f"start='{start}' is not known; use 'level' or 'full'.")
    if start == "full":
        return timesteps - 1
    if level is None:
        raise SettingError("Recovery needs a level to start from; give level, or start='full'.")
    require_level(level, timesteps)
    return level


@torch.inference_mode()
def recover(
    model: Model,
    image: Tensor,
    ddf: Tensor,
    start: str = "level",
    level: int | None = None,
    steps: int | None = None,
    exact: bool = False,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Algorithm 2 of the paper: recover from a random deformation.

    Each step warps the original image, never an already warped one. The published 2D weights amplify differences of
    the last bit about threefold a step (so do the authors' own programs): results agree to the bit on one machine,
    and only in their statistics between machines.

    Args:
        model: gives the network and how images are warped.
        image: (N, 1, *S), 0..1, the original.
        ddf: (N or 1, d, *S), fraction of the side, the random deformation psi_{T':1}.
        start: ``"level"`` counts down from ``level``, ``"full"`` from T-1.
        level: T', needed for ``start="level"``.
        steps: visit only this many levels.
        exact: the published arithmetic and nothing added. Otherwise each step is kept gentle enough to be invertible,
            and compositions continue the field by its border's values instead of putting zeros there, which tears it:
            the step so continued is still invertible, and no value is read from where nothing is defined.
        on_step: called with (done, total, field so far); may raise to cancel.

    Returns:
        (N, d, *S), fraction of the side: the recovered deformation of ``image``.

    Raises:
        SettingError: ``start``, ``level`` or ``steps`` out of range.
    """
    how = model.metadata
    padding = how.composition_padding if exact else "border"
    image = image.to(model.device)
    phi = ddf.to(model.device).expand(image.shape[0], -1, *[-1] * model.ndim)
    at = start_level(start, level, model.timesteps)
    visits = step_schedule(model.timesteps, at, steps)
    for done, (t, times) in enumerate(visits, start=1):
        warped = warp(image, phi, padding=how.image_padding, mode=how.image_interpolation)
        if model.supports_target_level:
            psi = model.predict_to(warped, at, at - times)
        else:
            # A second look refines one step; it is not worth its time where a step stands for several.
            psi = model.predict(warped, t, quick=not exact, once=times > 1 and not exact)
        at -= times
        if times > 1 and not model.supports_target_level:
            psi = self_compose(psi, times)
        if not exact:
            psi = invertible_step(psi)
        phi = compose(phi, psi, padding=padding)
        if on_step is not None:
            on_step(done, len(visits), phi)
    return phi
