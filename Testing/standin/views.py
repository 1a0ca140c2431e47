"""Slice and 3D views that really draw, made when they are first asked for.

The drawing is that of trame-slicer (`SliceView`, `ThreeDView`: the displayable managers of Slicer in an off-screen
window), over the nodes and slice logics that the application already has. Imitates what scripts use of
Libs/MRML/Widgets `qMRMLSliceWidget.h`, `qMRMLSliceView.h`, `qMRMLSliceControllerWidget.h`, `qMRMLThreeDWidget.h`,
`qMRMLThreeDView.h`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vtk
from PySide6 import QtCore, QtWidgets

from .pythonqt import invokable
from .scene import SceneParts


def _on_request() -> Any:
    """Draw only when asked: Slicer draws by a timer and not while a scene is closed or loaded."""
    from trame_slicer.views.render_scheduler import NoScheduleRendering

    return NoScheduleRendering()


def _make_slice_view(parts: SceneParts, name: str) -> Any:
    from trame_slicer.views import SliceView

    logic = parts.slice_logics[name]

    class OurSliceView(SliceView):
        def set_scene(self, scene: Any) -> None:
            # trame-slicer has just made a logic of its own; the application's is the one that counts.
            parts.app_logic.GetSliceLogics().RemoveItem(self._logic)
            self._logic = logic
            self._event_observer.UpdateObservation(None, logic)
            self._interactor_observer.SetSliceLogic(logic)
            self.set_view_node(logic.GetSliceNode())
            super().set_scene(scene)
            self._update_image_data_connection()

    return OurSliceView(parts.scene, parts.app_logic, name, scheduled_render_strategy=_on_request())


def _make_3d_view(parts: SceneParts) -> Any:
    from trame_slicer.views import ThreeDView

    class OurThreeDView(ThreeDView):
        def set_scene(self, scene: Any) -> None:
            self.set_view_node(parts.scene.GetSingletonNode("1", "vtkMRMLViewNode"))
            super().set_scene(scene)

    return OurThreeDView(parts.scene, parts.app_logic, "1", scheduled_render_strategy=_on_request())


def write_picture(view: Any, path: str | Path, width: int, height: int) -> Path:
    """Draw a view of trame-slicer into a PNG."""
    view.render_window().SetSize(width, height)
    if hasattr(view, "_update_slice_size"):
        view._update_slice_size()
    view.render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(view.render_window())
    grab.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()
    return Path(path)


class _Drawn(QtWidgets.QWidget):
    """A view; nothing is drawn before the first picture or render."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make, self._made = make, None

    @property
    def drawing(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made

    @invokable()
    def forceRender(self) -> None:
        self.drawing.render()

    @invokable()
    def scheduleRender(self) -> None:
        if self._made is not None:
            self._made.schedule_render()


class qMRMLSliceView(_Drawn):
    """The picture of a slice."""


class qMRMLThreeDView(_Drawn):
    """The picture in 3D."""

    def __init__(self, make: Any, parts: SceneParts) -> None:
        super().__init__(make)
        self._parts = parts

    @invokable()
    def mrmlViewNode(self) -> Any:
        return self._parts.scene.GetSingletonNode("1", "vtkMRMLViewNode")

    @invokable()
    def resetFocalPoint(self) -> None:
        self.drawing.reset_focal_point()

    @invokable("bool", "bool", "bool", optional=3)
    def resetCamera(self, *_: bool) -> None:
        self.drawing.reset_camera()


class qMRMLSliceControllerWidget(QtWidgets.QWidget):
    """The bar above a slice view."""

    def __init__(self, logic: Any) -> None:
        super().__init__()
        self._logic = logic

    @invokable()
    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()


class qMRMLSliceWidget(QtWidgets.QWidget):
    """A slice view with its nodes and logic."""

    def __init__(self, parts: SceneParts, name: str) -> None:
        super().__init__()
        self._logic = parts.slice_logics[name]
        self._view = qMRMLSliceView(lambda: _make_slice_view(parts, name))
        self._controller = qMRMLSliceControllerWidget(self._logic)

    @invokable()
    def sliceLogic(self) -> Any:
        return self._logic

    @invokable()
    def sliceView(self) -> QtWidgets.QWidget:
        return self._view

    @invokable()
    def sliceController(self) -> QtWidgets.QWidget:
        return self._controller

    @invokable()
    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    @invokable()
    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()

    @invokable()
    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()


class qMRMLThreeDWidget(QtWidgets.QWidget):
    """The 3D view with its node."""

    def __init__(self, parts: SceneParts, parent: QtCore.QObject | None = None) -> None:
        super().__init__()
        self._view = qMRMLThreeDView(lambda: _make_3d_view(parts), parts)

    @invokable()
    def threeDView(self) -> QtWidgets.QWidget:
        return self._view

    @invokable()
    def mrmlViewNode(self) -> Any:
        return self._view.mrmlViewNode()
