"""The decorator itself (`wrapper.py`)."""

from __future__ import annotations

import typing
import weakref
from typing import Any

import qt
import slicer
import vtk

from .connectors import GuiConnector, createGuiConnector
from .serializers import Serializer, UnionSerializer, make_serializer

# Those that Slicer's wrapper has beside the functions of `_Methods`.
_RESERVED = ("allParameters", "_is_parameter_node_wrapper", "default", "isCached", "Modified")


class _Parameter:
    """What the class knows of one parameter."""

    def __init__(self, datatype: Any) -> None:
        self.datatype = datatype
        self.serializer: Serializer | UnionSerializer
        self.serializer, self.default = make_serializer(datatype)


class _Value:
    """One parameter in one node; kept in memory and renewed when the node changes."""

    def __init__(self, parameter: _Parameter, name: str, node: Any) -> None:
        self._parameter, self._name, self._node, self._writing = parameter, name, node, False
        self.value = self._read()
        me = weakref.ref(self)

        def renew(_caller: Any, _event: str) -> None:
            value = me()
            if value is not None and not value._writing:
                value.value = value._read()

        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, renew)

    def __del__(self) -> None:
        if hasattr(self, "_tag"):
            self._node.RemoveObserver(self._tag)

    def _read(self) -> Any:
        serializer = self._parameter.serializer
        if not serializer.is_in(self._node, self._name):
            serializer.write(self._node, self._name, self._parameter.default)
        return serializer.read(self._node, self._name)

    def write(self, value: Any) -> None:
        self._writing = True
        try:
            # The new value must be known before anybody hears of the change.
            with slicer.util.NodeModify(self._node):
                self._parameter.serializer.write(self._node, self._name, value)
                self.value = self._read()
        finally:
            self._writing = False


def _property(name: str) -> property:
    def read(self: Any) -> Any:
        return self._values[name].value

    def write(self: Any, value: Any) -> None:
        self._values[name].write(value)

    return property(read, write)


def _check(owner: Any, name: str) -> None:
    if name not in owner.allParameters:
        raise ValueError(f"Cannot find a param with the given name: {name}; there are {list(owner.allParameters)}")


class _Methods:
    """The functions that the decorator adds to the class."""

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._guis: dict[int, dict[str, GuiConnector]] = {}
        self._gui_observers: dict[int, int] = {}
        self._next_tag, self._updating = 0, False
        parameters: dict[str, _Parameter] = self.allParameters  # type: ignore[attr-defined]
        self._values = {name: _Value(parameter, name, parameterNode) for name, parameter in parameters.items()}

    def getValue(self, name: str) -> Any:
        _check(self, name)
        return self._values[name].value

    def setValue(self, name: str, value: Any) -> None:
        _check(self, name)
        self._values[name].write(value)

    def dataType(self, name: str) -> Any:
        _check(self, name)
        return self.allParameters[name].datatype  # type: ignore[attr-defined]

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {name: createGuiConnector(widget, self.dataType(name)) for name, widget in mapping.items()}
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(self._from_gui(name, connector))
        self._gui_observers[tag] = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_gui())
        return tag

    def _from_gui(self, name: str, connector: GuiConnector) -> Any:
        def take() -> None:
            with slicer.util.NodeModify(self):
                if not self._updating:
                    self.setValue(name, connector.read())

        return take

    def _to_gui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in list(self._guis.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def connectGui(self, gui: Any) -> int:
        widgets = gui.findChildren(qt.QWidget)
        named = [(widget.property("SlicerParameterName"), widget) for widget in widgets]
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def disconnectGui(self, guiTag: int) -> None:
        for connector in self._guis.pop(guiTag, {}).values():
            connector.onChanged(None)
        if guiTag in self._gui_observers:
            self.RemoveObserver(self._gui_observers.pop(guiTag))

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified: Any) -> Any:
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)


def parameterNodeWrapper(cls: type) -> type:
    """Make the annotations of a class its parameters (a class decorator)."""
    parameters: dict[str, _Parameter] = {}
    for name, datatype in typing.get_type_hints(cls, include_extras=True).items():
        if hasattr(cls, name):
            raise NotImplementedError(f"{name}: the stand-in knows a default by `Annotated[..., Default(...)]` only")
        try:
            parameters[name] = _Parameter(datatype)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        setattr(cls, name, _property(name))
    added = {name: value for name, value in vars(_Methods).items() if callable(value) and not name.startswith("__")}
    for name in (*added, *_RESERVED):
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
    cls.allParameters = parameters  # type: ignore[attr-defined]
    cls.__init__ = _Methods.__init__  # type: ignore[assignment,misc]
    for name, function in added.items():
        setattr(cls, name, function)
    return cls
