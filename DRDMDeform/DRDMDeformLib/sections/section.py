"""What the sections of the panel have in common."""

from __future__ import annotations

import enum
import html
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job, JobState, Progress
from ..job_runner import JobRunner
from ..mrml import SceneError
from ..setup import Environment
from .texts import counted
from .words import inPanelWords

# Contrast that texts need at least (Web Content Accessibility Guidelines 2, level AA).
CONTRAST = 4.5
# Warnings of a job that are shown; there may be one for each file.
MOST_WARNINGS = 3


class Severity(enum.Enum):
    """Kind of a message: its hue as red, green and blue from 0 to 1, if it has one."""

    PLAIN = None
    WARNING = (0.75, 0.45, 0.0)
    ERROR = (0.8, 0.2, 0.15)


@dataclass
class PanelContext:
    """What the sections share.

    Attributes:
        ui: the widgets of the .ui file, by name.
        logic: the module's logic.
        jobRunner: runs the background jobs.
        environment: the state of PyTorch in Slicer's Python.
        updatePanel: updates all sections.
        parameter: the wrapped parameter node; ``None`` while a scene is closed or loaded.
        applying: whether nodes are being taken out of the deformation for a moment, to apply it.
        released: the shown version if the slider made it and the user has done nothing with it, else ``None``.
    """

    ui: Any
    logic: Any
    jobRunner: JobRunner
    environment: Environment
    updatePanel: Callable[[], None]
    parameter: Any = None
    applying: bool = False
    released: Any = None


class Section:
    """A part of the panel: it shows a part of the parameter node and reacts to its buttons."""

    def __init__(self, context: PanelContext) -> None:
        self.context = context
        self.ui = context.ui
        self.logic = context.logic
        self.connect()

    @property
    def parameter(self) -> Any:
        """The panel's parameter node."""
        return self.context.parameter

    def connect(self) -> None:
        """Connect the widgets; called once."""

    def restore(self) -> None:
        """Take over a parameter node that has just been connected."""

    def update(self) -> None:
        """Show the current state; called after every change."""

    def onSceneClosed(self) -> None:
        """Forget what belonged to the closed scene."""

    def cleanup(self) -> None:
        """Stop running jobs; called before the panel is removed."""

    def showMessage(self, label: Any, text: str, severity: Severity = Severity.PLAIN) -> None:
        """Show a line of text, in the panel's words; the label is hidden if the text is empty."""
        label.text = inPanelWords(text)
        # The style sheet of the label changes its own palette.
        color = messageColor(label.parentWidget().palette, severity)
        label.styleSheet = "" if severity is Severity.PLAIN else f"color: {color};"
        label.visible = bool(text)

    def showFailure(self, label: Any, job: Job, more: str = "") -> None:
        """Show why a job failed, with a link to its log file if it ended unexpectedly."""
        text = html.escape(f"{job.text} {more}".strip(), quote=False)
        if job.log is not None:
            link = html.escape(qt.QUrl.fromLocalFile(str(job.log)).toString())
            text += f' <a href="{link}">{html.escape(_("Open the log file"))}</a> ({html.escape(str(job.log))})'
            label.openExternalLinks = True
        self.showMessage(label, text if job.log is not None else f"{job.text} {more}".strip(), Severity.ERROR)

    @contextmanager
    def showErrors(self, label: Any) -> Iterator[None]:
        """Show user errors in ``label``, without a dialog."""
        self.showMessage(label, "")
        try:
            yield
        except (SceneError, DRDMError) as error:
            self.showMessage(label, str(error), Severity.ERROR)

    @contextmanager
    def runAction(self, label: Any, waitCursor: bool = False) -> Iterator[None]:
        """Run the action of a button: user errors go to ``label``, internal errors to Slicer's error dialog."""
        with slicer.util.tryWithErrorDisplay(waitCursor=waitCursor), self.showErrors(label):
            yield


