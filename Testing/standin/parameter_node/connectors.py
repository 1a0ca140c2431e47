"""Which widget may show which type of parameter, and how (`guiConnectors.py`)."""

from __future__ import annotations

import enum
import inspect
import logging
import pathlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ctk
import qt
import slicer

from .validators import Choice, Maximum, Minimum, WithinRange, find, split_annotations

_PATHS = (
    pathlib.Path,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)


@dataclass
class Decimals:
    """Number of decimals that the widget shows."""

    value: int


@dataclass
class SingleStep:
    """Step of the widget."""

    value: float


class GuiConnector:
    """One widget and one parameter. `signal` is emitted by the widget when the user changes it."""

    signal = ""

    def __init__(self, widget: Any) -> None:
        self._widget, self._callback = widget, None

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        if self.signal:
            signal = getattr(self._widget, self.signal)
            (signal.disconnect if callback is None else signal.connect)(self.changed)

    def changed(self) -> None:
        if self._callback:
            self._callback()

    def widget(self) -> Any:
        return self._widget

    def read(self) -> Any:
        raise NotImplementedError

    def write(self, value: Any) -> None:
        raise NotImplementedError


class CheckConnector(GuiConnector):
    """bool on a check box or a button that stays down."""

    def __init__(self, widget: Any) -> None:
        super().__init__(widget)
        self.signal = "stateChanged" if type(widget) is qt.QCheckBox else "toggled"
        if type(widget) is qt.QPushButton and not widget.checkable:
            logging.warning(f"Making push button checkable for conversion to bool: button {widget}")
            widget.checkable = True

    def read(self) -> Any:
        return self._widget.checked

    def write(self, value: Any) -> None:
        self._widget.checked = value


class IntegerConnector(GuiConnector):
    """int on a slider or a spin box; the range of the widget becomes that of the annotations, else all integers."""

    signal = "valueChanged"

    def __init__(self, widget: Any, annotations: list[Any]) -> None:
        super().__init__(widget)
        step = find(annotations, SingleStep)
        if step is not None:
            widget.singleStep = step.value
        within, low, high = (find(annotations, kind) for kind in (WithinRange, Minimum, Maximum))
        if isinstance(widget, qt.QSlider) and within is None and (low is None or high is None):
            raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
        if within is not None:
            widget.setRange(within.minimum, within.maximum)
        else:
            widget.setMinimum(low.minimum if low is not None else -(2**31))
            widget.setMaximum(high.maximum if high is not None else 2**31 - 1)

    def read(self) -> Any:
        return self._widget.value

    def write(self, value: Any) -> None:
        self._widget.value = value


class RealConnector(GuiConnector):
    """float or int on a QDoubleSpinBox or a ctkSliderWidget."""

    signal = "valueChanged"

    def __init__(self, widget: Any, kind: type, annotations: list[Any]) -> None:
        super().__init__(widget)
        self._integer = kind is int
        decimals, step = find(annotations, Decimals), find(annotations, SingleStep)
        if self._integer:
            widget.decimals = 0
        elif decimals is not None:
            widget.decimals = decimals.value
        if step is not None:
            widget.singleStep = step.value
        within, low, high = (find(annotations, kind) for kind in (WithinRange, Minimum, Maximum))
        if type(widget) is ctk.ctkSliderWidget and within is None and (low is None or high is None):
            raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
        if within is not None:
            widget.minimum, widget.maximum = within.minimum, within.maximum
        else:
            widget.minimum = low.minimum if low is not None else float("-inf")
            widget.maximum = high.maximum if high is not None else float("inf")

    def read(self) -> Any:
        return int(self._widget.value) if self._integer else self._widget.value

    def write(self, value: Any) -> None:
        self._widget.value = int(value) if self._integer else value


class ChoiceConnector(GuiConnector):
    """A value out of a list, or a member of an enumeration, on a combo box that is filled here."""

    signal = "currentIndexChanged"

    def __init__(self, widget: Any, entries: list[tuple[str, Any]]) -> None:
        super().__init__(widget)
        self._entries = entries
        widget.clear()
        for label, _ in entries:
            widget.addItem(label)

    def read(self) -> Any:
        return self._entries[self._widget.currentIndex][1]

    def write(self, value: Any) -> None:
        for index, (_, entry) in enumerate(self._entries):
            if entry == value:
                self._widget.currentIndex = index
                return
        raise ValueError(f"Unable to find value {value} in choices {[entry for _, entry in self._entries]}")


