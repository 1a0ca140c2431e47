"""Report progress: a bar on a terminal, JSON lines for other programs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ..io.files import finite
from ..runtime.reporter import Reporter


def _print(line: str) -> None:
    print(line, flush=True)


class JsonReporter:
    """Print one JSON object per line on standard output.

    Args:
        write: prints a line.
        shared: values that are part of every event.

    Attributes:
        needs_reader: raise BrokenPipeError when nobody reads the output any more; otherwise go on without output.
    """

    def __init__(self, write: Callable[[str], None] = _print, **shared: Any) -> None:
        self.needs_reader = True
        self._write = write
        self._shared = shared
        self._started: dict[str, tuple[float, float]] = {}

    def _emit(self, event: str, **values: Any) -> None:
        try:
            self._write(json.dumps(finite({"event": event, **self._shared, **values}), allow_nan=False))
        except BrokenPipeError:
            if self.needs_reader:
                raise

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Print the progress, with the seconds left once they can be estimated."""
        now = time.monotonic()
        began, at = self._started.setdefault(task, (now, done))
        left = round((now - began) * (total - done) / (done - at), 1) if done > at else None
        self._emit("progress", task=task, done=done, total=total, seconds_left=left, **figures)

    def version(self, **values: Any) -> None:
        """Print the event ``version``."""
        self._emit("version", **values)

    def item(self, **values: Any) -> None:
        """Print the event ``item``."""
        self._emit("item", **values)

    def message(self, text: str) -> None:
        """Print the event ``message``."""
        self._emit("message", text=text)

    def warning(self, text: str, about: str = "") -> None:
        """Print the event ``warning``."""
        self._emit("warning", text=text, **({"about": about} if about else {}))

    def failed(self, text: str) -> None:
        """Print the event ``error``."""
        self._emit("error", text=text)

    def ended(self, status: int) -> None:
        """Print the event ``end``, the last one, with the exit status: a launcher may not pass it on."""
        self._emit("end", status=status)

    def close(self) -> None:
        """Do nothing."""


class PlainReporter:
    """Print messages only: for pipes, and if rich is not installed."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Do nothing."""

    def version(self, **values: Any) -> None:
        """Do nothing."""

    def item(self, **values: Any) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Print a message on standard error; standard output is for results."""
        print(text, file=sys.stderr)

    def warning(self, text: str, about: str = "") -> None:
        """Print a warning as a message."""
        self.message(text)

    def close(self) -> None:
        """Do nothing."""


class TerminalReporter(PlainReporter):
    """Show a progress bar with the time left, drawn by rich."""

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
        """Update the bar of a task; the first call adds it."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        shown = task + "".join(f"  {name} {value:.3g}" for name, value in figures.items())
        self._bars.update(self._tasks[task], completed=done, total=total, description=shown)

    def message(self, text: str) -> None:
        """Print a message above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Stop drawing the bars."""
        self._bars.stop()


def make_reporter(style: str) -> Reporter:
    """Make the reporter of a style.

    Args:
        style: ``"json"``; ``"none"`` for messages only; or ``"auto"`` for a bar if standard error is a terminal and
            rich is installed, otherwise messages only.
    """
    if style == "json":
        return JsonReporter()
    if style == "auto" and sys.stderr.isatty():
        try:
            return TerminalReporter()
        except ImportError:
            pass
    return PlainReporter()
