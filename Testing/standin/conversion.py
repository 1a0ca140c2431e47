"""From a Python value to what a C++ function or property takes.

Imitates `PythonQtConversion.cpp` (PyObjToQVariant, PyObjGetInt, ...). Stricter in three places: a text must be a str
(PythonQt would call `str()` on anything, None included), a list of texts must not be a single str (PythonQt would take
it letter by letter) and an enumeration must be one of its values or an int.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from .enums import EnumValue


class WrongArguments(TypeError, ValueError):
    """PythonQt raises ValueError where Python would raise TypeError; this is both."""


def to_qt(value: Any, cpp: str, name: str) -> Any:
    """Return the value for a C++ type, given as in a header or by a `QMetaProperty`.

    Raises:
        WrongArguments: PythonQt would not convert it (or would do it in a way nobody wants).
    """
    kind = cpp.removesuffix("*")
    try:
        if kind in _CONVERTERS:
            return _CONVERTERS[kind](value)
        if kind.startswith("vtk"):
            if value is None or value.IsA(kind):
                return value
        elif isinstance(value, EnumValue):
            return value.native
        elif value is None and kind != cpp:
            return None
        elif value.inherits(kind):
            return value._alive()
    except (TypeError, AttributeError):
        pass
    raise WrongArguments(f"{name}: {cpp} expected, got {type(value).__name__} ({value!r})")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        raise TypeError
    return [_text(item) for item in value]


def _integer(value: Any) -> int:
    return math.floor(value) if type(value) is float else operator.index(value)


def _real(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError
    return float(value)


def _enumeration(value: Any) -> Any:
    if type(value) not in (int, EnumValue):
        raise TypeError
    return getattr(value, "native", value)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "QString": _text,
    "QStringList": _texts,
    "QVariant": lambda value: value,
    "bool": bool,
    "int": _integer,
    "double": _real,
    "enum": _enumeration,
}
