"""Slicer's modules: the objects behind `slicer.modules.<name>` and the machinery of scripted modules.

Imitates Base/QTCore (`qSlicerAbstractCoreModule`, `qSlicerModuleManager`, `qSlicerModuleFactoryManager`) and
Base/QTGUI (`qSlicerAbstractModule`, `qSlicerAbstractModuleWidget`, `qSlicerScriptedLoadableModule.cxx`,
`qSlicerScriptedLoadableModuleWidget.cxx`, `qSlicerScriptedUtils.cxx`, `qSlicerModulePanel.cxx` for enter and exit);
`qSlicerSequencesModule.h` for the two functions that scripts use.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .mrmlwidgets import qMRMLWidget
from .pythonqt import invokable, wrap
from .records import records


class qSlicerAbstractCoreModule(QtCore.QObject):
    """What every module answers."""

    def __init__(self, name: str, path: str, logic: Any, parent: QtCore.QObject | None = None) -> None:
        super().__init__(parent)
        self._name, self._path, self._logic = name, path, logic
        self._widget: QtWidgets.QWidget | None = None

    def _get_name(self) -> str:
        return self._name

    def _get_path(self) -> str:
        return self._path

    name = Property(str, _get_name)
    path = Property(str, _get_path)

    @invokable()
    def logic(self) -> Any:
        return self._logic

    @invokable()
    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    @invokable()
    def widgetRepresentation(self) -> Any:
        if self._widget is None:
            self._widget = self._create_widget()
        return self._widget

    @invokable()
    def createNewWidgetRepresentation(self) -> Any:
        return self._create_widget()

    def _create_widget(self) -> QtWidgets.QWidget | None:
        return None


class qSlicerLoadableModule(qSlicerAbstractCoreModule):
    """A module in C++: its logic is real, its panel is not there."""

    def _get_title(self) -> str:
        return self._name

    title = Property(str, _get_title)


class qSlicerSequencesModule(qSlicerLoadableModule):
    """The Sequences module with its tool bar, which only remembers what it was told to show."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._visible, self._auto, self.active_browser = False, True, None

    def _get_visible(self) -> bool:
        return self._visible

    def _set_visible(self, visible: bool) -> None:
        self._visible = visible

    def _get_auto(self) -> bool:
        return self._auto

    def _set_auto(self, auto: bool) -> None:
        self._auto = auto

    toolBarVisible = Property(bool, _get_visible, _set_visible)
    autoShowToolBar = Property(bool, _get_auto, _set_auto)

    @invokable("vtkMRMLSequenceBrowserNode*")
    def setToolBarActiveBrowserNode(self, browser: Any) -> None:
        self.active_browser = browser

    @invokable("bool")
    def setToolBarVisible(self, visible: bool) -> None:
        self._visible = visible

    @invokable("vtkMRMLSequenceBrowserNode*")
    def showSequenceBrowser(self, browser: Any) -> bool:
        if self._auto:
            self.active_browser, self._visible = browser, True
        return True


def load_source(name: str, path: str) -> ModuleType:
    """qSlicerScriptedUtils::loadSourceAsModule: the file becomes `sys.modules[name]`."""
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class qSlicerScriptedLoadableModule(qSlicerAbstractCoreModule):
    """A module in Python; the script writes title, categories and so on into it."""

    def __init__(self, path: str, parent: QtCore.QObject | None = None) -> None:
        logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        super().__init__(Path(path).stem, path, logic, parent)
        self._values: dict[str, Any] = {}
        self._instance: Any = None

    @staticmethod
    def _value(kind: Any, key: str, default: Any) -> Property:
        def read(self: qSlicerScriptedLoadableModule) -> Any:
            return self._values.get(key, default)

        def write(self: qSlicerScriptedLoadableModule, value: Any) -> None:
            self._values[key] = value

        return Property(kind, read, write)

    title = _value(str, "title", "")
    categories = _value("QStringList", "categories", [])
    contributors = _value("QStringList", "contributors", [])
    associatedNodeTypes = _value("QStringList", "associatedNodeTypes", [])
    helpText = _value(str, "helpText", "")
    acknowledgementText = _value(str, "acknowledgementText", "")
    extensions = _value("QVariantMap", "extensions", {})
    icon = _value(QtGui.QIcon, "icon", QtGui.QIcon())
    hidden = _value(bool, "hidden", False)
    dependencies = _value("QStringList", "dependencies", [])
    index = _value(int, "index", -1)
    widgetRepresentationCreationEnabled = _value(bool, "enabled", True)

    def load_script(self) -> None:
        name = self._name
        module = sys.modules.get(name)
        if module is None or not hasattr(module, name):
            module = load_source(name, self._path)
        if not hasattr(module, name):
            raise RuntimeError(f"class {name} was not found in file {self._path}")
        self._instance = getattr(module, name)(wrap(self))
        setattr(slicer.modules, f"{name}Instance", self._instance)
        if not hasattr(module, f"{name}Widget"):
            self._values["enabled"] = False

    def run_setup(self) -> None:
        setup = getattr(self._instance, "setup", None)
        if setup is not None:
            _guarded(f"{self._name}.setup", setup)

    def _create_widget(self) -> QtWidgets.QWidget | None:
        if not self._values.get("enabled", True):
            return None
        widget = qSlicerScriptedLoadableModuleWidget()
        widget._module = self
        if not widget.load_script():
            return None
        widget.setMRMLScene(slicer.mrmlScene)
        widget.run_setup()
        return widget


