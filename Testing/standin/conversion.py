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
    """The value for a C++ type, given as in a header or by a `QMetaProperty`.

    Raises:
        WrongArguments: PythonQt would not convert it (or would do it in a way nobody wants).
    """
    kind = cpp.replace("const ", "").replace("&", "").strip()
    convert = _CONVERTERS.get(kind)
    if convert is not None:
        return convert(value, name)
    if kind.startswith("vtk") and kind.endswith("*"):
        return _vtk(value, kind[:-1].strip(), name)
    if kind in ("PyObject", "object", "QVariant"):
        return _unwrapped(value)
    return _object(value, kind, name)


def _refuse(value: Any, wanted: str, name: str) -> WrongArguments:
    return WrongArguments(f"{name}: {wanted} expected, got {type(value).__name__} ({value!r})")


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if type(value) in (int, float):
        return str(value)
    raise _refuse(value, "a str", name)


def _texts(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise _refuse(value, "a list of str", name)
    return [_text(item, name) for item in value]


def _integer(value: Any, name: str) -> int:
    if type(value) is float:
        return math.floor(value)
    try:
        return operator.index(value)
    except TypeError:
        raise _refuse(value, "an int", name) from None


def _real(value: Any, name: str) -> float:
    if isinstance(value, str):
        raise _refuse(value, "a float", name)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _refuse(value, "a float", name) from None


def _truth(value: Any, name: str) -> bool:
    try:
        return bool(value)
    except Exception:
        raise _refuse(value, "a bool", name) from None


def _enumeration(value: Any, name: str) -> Any:
    if isinstance(value, EnumValue):
        return value.native
    if type(value) is int:
        return value
    raise _refuse(value, "a value of the enumeration", name)


def _vtk(value: Any, class_name: str, name: str) -> Any:
    if value is None or (hasattr(value, "IsA") and value.IsA(class_name)):
        return value
    raise _refuse(value, f"a {class_name} or None", name)


def _unwrapped(value: Any) -> Any:
    from .pythonqt import unwrap

    return unwrap(value)


def _object(value: Any, kind: str, name: str) -> Any:
    from .pythonqt import PythonQtObject, unwrap

    pointer = kind.endswith("*")
    if value is None and pointer:
        return None
    wanted = kind.rstrip("*").strip()
    if isinstance(value, PythonQtObject) and value.inherits(wanted):
        return unwrap(value)
    if isinstance(value, EnumValue):
        return value.native
    raise _refuse(value, f"a {wanted}", name)


_CONVERTERS: dict[str, Callable[[Any, str], Any]] = {
    "QString": _text,
    "QStringList": _texts,
    "bool": _truth,
    "int": _integer,
    "uint": _integer,
    "qlonglong": _integer,
    "double": _real,
    "float": _real,
    "enum": _enumeration,
}