class EnumConnector(ChoiceConnector):
    """A combo box for an enumeration keeps what was selected in it while it is filled anew."""

    def __init__(self, widget: Any, kind: type[enum.Enum]) -> None:
        label = getattr(kind, "label", lambda member: member.name)
        entries = [(label(member), member) for member in kind]
        selected = entries[widget.currentIndex][1]
        super().__init__(widget, entries)
        self.write(selected)


class TextConnector(GuiConnector):
    """str on a QLineEdit, a QTextEdit or (only written) a QLabel."""

    def __init__(self, widget: Any) -> None:
        super().__init__(widget)
        self.signal = "" if type(widget) is qt.QLabel else "textChanged"

    def read(self) -> Any:
        return self._widget.toPlainText() if type(self._widget) is qt.QTextEdit else self._widget.text

    def write(self, value: Any) -> None:
        if type(self._widget) is qt.QTextEdit:
            self._widget.setPlainText(value)
        elif self._widget.text != value:
            self._widget.text = value


class PathConnector(GuiConnector):
    """A path on a ctkPathLineEdit."""

    signal = "currentPathChanged"

    def __init__(self, widget: Any, kind: type) -> None:
        super().__init__(widget)
        self._kind = kind

    def read(self) -> Any:
        return self._kind(self._widget.currentPath)

    def write(self, value: Any) -> None:
        self._widget.currentPath = str(value)


class NodeConnector(GuiConnector):
    """A node on a qMRMLNodeComboBox, which then offers the types of the parameter and no others."""

    signal = "currentNodeChanged"

    def __init__(self, widget: Any, kinds: list[type]) -> None:
        super().__init__(widget)
        widget.nodeTypes = tuple(kind().GetClassName() for kind in kinds)

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


def _node_kinds(kind: Any) -> list[type]:
    """The node classes of a node type, or of a union of node types and None; empty for anything else."""
    members = [kind]
    if typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType):
        members = [split_annotations(member)[0] for member in typing.get_args(kind)]
    kinds = [m for m in members if m is not type(None)]
    if all(isinstance(m, type) and issubclass(m, slicer.vtkMRMLNode) for m in kinds):
        return kinds
    return []


def createGuiConnector(widget: Any, datatype: Any) -> GuiConnector:
    """
    Raises:
        RuntimeError: this type can not be shown by this widget. The class must be exactly one of those named; a
            subclass does not do.
    """
    kind, annotations = split_annotations(datatype)
    cls, combo = type(widget), type(widget) in (qt.QComboBox, ctk.ctkComboBox)
    if kind is bool and cls in (qt.QCheckBox, qt.QPushButton):
        return CheckConnector(widget)
    if kind is int and cls in (qt.QSlider, qt.QSpinBox):
        return IntegerConnector(widget, annotations)
    if kind in (float, int) and cls in (qt.QDoubleSpinBox, ctk.ctkSliderWidget):
        return RealConnector(widget, kind, annotations)
    if combo and kind in (int, float, str, bool):
        choice = find(annotations, Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        return ChoiceConnector(widget, [(str(value), value) for value in choice.choices])
    if combo and isinstance(kind, type) and issubclass(kind, enum.Enum):
        return EnumConnector(widget, kind)
    if kind is str and cls in (qt.QLineEdit, qt.QLabel, qt.QTextEdit):
        return TextConnector(widget)
    if cls is ctk.ctkPathLineEdit and kind in _PATHS:
        return PathConnector(widget, kind)
    if cls is slicer.qMRMLNodeComboBox and _node_kinds(kind):
        return NodeConnector(widget, _node_kinds(kind))
    raise RuntimeError(
        f"Unable to create GUI connector from datatype '{datatype}' to widget type '{cls}'."
        f" See the connectors in {inspect.getfile(GuiConnector)}"
    )
