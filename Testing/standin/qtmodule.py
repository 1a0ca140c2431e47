"""The module `qt`: PySide6 in PythonQt's clothes.

Classes come from QtCore, QtGui, QtWidgets and QtNetwork and are wrapped when first asked for. Dialogs that would wait
for a person, links, and files that are loaded as .ui are replaced.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import dialogs, uiloader
from .enums import EnumValue
from .pythonqt import PythonQtObject, unwrap, wrap, wrapper_class
from .signals import deliver

_MODULES = ("QtCore", "QtGui", "QtWidgets", "QtNetwork")


def _single_shot(msec: int, target: Any) -> None:
    """`QTimer.singleShot(ms, callable)`; PythonQt has only this form."""
    if not callable(target):
        raise TypeError("singleShot(int, callable) expected")
    QtCore.QTimer.singleShot(int(msec), lambda: deliver(target, (), "QTimer.singleShot"))


_STATIC: dict[str, dict[str, Any]] = {
    "QTimer": {"singleShot": _single_shot},
    "QFileDialog": {"getOpenFileName": dialogs.get_open_file_name},
    "QDesktopServices": {"openUrl": lambda url: dialogs.open_url(unwrap(url))},
}
_REPLACED: dict[str, type] = {"QMessageBox": dialogs.QMessageBox, "QDialog": dialogs.QDialog}


class QUiLoader:
    """Loads .ui files into wrapped widgets; see `uiloader`."""

    def load(self, device: PythonQtObject) -> Any:
        return wrap(uiloader.load(bytes(unwrap(device).readAll().data()).decode("utf-8")))


class QtNamespace:
    """`qt.Qt`: the values of all enumerations of Qt's namespace, unscoped."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(QtCore.Qt, name, None)
        if found is not None and not isinstance(found, type):
            return EnumValue(found)
        raise AttributeError(f"qt.Qt has no attribute '{name}' (PythonQt knows the values, not their enumerations)")


class QtModule(types.ModuleType):
    """`import qt`."""

    QUiLoader = QUiLoader
    Qt = QtNamespace()

    def __getattr__(self, name: str) -> Any:
        native = _REPLACED.get(name) or _find(name)
        if not isinstance(native, type) or not issubclass(native, shiboken6.Object):
            raise AttributeError(f"module 'qt' has no attribute '{name}'")
        found = wrapper_class(native)
        for static, function in _STATIC.get(name, {}).items():
            setattr(found, static, staticmethod(function))
        setattr(self, name, found)
        return found


def _find(name: str) -> Any:
    modules = (importlib.import_module(f"PySide6.{module}") for module in _MODULES)
    return next((getattr(module, name) for module in modules if hasattr(module, name)), None)
