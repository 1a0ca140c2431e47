"""What happened behind the user's back: errors in slots, message boxes, opened links; and the answers to dialogs.

In Slicer an exception in a slot is printed and forgotten, and a message box waits for a person. A test wants to see
the first and answer the second.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SlotError:
    """An exception that left a slot, a timer or an observer; Slicer would print it and go on.

    `shown` is true if the user was told about it before: `slicer.util.tryWithErrorDisplay` shows an error and raises
    it again, so that it ends here as well.
    """

    where: str
    exception: BaseException
    shown: bool = False


@dataclass(frozen=True)
class Message:
    """A message to the user.

    Attributes:
        level: "info", "warning", "error" or "question".
        text: what the user reads.
        details: the text behind "Show details".
    """

    level: str
    text: str
    details: str


@dataclass
class Records:
    """All lists in one place, so that a test can empty them at its start."""

    slot_errors: list[SlotError] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    opened_urls: list[str] = field(default_factory=list)
    file_answers: list[str | Path] = field(default_factory=list)
    button_answers: list[Any] = field(default_factory=list)

    def clear(self) -> None:
        for entries in vars(self).values():
            entries.clear()

    def slot_error(self, where: str, exception: BaseException) -> None:
        traceback.print_exception(exception)
        last = next((message for message in reversed(self.messages) if message.level == "error"), None)
        shown = last is not None and str(exception) in last.text and str(exception) != ""
        self.slot_errors.append(SlotError(where, exception, shown))

    def unexpected_errors(self) -> list[SlotError]:
        """Return the errors that no message told the user about: in a good panel there are none, ever."""
        return [error for error in self.slot_errors if not error.shown]


records = Records()
