"""Fields for a folder, which remember the last folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .section import PanelContext, isSet


class FolderField:
    """Connects a ``ctkPathLineEdit`` with a path of the parameter node.

    The connection of Slicer's parameter node wrapper shows "." for a path that is not set, and keeps the old path when
    the user clears the field, since the widget does not report an empty path.

    Args:
        context: what the sections share.
        widget: the field; its ``settingKey`` names the list of its last folders.
        name: of the path in the parameter node.
    """

    def __init__(self, context: PanelContext, widget: Any, name: str) -> None:
        self._context, self._widget, self._name = context, widget, name
        self._writing = False
        widget.comboBox().connect("editTextChanged(QString)", self._onText)

    def restore(self) -> None:
        """Use the last folder that still exists if none is chosen in this scene."""
        box = self._widget.comboBox()
        folders = [box.itemText(n) for n in range(box.count)]
        last = next((folder for folder in folders if folder and Path(folder).is_dir()), None)
        if last is not None and not isSet(self._path):
            setattr(self._context.parameter, self._name, Path(last))
        self._write(self._path)

    def show(self) -> None:
        """Show the path of the parameter node; what the user is typing is left alone if it means the same."""
        if Path(self._widget.currentPath) != self._path:
            self._write(self._path)

    def remember(self) -> None:
        """Add the folder to the list of last folders."""
        if isSet(self._path):
            self._widget.addCurrentPathToHistory()

    @property
    def _path(self) -> Path:
        return Path(getattr(self._context.parameter, self._name))

    def _write(self, path: Path) -> None:
        self._writing = True
        try:
            # An empty field opens its dialog in the last path that was shown in any field.
            self._widget.currentPath = str(path) if isSet(path) else str(Path.home())
            if not isSet(path):
                edit = self._widget.comboBox().lineEdit()
                blocked = edit.blockSignals(True)
                edit.clear()
                edit.blockSignals(blocked)
        finally:
            self._writing = False

    def _onText(self, text: str) -> None:
        if not self._writing and self._context.parameter is not None:
            setattr(self._context.parameter, self._name, Path(text))
