"""The bounds of :mod:`DRDMLib.invertibility.sample_bounds` on a GPU.

The operations are those of ``least_between_samples``, in the same order and precision, so that the same bound of their
error holds. (A GPU may multiply by the inverse of a spacing instead of dividing; the bound has room for that.) They
also decide nearly all of a field's own cells, whose "samples" are its nodes. What they leave undecided is tested on the
processor.
"""

from __future__ import annotations

import contextlib
import threading
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from ..spatial.field_grid import FieldGrid, SampledGrid
from .determinant_bounds import least_determinant
from .sample_bounds import LeastBetweenSamples, Windows, error_between_samples

# Whether versions use them; off until they have been measured on a GPU, see :mod:`DRDMLib.runtime.graphs`.
ENABLED = False
# Fields with fewer nodes take less time on the processor, and those with more would need more than 2 GB on the GPU.
LEAST_NODES, _MOST_NODES = 2**16, 2**23
# A GPU computes the bounds of one field at a time, which limits the memory.
_TURN = threading.Lock()


class DeviceBounds:
    """Bounds of the determinants of one field and its samples, computed on a device that has double precision.

    Args:
        field: its ``vectors`` must not change while this object is used.
        device: an NVIDIA GPU; the CPU for tests.
    """

    def __init__(self, field: FieldGrid, device: torch.device) -> None:
        self._field = field
        self._device = device

    def least(self, grid: FieldGrid | SampledGrid) -> LeastBetweenSamples | None:
        """Bound the determinant in the cells of the field, or between its samples, from below.

        Returns:
            ``None`` if the processor should do it, because the field is small or very large, or the GPU lacks memory.
        """
        if not LEAST_NODES <= self._field.vectors[..., 0].size <= _MOST_NODES:
            return None
        if isinstance(grid, FieldGrid):
            grid = SampledGrid(grid, tuple(np.arange(float(len(nodes))) for nodes in grid.nodes), grid.rounding)
        with contextlib.suppress(RuntimeError), _TURN:
            return self._least(grid)
        return None

    @cached_property
    def _values(self) -> Tensor:
        """Displacements at the nodes, as :meth:`FieldGrid.block` returns them: (d, *n), float64, millimeters."""
        vectors = np.asarray(self._field.vectors)
        vectors = vectors if vectors.flags.writeable else vectors.copy()
        there = torch.from_numpy(vectors).to(self._device).double().movedim(-1, 0)
        rows = [[(j, float(row[j])) for j in np.flatnonzero(row).tolist()] for row in self._field.along]
        return torch.stack([sum((there[j] * x for j, x in rest), there[i] * y) for (i, y), *rest in rows])

    @torch.inference_mode()
    def _least(self, grid: SampledGrid) -> LeastBetweenSamples:
        with torch.cuda.stream(_stream(self._device)):
            return self._bounded(grid)

    def _bounded(self, grid: SampledGrid) -> LeastBetweenSamples:
        windows, values, d = Windows.of(grid), self._values, len(grid.at)
        lows, highs, sizes = [], [], [values.abs().amax()]
        for along in range(d):
            edges = (values.diff(dim=1 + along) / grid.field.spacing[along]).float()
            sizes.append(edges.abs().amax().double())
            low = high = edges
            for axis in range(d):
                cells = self._at(windows.members(axis, along))
                low = _gathered(low, cells, 1 + axis).amin(1 + axis)
                high = _gathered(high, cells, 1 + axis).amax(1 + axis)
            least, most = (
                self._at(scale[along]).view([-1 if a == along else 1 for a in range(d)]) for scale in windows[3:5]
            )
            lows.append(torch.minimum(low * least, low * most).float())
            highs.append(torch.maximum(high * least, high * most).float())
        largest, *slopes = torch.stack(sizes).tolist()
        error = error_between_samples(windows, slopes, largest, grid.rounding)
        found = least_determinant(lows, highs, [0.0] * d) - error
        return LeastBetweenSamples(found.cpu().numpy(), windows.groups)

    def _at(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream of its own, so that a field does not wait for the next ones, which are drawn in the meantime."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def bounding_device(model_device: torch.device, used: str) -> torch.device | None:
    """Return the device that bounds the fields of a model, if it is not the processor.

    Args:
        used: type of the device that drew the field, which is another one where the model's own failed.
    """
    # Apple's GPU has no double precision.
    return model_device if ENABLED and used == model_device.type == "cuda" else None


def _gathered(values: Tensor, members: Tensor, axis: int) -> Tensor:
    """Take values along an axis: (..., n, ...) and indices (steps, groups) -> (..., steps, groups, ...)."""
    taken: Tensor = values.index_select(axis, members.flatten()).unflatten(axis, members.shape)
    return taken
