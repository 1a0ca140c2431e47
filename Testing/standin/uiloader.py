"""Loading .ui files as Slicer does (`qt.QUiLoader`, used by `slicer.util.loadUI`).

The widgets of CTK, MRML and Slicer come from our own classes; a class that the stand-in does not know is an error
(Qt would silently put a plain QWidget there). The `<connections>` are made here, because PySide6 knows no
`vtkMRMLScene*`; one that names a signal or slot that does not exist is an error as well.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from .pythonqt import connect_signal, wrap

custom_classes: dict[str, type[QtWidgets.QWidget]] = {}


class _NativeLoader(QtUiTools.QUiLoader):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        if name in custom_classes:
            try:
                widget = custom_classes[name](parent)
            except Exception as error:
                self.problems.append(f"{name} '{object_name}': {error}")
                raise
            widget.setObjectName(object_name)
            return widget
        if name not in self.availableWidgets():
            self.problems.append(f"'{object_name}' is a {name}, which the stand-in does not know")
            name = "QWidget"
        return super().createWidget(name, parent, object_name)


class Loader:
    """One .ui text to one tree of PySide6 widgets."""

    def load_text(self, text: str, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """
        Raises:
            RuntimeError: unknown class, unknown property of one of our classes, impossible connection, broken file.
        """
        root = ElementTree.fromstring(text)
        connections = [_connection(entry) for entry in root.iterfind("connections/connection")]
        for block in root.findall("connections"):
            root.remove(block)
        for widget in root.iter("widget"):
            _check_properties(widget)
        loader = _NativeLoader()
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        top = loader.load(buffer, parent)
        if top is None:
            raise RuntimeError(f"The .ui file can not be loaded: {loader.errorString()}")
        if loader.problems:
            raise RuntimeError("; ".join(loader.problems))
        for connection in connections:
            _connect(top, *connection)
        return top


def _connection(entry: ElementTree.Element) -> tuple[str, str, str, str]:
    sender, signal, receiver, slot = (entry.findtext(key, "") for key in ("sender", "signal", "receiver", "slot"))
    return sender, signal, receiver, slot


def _check_properties(widget: ElementTree.Element) -> None:
    """Unknown names raise; values of enumerations become numbers, since our properties of that kind are ints."""
    cls = custom_classes.get(widget.get("class", ""))
    if cls is None:
        return
    meta = cls.staticMetaObject
    enumerations = getattr(cls, "enum_properties", {})
    for entry in widget.findall("property"):
        name = entry.get("name", "")
        if meta.indexOfProperty(name) < 0:
            if entry.get("stdset") == "0":
                continue
            raise RuntimeError(f"{widget.get('class')} '{widget.get('name')}' has no property '{name}'")
        child = entry[0]
        if child.tag in ("set", "enum") and name in enumerations:
            kind = enumerations[name]
            value = 0
            for word in (child.text or "").split("|"):
                member = kind[word.split("::")[-1].strip()]
                value |= int(getattr(member, "value", member))
            child.tag, child.text = "number", str(value)


def _named(top: QtWidgets.QWidget, name: str) -> QtCore.QObject:
    found = top if top.objectName() == name else top.findChild(QtCore.QObject, name)
    if found is None:
        raise RuntimeError(f"A connection of the .ui file names '{name}', which is not in it")
    return found


def _connect(top: QtWidgets.QWidget, sender: str, signal: str, receiver: str, slot: str) -> None:
    target = wrap(_named(top, receiver))
    name = slot.split("(")[0]
    method = getattr(target, name, None)
    if not callable(method):
        raise RuntimeError(f"'{receiver}' ({type(target).__name__}) has no slot {slot}")
    given = [p for p in slot[slot.index("(") + 1 : -1].split(",") if p]

    def call(*args: Any) -> None:
        getattr(target, name)(*args[: len(given)])

    connect_signal(_named(top, sender), signal, call)
