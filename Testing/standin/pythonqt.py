"""Qt objects as Python code inside Slicer sees them.

Imitates PythonQt (commontk/PythonQt, branch patched-10): `PythonQtInstanceWrapper.cpp` (attributes),
`PythonQtClassInfo.cpp` (which names exist and which wins), `PythonQtClassWrapper.cpp`, `PythonQtSignal.cpp`,
`PythonQtSignalReceiver.cpp` (how a slot is called), `PythonQtStdDecorators.cpp` (connect, findChild, ...).

Every object that the tested code meets is a wrapper; the PySide6 object stays inside, in `_native`. So nothing of
PySide6's own flavour leaks out: a property is an attribute and can not be called, an unknown name can not be set,
a signal that does not exist can not be connected.

Where PythonQt is silent (it prints and returns False) or lenient (it turns None into the text "None"), the stand-in
raises: stricter is safe, since what passes here must pass there.
"""

from __future__ import annotations

import enum
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import shiboken6
from PySide6 import QtCore

from .conversion import WrongArguments, to_qt
from .enums import EnumValue
from .records import records

_classes: dict[type, type[PythonQtObject]] = {}
_wrappers: weakref.WeakValueDictionary[int, PythonQtObject] = weakref.WeakValueDictionary()
_connections: dict[int, list[tuple[str, Any, Any]]] = {}
_PLAIN = "PySide6."


def invokable(*cpp_types: str, optional: int = 0, static: bool = False) -> Callable[[Callable], Callable]:
    """Mark a method of one of our own widget classes as one that PythonQt would show (a slot or Q_INVOKABLE).

    Args:
        cpp_types: the C++ types of the arguments as in the header; they are checked and converted.
        optional: how many of the last arguments have a default.
        static: the method needs no object.
    """

    def mark(method: Callable) -> Callable:
        method._pythonqt = (cpp_types, optional, static)  # type: ignore[attr-defined]
        return method

    return mark


# -- values going in and out ------------------------------------------------------------------------------------


def unwrap(value: Any) -> Any:
    """What PySide6 wants instead of our wrapper."""
    if isinstance(value, PythonQtObject):
        return value._alive()
    if isinstance(value, EnumValue):
        return value.native
    if type(value) in (list, tuple):
        return type(value)(unwrap(item) for item in value)
    if type(value) is dict:
        return {key: unwrap(item) for key, item in value.items()}
    if isinstance(value, ClassWrapper):
        return value._native_class
    return value


def wrap(value: Any) -> Any:
    """What PythonQt would hand to Python for a value that came from Qt: lists become tuples, enumerations integers."""
    if isinstance(value, enum.Enum):
        return EnumValue(value)
    if isinstance(value, (list, tuple)):
        return tuple(wrap(item) for item in value)
    if isinstance(value, dict):
        return {key: wrap(item) for key, item in value.items()}
    if isinstance(value, shiboken6.Object):
        return _wrap_object(value)
    return value


def _wrap_object(native: Any) -> PythonQtObject:
    cls = wrapper_class(type(native))
    if not isinstance(native, QtCore.QObject):
        return cls._from_native(native)
    address = shiboken6.getCppPointer(native)[0]
    known = _wrappers.get(address)
    if known is not None and shiboken6.isValid(known._native) and isinstance(known, cls):
        return known
    wrapper = cls._from_native(native)
    _wrappers[address] = wrapper
    return wrapper


def wrapper_class(native_class: type) -> type[PythonQtObject]:
    """The class that stands for a PySide6 class, or for one of our own subclasses of those."""
    known = _classes.get(native_class)
    if known is not None:
        return known
    bases = tuple(wrapper_class(base) for base in native_class.__bases__ if base not in (object, shiboken6.Object)) or (
        PythonQtObject,
    )
    namespace = {"__doc__": native_class.__doc__, "_native_class": native_class}
    if native_class is QtCore.QObject:
        namespace |= {name: value for name, value in vars(_QObjectDecorators).items() if not name.startswith("__")}
    cls = ClassWrapper(native_class.__name__, bases, namespace)
    _classes[native_class] = cls
    return cls


# -- classes ----------------------------------------------------------------------------------------------------


