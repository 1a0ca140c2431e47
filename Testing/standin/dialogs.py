"""Dialogs that would wait for a person: recorded and answered instead of shown.

Imitates commontk/CTK `ctkMessageBox.cpp` (used by `slicer.util.messageBox`), and what waits in Qt itself.
"""

from __future__ import annotations

from typing import Any

from PySide6 import QtWidgets

from .pythonqt import invokable
from .records import Message, records

_LEVELS = {"Information": "info", "Warning": "warning", "Critical": "error", "Question": "question"}


class QMessageBox(QtWidgets.QMessageBox):
    """A message box; the next of `records.button_answers` is pressed, else the affirmative button."""

    @invokable()
    def exec(self) -> Any:
        kinds = QtWidgets.QMessageBox.StandardButton
        if records.button_answers:
            answer = records.button_answers.pop(0)
            answer = getattr(answer, "native", answer)
        else:
            wanted = (kinds.Ok, kinds.Yes, kinds.Close, kinds.Cancel)
            answer = next((button for button in wanted if button in self.standardButtons()), kinds.Ok)
        level = _LEVELS.get(self.icon().name, "info")
        records.messages.append(Message(level, self.text(), self.detailedText()))
        return answer


class ctkMessageBox(QMessageBox):
    """A message box of CTK."""


class QDialog(QtWidgets.QDialog):
    """A dialog; `exec` would wait for a person, so it is refused."""

    @invokable()
    def exec(self) -> int:
        raise RuntimeError("A modal dialog would wait for ever in a test")


def get_open_file_name(_parent: Any = None, _caption: str = "", _directory: str = "", _filter: str = "") -> str:
    """Return the next of `records.file_answers`; "" means that the user pressed Cancel.

    Raises:
        RuntimeError: no answer was prepared.
    """
    if not records.file_answers:
        raise RuntimeError("A file dialog was opened and the test prepared no answer (standin.file_answers)")
    return str(records.file_answers.pop(0))


def open_url(url: Any) -> bool:
    """Record a link instead of opening it."""
    records.opened_urls.append(url.toString())
    return True
