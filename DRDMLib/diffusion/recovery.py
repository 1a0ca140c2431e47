"""Recovery (Algorithm 2 of the paper): make a random deformation plausible, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SettingError
from .fields import compose, invertible_step, self_compose, warp
from .slip import SlipPlanes

if TYPE_CHECKING:
    from ..models.model import Model

STARTS = ("level", "full")
# Distance from a plane over which the normal displacement of a step grows to its full size, fraction of the side.
_RAMP = 0.15


def require_level(level: int, timesteps: int) -> None:
    """Check that a model with ``timesteps`` levels has this level.

    Raises:
        SettingError: it does not.
    """
    if not 0 <= level < timesteps:
        raise SettingError(f"Level {level} is out of range; choose 0 to {timesteps - 1} for this model.")


def step_schedule(timesteps: int, level: int, steps: int | None) -> list[tuple[int, int]]:
    """List the levels that recovery visits.

    Args:
        timesteps: number of levels of the model, T.
        level: where recovery starts; it counts down to 0.
        steps: visit only this many levels, evenly spread; ``None`` visits every level. A visited level then stands for
            itself and the levels next to it that are left out.

    Returns:
        (level, number of levels that it stands for, which is how often its step is applied), in the order of recovery.

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
    """Return the level that recovery starts from.

    Args:
        start: ``"level"`` for ``level`` (as in the paper), or ``"full"`` for T-1 (as in the authors' script).
        level: needed for ``start="level"``.
        timesteps: number of levels of the model, T.

    Raises:
        SettingError: ``start`` is not known, or ``level`` is missing or out of range.
    """
    if start not in STARTS:
        raise SettingError(f"start='{start}' is not known; use 'level' or 'full'.")
    if start == "full":
        return timesteps - 1
    if level is None:
        raise SettingError("Recovery needs a level to start from; give level, or use start='full'.")
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
    planes: SlipPlanes | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Recover a plausible deformation from a random one (Algorithm 2 of the paper).

    Each step warps the original image, never an image that is already warped. The published 2D weights amplify
    differences in the last bit about threefold at each step (the authors' own programs do so too). Results therefore
    agree to the bit on one machine, and only in their statistics between machines.

    Args:
        model: its network predicts the steps, and its metadata says how images are warped.
        image: (N, 1, *S), intensities 0..1: the original.
        ddf: (N or 1, d, *S), fraction of the side: the random deformation psi_{T':1}.
        start: ``"level"`` counts down from ``level``, ``"full"`` from T-1.
        level: T', needed for ``start="level"``.
        steps: visit only this many levels, see :func:`step_schedule`; ``None`` visits every level.
        exact: use exactly the published arithmetic. Otherwise each step is made invertible, and compositions continue
            a field outside its grid by the values at its border. Zeros there would tear the field; with the border's
            values the continued step is still invertible, and no undefined value is read.
        planes: planes that no step crosses; ``ddf`` does not cross them either.
        on_step: called with (done, total, field so far); may raise to cancel.

    Returns:
        (N, d, *S), fraction of the side: the recovered deformation of ``image``.

    Raises:
        SettingError: ``start``, ``level`` or ``steps`` is out of range.
    """
    metadata = model.metadata
    padding = metadata.composition_padding if exact else "border"
    run = model.graphs.run if metadata.architecture == "compact" else _plainly
    image = image.to(model.device)
    phi = ddf.to(model.device).expand(image.shape[0], -1, *[-1] * model.ndim)
    current = start_level(start, level, model.timesteps)
    visits = step_schedule(model.timesteps, current, steps)
    levels = _levels_on_device(visits, current, model.device)
    for done, (_, times) in enumerate(visits, start=1):
        kind = (exact, None if model.supports_target_level else times)
        # What the network predicts from the original image, warped with the field so far.
        psi = run(kind, partial(_predicted, model, exact, times), image, phi, levels[done - 1])
        if planes is not None:
            psi = planes.hold(psi, _RAMP)
        if not exact:
            psi = invertible_step(psi)
        if planes is not None:
            psi = planes.hold(psi)
        phi = compose(phi, psi, padding=padding)
        if on_step is not None:
            on_step(done, len(visits), phi)
    return phi


def _predicted(model: Model, exact: bool, times: int, image: Tensor, phi: Tensor, levels: Tensor) -> Tensor:
    """Predict the field of one step, (N, d, *S), from an image that is warped with the field so far.

    It is computed as a CUDA graph, see :meth:`DRDMLib.runtime.graphs.Graphs.run`.

    Args:
        times: number of levels that the step stands for.
        levels: (3,): the level that stands for the others, that of the image, and that after the step.
    """
    metadata = model.metadata
    warped = warp(image, phi, padding=metadata.image_padding, mode=metadata.image_interpolation)
    t, current, to = levels
    if model.supports_target_level:
        return model.predict_to(warped, current, to)
    # The network's second pass refines a single step. It is not worth its time where a step stands for several.
    psi = model.predict(warped, t, quick=not exact, once=times > 1 and not exact)
    return self_compose(psi, times) if times > 1 else psi


def _levels_on_device(visits: list[tuple[int, int]], level: int, device: torch.device) -> Tensor:
    """Return the levels of :func:`_predicted` for all steps: (steps, 3)."""
    rows = []
    for t, times in visits:
        rows.append((t, level, level - times))
        level -= times
    return torch.tensor(rows).to(device)


def _plainly(_: Hashable, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return compute(*inputs)
