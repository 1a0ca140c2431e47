"""Report progress, results and messages of a long computation."""

from __future__ import annotations

from typing import Any, Protocol

# Line on standard error after the messages of a command that ``drdm serve`` has run; its number follows.
END_OF_REQUEST = "drdm serve: end of request "
# What a warning can be about: how well a model fits, and versions that go toward no other scan.
FIT, TOWARD = "fit", "toward"


class Reporter(Protocol):
    """Receiver of progress, results and messages; ``DRDMLib.cli.progress`` shows them on a terminal or as JSON."""

    def progress(self, task: str, done: float, total: float, **figures: float) -> None:
        """Report ``done`` of ``total`` units of ``task``."""

    def version(self, **values: Any) -> None:
        """Report a version whose files are complete and proven, before its figures are computed."""

    def item(self, **values: Any) -> None:
        """Report one complete result."""

    def message(self, text: str) -> None:
        """Report a sentence for the user."""

    def warning(self, text: str, about: str = "") -> None:
        """Report that something is done differently than requested.

        Args:
            about: what it is about, for programs that say it in their own way: :data:`FIT` or :data:`TOWARD`.
        """

    def close(self) -> None:
        """Finish the output, such as a progress bar on a terminal."""
