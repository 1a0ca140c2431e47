"""What the sections of the panel have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Progress
from ..job_runner import JobRunner
from ..models import ModelInfo
from ..mrml import SceneError
from ..setup.environment import EnvironmentProtocol

ERROR_STYLE = "color: #b03a2e;"
WARNING_STYLE = "color: #9c640c;"
PLAIN_STYLE = ""


class PanelProtocol(Protocol):
    """What a section needs of the panel that it is a part of."""

    ui: Any
    logic: Any
    jobRunner: JobRunner
    environment: EnvironmentProtocol
    parameter: Any
    input: Any

    def update(self) -> None:
        """Show everything as it is now."""

    def show(self, deformations: Any) -> None:
        """Show a transform or a sequence of variants."""

    def nodesToDeform(self) -> list[Any]:
        """The volume and what moves along with it."""

    def requireTorch(self) -> None:
        """Raises SceneError while nothing can be computed."""

    def requireModel(self) -> ModelInfo:
        """The model in use; raises SceneError if there is none."""


class Section:
    """A part of the panel: shows a part of the parameter node, and acts on its buttons."""

    def __init__(self, panel: PanelProtocol) -> None:
        self.panel = panel
        self.ui = panel.ui
        self.logic = panel.logic
        self.connect()

    @property
    def parameter(self) -> Any:
        """The panel's parameter node."""
        return self.panel.parameter

    def connect(self) -> None:
        """Connect the widgets; called once."""

    def update(self) -> None:
        """Show the present state; called after every change."""

    def cleanup(self) -> None:
        """Stop what runs; called before the panel goes."""

    def showMessage(self, label: Any, text: str, style: str = PLAIN_STYLE) -> None:
        """Show a line of text, and hide its label when there is none."""
        label.text = text
        label.styleSheet = style
        label.visible = bool(text)

    @contextmanager
    def showErrors(self, label: Any) -> Iterator[None]:
        """What a user can put right is said in ``label`` in one sentence, without a window."""
        self.showMessage(label, "")
        try:
            yield
        except (SceneError, DRDMError) as error:
            self.showMessage(label, str(error), ERROR_STYLE)

    @contextmanager
    def runAction(self, label: Any, waitCursor: bool = False) -> Iterator[None]:
        """The same for a press of a button: a fault of ours is shown in a window with its details, as Slicer does."""
        with slicer.util.tryWithErrorDisplay(waitCursor=waitCursor), self.showErrors(label):
            yield


def showProgress(bar: Any, progress: Progress | None) -> None:
    """Put a job's progress into a bar that counts to 1000; ``None`` empties it."""
    if progress is None:
        bar.value = 0
        bar.format = ""
        return
    bar.value = round(1000 * progress.share)
    percent = f"{100 * progress.share:.0f} %"
    left = progress.secondsLeft
    bar.format = percent if left is None else _("{percent}, {time} left").format(percent=percent, time=duration(left))


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``3 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
