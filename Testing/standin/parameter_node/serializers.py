"""How values are written into a vtkMRMLScriptedModuleNode (`serializers.py`, `validators.py`, `default.py`).

The texts in the node are those of the real ones, so a scene written here is read there: a number or a path is
`str(value)`, a bool "True" or "False", an enumeration the name of its member, a node a reference with an empty
parameter of the same name, a union `name.<position of the type>`.
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from typing import Annotated, Any

import slicer


class Default:
    """The value of a parameter that the node does not have yet."""

    def __init__(self, value: Any) -> None:
        self.value = value


class WithinRange:
    """From minimum to maximum, both allowed."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


def split_annotations(kind: Any) -> tuple[Any, list[Any]]:
    """Return the type and the annotations of a type that may be `Annotated`."""
    arguments = typing.get_args(Annotated[kind, "end"])
    return arguments[0], list(arguments[1:-1])


def find(annotations: list[Any], kind: type) -> Any:
    """Return the first annotation of a kind, or None."""
    return next((entry for entry in annotations if isinstance(entry, kind)), None)


def is_union(kind: Any) -> bool:
    """Whether a type is `A | B` or `Union[A, B]`."""
    return typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType)


class Serializer:
    """One kind of value, written as text."""

    def __init__(self, kind: type, default: Any, annotations: list[Any]) -> None:
        self.kind, self.default = kind, default
        self._range = find(annotations, WithinRange)

    def accepts(self, value: Any) -> bool:
        """Whether the value is of the type; an int is a float, a bool is an int."""
        return isinstance(value, (int, float) if self.kind is float else self.kind)

    def validate(self, value: Any) -> None:
        if value is None:
            raise ValueError("Value must not be None")
        if not self.accepts(value):
            raise TypeError(f"Value must be of type '{self.kind}', is type '{type(value)}' value '{value}'")
        if self._range is not None:
            self._range.validate(value)

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        self.validate(value)
        node.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

    def read(self, node: Any, name: str) -> Any:
        text = node.GetParameter(name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if issubclass(self.kind, enum.Enum) else self.kind(text)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)


class NodeSerializer(Serializer):
    """A node of the scene, kept as a reference; None is a value too."""

    def validate(self, value: Any) -> None:
        if value is not None:
            super().validate(value)

    def write(self, node: Any, name: str, value: Any) -> None:
        self.validate(value)
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class NoneSerializer(Serializer):
    """None, as one of the types of a union."""

    def validate(self, value: Any) -> None:
        if value is not None:
            raise ValueError("Value must be None")

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "True")

    def read(self, node: Any, name: str) -> Any:
        return None


class UnionSerializer:
    """One of several types of nodes, or None."""

    default = None

    def __init__(self, members: list[Serializer]) -> None:
        self._members = members

    def _present(self, node: Any, name: str) -> tuple[Serializer, str] | None:
        parts = ((member, f"{name}.{index}") for index, member in enumerate(self._members))
        return next((part for part in parts if part[0].is_in(node, part[1])), None)

    def is_in(self, node: Any, name: str) -> bool:
        return self._present(node, name) is not None

    def write(self, node: Any, name: str, value: Any) -> None:
        chosen = next((index for index, member in enumerate(self._members) if member.accepts(value)), None)
        if chosen is None:
            raise TypeError(f"Unable to write value '{value}' of type '{type(value)}'")
        with slicer.util.NodeModify(node):
            for index, member in enumerate(self._members):
                member.remove(node, f"{name}.{index}")
            self._members[chosen].write(node, f"{name}.{chosen}", value)

    def read(self, node: Any, name: str) -> Any:
        present = self._present(node, name)
        if present is None:
            raise KeyError(f"Unable to find value for name: {name}")
        return present[0].read(node, present[1])


def make_serializer(kind: Any) -> tuple[Serializer | UnionSerializer, Any]:
    """Return the serializer of a type that may be `Annotated`, and the default value.

    Raises:
        Exception: the type is none of those that the stand-in knows.
    """
    actual, annotations = split_annotations(kind)
    unknown = [entry for entry in annotations if not isinstance(entry, (Default, WithinRange))]
    if unknown:
        raise Exception(f"Unused annotations: {unknown}")
    serializer = _make(actual, annotations)
    default = find(annotations, Default)
    return serializer, default.value if default is not None else serializer.default


def _make(kind: Any, annotations: list[Any]) -> Serializer | UnionSerializer:
    if is_union(kind) and type(None) in typing.get_args(kind):
        return UnionSerializer([_make(member, []) for member in typing.get_args(kind)])  # type: ignore[misc]
    if kind is type(None):
        return NoneSerializer(kind, None, annotations)
    if kind in (int, float, str, bool, pathlib.Path):
        return Serializer(kind, kind(), annotations)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Serializer(kind, next(iter(kind)), annotations)
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return NodeSerializer(kind, None, annotations)
    raise Exception(f"Unable to create serializer for type: {kind}")
