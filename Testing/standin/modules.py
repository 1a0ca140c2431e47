"""Slicer's modules: the objects behind `slicer.modules.<name>` and the machinery of scripted modules.

Imitates Base/QTCore (`qSlicerAbstractCoreModule`, `qSlicerModuleManager`) and Base/QTGUI
(`qSlicerAbstractModuleWidget`, `qSlicerScriptedLoadableModule.cxx`, `qSlicerScriptedLoadableModuleWidget.cxx`,
`qSlicerScriptedUtils.cxx`, `qSlicerModulePanel.cxx` for enter and exit); of `qSlicerSequencesModule.h` the tool bar.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .mrmlwidgets import qMRMLWidget
from .pythonqt import invokable, stored, wrap
from .records import records


class qSlicerAbstractCoreModule(QtCore.QObject):
    """A module; one in C++ has its real logic and no panel."""

    def __init__(self, name: str, path: str, logic: Any, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._name, self._path, self._logic = name, path, logic

    name = Property(str, lambda self: self._name)
    path = Property(str, lambda self: self._path)

    @invokable()
    def logic(self) -> Any:
        return self._logic

    @invokable()
    def widgetRepresentation(self) -> Any:
        return None


class qSlicerSequencesModule(qSlicerAbstractCoreModule):
    """The Sequences module; its tool bar is never drawn."""

    toolBarVisible = stored(bool, False)

    @invokable("vtkMRMLSequenceBrowserNode*")
    def showSequenceBrowser(self, browser: Any) -> bool:
        self.toolBarVisible = True
        return True


class qSlicerScriptedLoadableModule(qSlicerAbstractCoreModule):
    """A module in Python; the script writes title, categories and so on into it."""

    def __init__(self, path: str, parent: QtCore.QObject) -> None:
        logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        super().__init__(Path(path).stem, path, logic, parent)
        self._widget: qSlicerScriptedLoadableModuleWidget | None = None

    title = stored(str, "")
    categories = stored("QStringList", [])
    dependencies = stored("QStringList", [])
    contributors = stored("QStringList", [])
    helpText = stored(str, "")
    acknowledgementText = stored(str, "")
    icon = stored(QtGui.QIcon, QtGui.QIcon())

    def load_script(self) -> None:
        """Make the file `sys.modules[name]` and the class in it `slicer.modules.<name>Instance`."""
        folder = str(Path(self._path).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(self._name, self._path)
        assert spec is not None and spec.loader is not None
        script = sys.modules[self._name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        setattr(slicer.modules, f"{self._name}Instance", getattr(script, self._name)(wrap(self)))

    @invokable()
    def widgetRepresentation(self) -> Any:
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
            self._widget.reload()
        return self._widget


def _guarded(where: str, function: Any, *args: Any) -> Any:
    """Call into the script as qSlicerPythonCppAPI does: an exception is printed, not passed on."""
    try:
        return function(*args)
    except Exception as error:
        records.slot_error(where, error)


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The panel of a scripted module; the script's widget class lives in it."""

    def __init__(self, module: qSlicerScriptedLoadableModule) -> None:
        super().__init__()
        self._module, self._python = module, None
        QtWidgets.QVBoxLayout(self)
        self.setMRMLScene(slicer.mrmlScene)

    @invokable()
    def reload(self) -> None:
        name = f"{self._module._name}Widget"
        self._python = _guarded(f"{name}.__init__", getattr(sys.modules[self._module._name], name), wrap(self))
        setattr(slicer.modules, name, self._python)
        self._call("setup")

    def _call(self, method: str) -> None:
        if hasattr(self._python, method):
            _guarded(f"{type(self._python).__name__}.{method}", getattr(self._python, method))

    @invokable()
    def self(self) -> Any:
        return self._python

    @invokable()
    def enter(self) -> None:
        self._call("enter")

    @invokable()
    def exit(self) -> None:
        self._call("exit")


class qSlicerModuleManager(QtCore.QObject):
    """All modules by name."""

    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self.modules: dict[str, qSlicerAbstractCoreModule] = {}

    def add(self, module: qSlicerAbstractCoreModule) -> None:
        self.modules[module._name] = module
        setattr(slicer.modules, module._name.lower(), wrap(module))

    @invokable("QString")
    def module(self, name: str) -> Any:
        return self.modules.get(name)


class qSlicerModuleSelectorToolBar(QtWidgets.QWidget):
    """Switches the panel: the old one is left, the new one entered (qSlicerModulePanel::setModule)."""

    def __init__(self, manager: qSlicerModuleManager, panel: QtWidgets.QVBoxLayout, parent: QtWidgets.QWidget) -> None:
        super().__init__(parent)
        self._manager, self._panel, self._selected = manager, panel, ""

    @invokable("QString")
    def selectModule(self, name: str) -> None:
        if name == self._selected:
            return
        old = getattr(self._manager.modules.get(self._selected), "_widget", None)
        if old is not None:
            old.exit()
            self._panel.removeWidget(old)
            old.setVisible(False)
            old.setParent(None)
        self._selected = name
        new = self._manager.modules.get(name)
        widget = new.widgetRepresentation() if new is not None else None
        if widget is not None:
            self._panel.addWidget(widget)
            widget.setVisible(True)
            widget.enter()
