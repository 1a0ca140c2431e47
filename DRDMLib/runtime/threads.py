"""Compute with a single thread of PyTorch, so that results do not depend on the number of cores.

The last bit of a sum depends on how many threads compute it. With one thread for each deformation, the same fields come
from a computer with two cores, from one with sixteen, and from any number of processes. The networks are so small that
a second thread saves next to nothing, but waiting for it costs much time when other programs use the cores. Several
cores compute several samples at the same time instead.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import SimpleITK as sitk
import torch

# Largest total number of voxels of the images that are processed at the same time; limits the memory.
_VOXELS_AT_ONCE = 2**26
# Largest number of samples that are made at the same time with a GPU.
BESIDE_A_GPU = 8


class _TorchThreads:
    """The number of threads of PyTorch, which is a setting of the process and of each Python thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 1

    def use_one(self) -> int:
        """Compute with one thread from now on, and return the number of this Python thread before."""
        with self._lock:
            own = torch.get_num_threads()
            if self._users == 0:
                self._before = own
            self._users += 1
            torch.set_num_threads(1)
        return own

    def restore(self, own: int) -> None:
        """Restore the number of this Python thread; the last user restores that of the process."""
        with self._lock:
            self._users -= 1
            torch.set_num_threads(self._before if self._users == 0 else own)
            if self._users > 0 and own > 1:
                # Set for this Python thread and for the process; the process still has to use one.
                other = threading.Thread(target=torch.set_num_threads, args=(1,))
                other.start()
                other.join()


_THREADS = _TorchThreads()


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Let PyTorch compute with one thread on the CPU, and restore its setting afterward.

    Yields:
        The number of threads that PyTorch used before.
    """
    own = _THREADS.use_one()
    try:
        yield own
    finally:
        _THREADS.restore(own)


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Let PyTorch and ITK use one thread each on the CPU, and restore their settings afterward.

    Yields:
        The number of samples that can be computed at the same time; 1 on a GPU.
    """
    if device.type != "cpu":
        yield 1
        return
    itk = sitk.ProcessObject
    itk_threads = itk.GetGlobalDefaultNumberOfThreads()
    with one_thread() as threads:
        itk.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield threads
        finally:
            itk.SetGlobalDefaultNumberOfThreads(itk_threads)


@contextlib.contextmanager
def one_thread_for_each_sample(device: torch.device) -> Iterator[int]:
    """Do the same as :func:`one_thread_each`, with a GPU too: several samples are proven and applied beside it.

    Yields:
        The number of samples that can be made at the same time.
    """
    with one_thread_each(torch.device("cpu")) as threads:
        yield threads if device.type == "cpu" else min(threads, BESIDE_A_GPU)


_OWN = threading.local()


def own_cores() -> int:
    """Return how many cores a computation of this Python thread may use."""
    cores: int = getattr(_OWN, "cores", 0) or os.cpu_count() or 1
    return cores


@contextlib.contextmanager
def share_of_cores(threads: int) -> Iterator[None]:
    """Let computations of this Python thread use its share of the cores, while so many threads compute."""
    before = getattr(_OWN, "cores", 0)
    _OWN.cores = max(1, (os.cpu_count() or 1) // threads)
    try:
        yield
    finally:
        _OWN.cores = before


def at_once(workers: int, voxels: int) -> int:
    """Return how many images with this number of voxels are processed at the same time."""
    return max(1, min(workers, _VOXELS_AT_ONCE // max(1, voxels)))


def share_threads(workers: int, voxels: int) -> None:
    """Let ITK use the threads that are idle because large images are processed only a few at a time.

    The results of its resampling do not depend on the number of threads.
    """
    if workers > 1:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, workers // at_once(workers, voxels)))
