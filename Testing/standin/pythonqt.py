"""Qt objects as Python code inside Slicer sees them.

Imitates PythonQt (commontk/PythonQt, branch patched-10): `PythonQtInstanceWrapper.cpp` (attributes),
`PythonQtClassInfo.cpp` (which names exist and which wins), `PythonQtClassWrapper.cpp`, `PythonQtStdDecorators.cpp`
(findChildren, ...).

Every object that the tested code meets is a wrapper; the PySide6 object stays inside, in `_native`. So nothing of
PySide6's own flavor leaks out: a property is an attribute and can not be called, an unknown name can not be set,
a signal that does not exist can not be connected.

Where PythonQt is silent (it prints and returns False) or lenient (it turns None into the text "None"), the stand-in
raises: stricter is safe, since what passes here must pass there.
"""

from __future__ import annotations

import enum
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from .conversion import WrongArguments, to_qt
from .enums import EnumType, EnumValue
from .signals import connect_signal, disconnect_signal, signatures

_classes: dict[type, type[PythonQtObject]] = {}
_wrappers: weakref.WeakValueDictionary[int, PythonQtObject] = weakref.WeakValueDictionary()
_stored_numbers = itertools.count()
_PLAIN = "PySide6."


def invokable(*cpp_types: str) -> Callable[[Callable], Callable]:
    """Mark a method of one of our own widget classes as one that PythonQt would show (a slot or Q_INVOKABLE).

    Args:
        cpp_types: the C++ types of the arguments as in the header; they are checked and converted.
    """

    def mark(method: Callable) -> Callable:
        method._pythonqt = cpp_types  # type: ignore[attr-defined]
        return method

    return mark


def stored(kind: Any, default: Any, changed: Callable[[Any], None] | None = None) -> QtCore.Property:
    """Make a Qt property of one of our own classes that keeps its value; `changed` is called with the object."""
    key = f"_stored_{next(_stored_numbers)}"

    def read(self: Any) -> Any:
        return vars(self).get(key, default)

    def write(self: Any, value: Any) -> None:
        if value != read(self):
            setattr(self, key, value)
            if changed is not None:
                changed(self)

    return QtCore.Property(kind, read, write)


# -- values going in and out ------------------------------------------------------------------------------------


def unwrap(value: Any) -> Any:
    """Return what PySide6 wants instead of our wrapper."""
    if isinstance(value, PythonQtObject):
        return value._alive()
    if isinstance(value, EnumValue):
        return value.native
    if type(value) in (list, tuple):
        return type(value)(unwrap(item) for item in value)
    return value


def wrap(value: Any) -> Any:
    """Return what PythonQt would make of a value that came from Qt: lists become tuples, enumerations integers."""
    if isinstance(value, enum.Enum):
        return EnumValue(value)
    if isinstance(value, (list, tuple)):
        return tuple(wrap(item) for item in value)
    if isinstance(value, shiboken6.Object):
        return _wrap_object(value)
    return value


def _wrap_object(native: Any) -> PythonQtObject:
    cls = wrapper_class(type(native))
    if not isinstance(native, QtCore.QObject):
        return cls._from_native(native)
    address = shiboken6.getCppPointer(native)[0]
    known = _wrappers.get(address)
    if known is None or not known or not isinstance(known, cls):
        known = _wrappers[address] = cls._from_native(native)
    return known


def wrapper_class(native_class: type) -> type[PythonQtObject]:
    """Return the class that stands for a PySide6 class, or for one of our own subclasses of those."""
    if native_class not in _classes:
        native_bases = [base for base in native_class.__bases__ if base not in (object, shiboken6.Object)]
        root = PythonQtQObject if native_class is QtCore.QObject else PythonQtObject
        bases = tuple(wrapper_class(base) for base in native_bases) or (root,)
        namespace = {"__doc__": native_class.__doc__, "_native_class": native_class}
        _classes[native_class] = ClassWrapper(native_class.__name__, bases, namespace)
    return _classes[native_class]


