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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

# Bytes of all values and of the pickle; the published networks have 2 and 6 million, and 30,000. Each byte of a pickle
# can become an object of 64 bytes.
_MOST_BYTES, _MOST_PICKLE = 2**27, 2**20
# Of members of the archive, and of names of tensors; and bytes of the list of the members.
_MOST_MEMBERS, _MOST_LIST = 10_000, 2**22
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
    if not isinstance(storage, _Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise pickle.UnpicklingError("not a tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise pickle.UnpicklingError("not a tensor")
    if not all(type(n) is int and 0 <= n < 2**31 for n in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("not a tensor")
    return _Described(storage, offset, shape, strides)


def _table(*values: Any) -> collections.OrderedDict[str, Any]:
    # A copy of a table would need a few bytes in the file and much memory.
    if values:
        raise pickle.UnpicklingError("not a table")
    return collections.OrderedDict()


# What torch.save writes for tables of tensors, and the number at the start of its old files.
_OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1),
    *(pickle.TUPLE2, pickle.TUPLE3, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.BINUNICODE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE),
)


def _not_allowed(unpickler: pickle._Unpickler) -> None:
    raise pickle.UnpicklingError("this part of a pickle is not allowed")


# The one in C uses memory for any number that stands in the file.
class _Unpickler(pickle._Unpickler):
    """Unpickle tables of tensors, and nothing else."""

    dispatch: ClassVar[Any] = dict.fromkeys(pickle._Unpickler.dispatch, _not_allowed) | {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def _drop_state(self) -> None:
        # Attributes of tables and parameters, which are not needed.
        self.stack.pop()

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set({key: value} if type(key) is str else None)

    def _set_items(self) -> None:
        items = self.pop_mark()
        # Only texts: the hash of nested tuples would take for ever.
        texts = all(type(key) is str for key in items[::2])
        self._set(dict(zip(items[::2], items[1::2], strict=True)) if texts else None)

    def _set(self, items: dict[str, Any] | None) -> None:
        table = self.stack[-1]
        if items is None or not isinstance(table, dict):
            raise pickle.UnpicklingError("not a table")
        table.update(items)

    dispatch |= {pickle.BUILD[0]: _drop_state, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _table
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("not a storage")
        if type(pid[2]) is not str:
            raise pickle.UnpicklingError("not a storage")
        return _Storage(pid[1], pid[2])


class _Limited(io.FileIO):
    """A file of which no more than ``most`` bytes can be read at once, such as the list of an archive's members."""

    most = _MOST_LIST

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError("a part of the archive is too long")
        return super().read(-1 if size is None else size) or b""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a table of tensors.

    Raises:
        pickle.UnpicklingError: the file would run code, or holds other things than tensors.
        ValueError: the file is damaged, larger than any published network, or has no table of tensors.
        OSError: it cannot be read.
    """
    try:
        if not zipfile.is_zipfile(path):
            # Only to tell a file with code from one that is damaged.
            with path.open("rb") as old:
                _unpickled(old.read(_MOST_PICKLE))
            raise ValueError("not an archive")
        with _Limited(path) as stream, zipfile.ZipFile(stream) as archive:
            stream.most = _MOST_BYTES
            return _read_archive(archive)
    except (pickle.UnpicklingError, ValueError, OSError):
        raise
    except Exception as error:
        # Damaged archives lead to errors of many kinds.
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
    # PyTorch does not compress; the size of a compressed member is only known when it has been unpacked.
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
        raise ValueError("the archive is compressed")
    if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > _MOST_BYTES:
        raise ValueError("the values need more memory than any published network")
    name = next((member.filename for member in members if member.filename.endswith("data.pkl")), "")
    if not name or archive.getinfo(name).file_size > _MOST_PICKLE:
        raise ValueError("the pickle is missing or too long")
    described = _unpickled(archive.read(name))
    if not isinstance(described, dict) or not all(isinstance(entry, _Described) for entry in described.values()):
        raise ValueError("not a table of tensors")
    # Many names may stand for one tensor.
    needed = sum(math.prod(entry.shape) * entry.storage.kind.itemsize for entry in described.values())
    if len(described) > _MOST_MEMBERS or needed > _MOST_BYTES:
        raise ValueError("the tensors need more memory than any published network")
    folder = name.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
    if order != b"little":
        raise ValueError("the bytes are in another order")
    stored = {
        member: bytearray(archive.read(f"{folder}data/{member}"))
        for member in {entry.storage.member: None for entry in described.values()}
    }
    return {key: _tensor(stored[entry.storage.member], entry) for key, entry in described.items()}


def _tensor(data: bytearray, entry: _Described) -> Tensor:
    count = math.prod(entry.shape)
    # As many values as are stored, so that one value cannot stand for a large tensor.
    if count * entry.storage.kind.itemsize > len(data) or not data:
        raise ValueError("a tensor is larger than its values")
    values = torch.frombuffer(data, dtype=entry.storage.kind)
    return values.as_strided(entry.shape, entry.strides, entry.offset).clone()
