"""Loading .ui files as Slicer does (`qt.QUiLoader`, used by `slicer.util.loadUI`).

The widgets of CTK, MRML and Slicer come from our own classes; a class that the stand-in does not know is an error
(Qt would silently put a plain QWidget there). The `<connections>` are made here, because PySide6 knows no
`vtkMRMLScene*`; one that names a signal or slot that does not exist is an error as well.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from .pythonqt import wrap
from .signals import connect_signal

custom_classes: dict[str, type[QtWidgets.QWidget]] = {}


class _NativeLoader(QtUiTools.QUiLoader):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        if name in custom_classes:
            widget = custom_classes[name](parent)
            widget.setObjectName(object_name)
            return widget
        if name not in self.availableWidgets():
            self.problems.append(f"'{object_name}' is a {name}, which the stand-in does not know")
            name = "QWidget"
        return super().createWidget(name, parent, object_name)


def load(text: str) -> QtWidgets.QWidget:
    """Make one tree of PySide6 widgets of one .ui text.

    Raises:
        RuntimeError: unknown class, unknown property of one of our classes, impossible connection, broken file.
    """
    root = ElementTree.fromstring(text)
    connections = [[part.text or "" for part in entry][:4] for entry in root.iterfind("connections/connection")]
    for block in root.findall("connections"):
        root.remove(block)
    ours = [widget for widget in root.iter("widget") if widget.get("class") in custom_classes]
    for widget in ours:
        _number_enumerations(widget)
    loader = _NativeLoader()
    buffer = QtCore.QBuffer()
    buffer.setData(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    top = loader.load(buffer)
    if loader.problems or top is None:
        raise RuntimeError("; ".join(loader.problems) or f"The .ui file can not be loaded: {loader.errorString()}")
    for widget in ours:
        _check_properties(_named(top, widget.get("name", "")), widget)
    for connection in connections:
        _connect(top, *connection)
    return top


def _number_enumerations(widget: ElementTree.Element) -> None:
    """Turn values of enumerations into numbers, since our properties of that kind are ints."""
    enumerations = custom_classes[widget.get("class", "")].__dict__.get("enum_properties", {})
    for entry in widget.findall("property"):
        if entry.get("name") in enumerations:
            words = (entry[0].text or "").split("|")
            members = [enumerations[entry.get("name")][word.split("::")[-1]] for word in words]
            entry[0].tag, entry[0].text = "number", str(sum(members))


def _check_properties(made: QtCore.QObject, widget: ElementTree.Element) -> None:
    for entry in widget.findall("property"):
        name = entry.get("name", "")
        if made.metaObject().indexOfProperty(name) < 0 and entry.get("stdset") != "0":
            raise RuntimeError(f"{widget.get('class')} '{widget.get('name')}' has no property '{name}'")


def _named(top: QtWidgets.QWidget, name: str) -> QtCore.QObject:
    found = top if top.objectName() == name else top.findChild(QtCore.QObject, name)
    if found is None:
        raise RuntimeError(f"A connection of the .ui file names '{name}', which is not in it")
    return found


def _connect(top: QtWidgets.QWidget, sender: str, signal: str, receiver: str, slot: str) -> None:
    target, (name, parameters) = wrap(_named(top, receiver)), slot.rstrip(")").split("(")
    if not callable(getattr(target, name, None)):
        raise RuntimeError(f"'{receiver}' ({type(target).__name__}) has no slot {slot}")
    given = len(parameters.split(",")) if parameters else 0
    connect_signal(_named(top, sender), signal, lambda *args: getattr(target, name)(*args[:given]), wrap)
