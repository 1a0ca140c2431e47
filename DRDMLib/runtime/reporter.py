"""How long work reports to whoever started it."""

from __future__ import annotations

from typing import Any, Protocol


class Reporter(Protocol):
    """Takes progress, results and messages; ``DRDMLib.cli.progress`` shows them on a terminal or as JSON."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Report ``done`` of ``total`` units of ``task``."""

    def item(self, **values: Any) -> None:
        """Report one complete result."""

    def message(self, text: str) -> None:
        """Report a sentence that a person should read."""

    def warning(self, text: str) -> None:
        """Report that something is done in another way than asked for."""

    def close(self) -> None:
        """Leave the terminal tidy."""