# -- classes ----------------------------------------------------------------------------------------------------


class ClassWrapper(type):
    """A Qt class (`qt.QPushButton`): constructor, static functions and the values of its enumerations."""

    _native_class: type

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or not hasattr(cls, "_native_class"):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        found = getattr(cls._native_class, name, None)
        if isinstance(found, enum.Enum):
            return EnumValue(found)
        if isinstance(found, type) and issubclass(found, enum.Enum):
            return EnumType(f"{cls.__name__}.{name}")
        owner = _owner(cls._native_class, name)
        plain = owner is not None and owner.__module__.startswith(_PLAIN)
        if plain and callable(found) and not isinstance(found, (QtCore.Signal, property)):
            return StaticFunction(cls.__name__, name, found)
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")


class StaticFunction:
    """A function looked up on a class."""

    def __init__(self, scope: str, name: str, function: Any) -> None:
        self._label, self._function = f"{scope}.{name}", function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._label, self._function, args, kwargs, None)


def _owner(native_class: type, name: str) -> type | None:
    return next((cls for cls in native_class.__mro__ if name in vars(cls)), None)


def _refuse_keywords(name: str, kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise WrongArguments(f"Called {name} with keyword arguments, but called slot does not support kwargs.")


def _call(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], declared: Any) -> Any:
    _refuse_keywords(name, kwargs)
    if declared is not None:
        if len(args) != len(declared):
            raise WrongArguments(f"Called {name}({', '.join(declared)}) with wrong number of arguments: {args}")
        return wrap(function(*(to_qt(value, cpp, name) for value, cpp in zip(args, declared, strict=True))))
    native = [unwrap(value) for value in args]
    try:
        return wrap(function(*native))
    except TypeError as error:
        raise WrongArguments(f"Called {name} with wrong arguments: {args} ({error})") from error


# -- objects ----------------------------------------------------------------------------------------------------