class ClassWrapper(type):
    """A Qt class (`qt.QPushButton`): constructor, static functions and the values of its enumerations."""

    _native_class: type

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        cls._direct = "_native_class" in namespace or name == "PythonQtObject"

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or not hasattr(cls, "_native_class"):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        found = getattr(cls._native_class, name, None)
        if isinstance(found, enum.Enum):
            return EnumValue(found)
        if isinstance(found, type) and issubclass(found, enum.Enum):
            return _EnumType(cls.__name__, name, found)
        if isinstance(found, type) and issubclass(found, shiboken6.Object):
            return wrapper_class(found)
        owner = _owner(cls._native_class, name)
        if callable(found) and not isinstance(found, (QtCore.Signal, property)) and owner is not None:
            declared = getattr(found, "_pythonqt", None)
            if owner.__module__.startswith(_PLAIN) or declared:
                return StaticFunction(cls.__name__, name, found, declared)
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith("_") and cls.__dict__.get("_direct"):
            raise AttributeError(f"attribute '{name}' of the C++ class {cls.__name__} can not be set")
        super().__setattr__(name, value)


class _EnumType:
    """The enumeration itself; only good for turning an integer into its value."""

    def __init__(self, scope: str, name: str, native: type[enum.Enum]) -> None:
        self._label, self._native = f"{scope}.{name}", native

    def __call__(self, value: int) -> EnumValue:
        return EnumValue(self._native(int(value)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._label} has no attribute '{name}': PythonQt puts the values of an enumeration into the scope "
            f"of the class, {self._label.rsplit('.', 1)[0]}.{name}"
        )


class StaticFunction:
    """A function looked up on a class."""

    def __init__(self, scope: str, name: str, function: Any, declared: Any) -> None:
        self.__name__, self._scope, self._function, self._declared = name, scope, function, declared

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _refuse_keywords(f"{self._scope}.{self.__name__}", kwargs)
        return _call(f"{self._scope}.{self.__name__}", self._function, args, None)


def _owner(native_class: type, name: str) -> type | None:
    return next((cls for cls in native_class.__mro__ if name in vars(cls)), None)