def _guarded(where: str, function: Any, *args: Any) -> Any:
    """Call into the script as qSlicerPythonCppAPI does: an exception is printed, not passed on."""
    try:
        return function(*args)
    except Exception as error:
        records.slot_error(where, error)
        return None


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The panel of a scripted module; the script's widget class lives in it."""

    also_inherits: ClassVar[tuple[str, ...]] = ("qSlicerWidget", "qSlicerAbstractModuleWidget")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._module: Any = None
        self._python: Any = None
        self._entered = False
        QtWidgets.QVBoxLayout(self)

    def _get_name(self) -> str:
        return self._module._name if self._module is not None else ""

    def _get_entered(self) -> bool:
        return self._entered

    moduleName = Property(str, _get_name)
    isEntered = Property(bool, _get_entered)

    def load_script(self) -> bool:
        name = f"{self._module._name}Widget"
        module = sys.modules.get(self._module._name)
        if module is None or not hasattr(module, name):
            module = load_source(self._module._name, self._module._path)
        made = _guarded(f"{name}.__init__", getattr(module, name), wrap(self))
        if made is None:
            return False
        self._python = made
        setattr(slicer.modules, name, made)
        return True

    def run_setup(self) -> None:
        self.setObjectName(f"{self._module._name}ModuleWidget")
        self.setWindowTitle(self._module._values.get("title", ""))
        self._call("setup")

    def _call(self, method: str, *args: Any) -> Any:
        function = getattr(self._python, method, None)
        return None if function is None else _guarded(f"{type(self._python).__name__}.{method}", function, *args)

    @invokable()
    def reload(self) -> None:
        self.load_script()
        self.run_setup()

    @invokable()
    def self(self) -> Any:
        return self._python

    @invokable()
    def enter(self) -> None:
        self._entered = True
        self._call("enter")

    @invokable()
    def exit(self) -> None:
        self._entered = False
        self._call("exit")

    @invokable("vtkMRMLNode*", "QString", "QString", optional=2)
    def setEditedNode(self, node: Any, role: str = "", context: str = "") -> bool:
        return bool(self._call("setEditedNode", node, role, context))


class qSlicerModuleFactoryManager(QtCore.QObject):
    """As far as `slicer.util.moduleNames` asks it."""

    def __init__(self, manager: qSlicerModuleManager) -> None:
        super().__init__(manager)
        self._manager = manager

    @invokable()
    def loadedModuleNames(self) -> list[str]:
        return list(self._manager.modules)


class qSlicerModuleManager(QtCore.QObject):
    """All modules by name."""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self, parent: QtCore.QObject | None = None) -> None:
        super().__init__(parent)
        self.modules: dict[str, qSlicerAbstractCoreModule] = {}
        self._factory = qSlicerModuleFactoryManager(self)

    def add(self, module: qSlicerAbstractCoreModule) -> None:
        self.modules[module._name] = module
        setattr(slicer.modules, module._name.lower(), wrap(module))
        setattr(slicer.moduleNames, module._name, module._name)
        self.moduleLoaded.emit(module._name)

    def remove(self, name: str) -> None:
        self.moduleAboutToBeUnloaded.emit(name)
        self.modules.pop(name)
        for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
            if hasattr(slicer.modules, attribute):
                delattr(slicer.modules, attribute)
        if hasattr(slicer.moduleNames, name):
            delattr(slicer.moduleNames, name)

    @invokable()
    def factoryManager(self) -> QtCore.QObject:
        return self._factory

    @invokable()
    def modulesNames(self) -> list[str]:
        return list(self.modules)

    @invokable("QString")
    def module(self, name: str) -> Any:
        return self.modules.get(name)


class qSlicerModuleSelectorToolBar(QtWidgets.QWidget):
    """Switches the panel: the old one is left, the new one entered (qSlicerModulePanel::setModule)."""

    moduleSelected = Signal(str)

    def __init__(self, manager: qSlicerModuleManager, panel: QtWidgets.QVBoxLayout, parent: Any = None) -> None:
        super().__init__(parent)
        self._manager, self._panel, self._selected = manager, panel, ""

    def _get_selected(self) -> str:
        return self._selected

    selectedModule = Property(str, _get_selected)

    @invokable("QString")
    def selectModule(self, name: str) -> None:
        if name == self._selected:
            return
        old = self._manager.modules.get(self._selected)
        if old is not None and old._widget is not None:
            old._widget.exit()
            self._panel.removeWidget(old._widget)
            old._widget.setVisible(False)
            old._widget.setParent(None)
        self._selected = name
        new = self._manager.modules.get(name)
        widget = new.widgetRepresentation() if new is not None else None
        if widget is not None:
            self._panel.addWidget(widget)
            widget.setVisible(True)
            widget.enter()
        self.moduleSelected.emit(name)
