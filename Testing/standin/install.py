"""Puts everything in place so that code written for Slicer runs unchanged."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from .records import records

_state: dict[str, Any] = {}


def installed() -> bool:
    return bool(_state)


def application() -> Any:
    """The native qSlicerApplication."""
    return _state["application"]


def install() -> None:
    """Make `qt`, `ctk`, `slicer.app`, `slicer.mrmlScene`, ... importable. Calling it again does nothing.

    With the environment variable SLICER_SOURCE_DIR set to a checkout of Slicer, the pure Python parts
    (ScriptedLoadableModule, parameterNodeWrapper, i18n, packaging) are Slicer's own files and not our imitations.

    Raises:
        RuntimeError: another QApplication is there already.
    """
    if _state:
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6 import QtCore, QtWidgets

    if QtWidgets.QApplication.instance() is not None:
        raise RuntimeError("The stand-in makes the one QApplication itself; there is another one")
    import slicer

    _forget_utilities(slicer)
    slicer.modules = sys.modules["slicer.modules"] = types.ModuleType("slicer.modules")
    slicer.moduleNames = sys.modules["slicer.moduleNames"] = types.ModuleType("slicer.moduleNames")
    from . import application as app_module
    from . import ctkmodule, modules, mrmlwidgets, qtmodule, sampledata, uiloader
    from .pythonqt import wrap, wrapper_class
    from .scene import make_scene

    home = Path(tempfile.mkdtemp(prefix="slicer-standin-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "temporary").mkdir()
    native = app_module.qSlicerApplication(["Slicer"], home)
    app_module.private_settings(home / "settings")
    app_module.light_style(native)
    QtCore.qInstallMessageHandler(_qt_message)
    _watch_exceptions()
    sys.modules["qt"] = qtmodule.make_module()
    sys.modules["ctk"] = ctkmodule.make_module()
    sys.modules["SampleData"] = sampledata.make_module()
    widgets = (
        mrmlwidgets.qMRMLWidget,
        mrmlwidgets.qMRMLNodeComboBox,
        mrmlwidgets.qMRMLCheckableNodeComboBox,
    )
    for cls in (*widgets, modules.qSlicerScriptedLoadableModule, modules.qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, wrapper_class(cls))
    for cls in widgets:
        uiloader.custom_classes[cls.__name__] = cls
    # `slicer.util.loadUI` of a panel whose top widget is a qSlicerWidget, which is a qMRMLWidget in all that matters.
    uiloader.custom_classes["qSlicerWidget"] = type("qSlicerWidget", (mrmlwidgets.qMRMLWidget,), {})
    slicer.qSlicerWidget = wrapper_class(uiloader.custom_classes["qSlicerWidget"])
    for name in ("qMRMLSliderWidget", "qMRMLSpinBox", "qMRMLRangeWidget"):
        setattr(slicer, name, ctkmodule.name_only(name))
    parts = make_scene(home / "temporary")
    native.attach(parts)
    slicer.app, slicer.mrmlScene = wrap(native), parts.scene
    slicer.selfTests = {}
    manager = native.moduleManager()
    for name, logic in parts.logics.items():
        cls = modules.qSlicerSequencesModule if name == "Sequences" else modules.qSlicerLoadableModule
        manager.add(cls(name, "", logic, manager))
    _state.update(application=native, parts=parts, home=home, main_window=app_module.qSlicerMainWindow(manager))
    _state["main_window"].resize(420, 900)
    _state["main_window"].setVisible(True)
    _python_parts(slicer)
    _record_messages(slicer)


def _forget_utilities(slicer: Any) -> None:
    """The wheel's `slicer` also shows the functions of slicer.util; Slicer's does not."""
    import slicer.util as util

    for name, value in list(vars(util).items()):
        if (
            not name.startswith("_")
            and getattr(slicer, name, None) is value
            and not isinstance(value, types.ModuleType)
        ):
            delattr(slicer, name)


def _python_parts(slicer: Any) -> None:
    source = os.environ.get("SLICER_SOURCE_DIR")
    if source:
        folder = Path(source) / "Base" / "Python" / "slicer"
        for name in ("i18n", "packaging", "ScriptedLoadableModule", "parameterNodeWrapper"):
            # Slicer 5.10 has no slicer.packaging.
            if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
                _load_genuine(slicer, name, folder)
        return
    from . import i18n, packaging

    for name, module in (("i18n", i18n), ("packaging", packaging)):
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)
    from . import parameter_node, scripted

    for name, module in (("ScriptedLoadableModule", scripted), ("parameterNodeWrapper", parameter_node)):
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)


def _load_genuine(slicer: Any, name: str, folder: Path) -> None:
    path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"slicer.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"slicer.{name}"] = module
    setattr(slicer, name, module)
    spec.loader.exec_module(module)


def _record_messages(slicer: Any) -> None:
    """In testing mode slicer.util only logs a message; note it as well, then let the real code go on."""
    from .records import Message

    original = slicer.util._messageDisplay
    levels = {10: "info", 20: "info", 30: "warning", 40: "error"}

    def display(logLevel: int, text: str, testingReturnValue: Any, *args: Any, **kwargs: Any) -> Any:
        if slicer.app.testingEnabled():
            details = kwargs.get("detailedText", "")
            records.messages.append(
                Message(
                    levels.get(logLevel, "info"), text, kwargs.get("windowTitle") or "", details, testingReturnValue
                )
            )
        return original(logLevel, text, testingReturnValue, *args, **kwargs)

    slicer.util._messageDisplay = display


def _qt_message(_kind: Any, _context: Any, text: str) -> None:
    if "propagateSizeHints" not in text:  # the off-screen platform says so of every window
        records.qt_warnings.append(text)


def _watch_exceptions() -> None:
    """VTK prints an exception of an observer through sys.excepthook, Python one of `__del__` through another hook."""
    previous, previous_unraisable = sys.excepthook, sys.unraisablehook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, Exception):
            records.slot_error("observer", error)
        else:
            previous(kind, error, trace)

    def unraisable(arguments: Any) -> None:
        if isinstance(arguments.exc_value, Exception):
            records.slot_error(f"{arguments.err_msg or 'ignored in'} {arguments.object!r}", arguments.exc_value)
        else:
            previous_unraisable(arguments)

    sys.excepthook, sys.unraisablehook = hook, unraisable


def state() -> dict[str, Any]:
    """application, parts, home, main_window."""
    if not _state:
        raise RuntimeError("standin.install() was not called")
    return _state
