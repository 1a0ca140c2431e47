"""Signals and slots as Python code inside Slicer sees them.

Imitates PythonQt (commontk/PythonQt, branch patched-10): `PythonQtSignal.cpp`, `PythonQtSignalReceiver.cpp` (how a
slot is called), `PythonQtStdDecorators.cpp` (connect and disconnect). Where PythonQt prints that a signal does not
exist and returns False, this raises.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import shiboken6
from PySide6 import QtCore

from .conversion import WrongArguments
from .records import records

_connections: dict[int, list[tuple[str, Any, Any]]] = {}


def _own_signals(native: QtCore.QObject) -> Iterator[tuple[str, str]]:
    """Yield (C++ signature, PySide6 signature) of every signal, those of the most derived class first.

    PySide6 knows no `vtkMRMLNode*`, so our own classes list the C++ signatures of their signals in `cpp_signals`,
    in the order of the header.
    """
    listed: dict[str, str] = {}
    for cls in type(native).__mro__:
        listed |= vars(cls).get("cpp_signals", {})
    yield from listed.items()
    meta: QtCore.QMetaObject | None = native.metaObject()
    while meta is not None:
        for index in range(meta.methodOffset(), meta.methodCount()):
            method = meta.method(index)
            if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
                signature = bytes(method.methodSignature().data()).decode()
                if signature not in listed.values():
                    yield signature, signature
        meta = meta.superClass()


def signatures(native: QtCore.QObject, name: str) -> list[str]:
    """Return the C++ signatures of the signals of that name; the first is the one that `widget.name.connect` takes."""
    return [cpp for cpp, _ in _own_signals(native) if cpp.split("(")[0] == name]


def _resolve(native: QtCore.QObject, signal: str) -> tuple[str, str]:
    wanted = bytes(QtCore.QMetaObject.normalizedSignature(signal).data()).decode()
    found = next(((cpp, pyside) for cpp, pyside in _own_signals(native) if cpp == wanted), None)
    if found is None:
        raise AttributeError(
            f"signal '{signal}' does not exist on {type(native).__name__} "
            "(Slicer prints this and returns False; no slot would ever be called)"
        )
    return found


def connect_signal(native: QtCore.QObject, signal: str, target: Any, convert: Callable[[Any], Any]) -> bool:
    """Connect a Python callable to a signal given by its C++ signature; `convert` is applied to the arguments.

    Raises:
        AttributeError: there is no such signal.
        WrongArguments: the target can not be called.
    """
    cpp, pyside = _resolve(native, signal)
    if not callable(target):
        raise WrongArguments(f"connect('{signal}', {target!r}): not callable")
    where = f"{type(native).__name__}.{cpp}"

    def relay(*args: Any) -> None:
        deliver(target, tuple(convert(value) for value in args), where)

    connection = QtCore.QObject.connect(native, QtCore.SIGNAL(pyside), relay)
    address = shiboken6.getCppPointer(native)[0]
    if address not in _connections:
        _connections[address] = []
        native.destroyed.connect(lambda *_: _connections.pop(address, None))
    _connections[address].append((cpp, target, connection))
    return bool(connection)


def disconnect_signal(native: QtCore.QObject, signal: str, target: Any) -> bool:
    """Undo one connection of that callable; False if there is none."""
    cpp, _pyside = _resolve(native, signal)
    known = _connections.get(shiboken6.getCppPointer(native)[0], [])
    for entry in known:
        if entry[0] == cpp and entry[1] == target:
            QtCore.QObject.disconnect(entry[2])
            known.remove(entry)
            return True
    return False


def _accepted_arguments(target: Any) -> int | None:
    """How many arguments of a signal a Python function takes: PythonQtSignalTarget::call looks at its code object."""
    function = getattr(target, "__func__", target)
    if not isinstance(function, types.FunctionType) or function.__code__.co_flags & 0x04:  # *args
        return None
    return function.__code__.co_argcount - (function is not target)


def deliver(target: Any, args: tuple[Any, ...], where: str) -> None:
    """Call a slot as PythonQt does: with as many arguments as it takes; an exception is recorded, never raised."""
    try:
        target(*args[: _accepted_arguments(target)])
    except Exception as error:
        records.slot_error(where, error)
