"""What a test does with the application: load a module, wait, look, save and open scenes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import iomanager
from .install import install, state
from .records import records


def process_events(seconds: float = 0.0) -> None:
    """Let the application work; at least once through its events."""
    from PySide6 import QtCore

    end = time.monotonic() + seconds
    while True:
        state()["application"].processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
        if time.monotonic() >= end:
            return
        time.sleep(0.005)


def wait_until(condition: Callable[[], Any], timeout: float = 30.0) -> Any:
    """
    Returns:
        the first true value of the condition.

    Raises:
        TimeoutError: there was none in time.
    """
    end = time.monotonic() + timeout
    while True:
        process_events()
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"Nothing came of it in {timeout} s")
        time.sleep(0.01)


def load_module(path: str | Path) -> Any:
    """Load a scripted module as Slicer does at its start; its panel is made when it is first asked for.

    Returns:
        the qSlicerScriptedLoadableModule, also `slicer.modules.<name>`.

    Raises:
        Exception: whatever the module's file or class raised; Slicer would print it and go on without the module.
    """
    install()
    from .modules import qSlicerScriptedLoadableModule
    from .pythonqt import wrap

    path = Path(path).resolve()
    manager = state()["application"].moduleManager()
    if path.stem in manager.modules:
        raise RuntimeError(f"The module {path.stem} is loaded already; use slicer.util.reloadScriptedModule or unload")
    module = qSlicerScriptedLoadableModule(str(path), manager)
    try:
        module.load_script()
    except BaseException:
        sys.modules.pop(path.stem, None)
        raise
    manager.add(module)
    module.run_setup()
    return wrap(module)


def unload_module(name: str) -> None:
    """Leave the module and unload it as Slicer does when it closes; its file can then be loaded again."""
    import shiboken6
    import slicer

    manager = state()["application"].moduleManager()
    module = manager.modules[name]
    selector = state()["main_window"].moduleSelector()
    if selector._selected == name:
        selector.selectModule("")
    widget = module._widget
    manager.remove(name)
    slicer.selfTests.pop(name, None)
    if widget is not None:
        widget._python = None
        shiboken6.delete(widget)
    module.deleteLater()
    sys.modules.pop(name, None)
    process_events()


def finish_startup() -> None:
    """Emit `slicer.app.startupCompleted()`, once all modules are loaded."""
    state()["application"].startupCompleted.emit()
    process_events()


def reset() -> None:
    """An empty scene, no records, normal mode: the start of a test."""
    import slicer

    slicer.mrmlScene.Clear(False)
    process_events()
    state()["application"].testing = False
    records.clear()


def set_testing(enabled: bool = True) -> None:
    """What `slicer.app.testingEnabled()` answers (False: a person sits there and message boxes are shown)."""
    state()["application"].testing = enabled


def show(widget: Any, width: int = 420, height: int | None = None) -> Any:
    """Show a widget off-screen at its own height, so that it has a layout."""
    native = getattr(widget, "_native", widget)
    native.setVisible(True)
    window = native.window()
    for _ in range(3):  # the height depends on the width, and both on what is visible
        process_events()
        wanted = max(native.sizeHint().height(), native.minimumSizeHint().height())
        if native.hasHeightForWidth():
            wanted = max(wanted, native.heightForWidth(width))
        window.resize(window.width() + width - native.width(), window.height() + (height or wanted) - native.height())
    process_events()
    return widget


def screenshot(widget: Any, path: str | Path, width: int = 420, height: int | None = None, scale: float = 2.0) -> Path:
    """Draw a widget into a PNG.

    Args:
        widget: a wrapped or native widget, e.g. `slicer.util.getModuleWidget("DRDMDeform").parent`.
        path: the picture.
        width: in device independent pixels, as wide as the panel usually is.
        height: None for as high as the contents need.
        scale: pixels of the picture per such pixel.
    """
    from PySide6 import QtCore, QtGui

    native = getattr(widget, "_native", widget)
    show(native, width, height)
    image = QtGui.QImage(int(native.width() * scale), int(native.height() * scale), QtGui.QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(scale)
    image.fill(native.palette().color(QtGui.QPalette.ColorRole.Window))
    native.render(image, QtCore.QPoint(0, 0))
    path = Path(path)
    if not image.save(str(path)):
        raise OSError(f"{path} can not be written")
    return path


def view_picture(name: str, path: str | Path, width: int = 600, height: int = 600) -> Path:
    """Draw a view into a PNG: "Red", "Yellow", "Green" or "3D". Needs trame-slicer.

    Raises:
        ValueError: there is no such view.
    """
    from .views import write_picture

    manager = state()["application"].layoutManager()
    if name != "3D" and name not in manager._slices:
        raise ValueError(f"There is no view {name}; there are {[*manager._slices, '3D']}")
    view = manager._threed._view if name == "3D" else manager._slices[name]._view
    return write_picture(view.drawing, path, width, height)


def save_scene(path: str | Path) -> Path:
    """Save the scene with its data: as .mrb, or into the folder of a .mrml, with the data files beside it.

    Raises:
        OSError: it could not be written.
    """
    path = Path(path)
    if not iomanager.save_scene(path):
        raise OSError(f"{path} could not be written")
    return path


def load_scene(path: str | Path, clear: bool = True) -> None:
    """Open a scene (.mrb or .mrml) in place of the present one, or add it to it.

    Raises:
        OSError: it could not be read.
    """
    if not iomanager.load_scene(Path(path), clear):
        raise OSError(f"{path} could not be read")
    process_events()
