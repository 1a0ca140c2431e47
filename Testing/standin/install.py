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
_PYTHON_PARTS = ("i18n", "packaging", "ScriptedLoadableModule", "parameterNodeWrapper")


def application() -> Any:
    """Return the native qSlicerApplication."""
    if not _state:
        raise RuntimeError("standin.install() was not called")
    return _state["application"]


def install() -> None:
    """Make `qt`, `ctk`, `slicer.app`, `slicer.mrmlScene`, ... importable. Calling it again does nothing.

    With the environment variable SLICER_SOURCE_DIR set to a checkout of Slicer, the pure Python parts
    (ScriptedLoadableModule, parameterNodeWrapper, i18n, packaging) are Slicer's own files and not our imitations.
    """
    if _state:
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import slicer

    _forget_utilities(slicer)
    slicer.modules = sys.modules["slicer.modules"] = types.ModuleType("slicer.modules")
    from . import application as app_module
    from . import ctkmodule, modules, mrmlwidgets, qtmodule, sampledata, uiloader
    from .pythonqt import wrap, wrapper_class
    from .scene import make_scene

    home = Path(tempfile.mkdtemp(prefix="slicer-standin-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "temporary").mkdir()
    native = app_module.qSlicerApplication(home)
    app_module.private_settings(home / "settings")
    app_module.light_style(native)
    _watch_exceptions()
    sys.modules["qt"] = qtmodule.QtModule("qt")
    sys.modules["ctk"] = ctkmodule.make_module()
    sys.modules["SampleData"] = sampledata.make_module()
    for cls in (mrmlwidgets.qMRMLWidget, mrmlwidgets.qMRMLNodeComboBox, mrmlwidgets.qMRMLCheckableNodeComboBox):
        setattr(slicer, cls.__name__, wrapper_class(cls))
        uiloader.custom_classes[cls.__name__] = cls
    for cls in (modules.qSlicerScriptedLoadableModule, modules.qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, wrapper_class(cls))
    for name in ("qMRMLSliderWidget", "qMRMLSpinBox", "qMRMLRangeWidget"):
        setattr(slicer, name, ctkmodule.name_only(name))
    parts = make_scene(home / "temporary")
    native.attach(parts)
    slicer.app, slicer.mrmlScene = wrap(native), parts.scene
    manager = native.moduleManager()
    for name, logic in parts.logics.items():
        cls = modules.qSlicerSequencesModule if name == "Sequences" else modules.qSlicerAbstractCoreModule
        manager.add(cls(name, "", logic, manager))
    native.main_window = app_module.qSlicerMainWindow(manager)
    native.main_window.setVisible(True)
    _state["application"] = native
    for name in _PYTHON_PARTS:
        _add_python_part(slicer, name)


def _forget_utilities(slicer: Any) -> None:
    """Take the functions of slicer.util out of `slicer`, where the wheel shows them too; Slicer's does not."""
    import slicer.util as util

    for name, value in list(vars(util).items()):
        known = getattr(slicer, name, None) is value and not isinstance(value, types.ModuleType)
        if known and not name.startswith("_"):
            delattr(slicer, name)


def _add_python_part(slicer: Any, name: str) -> None:
    """Make `slicer.<name>` importable: our imitation, or Slicer's own file."""
    source = os.environ.get("SLICER_SOURCE_DIR")
    if source:
        folder = Path(source) / "Base" / "Python" / "slicer"
        path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
        if not path.is_file():  # Slicer 5.10 has no slicer.packaging.
            return
        spec = importlib.util.spec_from_file_location(f"slicer.{name}", path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[f"slicer.{name}"] = importlib.util.module_from_spec(spec)
        setattr(slicer, name, module)
        spec.loader.exec_module(module)
    else:
        ours = {"ScriptedLoadableModule": "scripted", "parameterNodeWrapper": "parameter_node"}.get(name, name)
        module = sys.modules[f"slicer.{name}"] = importlib.import_module(f".{ours}", __package__)
        # Slicer imports its packaging on demand only, so it is no attribute at first.
        if name != "packaging":
            setattr(slicer, name, module)


def _watch_exceptions() -> None:
    """Record what VTK prints of an observer through sys.excepthook, and Python of `__del__` through another hook."""
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
