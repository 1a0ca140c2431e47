"""The decorator itself (`wrapper.py`)."""

from __future__ import annotations

import logging
import typing
import weakref
from typing import Any

import qt
import slicer
import vtk

from .connectors import GuiConnector, createGuiConnector
from .serializers import Serializer, make_serializer
from .validators import Default, find, split_annotations

SlicerParameterNamePropertyName = "SlicerParameterName"
_RESERVED = (
    "allParameters",
    "_is_parameter_node_wrapper",
    "default",
    "isCached",
    "dataType",
    "getValue",
    "setValue",
    "connectGui",
    "connectParametersToGui",
    "disconnectGui",
    "StartModify",
    "EndModify",
    "AddObserver",
    "RemoveObserver",
    "Modified",
)


class _Parameter:
    """What the class knows of one parameter."""

    def __init__(self, name: str, serializer: Serializer, default: Default, datatype: Any) -> None:
        self.basename, self.serializer, self.default, self.unalteredType = name, serializer, default, datatype


class _Value:
    """One parameter in one node; kept in memory and renewed when the node changes, if its type allows."""

    def __init__(self, parameter: _Parameter, name: str, node: Any) -> None:
        self.parameter, self._name, self._node, self._writing = parameter, name, node, False
        self.cached = parameter.serializer.caches
        if self.cached:
            self._value = self._read()
            me = weakref.ref(self)

            def renew(_caller: Any, _event: str) -> None:
                value = me()
                if value is not None and not value._writing:
                    value._value = value._read()

            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, renew)

    def __del__(self) -> None:
        if getattr(self, "cached", False) and hasattr(self, "_tag"):
            self._node.RemoveObserver(self._tag)

    def _read(self) -> Any:
        serializer = self.parameter.serializer
        if not serializer.is_in(self._node, self._name):
            serializer.write(self._node, self._name, self.parameter.default.value)
        return serializer.read(self._node, self._name)

    def read(self) -> Any:
        return self._value if self.cached else self._read()

    def write(self, value: Any) -> None:
        if not self.cached:
            self.parameter.serializer.write(self._node, self._name, value)
            return
        self._writing = True
        try:
            # The new value must be known before anybody hears of the change.
            with slicer.util.NodeModify(self._node):
                self.parameter.serializer.write(self._node, self._name, value)
                self._value = self._read()
        finally:
            self._writing = False


def _property(name: str) -> property:
    def read(self: Any) -> Any:
        return self._values[name].read()

    def write(self: Any, value: Any) -> None:
        self._values[name].write(value)

    return property(read, write)


def _check(owner: Any, name: str) -> None:
    if name not in owner.allParameters:
        raise ValueError(f"Cannot find a param with the given name: {name}; there are {list(owner.allParameters)}")


class _Methods:
    """The functions that the decorator adds to the class."""

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._guis: dict[int, dict[str, GuiConnector]] = {}
        self._gui_observers: dict[int, int] = {}
        self._next_tag, self._updating = 0, False
        self._values: dict[str, _Value] = {}
        for name, parameter in self.allParameters.items():  # type: ignore[attr-defined]
            full = f"{prefix or ''}{name}"
            if not parameter.serializer.is_in(parameterNode, full):
                parameter.serializer.write(parameterNode, full, parameter.default.value)
            self._values[name] = _Value(parameter, full, parameterNode)

    def default(self, paramName: str) -> Default:
        _check(self, paramName)
        return self.allParameters[paramName].default  # type: ignore[attr-defined]

    def isCached(self, paramName: str) -> bool:
        _check(self, paramName)
        return self._values[paramName].cached

    def getValue(self, name: str) -> Any:
        _check(self, name)
        return self._values[name].read()

    def setValue(self, name: str, value: Any) -> None:
        _check(self, name)
        self._values[name].write(value)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        for name in mapping:
            _check(self, name)
        connectors = {
            name: widget if isinstance(widget, GuiConnector) else createGuiConnector(widget, self.dataType(name))  # type: ignore[attr-defined]
            for name, widget in mapping.items()
        }
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
        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = gui.findChildren(qt.QWidget) if is_widget else list(vars(gui).values())
        named = [(widget.property(SlicerParameterNamePropertyName), widget) for widget in widgets]
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

    def Modified(self) -> None:
        self.parameterNode.Modified()


def _process(cls: type) -> type:
    parameters: dict[str, _Parameter] = {}
    for name, datatype in typing.get_type_hints(cls, include_extras=True).items():
        try:
            serializer, rest = make_serializer(datatype)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        defaults = [entry for entry in rest if isinstance(entry, Default)]
        if len(defaults) > 1:
            raise Exception("Multiple defaults found")
        if hasattr(cls, name):
            default = Default(getattr(cls, name))
        else:
            default = find(rest, Default) or Default(serializer.default())
        unused = [entry for entry in rest if not isinstance(entry, Default) or hasattr(cls, name)]
        if unused:
            logging.warning(f"Unused annotations: {unused}")
        parameters[name] = _Parameter(name, serializer, default, datatype)
        setattr(cls, name, _property(name))
    for name in _RESERVED:
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
    cls.allParameters = parameters  # type: ignore[attr-defined]
    cls._is_parameter_node_wrapper = True  # type: ignore[attr-defined]

    def data_type(membername: str) -> Any:
        _check(cls, membername)
        return parameters[membername].unalteredType

    cls.dataType = staticmethod(data_type)  # type: ignore[attr-defined]
    for name, function in vars(_Methods).items():
        if callable(function) and (not name.startswith("__") or name == "__init__"):
            setattr(cls, name, function)
    return cls


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Class decorator; the annotations of the class are the parameters."""
    return _process if classtype is None else _process(classtype)


def findChildWidgetForParameter(widget: Any, parameter: str) -> Any:
    children = widget.findChildren(qt.QWidget)
    return next((w for w in children if w.property(SlicerParameterNamePropertyName) == parameter), None)


__all__ = ["split_annotations"]
