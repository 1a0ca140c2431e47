"""How values are written into a vtkMRMLScriptedModuleNode (`serializers.py`).

The texts in the node are those of the real ones, so a scene written here is read there: a number is `str(value)`, a
bool "True" or "False", an enumeration the name of its member, a node a reference with an empty parameter of the same
name, a list `name.len` and `name.0`, `name.1`, ..., a union `name.<position of the type>`.
"""

from __future__ import annotations

import collections.abc
import enum
import logging
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any

import slicer

from .validators import Default, IsInstance, IsNone, NotNone, Validator, split_annotations

_PATHS = (
    pathlib.Path,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)


class Serializer:
    """One kind of value. `checks` run before a value is written."""

    caches = True

    def __init__(self, *checks: Validator) -> None:
        self.checks = list(checks)

    def default(self) -> Any:
        raise NotImplementedError

    def accepts(self, kind: type) -> bool:
        """Whether a union hands values of that type to this serializer."""
        return False

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def validate(self, value: Any) -> None:
        for check in self.checks:
            check.validate(value)

    def write(self, node: Any, name: str, value: Any) -> None:
        self.validate(value)
        self._write(node, name, value)

    def _write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, str(value))

    def read(self, node: Any, name: str) -> Any:
        return node.GetParameter(name)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)


class NumberSerializer(Serializer):
    """int or float; an int is a float, a bool is an int."""

    def __init__(self, kind: type) -> None:
        super().__init__(NotNone(), IsInstance((int, float) if kind is float else int))
        self.kind = kind

    def default(self) -> Any:
        return 0

    def accepts(self, kind: type) -> bool:
        return kind in (int, float)

    def read(self, node: Any, name: str) -> Any:
        return self.kind(node.GetParameter(name))


class StringSerializer(Serializer):
    """str."""

    def __init__(self) -> None:
        super().__init__(NotNone(), IsInstance(str))

    def default(self) -> Any:
        return ""

    def accepts(self, kind: type) -> bool:
        return kind is str


class PathSerializer(Serializer):
    """pathlib.Path and its relatives."""

    def __init__(self, kind: type) -> None:
        super().__init__(NotNone(), IsInstance(kind))
        self.kind = kind

    def default(self) -> Any:
        return self.kind()

    def accepts(self, kind: type) -> bool:
        return kind in _PATHS

    def read(self, node: Any, name: str) -> Any:
        return self.kind(node.GetParameter(name))


class BoolSerializer(Serializer):
    """bool."""

    def __init__(self) -> None:
        super().__init__(NotNone(), IsInstance(bool))

    def default(self) -> Any:
        return False

    def accepts(self, kind: type) -> bool:
        return kind is bool

    def _write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "True" if value else "False")

    def read(self, node: Any, name: str) -> Any:
        return node.GetParameter(name) == "True"


class EnumSerializer(Serializer):
    """A member of an enum.Enum; its name is written, so that names must stay what they are."""

    def __init__(self, kind: type[enum.Enum]) -> None:
        super().__init__(IsInstance(kind))
        if len(kind) == 0:
            raise ValueError("Cannot serialize empty Enum.")
        self.kind = kind

    def default(self) -> Any:
        return next(iter(self.kind))

    def accepts(self, kind: type) -> bool:
        return isinstance(kind, type) and issubclass(kind, enum.Enum)

    def _write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, value.name)

    def read(self, node: Any, name: str) -> Any:
        key = node.GetParameter(name)
        if key not in self.kind.__members__:
            raise ValueError(f"Found {key!r} in parameter node but it is not a name in {self.kind!r}")
        return self.kind[key]


class NodeSerializer(Serializer):
    """A node of the scene, kept as a reference; None is a value too."""

    def __init__(self, kind: type) -> None:
        super().__init__(IsInstance(kind))

    def default(self) -> Any:
        return None

    def accepts(self, kind: type) -> bool:
        return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)

    def _write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class NoneSerializer(Serializer):
    """None, as one of the types of a union."""

    def __init__(self) -> None:
        super().__init__(IsNone())

    def accepts(self, kind: type) -> bool:
        return kind is type(None)

    def _write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "True")

    def read(self, node: Any, name: str) -> Any:
        return None


