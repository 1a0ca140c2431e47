"""Read weights that PyTorch has saved, without running code and without using more memory than they need.

``torch.load`` allocates whatever a file asks for before the weights can be checked. A file of PyTorch 1.6 and later is
a ZIP archive with a pickle, which names the tensors, and a member for the values of each. Here the pickle can only
name tensors.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Bytes of all values and of the pickle; the published networks have 2 and 6 million, and 30,000.
_MOST_BYTES, _MOST_PICKLE = 2**27, 2**22
_MOST_MEMBERS = 10_000
_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


@dataclass(frozen=True)
class _Storage:
    kind: torch.dtype
    member: str


@dataclass(frozen=True)
class _Described:
    """A tensor in the pickle, before its values are read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _describe(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Described:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
        raise pickle.UnpicklingError("not a tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise pickle.UnpicklingError("not a tensor")
    return _Described(storage, offset, tuple(shape), tuple(strides))


# The one in C uses memory for any number that stands in the file.
class _Unpickler(pickle._Unpickler):
    """Unpickle tables of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("not a storage")
        return _Storage(pid[1], str(pid[2]))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a table of tensors.

    Raises:
        pickle.UnpicklingError: the file would run code, or holds other things than tensors.
        ValueError: the file is damaged, larger than any published network, or has no table of tensors.
        OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(path):
        # Only to tell a file with code from one that is damaged.
        with path.open("rb") as stream:
            head = stream.read(_MOST_PICKLE)
        _unpickled(head)
        raise ValueError("not an archive")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _unpickled(data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise ValueError(f"not a pickle ({error})") from error


def _read_archive(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > _MOST_BYTES:
        raise ValueError("the values need more memory than any published network")
    name = next(member.filename for member in members if member.filename.endswith("data.pkl"))
    if archive.getinfo(name).file_size > _MOST_PICKLE:
        raise ValueError("the pickle is too long")
    described = _unpickled(archive.read(name))
    if not isinstance(described, dict):
        raise ValueError("not a table")
    folder = name.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
    if order != b"little":
        raise ValueError("the bytes are in another order")
    weights = {}
    for key, entry in described.items():
        if not isinstance(key, str) or not isinstance(entry, _Described):
            raise ValueError("not a table of tensors")
        weights[key] = _tensor(archive.read(f"{folder}data/{entry.storage.member}"), entry)
    return weights


def _tensor(data: bytes, entry: _Described) -> Tensor:
    count = math.prod(entry.shape)
    # As many values as are stored, so that one value cannot stand for a large tensor.
    if count * entry.storage.kind.itemsize > len(data) or not data:
        raise ValueError("a tensor is larger than its values")
    values = torch.frombuffer(bytearray(data), dtype=entry.storage.kind)
    return values.as_strided(entry.shape, entry.strides, entry.offset).clone()