class PythonQtObject(metaclass=ClassWrapper):
    """An object of a Qt class (PythonQtInstanceWrapper)."""

    _native: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_keywords(type(self).__name__, kwargs)
        native_class = type(self)._native_class
        native = [unwrap(value) for value in args]
        try:
            made = native_class(*native)
        except (TypeError, NotImplementedError) as error:
            raise WrongArguments(f"No constructor of {type(self).__name__} takes {args} ({error})") from error
        object.__setattr__(self, "_native", made)
        if isinstance(made, QtCore.QObject):
            _wrappers[shiboken6.getCppPointer(made)[0]] = self

    @classmethod
    def _from_native(cls, native: Any) -> PythonQtObject:
        self = object.__new__(cls)
        object.__setattr__(self, "_native", native)
        return self

    def _alive(self) -> Any:
        if not shiboken6.isValid(self._native):
            raise ValueError(f"The {type(self).__name__} object was deleted by Qt")
        return self._native

    # attributes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = type(self).__name__
        if not shiboken6.isValid(self._native):
            raise ValueError(f"Trying to read '{name}' from a destroyed {cls} object")
        native = self._native
        if isinstance(native, QtCore.QObject):
            found = _property(native, name)
            if found is not None:
                return wrap(found.read(native))
        # A trailing underscore is for names that Python reserved once: exec_ is exec.
        member = self._member(name[:-1] if name.endswith("_") else name)
        if member is not None:
            return member
        raise AttributeError(f"{cls} has no attribute named '{name}'")

    def _member(self, name: str) -> Any:
        """Return a method or a signal; None if PythonQt would not find one."""
        owner = _owner(type(self._native), name)
        if owner is None:
            return None
        entry = vars(owner)[name]
        if isinstance(entry, QtCore.Signal):
            return BoundSignal(self, name) if signatures(self._native, name) else None
        declared = getattr(entry, "_pythonqt", None)
        if isinstance(entry, (type, enum.Enum)) or (declared is None and not owner.__module__.startswith(_PLAIN)):
            return None
        return BoundMethod(self, name, declared) if callable(getattr(self._native, name, None)) else None

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if not shiboken6.isValid(self._native):
            raise AttributeError(f"Trying to set '{name}' on a destroyed {cls.__name__} object")
        native = self._native
        if isinstance(native, QtCore.QObject):
            found = _property(native, name)
            if found is not None:
                self._write(found, name, value)
                return
        if self._member(name) is not None:
            raise AttributeError(f"'{name}' can not be overwritten on {cls.__name__} object")
        raise AttributeError(
            f"'{name}' does not exist on {cls.__name__} and creating new attributes on C++ objects is not allowed"
        )

    def _write(self, found: QtCore.QMetaProperty, name: str, value: Any) -> None:
        cls = type(self).__name__
        if not found.isWritable():
            raise AttributeError(f"Property '{name}' of {cls} object is not writable")
        try:
            accepted = found.write(self._native, to_qt(value, "enum" if found.isEnumType() else found.typeName(), name))
        except WrongArguments:
            accepted = False
        if not accepted:
            raise AttributeError(
                f"Property '{name}' of type '{found.typeName()}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            )

    # Python's own protocols

    def __bool__(self) -> bool:
        return shiboken6.isValid(self._native)

    def __eq__(self, other: Any) -> bool:
        if other is None:
            return not self
        return isinstance(other, PythonQtObject) and _address(self._native) == _address(other._native)

    def __hash__(self) -> int:
        return hash(_address(self._native))

    def inherits(self, name: str) -> bool:
        return any(cls.__name__ == name for cls in type(self).__mro__)


def _address(native: Any) -> int:
    return shiboken6.getCppPointer(native)[0]


def _property(native: QtCore.QObject, name: str) -> QtCore.QMetaProperty | None:
    """PythonQtClassInfo::lookForPropertyAndCache: `name` is `objectName`; `singleShot` of a timer is left out."""
    if name == "singleShot" and isinstance(native, QtCore.QTimer):
        return None
    meta = native.metaObject()
    index = meta.indexOfProperty(name)
    if index < 0 and name == "name":
        index = meta.indexOfProperty("objectName")
    return meta.property(index) if index >= 0 else None


class BoundMethod:
    """A method of one object (PythonQtSlotFunction)."""

    def __init__(self, owner: PythonQtObject, name: str, declared: Any) -> None:
        self._owner, self.__name__, self._declared = owner, name, declared

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self._owner._alive(), self.__name__)
        return _call(f"{type(self._owner).__name__}.{self.__name__}", function, args, kwargs, self._declared)


class BoundSignal:
    """A signal of one object: `button.clicked.connect(f)` (PythonQtSignalFunction)."""

    def __init__(self, owner: PythonQtObject, name: str) -> None:
        self._owner, self._name = owner, name

    def connect(self, target: Any) -> bool:
        return self._owner.connect(signatures(self._owner._alive(), self._name)[0], target)

    def disconnect(self, target: Any) -> bool:
        return self._owner.disconnect(signatures(self._owner._alive(), self._name)[0], target)

    def __call__(self, *args: Any) -> None:
        """Emit the signal: `table.cellClicked(0, 1)`."""
        getattr(self._owner._alive(), self._name).emit(*map(unwrap, args))


class PythonQtQObject(PythonQtObject):
    """A QObject, with what PythonQtStdDecorators adds."""

    def connect(self, signal: str, target: Any) -> bool:
        return connect_signal(self._alive(), signal, target, wrap)

    def disconnect(self, signal: str, target: Any) -> bool:
        return disconnect_signal(self._alive(), signal, target)

    def children(self) -> Any:
        return wrap(self._alive().children())

    def findChildren(self, kind: Any, name: str | None = None) -> Any:
        """Return all descendants of a class, given itself or by its name."""
        native_class = QtCore.QObject if isinstance(kind, str) else kind._native_class
        found = self._alive().findChildren(native_class, name)
        return tuple(wrap(child) for child in found if not isinstance(kind, str) or child.inherits(kind))

    def property(self, name: str) -> Any:
        return wrap(self._alive().property(name))
