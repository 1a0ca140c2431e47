"""Compute each sample with a single thread, so that results do not depend on the number of cores.

The last bit of a sum depends on how many threads compute it. With one thread per sample, the same files come from a
computer with two cores, from one with sixteen, and from any number of processes. Several cores compute several samples
at the same time, which is not slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import SimpleITK as sitk
import torch

# Largest total number of voxels of the images that are processed at the same time; limits the memory.
_VOXELS_AT_ONCE = 2**26


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Let PyTorch and ITK use one thread each on the CPU, and restore their settings afterwards.

    Yields:
        The number of samples that can be computed at the same time; 1 on a GPU.
    """
    if device.type != "cpu":
        yield 1
        return
    itk = sitk.ProcessObject
    threads, itk_threads = torch.get_num_threads(), itk.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(1)
    itk.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        itk.SetGlobalDefaultNumberOfThreads(itk_threads)


def at_once(workers: int, voxels: int) -> int:
    """Return how many images with this number of voxels are processed at the same time."""
    return max(1, min(workers, _VOXELS_AT_ONCE // max(1, voxels)))


def share_threads(workers: int, voxels: int) -> None:
    """Let ITK use the threads that are idle because large images are processed only a few at a time.

    The results of its resampling do not depend on the number of threads.
    """
    if workers > 1:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, workers // at_once(workers, voxels)))
