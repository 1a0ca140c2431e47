"""Report progress: a bar on a terminal, JSON lines for other programs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ..runtime.reporter import Reporter


class JsonReporter:
    """One JSON object a line on standard output."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, float]] = {}

    def _emit(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), flush=True)

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """With the seconds left, once they can be told."""
        now = time.monotonic()
        began, at = self._started.setdefault(task, (now, done))
        left = round((now - began) * (total - done) / (done - at), 1) if done > at else None
        self._emit("progress", task=task, done=done, total=total, seconds_left=left, **figures)

    def item(self, **values: Any) -> None:
        """As an event of its own."""
        self._emit("item", **values)

    def message(self, text: str) -> None:
        """As an event of its own."""
        self._emit("message", text=text)

    def warning(self, text: str) -> None:
        """As an event of its own."""
        self._emit("warning", text=text)

    def failed(self, text: str) -> None:
        """The last event of a run that did not succeed."""
        self._emit("error", text=text)

    def close(self) -> None:
        """Nothing to tidy."""


class PlainReporter:
    """Messages only: for pipes, and where rich is not installed."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Not shown."""

    def item(self, **values: Any) -> None:
        """Not shown."""

    def message(self, text: str) -> None:
        """On standard error, so that standard output stays for results."""
        print(text, file=sys.stderr)

    def warning(self, text: str) -> None:
        """As a message."""
        self.message(text)

    def close(self) -> None:
        """Nothing to tidy."""


class TerminalReporter(PlainReporter):
    """A bar with the time left, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Moves the task's bar, and makes it at first."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        shown = task + "".join(f"  {name} {value:.3g}" for name, value in figures.items())
        self._bars.update(self._tasks[task], completed=done, total=total, description=shown)

    def message(self, text: str) -> None:
        """Above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Stops redrawing."""
        self._bars.stop()


def make_reporter(style: str) -> Reporter:
    """``"json"``, ``"none"``, or ``"auto"``: a bar on a terminal that rich can draw on, else messages only."""
    if style == "json":
        return JsonReporter()
    if style == "auto" and sys.stderr.isatty():
        try:
            return TerminalReporter()
        except ImportError:
            pass
    return PlainReporter()
