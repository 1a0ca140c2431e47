"""What a test does with the application: load a module, let it work, take a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .install import application


def process_events(seconds: float = 0.0) -> None:
    """Let the application work; at least once through its events."""
    from PySide6 import QtCore

    end = time.monotonic() + seconds
    while True:
        application().processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
        if time.monotonic() >= end:
            return
        time.sleep(0.005)


def set_testing_mode(on: bool) -> None:
    """Switch the testing mode, which is on at first; without it messages and questions are shown, and recorded."""
    application().testing = on


def load_module(path: str | Path) -> Any:
    """Load a scripted module as Slicer does at its start; its panel is made when it is first asked for.

    Returns:
        the qSlicerScriptedLoadableModule, also `slicer.modules.<name>`.

    Raises:
        Exception: whatever the module's file or class raised; Slicer would print it and go on without the module.
    """
    from .modules import qSlicerScriptedLoadableModule
    from .pythonqt import wrap

    manager = application().moduleManager()
    module = qSlicerScriptedLoadableModule(str(Path(path).resolve()), manager)
    module.load_script()
    manager.add(module)
    return wrap(module)


def finish_startup() -> None:
    """Emit `slicer.app.startupCompleted()`, once all modules are loaded."""
    application().startupCompleted.emit()


def screenshot(widget: Any, path: str | Path, width: int = 420) -> Path:
    """Draw the panel into a PNG, as high as its contents need, with two pixels for one of the screen.

    Args:
        widget: the panel in the main window, `slicer.util.getModuleWidget("DRDMDeform").parent`.
        path: the picture.
        width: in device independent pixels, as wide as the panel usually is.
    """
    from PySide6 import QtCore, QtGui

    native, window = widget._native, application().main_window
    for _ in range(3):  # the height depends on the width, and both on what is visible
        process_events()
        height = max(native.sizeHint().height(), native.minimumSizeHint().height(), native.heightForWidth(width))
        window.resize(width, height)
    process_events()
    image = QtGui.QImage(2 * native.width(), 2 * native.height(), QtGui.QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(2)
    image.fill(native.palette().color(QtGui.QPalette.ColorRole.Window))
    native.render(image, QtCore.QPoint(0, 0))
    if not image.save(str(path)):
        raise OSError(f"{path} can not be written")
    return Path(path)
