"""Qt's enumeration values as PythonQt shows them: integers.

Imitates PythonQt's `createNewPythonQtEnumWrapper` (PythonQt.cpp): the values of an enumeration are integers of a
subclass of int that live in the scope of the class (`qt.QMessageBox.Ok`), not in the enumeration
(`qt.QMessageBox.StandardButton.Ok` does not exist).
"""

from __future__ import annotations

import enum
from typing import Any


def _integer(native: enum.Enum) -> int:
    value = native.value
    return value if isinstance(value, int) else int(getattr(value, "value", 0))


class EnumValue(int):
    """One value (or combination of flags); remembers PySide's value, which Qt's functions want."""

    native: enum.Enum

    def __new__(cls, native: enum.Enum) -> EnumValue:
        self = super().__new__(cls, _integer(native))
        self.native = native
        return self

    def __or__(self, other: Any) -> Any:
        if isinstance(self.native, enum.Flag):
            return EnumValue(self.native | type(self.native)(int(other)))
        return int(self) | int(other)


class EnumType:
    """The enumeration itself; it has no values."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._label} has no attribute '{name}': PythonQt puts the values of an enumeration into the scope of "
            f"the class, {self._label.rpartition('.')[0]}.{name}"
        )