class JobSection(Section):
    """A section that runs one job at a time, and shows its warnings.

    Attributes:
        job: the running or last job.
        warningsLabel: name of the label with the warnings.
        saysItself: what warnings are about that the section says in its own way, see :mod:`DRDMLib.runtime.reporter`.
    """

    job: Job | None = None
    warningsLabel = ""
    saysItself: tuple[str, ...] = ()

    def runJob(self, job: Job) -> None:
        """Start a job; its warnings replace those of the job before."""
        self._warnings: list[str] = []
        self.showWarnings()
        job.onWarning = self.onWarning
        self.context.jobRunner.run(job)

    def onWarning(self, text: str, about: str) -> None:
        """Show one more warning of the job."""
        if about not in self.saysItself and text not in self._warnings:
            self._warnings.append(text)
            self.showWarnings()

    def showWarnings(self) -> None:
        """Show the warnings of the last job, one below the other; of many the first ones, and how many follow."""
        lines, more = self._warnings[:MOST_WARNINGS], len(self._warnings) - MOST_WARNINGS
        if more > 0:
            lines = [*lines, counted(more, _("And 1 more warning."), _("And {n} more warnings."))]
        self.showMessage(getattr(self.ui, self.warningsLabel), "\n".join(lines), Severity.WARNING)

    def clearWarnings(self) -> None:
        """Remove the warnings, which are about scans that are gone."""
        self._warnings = []
        self.showWarnings()

    @property
    def running(self) -> bool:
        """Whether the job is running."""
        return self.job is not None and self.job.running

    @property
    def stoppable(self) -> bool:
        """Whether the job is running and has not been asked to stop."""
        return self.job is not None and self.job.state is JobState.RUNNING

    def cleanup(self) -> None:
        """Cancel the job. A batch or a training can be resumed."""
        if self.job is not None:
            self.job.cancel()
            self.job = None


def prepareTable(table: Any, columns: Mapping[str, str]) -> None:
    """Give a table columns, each with its meaning as a tool tip; one row can be selected, nothing edited."""
    table.columnCount = len(columns)
    table.setHorizontalHeaderLabels(list(columns))
    for column, meaning in enumerate(columns.values()):
        table.horizontalHeaderItem(column).setToolTip(meaning)
    table.selectionBehavior = qt.QAbstractItemView.SelectRows
    table.selectionMode = qt.QAbstractItemView.SingleSelection
    table.editTriggers = qt.QAbstractItemView.NoEditTriggers
    table.verticalHeader().visible = False


def fitHeight(table: Any, most: int) -> None:
    """Make a table as wide as its texts and as high as its rows, of which at most ``most`` are seen at once."""
    table.resizeColumnsToContents()
    height = table.horizontalHeader().height + sum(table.rowHeight(n) for n in range(min(table.rowCount, most))) + 4
    # A panel that is narrower than the columns shows a scroll bar, which must not cover the last row.
    height += table.horizontalScrollBar().sizeHint.height()
    table.minimumHeight = height
    table.maximumHeight = height


def messageColor(palette: Any, severity: Severity) -> str:
    """The color of a message as #rrggbb: its hue, mixed with the color of texts until it can be read."""
    background, text = (rgb(palette.color(role)) for role in (qt.QPalette.Window, qt.QPalette.WindowText))
    hue = severity.value or text
    for step in range(11):
        color = tuple(h + (t - h) * step / 10 for h, t in zip(hue, text, strict=True))
        if contrast(color, background) >= CONTRAST:
            break
    return "#" + "".join(f"{round(255 * value):02x}" for value in color)


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The contrast of two colors, 1 to 21, as the Web Content Accessibility Guidelines define it."""
    darker, lighter = sorted(map(_luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: tuple[float, ...]) -> float:
    linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color)
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def rgb(color: Any) -> tuple[float, float, float]:
    """Red, green and blue of a QColor, 0 to 1."""
    return color.redF(), color.greenF(), color.blueF()


def isSet(path: Path) -> bool:
    """Whether a path of the parameter node has been chosen."""
    return str(path) not in ("", ".")


def requireScansFolder(path: Path) -> Path:
    """Return the folder, or raise SceneError if none has been chosen."""
    if not isSet(path):
        raise SceneError(_("Choose a folder with scans first."))
    return path


def showProgress(bar: Any, progress: Progress | None) -> None:
    """Show the progress of a job in a bar from 0 to 1000; ``None`` resets the bar."""
    if progress is None:
        bar.value = 0
        bar.format = ""
        return
    bar.value = round(1000 * progress.share)
    percent = f"{100 * progress.share:.0f} %"
    left = progress.secondsLeft
    bar.format = percent if left is None else _("{percent}, {time} left").format(percent=percent, time=duration(left))


def duration(seconds: float) -> str:
    """Format a time: ``8 s``, ``3 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
