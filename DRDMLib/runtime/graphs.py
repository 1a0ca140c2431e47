"""Replay a short computation on an NVIDIA GPU as a CUDA graph.

A small network keeps a GPU busy for less time than Python needs to start its hundred kernels one by one. A graph holds
all of them and is started at once. It computes the same bits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Off until ``benchmarks.gpu`` has measured them on a GPU and its tests, ``test_gpu.py``, have passed there.
ENABLED = False
# Making a graph takes as long as so many calls.
CALLS = 12
# While a stream is recorded, others must not wait for the whole GPU, as another recording does at its beginning.
_RECORDING = threading.Lock()
# So many kinds of computations are remembered at a time.
_MOST = 32


class Graphs:
    """The graphs of one model. Several threads may use them; they take turns.

    The first ``CALLS`` calls of a kind are computed as usual; then a graph is made. It is used from then on if it gives
    the same bits; if it does not, or cannot be made, nothing changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # For each kind its graph, or how often it was computed; -1 where a graph is of no use.
        self._kinds: dict[Hashable, _Graph | int] = {}
        # All graphs share the memory of their intermediate results, since only one of them is replayed at a time.
        self._pool: Any = None
        self._replayed: Any = None

    def _forget(self) -> None:
        if self._replayed is not None:
            self._replayed.synchronize()
        self._kinds, self._pool, self._replayed = {}, None, None

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """Copies and other processes start without graphs."""
        return Graphs, ()

    def __len__(self) -> int:
        return sum(isinstance(kind, _Graph) for kind in self._kinds.values())

    def clear(self) -> None:
        """Give back the memory of all graphs."""
        with self._lock:
            self._forget()

    def run(self, kind: Hashable, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return ``compute(*inputs)``.

        Args:
            kind: of the computation, with all that it depends on besides the values of ``inputs``.
            compute: starts kernels on the GPU only; it neither waits for it nor copies to it, and draws no random
                numbers. The tensors that it uses besides ``inputs`` stay where they are.
            inputs: on one device.
        """
        if not (ENABLED and inputs[0].is_cuda) or torch.is_grad_enabled():
            return compute(*inputs)
        device = inputs[0].device
        key = (kind, device, *((tuple(x.shape), x.dtype) for x in inputs))
        with self._lock, torch.cuda.device(device):
            known = self._kinds.get(key, 0)
            if isinstance(known, _Graph):
                return self._replay(known, inputs)
            result = compute(*inputs)
            if known == 0 and len(self._kinds) >= _MOST:
                self._forget()
            if known >= CALLS - 1:
                self._kinds[key] = self._made(compute, inputs, result)
            elif known >= 0:
                self._kinds[key] = known + 1
            return result

    def _made(self, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], expected: Tensor) -> _Graph | int:
        """Make a graph; -1 if that is not possible or if it does not give what is expected."""
        # CUDA or the memory of the GPU may not allow it.
        with contextlib.suppress(RuntimeError):
            made = _Graph(compute, inputs, self._pool)
            if self._replayed is None:
                self._replayed = torch.cuda.Event()
            self._pool = made.graph.pool()
            if torch.equal(self._replay(made, inputs), expected):
                return made
        return -1

    def _replay(self, one: _Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        stream = torch.cuda.current_stream()
        # Another thread may compute on another stream.
        stream.wait_event(self._replayed)
        for own, given in zip(one.inputs, inputs, strict=True):
            own.copy_(given)
        one.graph.replay()
        result = one.output.clone()
        self._replayed.record(stream)
        return result


class _Graph:
    """A graph with the memory of its inputs and of its output."""

    def __init__(self, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Any) -> None:
        self.inputs = tuple(x.clone() for x in inputs)
        self.graph = torch.cuda.CUDAGraph()
        stream = _recording_stream(self.inputs[0].device)
        how: Any = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with _RECORDING, torch.cuda.graph(self.graph, **how):
            self.output = compute(*self.inputs)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a GPU on which graphs are made; libraries keep memory for each stream that they see."""
    return torch.cuda.Stream(device)
