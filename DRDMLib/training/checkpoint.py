"""Checkpoints of training by one process or several: complete for one step, or the one before.

The first process writes what all share. The random numbers of the others' portions lie beside, in files named after the
step, and are there before the checkpoint that belongs to them.
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
from ..runtime.distributed import Place
from .trainer import Training

CHECKPOINT = "checkpoint.pt"
_STREAMS = "streams"


def save_checkpoint(run: Path, training: Training, place: Place) -> None:
    """Write a checkpoint; all processes call it, after the same step.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    folder = run / _STREAMS
    if not place.first:
        folder.mkdir(exist_ok=True)
        for stream in training.streams:
            _write(folder / _name(training.step, stream.number), stream.state())
    if place.world > 1:
        distributed.barrier()
    if not place.first:
        return
    own = {str(stream.number): stream.state() for stream in training.streams}
    _write(run / CHECKPOINT, training.state() | {"streams": own})
    with contextlib.suppress(OSError):
        for path in folder.glob("*.pt"):
            if not path.name.startswith(_name(training.step, 0)[:-7]):
                path.unlink()
        if place.world == 1:
            folder.rmdir()


def load_checkpoint(run: Path, training: Training) -> None:
    """Go on from the folder's checkpoint, with any number of processes that divides its portions.

    Raises:
        SettingError: it is damaged, or belongs to another network or number of portions.
    """
    state = _read(run / CHECKPOINT, training.device, "streams")
    training.load_state(state)
    for stream in training.streams:
        own = state["streams"].get(str(stream.number))
        stream.load_state(own or _read(run / _STREAMS / _name(training.step, stream.number), training.device, "draws"))


def config_of(run: Path) -> dict[str, Any] | None:
    """How the run in a folder was trained so far, see ``TrainingConfig``; nothing if there is no checkpoint.

    Raises:
        SettingError: it is damaged.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        return None
    config: dict[str, Any] = _read(path, torch.device("cpu"), "streams")["config"]
    return config


def _name(step: int, number: int) -> str:
    return f"{step:09d}-{number:03d}.pt"


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
        raise SettingError(f"The checkpoint '{path}' is damaged; start the run anew in another folder.") from error
    return state
