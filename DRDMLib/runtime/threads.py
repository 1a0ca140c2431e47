"""Sums depend in their last bit on how many threads share them: every sample is computed by one thread.

So the same files come from a laptop with two cores, from one with sixteen, and from any number of processes. Several
cores work on several samples, which is no slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import SimpleITK as sitk
import torch

# Images that are worked on at the same time have no more voxels than this together, for the sake of memory.
_VOXELS_AT_ONCE = 2**26


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Within, torch and ITK compute with one thread on a processor; gives how many samples may be made at once."""
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
    """How many images of a size are worked on at the same time."""
    return max(1, min(workers, _VOXELS_AT_ONCE // max(1, voxels)))


def share_threads(workers: int, voxels: int) -> None:
    """Threads that large images leave idle are lent to ITK, whose warps give the same bits with any number."""
    if workers > 1:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, workers // at_once(workers, voxels)))