def _refuse_keywords(name: str, kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise WrongArguments(f"Called {name} with keyword arguments, but called slot does not support kwargs.")


def _call(name: str, function: Any, args: tuple[Any, ...], declared: Any) -> Any:
    if declared is not None:
        types_, optional, _static = declared
        if not len(types_) - optional <= len(args) <= len(types_):
            raise WrongArguments(f"Called {name}({', '.join(types_)}) with wrong number of arguments: {args}")
        converted = [to_qt(value, cpp, name) for value, cpp in zip(args, types_, strict=False)]
        return wrap(function(*converted))
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
        is_object = isinstance(native, QtCore.QObject)
        if is_object:
            found = _property(native, name)
            if found is not None:
                return wrap(found.read(native))
        # A trailing underscore is for names that Python reserved once: exec_ is exec.
        member = self._member(name[:-1] if name.endswith("_") else name)
        if member is not None:
            return member
        if is_object:
            if name in _dynamic_names(native):
                return wrap(native.property(name))
            child = next((c for c in native.children() if c.objectName() == name), None)
            if child is not None:
                return wrap(child)
        raise AttributeError(f"{cls} has no attribute named '{name}'")

    def _member(self, name: str) -> Any:
        """A method, signal or enumeration value; None if PythonQt would not find one."""
        owner = _owner(type(self._native), name)
        if owner is None:
            return None
        entry = vars(owner)[name]
        if isinstance(entry, QtCore.Signal):
            return BoundSignal(self, name) if signatures(self._native, name) else None
        if isinstance(entry, enum.Enum):
            return EnumValue(entry)
        if isinstance(entry, type):
            return _EnumType(type(self).__name__, name, entry) if issubclass(entry, enum.Enum) else None
        function = getattr(entry, "__func__", entry)
        declared = getattr(function, "_pythonqt", None)
        if not owner.__module__.startswith(_PLAIN) and declared is None:
            overridden = _plain_owner(type(self._native), name)
            if overridden is None:
                return None
        if not callable(getattr(self._native, name, None)):
            return None
        return BoundMethod(self, name, declared)

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
        if isinstance(native, QtCore.QObject) and name in _dynamic_names(native):
            native.setProperty(name, unwrap(value))
            return
        if cls.__dict__.get("_direct"):
            raise AttributeError(
                f"'{name}' does not exist on {cls.__name__} and creating new attributes on C++ objects is not allowed"
            )
        object.__setattr__(self, name, value)

    def _write(self, found: QtCore.QMetaProperty, name: str, value: Any) -> None:
        cls = type(self).__name__
        if not found.isWritable():
            raise AttributeError(f"Property '{name}' of {cls} object is not writable")
        try:
            converted = to_qt(value, "enum" if found.isEnumType() else found.typeName(), name)
        except WrongArguments as error:
            raise AttributeError(
                f"Property '{name}' of type '{found.typeName()}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            ) from error
        if not found.write(self._native, converted):
            raise AttributeError(
                f"Property '{name}' of type '{found.typeName()}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            )

    def __delattr__(self, name: str) -> None:
        if type(self).__dict__.get("_direct"):
            raise AttributeError(f"'{name}' can not be deleted from a {type(self).__name__} object")
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = {"className", "inherits", "help", "delete"}
        if isinstance(self._native, QtCore.QObject):
            meta = self._native.metaObject()
            names |= {meta.property(i).name() for i in range(meta.propertyCount())} | {"name"}
        names |= {n for n in dir(type(self._native)) if not n.startswith("_") and self._member(n) is not None}
        return sorted(names)

    # Python's own protocols

    def __bool__(self) -> bool:
        return self._native is not None and shiboken6.isValid(self._native)

    def __eq__(self, other: Any) -> bool:
        if other is None:
            return not self
        if not isinstance(other, PythonQtObject):
            return NotImplemented
        if isinstance(self._native, QtCore.QObject) or isinstance(other._native, QtCore.QObject):
            return _address(self._native) == _address(other._native)
        return self._native == other._native

    def __hash__(self) -> int:
        return hash(_address(self._native))

    def __repr__(self) -> str:
        if not self:
            return f"{type(self).__name__} (deleted)"
        return f"{type(self).__name__} ({type(self).__name__} at: 0x{_address(self._native):x})"

    # what PythonQt adds to every object

    def className(self) -> str:
        return type(self).__name__

    def inherits(self, name: str) -> bool:
        return any(cls.__name__ == name for cls in type(self).__mro__) or name in getattr(
            type(self._native), "also_inherits", ()
        )

    def help(self) -> str:
        return "\n".join(dir(self))

    def delete(self) -> None:
        if isinstance(self._native, QtCore.QObject):
            shiboken6.delete(self._alive())


def _address(native: Any) -> int:
    return shiboken6.getCppPointer(native)[0] if native is not None else 0


def _plain_owner(native_class: type, name: str) -> type | None:
    return next((c for c in native_class.__mro__ if name in vars(c) and c.__module__.startswith(_PLAIN)), None)


def _dynamic_names(native: QtCore.QObject) -> set[str]:
    return {bytes(name.data()).decode() for name in native.dynamicPropertyNames()}


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

    @property
    def __self__(self) -> PythonQtObject:
        return self._owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        label = f"{type(self._owner).__name__}.{self.__name__}"
        if not self._owner:
            raise ValueError(f"Trying to call '{self.__name__}' on a destroyed {type(self._owner).__name__} object")
        _refuse_keywords(label, kwargs)
        return _call(label, getattr(self._owner._native, self.__name__), args, self._declared)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, BoundMethod) and self._owner == other._owner and self.__name__ == other.__name__

    def __hash__(self) -> int:
        return hash((self._owner, self.__name__))


# -- signals ----------------------------------------------------------------------------------------------------


def _own_signals(native: QtCore.QObject) -> Iterator[tuple[str, str]]:
    """(C++ signature, PySide6 signature) of every signal, those of the most derived class first.

    PySide6 knows no `vtkMRMLNode*`, so our own classes list the C++ signatures of their signals in `cpp_signals`,
    in the order of the header.
    """
    for cls in type(native).__mro__:
        listed = vars(cls).get("cpp_signals", {})
        yield from listed.items()
    meta: QtCore.QMetaObject | None = native.metaObject()
    hidden = {pyside for cls in type(native).__mro__ for pyside in vars(cls).get("cpp_signals", {}).values()}
    while meta is not None:
        for index in range(meta.methodOffset(), meta.methodCount()):
            method = meta.method(index)
            if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
                signature = bytes(method.methodSignature().data()).decode()
                if signature not in hidden:
                    yield signature, signature
        meta = meta.superClass()


def signatures(native: QtCore.QObject, name: str) -> list[str]:
    """C++ signatures of the signals of that name; the first is the one that `widget.name.connect` takes."""
    found = [cpp for cpp, _ in _own_signals(native) if cpp.split("(")[0] == name]
    if name == "finished" and isinstance(native, QtCore.QProcess):
        found.insert(0, "finished(int)")
    return found


def _resolve(native: QtCore.QObject, signal: str) -> tuple[str, str] | None:
    wanted = bytes(QtCore.QMetaObject.normalizedSignature(signal).data()).decode()
    if wanted[:1].isdigit():
        wanted = wanted[1:]
    found = next(((cpp, pyside) for cpp, pyside in _own_signals(native) if cpp == wanted), None)
    if found is None and wanted == "finished(int)" and isinstance(native, QtCore.QProcess):
        # Only Qt 5 has this overload, and there `process.finished.connect` takes it: the exit status never comes.
        return wanted, "finished(int,QProcess::ExitStatus)"
    return found


def connect_signal(native: QtCore.QObject, signal: str, target: Any) -> bool:
    """Connect a Python callable to a signal given by its C++ signature, as `QObject::connect` of PythonQt does."""
    resolved = _resolve(native, signal)
    if resolved is None:
        raise AttributeError(
            f"QObject::connect() signal '{signal}' does not exist on {type(native).__name__} "
            "(Slicer prints this and returns False; no slot would ever be called)"
        )
    if not callable(target):
        raise WrongArguments(f"connect('{signal}', {target!r}): not callable")
    cpp, pyside = resolved
    parameters = cpp[cpp.index("(") + 1 : -1]
    count = len(parameters.split(",")) if parameters else 0
    where = f"{type(native).__name__}.{cpp}"

    def relay(*args: Any) -> None:
        deliver(target, tuple(wrap(value) for value in args[:count]), where)

    connection = QtCore.QObject.connect(native, QtCore.SIGNAL(pyside), relay)
    address = _address(native)
    if address not in _connections:
        _connections[address] = []
        native.destroyed.connect(lambda *_: _connections.pop(address, None))
    _connections[address].append((cpp, target, connection))
    return bool(connection)


def disconnect_signal(native: QtCore.QObject, signal: str, target: Any = None) -> bool:
    """Undo one connection of that callable (all connections of the signal when it is None)."""
    resolved = _resolve(native, signal)
    if resolved is None:
        raise AttributeError(f"QObject::disconnect() signal '{signal}' does not exist on {type(native).__name__}")
    kept, dropped = [], 0
    for entry in _connections.get(_address(native), []):
        if entry[0] == resolved[0] and (target is None or (entry[1] == target and not dropped)):
            QtCore.QObject.disconnect(entry[2])
            dropped += 1
        else:
            kept.append(entry)
    if dropped:
        _connections[_address(native)] = kept
    return dropped > 0


def accepted_arguments(target: Any) -> int | None:
    """How many arguments of a signal a Python function takes: PythonQtSignalTarget::call looks at its code object."""
    if isinstance(target, types.FunctionType):
        function, bound = target, 0
    elif isinstance(target, types.MethodType) and isinstance(target.__func__, types.FunctionType):
        function, bound = target.__func__, 1
    else:
        return None
    if function.__code__.co_flags & 0x04:  # *args
        return None
    return function.__code__.co_argcount - bound


def deliver(target: Any, args: tuple[Any, ...], where: str) -> None:
    """Call a slot as PythonQt does: with as many arguments as it takes; an exception is recorded, never raised."""
    limit = accepted_arguments(target)
    if limit is not None:
        args = args[:limit]
    try:
        target(*args)
    except Exception as error:
        records.slot_error(where, error)


class _QObjectDecorators:
    """What PythonQtStdDecorators adds to every QObject."""

    _native: Any
    _alive: Callable[[], Any]

    def connect(self, *args: Any) -> bool:
        """connect(signal, callable), or connect(signal, receiver, slot); from a class: connect(sender, signal, ...)."""
        if len(args) == 3 and isinstance(args[1], PythonQtObject):
            slot = getattr(args[1], str(args[2]).split("(")[0])
            return connect_signal(self._alive(), args[0], slot)
        if len(args) != 2 or not isinstance(args[0], str):
            raise WrongArguments(f"Could not find matching overload of connect for given arguments: {args}")
        return connect_signal(self._alive(), *args)

    def disconnect(self, *args: Any) -> bool:
        if len(args) == 3 and isinstance(args[1], PythonQtObject):
            slot = getattr(args[1], str(args[2]).split("(")[0])
            return disconnect_signal(self._alive(), args[0], slot)
        if not 1 <= len(args) <= 2 or not isinstance(args[0], str):
            raise WrongArguments(f"Could not find matching overload of disconnect for given arguments: {args}")
        return disconnect_signal(self._alive(), *args)

    def parent(self) -> Any:
        return wrap(self._alive().parent())

    def children(self) -> Any:
        return wrap(self._alive().children())

    def findChild(self, kind: Any, name: str | None = None) -> Any:
        found = _QObjectDecorators.findChildren(self, kind, name)
        return found[0] if found else None

    def findChildren(self, kind: Any, name: str | None = None) -> Any:
        """All descendants of a class (given itself or by its name), parents before their children."""
        if not isinstance(kind, (ClassWrapper, PythonQtObject, str)):
            raise WrongArguments(f"findChildren needs a class, got {kind!r}")
        if isinstance(kind, PythonQtObject):
            kind = type(kind)
        found: list[Any] = []

        def walk(native: QtCore.QObject) -> None:
            for child in native.children():
                fits = child.inherits(kind) if isinstance(kind, str) else isinstance(child, kind._native_class)
                if fits and name in (None, child.objectName()):
                    found.append(wrap(child))
                walk(child)

        walk(self._alive())
        return tuple(found)

    def property(self, name: str) -> Any:
        return wrap(self._alive().property(name))

    def setProperty(self, name: str, value: Any) -> bool:
        native = self._alive()
        if _property(native, name) is not None:
            setattr(self, name, value)
            return True
        return native.setProperty(name, unwrap(value))


class BoundSignal:
    """A signal of one object: `button.clicked.connect(f)`; calling it emits it (PythonQtSignalFunction)."""

    def __init__(self, owner: PythonQtObject, name: str) -> None:
        self._owner, self.__name__ = owner, name

    def connect(self, *args: Any) -> bool:
        if len(args) != 1:
            raise WrongArguments("Called connect with wrong number of arguments")
        return connect_signal(self._owner._alive(), signatures(self._owner._native, self.__name__)[0], args[0])

    def disconnect(self, *args: Any) -> bool:
        if len(args) > 1:
            raise WrongArguments("Called disconnect with wrong number of arguments")
        return disconnect_signal(self._owner._alive(), signatures(self._owner._native, self.__name__)[0], *args)

    def emit(self, *args: Any) -> None:
        native = self._owner._alive()
        candidates = [
            cpp for cpp in signatures(native, self.__name__) if len([p for p in _parameters(cpp) if p]) == len(args)
        ]
        for cpp in candidates:
            try:
                converted = [to_qt(value, kind, cpp) for value, kind in zip(args, _parameters(cpp), strict=False)]
            except WrongArguments:
                continue
            pyside = _resolve(native, cpp)[1]  # type: ignore[index]
            signal = getattr(native, self.__name__)
            kinds = pyside[pyside.index("(") + 1 : -1]
            try:
                (signal[kinds] if kinds else signal).emit(*converted)
            except (KeyError, IndexError):
                signal.emit(*converted)
            return
        raise WrongArguments(f"Called {self.__name__} with wrong arguments: {args}")

    __call__ = emit

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, BoundSignal) and self._owner == other._owner and self.__name__ == other.__name__

    def __hash__(self) -> int:
        return hash((self._owner, self.__name__))


def _parameters(signature: str) -> list[str]:
    inside = signature[signature.index("(") + 1 : -1]
    return inside.split(",") if inside else []
