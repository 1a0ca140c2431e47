"""Which part of the work this process does, when several work together: ``torchrun``, SLURM, or shares named by hand.

Starting, finding and restarting processes is left to the engines that exist; here is read what they say.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import distributed

from ..errors import SettingError

# A rank may wait this long for another one that is writing a checkpoint or reading a large archive.
_PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class ProcessInfo:
    """One of ``world`` processes that share the work.

    Attributes:
        rank: 0 to ``world`` - 1.
        local_rank: number on this computer, which is that of its GPU.
        restarts: how often the engine has started this group again after a failure.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device for this process: on a computer with several GPUs each process takes its own."""
        if self.world > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name


def current_process(share: tuple[int, int] | None = None) -> ProcessInfo:
    """Where this process stands, from ``torchrun``'s or ``srun``'s environment, or as told.

    Args:
        share: (k, n) with k in 1..n: the k-th of n processes that nobody started together, such as a job array.

    Raises:
        SettingError: what the environment says makes no sense.
    """
    if share is not None:
        return ProcessInfo(share[0] - 1, share[1])
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if names[1] not in os.environ or names[0] not in os.environ:
        return ProcessInfo()
    try:
        rank, world, local = (int(os.environ.get(name, "0")) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError as error:
        raise SettingError(f"The environment's {', '.join(names)} are not whole numbers; unset them.") from error
    if not 0 <= rank < world:
        raise SettingError(f"The environment says process {rank} of {world}; unset {names[0]} and {names[1]}.")
    return ProcessInfo(rank, world, local, restarts)


@contextlib.contextmanager
def process_group(process: ProcessInfo, device: torch.device) -> Iterator[None]:
    """Joins the processes for collective work, gloo on CPU and NCCL on GPU; with one process nothing is done."""
    if process.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
        # Nobody leaves while another still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process, whose work is done, at once.

    Where gradients were exchanged, PyTorch keeps gloo's threads after the group is left. One of them that lets go of a
    tensor while the interpreter is being taken down aborts the process, and the engine takes that for a failure.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
