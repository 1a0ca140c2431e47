"""`slicer.app` and the main window.

Imitates `qSlicerCoreApplication.h` (Base/QTCore), `qSlicerApplication.h` (Base/QTGUI), `qSlicerLayoutManager.h` with
`qMRMLLayoutManager.h` as far as the nodes of the views go, and of `qSlicerMainWindow` (Base/QTApp) the module
selector and the status bar.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .iomanager import qSlicerCoreIOManager
from .modules import qSlicerModuleManager, qSlicerModuleSelectorToolBar
from .pythonqt import invokable
from .records import Message, records
from .scene import SceneParts
from .views import qMRMLSliceWidget, qMRMLThreeDWidget


class qSlicerApplication(QtWidgets.QApplication):
    """The application; there is only ever one."""

    mrmlSceneChanged = Signal(object)
    startupCompleted = Signal()
    renderPaused = Signal(bool)
    cpp_signals: ClassVar[dict[str, str]] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}

    def __init__(self, arguments: list[str], home: Path) -> None:
        super().__init__(arguments)
        self.parts: SceneParts | None = None
        self.testing, self._home, self._paused = False, home, 0
        self._layout_manager: qSlicerLayoutManager | None = None
        self._manager = qSlicerModuleManager(self)
        self._extensions = qSlicerExtensionsManagerModel(self)
        self._io = qSlicerCoreIOManager(self)
        self._settings: QtCore.QSettings | None = None

    def attach(self, parts: SceneParts) -> None:
        self.parts = parts
        self._layout_manager = qSlicerLayoutManager(parts, self)

    def _get_home(self) -> str:
        return self._home.as_posix()

    def _get_temporary(self) -> str:
        return (self._home / "temporary").as_posix()

    def _get_launcher(self) -> str:
        return Path(sys.executable).as_posix()

    def _get_revision(self) -> str:
        return "0"

    def _get_major(self) -> int:
        return 5

    def _get_minor(self) -> int:
        return 10

    def _get_documentation(self) -> str:
        return "https://slicer.readthedocs.io/en/latest/"

    def _get_os(self) -> str:
        return {"win32": "win", "darwin": "macosx"}.get(sys.platform, "linux")

    slicerHome = Property(str, _get_home)
    temporaryPath = Property(str, _get_temporary)
    cachePath = Property(str, _get_temporary)
    launcherExecutableFilePath = Property(str, _get_launcher)
    revision = Property(str, _get_revision)
    repositoryRevision = Property(str, _get_revision)
    majorVersion = Property(int, _get_major)
    minorVersion = Property(int, _get_minor)
    documentationBaseUrl = Property(str, _get_documentation)
    os = Property(str, _get_os)

    @invokable()
    def testingEnabled(self) -> bool:
        return self.testing

    @invokable()
    def mrmlScene(self) -> Any:
        return self.parts.scene if self.parts is not None else None

    @invokable()
    def applicationLogic(self) -> Any:
        return self.parts.app_logic if self.parts is not None else None

    @invokable("QString")
    def moduleLogic(self, name: str) -> Any:
        module = self._manager.modules.get(name)
        return module.logic() if module is not None else None

    @invokable()
    def moduleManager(self) -> QtCore.QObject:
        return self._manager

    @invokable()
    def layoutManager(self) -> Any:
        return self._layout_manager

    @invokable()
    def coreIOManager(self) -> QtCore.QObject:
        return self._io

    @invokable()
    def ioManager(self) -> QtCore.QObject:
        return self._io

    @invokable()
    def extensionsManagerModel(self) -> QtCore.QObject:
        return self._extensions

    @invokable()
    def settings(self) -> QtCore.QSettings:
        if self._settings is None:
            self._settings = QtCore.QSettings()
        return self._settings

    @invokable()
    def userSettings(self) -> QtCore.QSettings:
        return self.settings()

    @invokable()
    def revisionUserSettings(self) -> QtCore.QSettings:
        return self.settings()

    @invokable()
    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        return QtCore.QProcessEnvironment.systemEnvironment()

    @invokable()
    def environment(self) -> QtCore.QProcessEnvironment:
        return QtCore.QProcessEnvironment.systemEnvironment()

    @invokable("QString")
    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self._get_documentation()}user_guide/modules/{name.lower()}.html"

    @invokable("QString", "QString")
    def translate(self, context: str, text: str) -> str:
        return text

    @invokable()
    def pauseRender(self) -> None:
        self._paused += 1
        if self._paused == 1:
            self.renderPaused.emit(True)

    @invokable()
    def resumeRender(self) -> None:
        if self._paused == 0:
            records.qt_warnings.append("qSlicerApplication::resumeRender without pauseRender")
            return
        self._paused -= 1
        if self._paused == 0:
            self.renderPaused.emit(False)

    @invokable("bool")
    def setRenderPaused(self, paused: bool) -> None:
        (self.pauseRender if paused else self.resumeRender)()

    @invokable()
    def restart(self) -> None:
        raise RuntimeError("The application was asked to restart")


class qSlicerExtensionsManagerModel(QtCore.QObject):
    """Knows of no extension."""

    @invokable("QString")
    def isExtensionInstalled(self, name: str) -> bool:
        return False


class qSlicerLayoutManager(QtCore.QObject):
    """The layout, the nodes of the views and the views themselves (three slices and one in 3D; no tables, no plots)."""

    layoutChanged = Signal(int)

    def __init__(self, parts: SceneParts, parent: QtCore.QObject | None = None) -> None:
        super().__init__(parent)
        self._parts = parts
        self._slices = {name: qMRMLSliceWidget(parts, name) for name in parts.slice_logics}
        self._threed = qMRMLThreeDWidget(parts)

    def _node(self) -> Any:
        return self._parts.layout_logic.GetLayoutNode()

    def _get_layout(self) -> int:
        node = self._node()
        return node.GetViewArrangement() if node is not None else 0

    def _set_layout(self, layout: int) -> None:
        node = self._node()
        if node is not None and node.GetViewArrangement() != layout:
            node.SetViewArrangement(layout)
            self.layoutChanged.emit(layout)

    def _get_count_3d(self) -> int:
        return 1

    def _get_count_plots(self) -> int:
        return self._parts.scene.GetNumberOfNodesByClass("vtkMRMLPlotViewNode")

    layout = Property(int, _get_layout, _set_layout)
    threeDViewCount = Property(int, _get_count_3d)
    plotViewCount = Property(int, _get_count_plots)

    @invokable("int")
    def setLayout(self, layout: int) -> None:
        self._set_layout(layout)

    @invokable()
    def mrmlScene(self) -> Any:
        return self._parts.scene

    @invokable()
    def layoutLogic(self) -> Any:
        return self._parts.layout_logic

    @invokable()
    def sliceViewNames(self) -> list[str]:
        return list(self._slices)

    @invokable("QString")
    def sliceWidget(self, name: str) -> Any:
        return self._slices.get(name)

    @invokable()
    def mrmlSliceLogics(self) -> Any:
        return self._parts.app_logic.GetSliceLogics()

    @invokable()
    def resetSliceViews(self) -> None:
        for logic in self._parts.slice_logics.values():
            logic.FitSliceToBackground()

    @invokable()
    def resetThreeDViews(self) -> None:
        self._threed._view.resetFocalPoint()

    @invokable("int")
    def threeDWidget(self, index: int) -> Any:
        return self._threed if index == 0 else None

    @invokable()
    def activeMRMLPlotViewNode(self) -> Any:
        return self._parts.scene.GetFirstNodeByClass("vtkMRMLPlotViewNode")


class _StatusBar(QtWidgets.QStatusBar):
    def showMessage(self, text: str, duration: int = 0) -> None:
        records.messages.append(Message("status", text))
        super().showMessage(text, duration)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The main window: a panel on the left whose module can be chosen."""

    def __init__(self, manager: qSlicerModuleManager) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        body = QtWidgets.QWidget()
        self.panel = QtWidgets.QVBoxLayout(body)
        self.panel.setContentsMargins(0, 0, 0, 0)
        area = QtWidgets.QScrollArea()
        area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        area.setWidgetResizable(True)
        area.setWidget(body)
        self.setCentralWidget(area)
        self.setStatusBar(_StatusBar(self))
        self._selector = qSlicerModuleSelectorToolBar(manager, self.panel, self)

    @invokable()
    def moduleSelector(self) -> QtWidgets.QWidget:
        return self._selector


