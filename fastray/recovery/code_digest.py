"""What a function is, as 16 bytes that are the same in every run of a program.

The pickle of a function is not: it holds file names and line numbers, random ids of classes, sets in the order of
this run's hash seed. Here the function is walked instead:

    code      bytecode, constants, names; nested code too; no file name, no line numbers
    state     defaults, closure, and the globals that the code names, each by its content
    library   what is in the standard library, in site-packages or in fastray counts by its name only
    own       any other function or class counts by its code, also one in an importable module, and so do
              functions of own modules that the code names (`helpers.clean`)

Other objects are taken apart as pickle does it; what only cloudpickle can write counts by its bytes, what nobody can
(a lock, a socket) by its type. Not seen: what code reaches by computed names.

    digest_of(value)     the digest
    name_class(cls)      gives a class that is pickled by value the same id in every run

Called by durable.py, cache.py and remote_function.py.
"""

from __future__ import annotations

import copyreg
import os
import sys
import types
from _blake2 import blake2b

from fastray._native import pickling
from fastray._native.durable import content_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIGEST_BYTES = 16
DEPTH_MAX = 150
_STANDARD = os.path.dirname(os.__file__) + os.sep
_FASTRAY = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
# of a class, not of what it does
_CLASS_NOISE = frozenset(
    [
        *("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__slotnames__", "_abc_impl"),
    ]
)
_FUNCTION_NOISE = frozenset(["__doc__", "__annotations__"])


class NotDigestible(TypeError):
    """A value holds something of which it cannot be said what it is."""


def digest_of(value: object, *, references: bool = True, opaque: bool = True) -> bytes:
    """16 bytes that stand for `value`: equal for equal content, in this run and in others.

    Raises NotDigestible for ObjectRefs and actor handles unless `references` (then they count as such, whatever they
    refer to), and for what cannot be pickled unless `opaque` (then it counts by its type).
    """
    walk = _Walk(references, opaque)
    walk.add(value, 0)
    return walk.hash.digest()


def is_library(module_name: object) -> bool:
    """True for a module whose code is not the user's."""
    if module_name == "__main__" or not isinstance(module_name, str):
        return False
    module = sys.modules.get(module_name)
    if module is None:
        return False
    path = getattr(module, "__file__", None)
    if path is None:  # built in
        return getattr(module, "__path__", None) is None
    path = os.path.abspath(path)
    return path.startswith((_STANDARD, _FASTRAY)) or any(part in path for part in _INSTALLED)


