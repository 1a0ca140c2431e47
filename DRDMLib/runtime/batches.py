"""How many versions of a scan are computed together.

One version hardly keeps a GPU busy, and a batch takes little longer. On a CPU a batch saves no time, and its last bits
differ from those of single versions; so the versions are made one after the other there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..models.model import Model

T = TypeVar("T")

# Most versions of a batch, by the type of device, and on all others.
MOST = {"cpu": 1}
_MOST_ON_A_GPU = 8
# Most voxels of a batch on the grid of the model: 4 versions with the published 3D network, all with the other models.
_VOXELS = 2**23
# Most versions that are proven at the same time while the GPU draws the next batch.
_PROVEN_AT_ONCE = 8


def versions_together(model: Model) -> int:
    """Return how many versions of one scan are computed in a batch: several on a GPU, 1 on a CPU.

    It depends on nothing but the model and the type of its device, because the last bits of a version depend on it.
    When memory is low, :mod:`DRDMLib.runtime.fallback` computes a batch in parts.
    """
    most = MOST.get(model.device.type, _MOST_ON_A_GPU)
    fitting: int = _VOXELS // model.size**model.ndim
    return max(1, min(most, fitting))


def in_batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Divide values into batches of this size; the last one may be smaller."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def proven_at_once(versions: int) -> int:
    """Return in how many threads the versions of a batch are proven to be invertible."""
    return max(1, min(versions, _PROVEN_AT_ONCE, os.cpu_count() or 1))