def light_style(application: QtWidgets.QApplication) -> None:
    """Fusion in sober light colours with a font that can be read in a picture."""
    application.setStyle("Fusion")
    font = QtGui.QFont("DejaVu Sans")
    font.setPixelSize(13)
    application.setFont(font)
    palette, role, group = QtGui.QPalette(), QtGui.QPalette.ColorRole, QtGui.QPalette.ColorGroup
    for name, colour in {
        role.Window: "#efefef",
        role.Base: "#ffffff",
        role.AlternateBase: "#f5f5f5",
        role.Button: "#e6e6e6",
        role.Text: "#1a1a1a",
        role.WindowText: "#1a1a1a",
        role.ButtonText: "#1a1a1a",
        role.ToolTipBase: "#ffffe1",
        role.ToolTipText: "#1a1a1a",
        role.Highlight: "#2f7dc4",
        role.HighlightedText: "#ffffff",
        role.PlaceholderText: "#808080",
    }.items():
        palette.setColor(name, QtGui.QColor(colour))
    for name in (role.Text, role.WindowText, role.ButtonText):
        palette.setColor(group.Disabled, name, QtGui.QColor("#9a9a9a"))
    application.setPalette(palette)


def private_settings(folder: Path) -> None:
    """Settings go to a folder of the test run, never to the person's own."""
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(folder))
    QtCore.QCoreApplication.setOrganizationName("NA-MIC")
    QtCore.QCoreApplication.setApplicationName("Slicer")


__all__ = ["light_style", "private_settings", "qSlicerApplication", "qSlicerMainWindow", "slicer"]
