"""The module `qt`: PySide6 in PythonQt's clothes.

Classes come from QtCore, QtGui, QtWidgets, QtNetwork and QtUiTools and are wrapped when first asked for. Dialogs that
would wait for a person, links, and files that are loaded as .ui are replaced.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import uiloader
from .ctkwidgets import answer_message, ask_for_path
from .enums import EnumValue
from .pythonqt import ClassWrapper, PythonQtObject, StaticFunction, deliver, unwrap, wrap, wrapper_class
from .records import records

_MODULES = ("QtCore", "QtGui", "QtWidgets", "QtNetwork", "QtUiTools")


class QMessageBox(QtWidgets.QMessageBox):
    """A message box that is recorded and answered instead of shown."""

    def exec(self) -> Any:
        levels = {"Information": "info", "Warning": "warning", "Critical": "error", "Question": "question"}
        level = levels.get(self.icon().name, "info")
        return answer_message(level, self.text(), self.windowTitle(), self.detailedText(), self.standardButtons())


class QDialog(QtWidgets.QDialog):
    """A dialog; `exec` would wait for a person, so it is refused."""

    def exec(self) -> int:
        raise RuntimeError("A modal dialog would wait for ever in a test")


class QProgressDialog(QtWidgets.QProgressDialog):
    """A progress dialog; its window stays off the screen, its values work."""

    def exec(self) -> int:
        raise RuntimeError("A modal dialog would wait for ever in a test")


def _message_function(level: str) -> Any:
    def show(_parent: Any, title: str, text: str, buttons: Any = None, _default: Any = None) -> Any:
        fallback = QtWidgets.QMessageBox.StandardButton.Ok
        return wrap(answer_message(level, text, title, "", unwrap(buttons) if buttons is not None else fallback))

    return show


def _single_shot(msec: int, target: Any) -> None:
    """`QTimer.singleShot(ms, callable)`; PythonQt has only this form."""
    if not callable(target):
        raise TypeError("singleShot(int, callable) expected")
    QtCore.QTimer.singleShot(int(msec), lambda: deliver(target, (), "QTimer.singleShot"))


def _open_file(_parent: Any = None, caption: str = "", directory: str = "", name_filter: str = "", *_: Any) -> str:
    return ask_for_path("open", caption, directory, name_filter)


def _open_files(_parent: Any = None, caption: str = "", directory: str = "", name_filter: str = "", *_: Any) -> Any:
    return tuple(ask_for_path("open several", caption, directory, name_filter))


def _save_file(_parent: Any = None, caption: str = "", directory: str = "", name_filter: str = "", *_: Any) -> str:
    return ask_for_path("save", caption, directory, name_filter)


def _existing_directory(_parent: Any = None, caption: str = "", directory: str = "", *_: Any) -> str:
    return ask_for_path("directory", caption, directory, "")


def _open_url(url: PythonQtObject) -> bool:
    records.opened_urls.append(url._native.toString())
    return True


def _get_text(*_: Any) -> str:
    return (records.text_answers.pop(0) if records.text_answers else None) or ""


_STATIC: dict[str, dict[str, Any]] = {
    "QTimer": {"singleShot": _single_shot},
    "QFileDialog": {
        "getOpenFileName": _open_file,
        "getOpenFileNames": _open_files,
        "getSaveFileName": _save_file,
        "getExistingDirectory": _existing_directory,
    },
    "QMessageBox": {
        "information": _message_function("info"),
        "warning": _message_function("warning"),
        "critical": _message_function("error"),
        "question": _message_function("question"),
    },
    "QDesktopServices": {"openUrl": _open_url},
    "QInputDialog": {"getText": _get_text},
}
_REPLACED: dict[str, type] = {
    "QMessageBox": QMessageBox,
    "QDialog": QDialog,
    "QProgressDialog": QProgressDialog,
}


class QUiLoader:
    """Loads .ui files into wrapped widgets; see `uiloader`."""

    def __init__(self, parent: Any = None) -> None:
        self._loader = uiloader.Loader()

    def load(self, device: PythonQtObject, parent: PythonQtObject | None = None) -> Any:
        text = bytes(device._native.readAll().data()).decode("utf-8")
        return wrap(self._loader.load_text(text, parent._native if parent else None))


def _prepare(cls: type[PythonQtObject]) -> None:
    for name, function in _STATIC.get(cls.__name__, {}).items():
        type.__setattr__(cls, name, staticmethod(function))


class QtModule(types.ModuleType):
    """`import qt`."""

    QUiLoader = QUiLoader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "Qt":
            found: Any = QtNamespace()
        else:
            native = _REPLACED.get(name) or _find(name)
            if isinstance(native, type) and issubclass(native, shiboken6.Object):
                found = wrapper_class(native)
                _prepare(found)
            elif native is not None and callable(native) and not isinstance(native, type):
                found = StaticFunction("qt", name, native, None)
            else:
                raise AttributeError(f"module 'qt' has no attribute '{name}'")
        setattr(self, name, found)
        return found


class QtNamespace:
    """`qt.Qt`: the values of all enumerations of Qt's namespace, unscoped."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(QtCore.Qt, name, None)
        if found is not None and not isinstance(found, type):
            return EnumValue(found)
        raise AttributeError(f"qt.Qt has no attribute '{name}' (PythonQt knows the values, not their enumerations)")


def _find(name: str) -> Any:
    for module in _MODULES:
        try:
            found = getattr(importlib.import_module(f"PySide6.{module}"), name, None)
        except ImportError:
            continue
        if found is not None and name not in ("Signal", "Slot", "Property", "ClassInfo"):
            return found
    return None


def make_module() -> QtModule:
    return QtModule("qt", __doc__)


__all__ = ["ClassWrapper", "QtGui", "QtModule", "make_module"]
