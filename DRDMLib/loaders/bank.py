"""Fields made beforehand, kept in a folder with one file for each case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import OutputError, SettingError
from .world import WorldField

SUFFIX, TOLD = ".safetensors", "drdm"


class FieldBank:
    """Draws a case's fields from a folder that :func:`DRDMLib.loaders.make_bank` has filled.

    A field belongs to the anatomy that it was recovered on, so every case has its own. Only the field that is drawn is
    read, and processes share what the system holds in memory.

    Example:
        >>> bank = FieldBank("bank")
        >>> field = bank.field("case_001", 3)

    Raises:
        SettingError: there is no bank in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.names = sorted(p.name.removesuffix(SUFFIX) for p in self.folder.glob(f"*{SUFFIX}") if p.name[0] != ".")
        if not self.names:
            raise SettingError(f"There are no fields in '{self.folder}'; make them with DRDMLib.loaders.make_bank.")
        self._known: dict[str, tuple[int, np.ndarray]] = {}

    def count(self, name: str) -> int:
        """How many fields a case has.

        Raises:
            SettingError: the bank has none for it.
            OutputError: its file is damaged.
        """
        return self._header(name)[0]

    def field(self, name: str, number: int) -> WorldField:
        """One field of a case. Raises as :meth:`count`."""
        affine = self._header(name)[1]
        with safe_open(self.folder / f"{name}{SUFFIX}", "pt") as stream:
            vectors: Tensor = stream.get_slice("fields")[number]
        return WorldField(vectors, affine)

    def draw(self, name: str, image: Tensor, affine: np.ndarray, seed: int) -> WorldField:
        """See :class:`DRDMLib.loaders.world.FieldSource`; raises as :meth:`count`."""
        return self.field(name, seed % self.count(name))

    def _header(self, name: str) -> tuple[int, np.ndarray]:
        if name not in self._known:
            path = self.folder / f"{name}{SUFFIX}"
            if name not in self.names:
                raise SettingError(
                    f"The bank '{self.folder}' has no fields for '{name}' (it has {', '.join(self.names[:3])}, ...); "
                    "make them, or say which of its names the case has."
                )
            try:
                with safe_open(path, "pt") as stream:
                    affine = np.asarray(json.loads(stream.metadata()[TOLD])["affine"], np.float64)
                    self._known[name] = stream.get_slice("fields").get_shape()[0], affine
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                raise OutputError(f"'{path}' is damaged; delete it and make the bank again.") from error
        return self._known[name]


def case_name(path: str | Path) -> str:
    """The name under which a bank keeps the fields of an image file (nnU-Net's channel number left out)."""
    from ..io.images import image_stem

    stem = image_stem(path)
    head, _, channel = stem.rpartition("_")
    return head if head and len(channel) == 4 and channel.isdigit() else stem


def random_seed(generator: torch.Generator | None = None) -> int:
    """0 to 2^31 - 1, from torch's random numbers."""
    return int(torch.randint(2**31 - 1, (), generator=generator))