class _Walk:
    def __init__(self, references: bool, opaque: bool) -> None:
        self._references, self._opaque = references, opaque
        self.hash = blake2b(digest_size=DIGEST_BYTES)
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # or another object could get the id of one that is gone

    def put(self, tag: str, data: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(data)}:".encode())
        self.hash.update(data)

    def add(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in (int, float, complex, bool, type(None), type(Ellipsis)):
            self.put(kind.__name__, repr(value).encode())
        elif kind is str:
            self.put("str", value.encode("utf-8", "surrogatepass"))
        elif kind in (bytes, bytearray):
            self.put(kind.__name__, bytes(value))
        elif kind is tuple:
            self._items("tuple", value, depth)
        elif kind in (set, frozenset):
            digests = [digest_of(item, references=self._references, opaque=self._opaque) for item in value]
            self.put(kind.__name__, b"".join(sorted(digests)))
        elif depth > DEPTH_MAX:
            self.put("deep", pickling.dumps_by_value(value))
        elif not self._again(value):
            self._add_object(value, kind, depth + 1)

    def _again(self, value: object) -> bool:
        number = self._seen.get(id(value))
        if number is not None:
            self.put("again", b"%d" % number)
            return True
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return False

    def _items(self, tag: str, items: Any, depth: int) -> None:
        items = list(items)
        self.put(tag, b"%d" % len(items))
        for item in items:
            self.add(item, depth)

    def _add_object(self, value: Any, kind: type, depth: int) -> None:
        if kind is list:
            self._items("list", value, depth)
        elif kind in (dict, types.MappingProxyType):
            self._items("dict", [part for item in value.items() for part in item], depth)
        elif kind is types.CodeType:
            self._add_code(value, depth)
        elif kind is types.FunctionType:
            self._add_function(value, depth)
        elif isinstance(value, type):
            self._add_class(value, depth)
        elif kind is types.ModuleType:
            self.put("module", value.__name__.encode())
        elif kind is types.MethodType:
            self._items("method", (value.__func__, value.__self__), depth)
        elif kind in (staticmethod, classmethod):
            self._items(kind.__name__, (value.__func__,), depth)
        elif kind is property:
            self._items("property", (value.fget, value.fset, value.fdel), depth)
        elif kind is types.CellType:
            self._add_cell(value, depth)
        elif kind.__module__ == "fastray.remote_function" and kind.__name__ == "RemoteFunction":
            self._items("remote", (value.__wrapped__, value._options.num_returns), depth)
        elif kind.__name__ in ("ObjectRef", "ActorHandle") and kind.__module__.startswith("fastray."):
            if not self._references:
                raise NotDigestible(f"an {kind.__name__}")
            self.put("ref")  # what it refers to is part of the task's key, see durable.h
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in "biufcSU":
            self.put("array", f"{value.dtype.str} {value.shape}".encode())
            self.put("content", content_key(value if value.flags.c_contiguous else value.copy()))
        else:
            self._add_instance(value, kind, depth)

    def _add_code(self, code: types.CodeType, depth: int) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.put("code", code.co_code)
        self.put("handlers", getattr(code, "co_exceptiontable", b""))
        self._items("counts", counts, depth)
        self._items("names", names, depth)
        self._items("consts", code.co_consts, depth)

    def _add_cell(self, cell: types.CellType, depth: int) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            self.put("empty cell")
            return
        self._items("cell", (content,), depth)

    def _add_function(self, function: types.FunctionType, depth: int) -> None:
        if is_library(function.__module__):
            self.put("function", f"{function.__module__}.{function.__qualname__}".encode())
            return
        self.put("own function")
        self.add(function.__code__, depth)
        self._items("defaults", (function.__defaults__, function.__kwdefaults__), depth)
        self._items("closure", function.__closure__ or (), depth)
        attributes = {n: v for n, v in vars(function).items() if n not in _FUNCTION_NOISE}
        self._items("attributes", [part for name in sorted(attributes) for part in (name, attributes[name])], depth)
        names = sorted(_names_of(function.__code__))
        for name in names:
            if name in function.__globals__:
                self.put("global", name.encode())
                self._add_global(function.__globals__[name], names, depth)

    def _add_global(self, value: object, names: list[str], depth: int) -> None:
        """A global; of an own module, the functions, classes and plain values that the code may mean by its names."""
        self.add(value, depth)
        if isinstance(value, types.ModuleType) and not is_library(value.__name__):
            for name in names:
                member = vars(value).get(name)
                if isinstance(member, (types.FunctionType, type, str, int, float, tuple)):
                    self.put("member", name.encode())
                    self.add(member, depth)

    def _add_class(self, cls: type, depth: int) -> None:
        if is_library(cls.__module__):
            self.put("class", f"{cls.__module__}.{cls.__qualname__}".encode())
            return
        self.put("own class", cls.__qualname__.encode())
        self._items("bases", (type(cls), *cls.__bases__), depth)
        members = {n: v for n, v in vars(cls).items() if n not in _CLASS_NOISE}
        self._items("members", [part for name in sorted(members) for part in (name, members[name])], depth)

    def _add_instance(self, value: Any, kind: type, depth: int) -> None:
        self.put("instance")
        self.add(kind, depth)
        if isinstance(value, (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType)):
            self.put("built in", value.__qualname__.encode())
            return
        try:
            reducer = copyreg.dispatch_table.get(kind)
            parts = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception:
            self._add_opaque(value)
            return
        if isinstance(parts, str):
            self.put("named", parts.encode())
            return
        for part in parts:
            is_iterator = hasattr(part, "__next__") and hasattr(part, "__iter__")
            self.add(list(part) if is_iterator else part, depth)  # type: ignore[arg-type]


    def _add_opaque(self, value: object) -> None:
        try:
            data = pickling.dumps_by_value(value)
        except Exception:  # a lock, a socket, a generator
            if not self._opaque:
                raise NotDigestible(f"a {type(value).__name__}") from None
            data = b""
        self.put("opaque", data)


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


# ---- classes pickled by value ----------------------------------------------------------------------------


STABLE = "fastray-"  # how ids begin that are not cloudpickle's random ones


def name_class(cls: type) -> None:
    """Gives a class that cloudpickle writes by value (one of `__main__`) an id that is the same in every run.

    cloudpickle draws it at random, so that a result of another session would come back with a class of its own. What
    was pickled under the random id is found under that too. Two classes of the same content are told apart by the
    order of their naming.
    """
    from cloudpickle import cloudpickle as tracker

    by_class, by_id = tracker._DYNAMIC_CLASS_TRACKER_BY_CLASS, tracker._DYNAMIC_CLASS_TRACKER_BY_ID
    if by_class.get(cls, "").startswith(STABLE) or tracker._should_pickle_by_reference(cls):
        return
    name = digest_of(cls)
    with tracker._DYNAMIC_CLASS_TRACKER_LOCK:
        while by_id.get(STABLE + name.hex(), cls) is not cls:
            name = blake2b(name, digest_size=DIGEST_BYTES).digest()
        by_class[cls] = STABLE + name.hex()
        by_id[STABLE + name.hex()] = cls
