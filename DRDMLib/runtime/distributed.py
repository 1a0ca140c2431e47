"""Share work among several processes: started by ``torchrun`` or SLURM, or as shares that the user gives.

The launcher (``torchrun`` or SLURM) starts, connects and restarts the processes; this module reads what it says in the
environment variables.
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

# A process waits at most this long for another one, which may be writing a checkpoint or reading a large archive.
_PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class ProcessInfo:
    """The place of this process among all processes that share the work.

    Attributes:
        rank: number of this process, 0 to ``world`` - 1.
        world: number of processes.
        local_rank: number of this process on this computer, which is also the number of its GPU.
        restarts: how often the launcher has restarted this group of processes after a failure.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes shared files."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the name of the device for this process; on a computer with several GPUs each process has its own."""
        if self.world > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name


def current_process(share: tuple[int, int] | None = None) -> ProcessInfo:
    """Determine the place of this process, from the environment variables of ``torchrun`` or ``srun``.

    Args:
        share: (k, n) with k in 1..n: use this instead, for the k-th of n processes that were started separately, such
            as a job array.

    Raises:
        SettingError: the environment variables are not valid.
    """
    if share is not None:
        # Set by --jobs, so that each process has a GPU of its own.
        place = os.environ.get("LOCAL_RANK", "")
        return ProcessInfo(share[0] - 1, share[1], int(place) if place.isascii() and place.isdigit() else 0)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    slurm = os.environ.get("SLURM_NTASKS", "").strip()
    if "WORLD_SIZE" not in os.environ and slurm not in ("", "0", "1"):
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if names[1] not in os.environ or names[0] not in os.environ:
        return ProcessInfo()
    try:
        rank, world, local = (int(os.environ.get(name, "0")) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError as error:
        raise SettingError(
            f"The environment variables {', '.join(names)} are not whole numbers; unset or correct them."
        ) from error
    if not (0 <= rank < world and local >= 0 and restarts >= 0):
        raise SettingError(
            f"The environment variables give process {rank} of {world}, but processes are counted from 0; "
            f"unset or correct {names[0]} and {names[1]}."
        )
    return ProcessInfo(rank, world, local, restarts)


@contextlib.contextmanager
def process_group(process: ProcessInfo, device: torch.device) -> Iterator[None]:
    """Connect the processes for collective operations, with gloo on CPUs and NCCL on GPUs.

    With a single process nothing is done.
    """
    if process.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
        # No process leaves while another one still communicates with it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process immediately, after its work is done.

    After gradients were exchanged, PyTorch keeps gloo's threads even when the group is destroyed. If one of them
    releases a tensor while the interpreter shuts down, the process aborts, and the launcher takes this for a failure.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
