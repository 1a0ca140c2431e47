"""Banks: folders with precomputed displacement fields, one file for each case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import OutputError, SettingError
from ..io import schema
from ..io.files import file_name, image_stem
from .packing import unpack
from .placement import FileGeometry
from .world import FieldSource, WorldField

SUFFIX, METADATA_KEY = ".safetensors", "drdm"


_AFFINE = schema.listing(schema.listing(schema.number(-1e9, 1e9), 4, 4), 4, 4)
_SIDES = schema.whole(1, 10_000)
_FACTORS = schema.listing(schema.number(), 16)
_SPLINE = schema.record({"nodes": _SIDES, "first": schema.whole(0, 1), "head": _FACTORS, "tail": _FACTORS})
# What the header of a file with packed fields must have.
_FIELDS: dict[str, schema.Check] = {
    "fields": schema.listing(
        schema.record(
            {
                "start": schema.whole(0),
                "bytes": schema.whole(1),
                "affine": _AFFINE,
                "how": schema.record(
                    {
                        "type": schema.one_of("int16", "float32"),
                        "shape": schema.listing(_SIDES, 4, 4),
                        "axes": schema.listing(schema.optional(_SPLINE), 3, 3),
                    },
                    {"scale": schema.number()},
                ),
            }
        ),
        least=1,
    ),
    "geometry": schema.record(
        {"size": schema.listing(_SIDES, 3, 3), "affine": _AFFINE, "others": schema.listing(_AFFINE, 20)}
    ),
}


class FieldBank:
    """Draw fields from a folder that :func:`DRDMLib.loaders.make_bank` has made.

    A field fits only the anatomy that it was made for, so every case has its own fields. Each draw reads a single field
    from the file. Several processes share the data of the file in memory.

    Example:
        >>> bank = FieldBank("bank")
        >>> field = bank.field("case_001", 3)

    Raises:
        SettingError: the folder has no bank.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.names = sorted(p.name.removesuffix(SUFFIX) for p in self.folder.glob(f"*{SUFFIX}") if p.name[0] != ".")
        if not self.names:
            raise SettingError(f"There are no fields in '{self.folder}'; make them with DRDMLib.loaders.make_bank.")
        self._headers: dict[str, _Header] = {}

    def count(self, name: str) -> int:
        """Return the number of fields of a case.

        Raises:
            SettingError: the bank has no fields for the case.
            OutputError: its file is damaged.
        """
        return self._header(name).count

    def field(self, name: str, number: int) -> WorldField:
        """Return one field of a case, ``number`` from 0. Raises the errors of :meth:`count`."""
        header = self._header(name)
        path = self.folder / f"{name}{SUFFIX}"
        try:
            with safe_open(path, "pt") as stream:
                stored = stream.get_slice("fields")
                if header.packed is None:
                    return WorldField(stored[number], header.affine)
                one = header.packed[number]
                data: Tensor = stored[one["start"] : one["start"] + one["bytes"]]
            return WorldField(unpack(one["how"], data.numpy().tobytes()), np.asarray(one["affine"], np.float64))
        except (OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError) as error:
            raise damaged(path) from error

    def geometry(self, name: str) -> FileGeometry:
        """Return where the voxels of the image lie that a case's fields were made for.

        Raises:
            SettingError, OutputError: as :meth:`count`; and the bank is of an old version that does not say it.
        """
        geometry = self._header(name).geometry
        if geometry is None:
            raise SettingError(f"The bank '{self.folder}' was made by an old version; make it again in a new folder.")
        return geometry

    def draw(
        self,
        name: str,
        image: Tensor,
        affine: np.ndarray,
        seed: int,
        *,
        original: np.ndarray | None = None,
        original_shape: Sequence[int] | None = None,
    ) -> WorldField:
        """Draw a field, see :class:`DRDMLib.loaders.world.FieldSource`.

        The image may be cropped, flipped or resampled. It is compared with the file that the fields were made for; if
        another reader sees that file at another place, the field is moved there.

        Args:
            original, original_shape: affine (4, 4) and size (X, Y, Z) that the image had when it was read, if known.

        Raises:
            SettingError, OutputError: as :meth:`count`.
            ImageError: the image is not where the one lies that the fields were made for.
        """
        header = self._header(name)
        field = self.field(name, seed % header.count)
        if header.geometry is None or image.ndim != 4:
            return field
        shape = tuple(image.shape[1:])
        to_world = header.geometry.to_world(name, np.asarray(affine, np.float64), shape, original, original_shape)
        return field if to_world is None else field.moved(to_world)

    def _header(self, name: str) -> _Header:
        if name not in self._headers:
            path = self.folder / f"{name}{SUFFIX}"
            if name not in self.names:
                raise SettingError(
                    f"The bank '{self.folder}' has no fields for '{name}' (it has {', '.join(self.names[:3])}, ...); "
                    "make them, or give the data the name that the case has in the bank."
                )
            try:
                with safe_open(path, "pt") as stream:
                    written = json.loads(stream.metadata()[METADATA_KEY])
                    self._headers[name] = _Header.of(written, stream.get_slice("fields").get_shape())
            except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
                raise damaged(path) from error
        return self._headers[name]


@dataclass(frozen=True)
class _Header:
    """What a file of fields says of itself.

    Attributes:
        count: number of fields.
        affine: of all fields, in files from before fields were packed.
        packed: where each field is in the file, and how it is packed.
        geometry: of the image that the fields were made for; old files do not have it.
    """

    count: int
    affine: np.ndarray
    packed: list[dict[str, Any]] | None = None
    geometry: FileGeometry | None = None

    @staticmethod
    def of(written: dict[str, Any], shape: Sequence[int]) -> _Header:
        """Read the values of a file.

        Raises:
            ValueError: one of them is not valid.
        """
        needed = _FIELDS if isinstance(written, dict) and "fields" in written else {"affine": _AFFINE}
        wrong = schema.wrong_key(written, needed)
        if wrong is not None:
            raise ValueError(f"'{wrong}' is not valid")
        if "fields" not in written:
            return _Header(shape[0], np.asarray(written["affine"], np.float64))
        return _Header(len(written["fields"]), np.eye(4), written["fields"], FileGeometry.of(written["geometry"]))


def damaged(path: Path) -> OutputError:
    """Return the error for a damaged file of a bank."""
    return OutputError(f"'{path}' is damaged; delete it and make the bank again.")


def case_name(path: str | Path, known: Sequence[str] = ()) -> str:
    """Return the name of an image file's case in a bank: without suffix and without nnU-Net's channel number.

    Args:
        known: names of the bank; one of these may end in the number of a case (``word_0001``), which is kept.
    """
    stem = image_stem(path)
    if file_name(stem) in known:
        return file_name(stem)
    head, _, channel = stem.rpartition("_")
    return file_name(head if head and len(channel) == 4 and channel.isdigit() else stem)


def random_seed(generator: torch.Generator | None = None) -> int:
    """Return a seed, 0 to 2^31 - 2, from torch's random numbers."""
    return int(torch.randint(2**31 - 1, (), generator=generator))


def drawn(
    source: FieldSource,
    name: str,
    image: Tensor,
    affine: np.ndarray,
    seed: int,
    original: np.ndarray | None,
    original_shape: Sequence[int] | None,
) -> WorldField:
    """Draw a field from any source; a bank gets the geometry with which the image was read, too."""
    if isinstance(source, FieldBank):
        return source.draw(name, image, affine, seed, original=original, original_shape=original_shape)
    return source.draw(name, image, affine, seed)
