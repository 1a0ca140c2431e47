"""Checkpoints of training, by one process or several.

The first process writes the shared state. Before that, every other process writes the state of its random numbers to
files that are named after the step. After an interruption the folder therefore holds either the new checkpoint or the
previous one, and that one is complete.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..errors import SettingError
from ..io.files import write_bytes
from ..runtime.distributed import ProcessInfo
from .trainer import Trainer

CHECKPOINT = "checkpoint.pt"
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
    _write(run / CHECKPOINT, trainer.state() | {"streams": own})
    with contextlib.suppress(OSError):
        for path in folder.glob("*.pt"):
            if not path.name.startswith(_step_name(trainer.step)):
                path.unlink()
        if process.world == 1:
            folder.rmdir()


def load_checkpoint(run: Path, trainer: Trainer) -> None:
    """Restore a trainer from the checkpoint in a folder.

    The number of processes may differ from that of the earlier run if it divides the number of micro-batches.

    Raises:
        SettingError: the checkpoint is damaged, or belongs to another network or number of micro-batches.
    """
    state = _read(run / CHECKPOINT, trainer.device, "streams")
    trainer.load_state(state)
    for sampler in trainer.samplers:
        own = state["streams"].get(str(sampler.number))
        sampler.load_state(own or _read(run / _SAMPLERS / _name(trainer.step, sampler.number), trainer.device, "draws"))


def config_of(run: Path) -> dict[str, Any] | None:
    """Read the settings of the run in a folder.

    Returns:
        The values of ``TrainingConfig.to_dict``, or ``None`` if the folder has no checkpoint.

    Raises:
        SettingError: the checkpoint is damaged.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        return None
    config: dict[str, Any] = _read(path, torch.device("cpu"), "streams")["config"]
    return config


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
