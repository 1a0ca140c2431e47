"""Which widget may show which type of parameter, and how (`guiConnectors.py`)."""

from __future__ import annotations

import enum
import pathlib
import typing
from collections.abc import Callable
from typing import Any

import ctk
import qt
import slicer

from .serializers import WithinRange, find, is_union, split_annotations


class GuiConnector:
    """One widget and one parameter, by a property of the widget and the signal of its change."""

    def __init__(self, widget: Any, attribute: str = "", signal: str = "", kind: Callable[[Any], Any] = lambda v: v):
        self._widget, self._attribute, self._signal, self._kind = widget, attribute, signal, kind
        self._callback: Callable[[], None] | None = None

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        signal = getattr(self._widget, self._signal)
        if callback is None:
            signal.disconnect(self._callback)
        else:
            signal.connect(callback)
        self._callback = callback

    def read(self) -> Any:
        return self._kind(getattr(self._widget, self._attribute))

    def write(self, value: Any) -> None:
        value = str(value) if isinstance(value, pathlib.PurePath) else value
        if getattr(self._widget, self._attribute) != value:
            setattr(self._widget, self._attribute, value)


class EnumConnector(GuiConnector):
    """A member of an enumeration on a combo box that is filled here; what was selected in it stays so."""

    def __init__(self, widget: Any, kind: type[enum.Enum]) -> None:
        super().__init__(widget, signal="currentIndexChanged")
        self._members = list(kind)
        selected = widget.currentIndex
        widget.clear()
        for member in kind:
            widget.addItem(member.label() if hasattr(kind, "label") else member.name)
        widget.currentIndex = selected

    def read(self) -> Any:
        return self._members[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        self._widget.currentIndex = self._members.index(value)


class NodeConnector(GuiConnector):
    """A node on a qMRMLNodeComboBox, which then offers the types of the parameter and no others."""

    def __init__(self, widget: Any, kinds: list[type]) -> None:
        super().__init__(widget, signal="currentNodeChanged")
        widget.nodeTypes = tuple(kind().GetClassName() for kind in kinds)

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


def _number(widget: Any, kind: type, annotations: list[Any]) -> GuiConnector:
    limits = find(annotations, WithinRange)
    if limits is None:
        raise RuntimeError(f"Cannot have a connection to {type(widget)} where the type is unbounded.")
    if kind is int and type(widget) is ctk.ctkSliderWidget:
        widget.decimals = 0
    widget.minimum, widget.maximum = limits.minimum, limits.maximum
    return GuiConnector(widget, "value", "valueChanged", kind)


def _node_kinds(kind: Any) -> list[type]:
    """Return the node classes of a node type, or of a union of node types and None; none for anything else."""
    members = typing.get_args(kind) if is_union(kind) else [kind]
    kinds = [member for member in members if member is not type(None)]
    return kinds if all(isinstance(m, type) and issubclass(m, slicer.vtkMRMLNode) for m in kinds) else []


def createGuiConnector(widget: Any, datatype: Any) -> GuiConnector:
    """Return the connector of a widget and a type.

    Raises:
        RuntimeError: this type can not be shown by this widget. The class must be exactly one of those named; a
            subclass does not do.
    """
    kind, annotations = split_annotations(datatype)
    cls = type(widget)
    if kind is bool and cls is qt.QCheckBox:
        return GuiConnector(widget, "checked", "stateChanged")
    if (kind, cls) in ((int, qt.QSpinBox), (int, ctk.ctkSliderWidget), (float, qt.QDoubleSpinBox)):
        return _number(widget, kind, annotations)
    if cls is qt.QComboBox and isinstance(kind, type) and issubclass(kind, enum.Enum):
        return EnumConnector(widget, kind)
    if kind is str and cls is qt.QLineEdit:
        return GuiConnector(widget, "text", "textChanged")
    if kind is pathlib.Path and cls is ctk.ctkPathLineEdit:
        return GuiConnector(widget, "currentPath", "currentPathChanged", kind)
    if cls is slicer.qMRMLNodeComboBox and _node_kinds(kind):
        return NodeConnector(widget, _node_kinds(kind))
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{cls}'.")