class UnionSerializer(Serializer):
    """One of several types; a node type with None is the usual one."""

    def __init__(self, members: list[Serializer]) -> None:
        super().__init__()
        self.members = members
        self.caches = all(member.caches for member in members)

    def default(self) -> Any:
        if len(self.members) == 2 and isinstance(self.members[1], NoneSerializer):
            return None
        return self.members[0].default()

    def is_in(self, node: Any, name: str) -> bool:
        return any(member.is_in(node, f"{name}.{index}") for index, member in enumerate(self.members))

    def _choose(self, value: Any) -> tuple[int, Serializer]:
        refusal: Exception | None = None
        for index, member in enumerate(self.members):
            if member.accepts(type(value)):
                try:
                    member.validate(value)
                except Exception as error:
                    refusal = error
                else:
                    return index, member
        raise refusal or TypeError(f"Unable to write value '{value}' of type '{type(value)}'")

    def _write(self, node: Any, name: str, value: Any) -> None:
        with slicer.util.NodeModify(node):
            index, member = self._choose(value)
            self.remove(node, name)
            member.write(node, f"{name}.{index}", value)

    def read(self, node: Any, name: str) -> Any:
        for index, member in enumerate(self.members):
            if member.is_in(node, f"{name}.{index}"):
                return member.read(node, f"{name}.{index}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, node: Any, name: str) -> None:
        with slicer.util.NodeModify(node):
            for index, member in enumerate(self.members):
                member.remove(node, f"{name}.{index}")


class ObservedList(collections.abc.MutableSequence):
    """A list that writes itself into the node when it changes. `+` and `*` are refused, `+=` works."""

    def __init__(self, node: Any, serializer: ListSerializer, name: str, values: list[Any]) -> None:
        self._node, self._serializer, self._name, self._list = node, serializer, name, values

    def _save(self) -> None:
        try:
            self._serializer.write(self._node, self._name, self._list)
        finally:
            self._list = self._serializer.read(self._node, self._name)._list

    def __eq__(self, other: Any) -> bool:
        return self._list == (other._list if isinstance(other, ObservedList) else other)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, index: Any) -> Any:
        return self._list[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._list[index] = value
        self._save()

    def __delitem__(self, index: Any) -> None:
        del self._list[index]
        self._save()

    def insert(self, index: int, value: Any) -> None:
        self._list.insert(index, value)
        self._save()

    def append(self, value: Any) -> None:
        self.insert(len(self._list), value)

    def extend(self, values: Any) -> None:
        self._list.extend(values)
        self._save()

    def __iadd__(self, values: Any) -> ObservedList:
        self.extend(values)
        return self

    def clear(self) -> None:
        self._list.clear()
        self._save()

    def sort(self, *args: Any, **kwargs: Any) -> None:
        self._list.sort(*args, **kwargs)
        self._save()

    def reverse(self) -> None:
        self._list.reverse()
        self._save()

    def __add__(self, other: Any) -> Any:
        raise NotImplementedError("Adding an ObservedList is not supported. However, += is supported.")

    __radd__ = __add__

    def __repr__(self) -> str:
        return f"ObservedList({self._list})"


class ListSerializer(Serializer):
    """list[T]."""

    def __init__(self, element: Serializer) -> None:
        super().__init__()
        self.element = element
        self.caches = element.caches

    def default(self) -> Any:
        return []

    def accepts(self, kind: type) -> bool:
        return kind is list

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.len"))

    def _length(self, node: Any, name: str) -> int:
        return int(node.GetParameter(f"{name}.len")) if self.is_in(node, name) else 0

    def _write(self, node: Any, name: str, value: Any) -> None:
        values = list(value)
        for entry in values:
            self.element.validate(entry)
        with slicer.util.NodeModify(node):
            for index in range(len(values), self._length(node, name)):
                self.element.remove(node, f"{name}.{index}")
            node.SetParameter(f"{name}.len", str(len(values)))
            for index, entry in enumerate(values):
                self.element.write(node, f"{name}.{index}", entry)

    def read(self, node: Any, name: str) -> Any:
        values = [self.element.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return ObservedList(node, self, name, values)

    def remove(self, node: Any, name: str) -> None:
        for index in range(self._length(node, name)):
            self.element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")


def make_serializer(kind: Any) -> tuple[Serializer, list[Any]]:
    """
    Returns:
        the serializer of a type with its validators, and the annotations that are no validators.

    Raises:
        Exception: the type is none of those above.
    """
    actual, annotations = split_annotations(kind)
    serializer = _plain(actual)
    serializer.checks += [entry for entry in annotations if isinstance(entry, Validator)]
    return serializer, [entry for entry in annotations if not isinstance(entry, Validator)]


def _element(kind: Any) -> Serializer:
    serializer, rest = make_serializer(kind)
    if [entry for entry in rest if not isinstance(entry, Default)]:
        logging.warning(f"Unused annotations: {rest}")
    return serializer


def _plain(kind: Any) -> Serializer:
    origin = typing.get_origin(kind)
    if kind in (int, float):
        return NumberSerializer(kind)
    if kind is str:
        return StringSerializer()
    if kind in _PATHS:
        return PathSerializer(kind)
    if kind is bool:
        return BoolSerializer()
    if kind is type(None):
        return NoneSerializer()
    if origin is list:
        return ListSerializer(_element(typing.get_args(kind)[0]))
    if origin is typing.Union or isinstance(kind, types.UnionType):
        return UnionSerializer([_element(member) for member in typing.get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return NodeSerializer(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return EnumSerializer(kind)
    raise Exception(f"Unable to create serializer for type: {kind}")
