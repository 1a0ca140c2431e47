"""Checkpoints of training, by one process or several.

The first process writes the shared state. Before that, every other process writes the state of its random numbers to
files that are named after the step. After an interruption the folder therefore holds either the new checkpoint or the
previous one, and that one is complete. The previous one is also kept beside the new one, in case that is damaged.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..errors import FallbackWarning, SettingError
from ..io.files import write_bytes
from ..runtime.distributed import ProcessInfo
from .run_file import CHECKPOINT, CHECKPOINT_BEFORE, has_checkpoint
from .trainer import Trainer

_SAMPLERS = "streams"


def save_checkpoint(run: Path, trainer: Trainer, process: ProcessInfo) -> None:
    """Write a checkpoint. All processes must call this after the same step.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    folder = run / _SAMPLERS
    if not process.first:
        folder.mkdir(exist_ok=True)
        for sampler in trainer.samplers:
            _write(folder / _name(trainer.step, sampler.number), sampler.state())
    if process.world > 1:
        distributed.barrier()
    if not process.first:
        return
    own = {str(sampler.number): sampler.state() for sampler in trainer.samplers}
    _keep_before(run)
    _write(run / CHECKPOINT, trainer.state() | {"streams": own})
    with contextlib.suppress(OSError):
        steps = sorted({path.name.partition("-")[0] for path in folder.glob("*.pt")})
        earlier = [step for step in steps if step < _step_name(trainer.step)]
        for path in folder.glob("*.pt"):
            # Those of the checkpoint before are kept with it.
            if not path.name.startswith((_step_name(trainer.step), *earlier[-1:])):
                path.unlink()
        if process.world == 1:
            folder.rmdir()


def _keep_before(run: Path) -> None:
    """Keep the last checkpoint under a second name, before a new one takes its place."""
    path, before = run / CHECKPOINT, run / CHECKPOINT_BEFORE
    if not path.is_file():
        return
    linked = run / f".{CHECKPOINT_BEFORE}.partial"
    with contextlib.suppress(OSError):
        linked.unlink(missing_ok=True)
        try:
            # The folder then has a checkpoint at every moment.
            os.link(path, linked)
            os.replace(linked, before)
        except OSError:
            # A file system without hard links.
            os.replace(path, before)


def load_checkpoint(run: Path, trainer: Trainer) -> None:
    """Restore a trainer from the last checkpoint in a folder, or from the one before if the last is damaged.

    The number of processes may differ from that of the earlier run if it divides the number of micro-batches.

    Raises:
        SettingError: the checkpoints are damaged, or belong to another network or number of micro-batches.

    Warns:
        FallbackWarning: the last checkpoint is damaged.
    """
    state = _last(run, trainer.device)
    trainer.load_state(state)
    for sampler in trainer.samplers:
        own = state["streams"].get(str(sampler.number))
        sampler.load_state(
            own or _read(run / _SAMPLERS / _name(trainer.step, sampler.number), trainer.device, "fields")
        )


def earlier_training(run: Path) -> dict[str, Any] | None:
    """Read model and settings of the training in a folder from its checkpoint.

    Returns:
        Under ``model`` the values of ``ModelMetadata``, under ``settings`` those of ``TrainingConfig.to_dict``; or
        ``None`` if the folder has no checkpoint.

    Raises:
        SettingError: the checkpoints are damaged.
    """
    if not has_checkpoint(run):
        return None
    state = _last(run, torch.device("cpu"))
    return {"model": state["metadata"], "settings": state["config"]}


def _last(run: Path, device: torch.device) -> dict[str, Any]:
    """Read the last checkpoint, or the one before if the last is missing or damaged."""
    path, before = run / CHECKPOINT, run / CHECKPOINT_BEFORE
    if not before.is_file():
        return _read(path, device, "streams")
    try:
        return _read(path, device, "streams")
    except SettingError:
        state = _read(before, device, "streams")
    if path.is_file():
        # It must not become the checkpoint before when the next one is written.
        with contextlib.suppress(OSError):
            path.unlink()
        warnings.warn(
            f"The checkpoint '{path}' is damaged; the training continues from the one before, at step {state['step']}.",
            FallbackWarning,
            stacklevel=2,
        )
    return state


def _step_name(step: int) -> str:
    return f"{step:09d}"


def _name(step: int, number: int) -> str:
    return f"{_step_name(step)}-{number:03d}.pt"


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _read(path: Path, device: torch.device, key: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or key not in state:
            raise ValueError
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise SettingError(f"The checkpoint '{path}' is damaged; start a new run in another folder.") from error
    return state
