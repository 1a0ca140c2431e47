"""`slicer.app` and the main window.

Imitates `qSlicerCoreApplication.h` (Base/QTCore), `qSlicerApplication.h` (Base/QTGUI), of `qSlicerLayoutManager.h` the
slices, and of `qSlicerMainWindow` (Base/QTApp) the module selector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .iomanager import qSlicerCoreIOManager
from .modules import qSlicerModuleManager, qSlicerModuleSelectorToolBar
from .pythonqt import invokable
from .scene import SceneParts


class qSlicerApplication(QtWidgets.QApplication):
    """The application; there is only ever one."""

    startupCompleted = Signal()

    def __init__(self, home: Path) -> None:
        super().__init__(["Slicer"])
        self._home = home
        self.main_window: qSlicerMainWindow | None = None
        # As under CTest; slicer.util shows no messages then, and answers questions with no.
        self.testing = True

    def attach(self, parts: SceneParts) -> None:
        """Take the scene and what works on it."""
        self._parts = parts
        self._manager = qSlicerModuleManager(self)
        self._layout_manager = qSlicerLayoutManager(parts, self)
        self._io = qSlicerCoreIOManager(parts, self)

    slicerHome = Property(str, lambda self: self._home.as_posix())
    temporaryPath = Property(str, lambda self: (self._home / "temporary").as_posix())

    @invokable()
    def testingEnabled(self) -> bool:
        return self.testing

    @invokable()
    def applicationLogic(self) -> Any:
        return self._parts.app_logic

    @invokable()
    def moduleManager(self) -> QtCore.QObject:
        return self._manager

    @invokable()
    def layoutManager(self) -> QtCore.QObject:
        return self._layout_manager

    @invokable()
    def coreIOManager(self) -> QtCore.QObject:
        return self._io

    @invokable("QString", "QString")
    def translate(self, context: str, text: str) -> str:
        return text


class qSlicerLayoutManager(QtCore.QObject):
    """The slices; nothing is drawn."""

    def __init__(self, parts: SceneParts, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._parts = parts

    @invokable()
    def mrmlSliceLogics(self) -> Any:
        return self._parts.app_logic.GetSliceLogics()


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The main window: a panel whose module can be chosen."""

    def __init__(self, manager: qSlicerModuleManager) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        body = QtWidgets.QWidget()
        panel = QtWidgets.QVBoxLayout(body)
        panel.setContentsMargins(0, 0, 0, 0)
        area = QtWidgets.QScrollArea()
        area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        area.setWidgetResizable(True)
        area.setWidget(body)
        self.setCentralWidget(area)
        self.resize(420, 900)
        self._selector = qSlicerModuleSelectorToolBar(manager, panel, self)

    @invokable()
    def moduleSelector(self) -> QtWidgets.QWidget:
        return self._selector


def light_style(application: QtWidgets.QApplication) -> None:
    """Set Fusion, whose own colors are light, and a font that can be read in a picture."""
    application.setStyle("Fusion")
    font = QtGui.QFont("DejaVu Sans")
    font.setPixelSize(13)
    application.setFont(font)


def private_settings(folder: Path) -> None:
    """Send settings to a folder of the test run, never to the person's own."""
    folder.mkdir()
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(folder))
    QtCore.QCoreApplication.setOrganizationName("NA-MIC")
    QtCore.QCoreApplication.setApplicationName("Slicer")
