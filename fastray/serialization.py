"""Pickling outside of the hot path: functions, exceptions, users' serializers, and good errors.

    culprit   the innermost object that cannot be pickled: a lock, a socket, a generator
    path      how to reach it from what the user passed: `f.closure.model.lock`, `argument 0['db']`
    piece     what an object holds and pickle would follow: items, attributes, cells of a closure

When pickling fails, Python says "cannot pickle '_thread.lock' object" and not where that lock is. The search
here takes the value apart and pickles the pieces one by one, following the first piece that fails, down to
one whose own pieces are all fine. It runs only after a failure and is bounded in depth, trials and time.

Callers: codec.pyx (unpicklable_error), remote_function.py and actor.py (dumps_function), worker.pyx
(dump_exception), values.pyx (load_exception), fastray.util (inspect_serializability, register_serializer).
cloudpickle is imported on first need; see `_native/pickling.py`.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import time
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from fastray._native import codec, pickling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastray.exceptions import SerializationError, TaskError

_DEPTH_MAX = 24
_TRIALS_MAX = 2000
_PIECES_MAX = 10_000
_SEARCH_S_MAX = 2.0
_REPR_CHARS_MAX = 40

# Types that pickle writes before it asks anybody: a serializer for them would never be called.
_BUILT_IN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)
)


# ---- functions and exceptions -------------------------------------------------------------------


def dumps_function(function: Callable[..., Any] | object, name: str | None = None) -> bytes:
    """Pickle a function or class for the function table, by value when it is not importable.

    Raises `SerializationError`, which names the path to what cannot be pickled.
    """
    try:
        return pickling.dumps_by_value(function, files=True)
    except Exception as error:
        raise unpicklable_error(function, name or _name_of(function), error) from error


def dumps_function_with_references(function: object, name: str) -> tuple[bytes, list[Any]]:
    """`dumps_function`, and the ObjectRefs that its closure or globals hold (see codec.loads_pickle)."""
    result: tuple[bytes, list[Any]] = codec.noting_references(lambda: dumps_function(function, name))
    return result


def dump_exception(exc: BaseException, function_name: str, task_id: str = "") -> bytes:
    """What a task raised, for `load_exception` in another process; never raises an `Exception`.

    The exception itself goes with its chain, notes and group members if it can be pickled; its traceback,
    type and message always go as text. No trial load is made here: loading tolerates whatever a class does.
    """
    from fastray.exception_transport import pack_exception
    from fastray.task_error import describe_cause, format_remote_traceback

    try:
        packed = pack_exception(exc, pickling.dumps)
    except Exception:  # a property or a __getattribute__ of the user's: then only the text
        packed = None
    text = format_remote_traceback(exc)
    parts = (packed, text, function_name, os.getpid(), describe_cause(exc), task_id)
    try:
        return pickle.dumps(parts, protocol=5)
    except UnicodeEncodeError:  # a message with lone surrogates
        clean = [p.encode("utf-8", "replace").decode() if isinstance(p, str) else p for p in parts]
        return pickle.dumps(tuple(clean), protocol=5)


def cause_text(data: bytes) -> str:
    """Type and message of what `dump_exception` wrote."""
    return str(pickle.loads(data)[4])


def load_exception(data: bytes) -> TaskError:
    """The TaskError to raise for what `dump_exception` wrote, also of the cause's class if it can be.

    A cause that cannot be loaded here (module missing, a `__reduce__` that does not fit its `__init__`)
    is left out; the error still tells its type, message and traceback. Raises nothing.
    """
    from fastray.exception_transport import unpack_exception
    from fastray.exceptions import TaskError

    packed, traceback_text, function_name, pid, cause_text, task_id = pickle.loads(data)
    cause = None
    if packed is not None:
        try:
            cause = unpack_exception(packed)
        except Exception:  # a link that is no exception, say: the text is what we have
            cause = None
    return TaskError.from_remote(cause, traceback_text, function_name, pid, cause_text, task_id)


# ---- users' serializers -------------------------------------------------------------------------


def register_serializer(
    cls: type, *, serializer: Callable[[Any], object], deserializer: Callable[[Any], Any]
) -> None:
    """Pickle instances of exactly `cls` as `serializer(instance)`, load them with `deserializer`.

    The deserializer travels along. Registering again replaces. Valid in this process: a task that returns
    such objects registers too.
    Raises `TypeError` for a `cls` that is not a class or that pickle handles before any serializer
    (int, str, list, dict, ...).
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() takes a class, not {cls!r}")
    if cls in _BUILT_IN:
        raise TypeError(f"{cls.__name__} is always pickled natively: wrap it in a class of your own")
    if not callable(serializer) or not callable(deserializer):
        raise TypeError("serializer and deserializer must be callable")
    pickling.custom[cls] = lambda instance: (deserializer, (serializer(instance),))


def deregister_serializer(cls: type) -> None:
    """Undo `register_serializer`; nothing happens when there was none."""
    pickling.custom.pop(cls, None)


# ---- errors that say where ----------------------------------------------------------------------


class FailureTuple(NamedTuple):
    """One culprit: the object, its path, and the object that holds it (None for the value itself)."""

    obj: Any
    name: str
    parent: Any


def unpicklable_error(obj: object, name: str, cause: BaseException) -> SerializationError:
    """The error for an `obj` that failed to pickle with `cause`: what, where, and what to do."""
    from fastray.exceptions import SerializationError

    found = _search(obj, name, first_only=True)
    culprit = found[0] if found else FailureTuple(obj, name, None)
    reason = f"{type(cause).__name__}: {cause}"
    what = _kind_of(culprit.obj)
    where = f"{culprit.name} ({what})" if culprit.obj is not obj else f"{name}, {what},"
    message = f"Cannot serialize {name}: {where} cannot be pickled ({reason}). {_advice(culprit.obj)}"
    return SerializationError(message, path=culprit.name, reason=reason)


def explain_unpicklable(obj: object, name: str) -> str:
    """The path to what keeps `obj` from being pickled, e.g. `f.closure.model.lock`; "" if nothing does."""
    found = _search(obj, name, first_only=True)
    return found[0].name if found else ""


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = _DEPTH_MAX, print_file: Any = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether `base_obj` can be pickled, and every culprit found in it; prints a report.

    `depth` bounds how deep to look, `print_file` is where to print (standard output by default).
    Culprits that cannot be hashed are left out of the set but not out of the report. Raises nothing.
    """
    out = sys.stdout if print_file is None else print_file
    label = name or _name_of(base_obj)
    found = _search(base_obj, label, first_only=False, depth_max=depth)
    print(f"Checking serializability of {label} ({_kind_of(base_obj)})", file=out)
    if not found:
        print("  serializable", file=out)
    for failure in found:
        print(f"  cannot be pickled: {failure.name} ({_kind_of(failure.obj)})", file=out)
        print(f"    {_advice(failure.obj)}", file=out)
    return not found, {failure for failure in found if _is_hashable(failure)}


def _is_hashable(failure: FailureTuple) -> bool:
    try:
        hash(failure)
    except Exception:  # a list as the parent, or a __hash__ that raises
        return False
    return True


def _advice(culprit: object) -> str:
    kind = type(culprit)
    if kind.__module__ in ("_thread", "threading", "multiprocessing.synchronize"):
        return (
            "A lock belongs to one process: make it where it is used, or leave it out of what is pickled "
            "with a __getstate__."
        )
    if isinstance(culprit, (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)):
        return "A running generator or coroutine cannot move: pass a list, or make it inside the task."
    if kind.__name__ == "OutOfBandSerializationError" or kind.__name__ == "ObjectRef":
        return "Pass the reference as an argument of the call instead."
    return (
        "Make it inside the task or actor, leave it out with a __getstate__, or tell how with "
        "fastray.util.register_serializer(cls, serializer=..., deserializer=...)."
    )


def _name_of(obj: object) -> str:
    name = getattr(obj, "__name__", None)
    return name if isinstance(name, str) else type(obj).__name__


def _kind_of(obj: object) -> str:
    cls = type(obj)
    module = "" if cls.__module__ in ("builtins", "__main__") else cls.__module__ + "."
    kind = f"{module}{cls.__qualname__}"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


# ---- the search ---------------------------------------------------------------------------------


class _Budget:
    """What a search may still cost, and what it has seen. Keeps the objects seen alive, for their ids."""

    def __init__(self, depth_max: int) -> None:
        self.depth_max = depth_max
        self.trials = _TRIALS_MAX
        self.until = time.monotonic() + _SEARCH_S_MAX
        self.seen: dict[int, object] = {}

    def fails(self, obj: object) -> bool:
        """Whether `obj` cannot be pickled; False when the budget is spent."""
        if self.trials <= 0 or time.monotonic() > self.until:
            return False
        self.trials -= 1
        try:
            codec.try_pickle(obj)
        except Exception:
            return True
        return False


def _search(obj: object, name: str, *, first_only: bool, depth_max: int = _DEPTH_MAX) -> list[FailureTuple]:
    budget = _Budget(depth_max)
    found: list[FailureTuple] = []
    if budget.fails(obj):
        _descend(obj, name, None, 0, budget, found, first_only)
    return found


def _descend(
    obj: object,
    path: str,
    parent: object,
    depth: int,
    budget: _Budget,
    found: list[FailureTuple],
    first_only: bool,
) -> bool:
    """Add the culprits inside `obj`, which is known to fail; `obj` itself when no piece of it fails.

    Returns whether something was found or, for a piece seen before, blamed already.
    """
    budget.seen[id(obj)] = obj
    blamed = False
    if depth < budget.depth_max:
        for suffix, piece in _pieces(obj):
            if id(piece) in budget.seen:
                continue
            if not budget.fails(piece):
                continue
            blamed = True
            _descend(piece, path + suffix, obj, depth + 1, budget, found, first_only)
            if first_only and found:
                return True
    if not blamed:
        found.append(FailureTuple(obj, path, parent))
    return True


def _pieces(obj: object) -> Iterator[tuple[str, Any]]:
    """(path suffix, piece) for what pickling `obj` by value would follow; at most _PIECES_MAX."""
    try:
        for count, piece in enumerate(_all_pieces(obj)):
            if count >= _PIECES_MAX:
                return
            yield piece
    except Exception:  # a property, a proxy, a __getattr__ of the user's: no more pieces
        return


def _all_pieces(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, types.FunctionType):
        yield from _pieces_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        yield from ((f".args[{i}]", piece) for i, piece in enumerate(obj.args))
        yield from ((f".keywords[{key!r}]", piece) for key, piece in obj.keywords.items())
    elif isinstance(obj, type):
        yield from ((f".{base.__name__}", base) for base in obj.__bases__ if base is not object)
        yield from _pieces_of_class(obj)
    elif isinstance(obj, types.ModuleType):
        return
    else:
        yield from _pieces_of_container(obj)
        yield from _pieces_of_instance(obj)


def _pieces_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    wrapped = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, wrapped):
        try:
            yield f".closure.{name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for i, default in enumerate(function.__defaults__ or ()):
        yield f".defaults[{i}]", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f".defaults.{name}", default
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            yield f".globals.{name}", function.__globals__[name]
    for name, value in vars(function).items():
        yield f".{name}", value


def _names_in(code: types.CodeType) -> dict[str, None]:
    """Names that `code` and the functions inside it look up, in order."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_names_in(constant))
    return names


def _pieces_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(cls).items()):
        if name in ("__dict__", "__weakref__", "__doc__", "__module__"):
            continue
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, (types.GetSetDescriptorType, types.MemberDescriptorType)):
            continue
        yield f".{name}", value


def _pieces_of_container(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"[{_short(key)}]", value
        for key in list(obj):
            yield f".keys({_short(key)})", key
    elif isinstance(obj, (list, tuple)):
        fields = getattr(obj, "_fields", None)
        for i, value in enumerate(list(obj)):
            yield (f".{fields[i]}" if fields else f"[{i}]"), value
    elif isinstance(obj, (set, frozenset)):
        for value in list(obj):
            yield f"{{{_short(value)}}}", value


def _pieces_of_instance(obj: Any) -> Iterator[tuple[str, Any]]:
    """Attributes as pickle would take them: those of __getstate__ if the class has its own."""
    cls = type(obj)
    own_state = getattr(cls, "__getstate__", None)
    if own_state is not None and own_state is not getattr(object, "__getstate__", None):
        state = own_state(obj)
        if isinstance(state, dict):
            yield from ((f".{name}", value) for name, value in state.items())
        else:
            yield ".__getstate__()", state
    elif not _has_own_reduce(cls):
        yield from ((f".{name}", value) for name, value in getattr(obj, "__dict__", {}).items())
        for base in cls.__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(obj, name) and name not in ("__dict__", "__weakref__"):
                    yield f".{name}", getattr(obj, name)
    if _has_own_reduce(cls):
        reduced = obj.__reduce_ex__(5)
        if isinstance(reduced, tuple):
            yield from _pieces_of_reduced(obj, reduced)
    elif cls.__module__ in ("__main__", "__mp_main__") or "<locals>" in cls.__qualname__:
        yield ".__class__", cls


def _pieces_of_reduced(obj: Any, reduced: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    state = reduced[2] if len(reduced) > 2 else None
    if isinstance(state, dict):
        yield from ((f".{name}", value) for name, value in state.items())
    for i, argument in enumerate(reduced[1]):
        yield f".__reduce__()[{i}]", argument
    yield ".__reduce__()", reduced[0]


def _has_own_reduce(cls: type) -> bool:
    """Whether pickle asks the class, not object, how to take an instance apart."""
    defaults = (object.__dict__["__reduce__"], object.__dict__["__reduce_ex__"])
    return getattr(cls, "__reduce__") is not defaults[0] or getattr(cls, "__reduce_ex__") is not defaults[1]  # noqa: B009


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= _REPR_CHARS_MAX else text[: _REPR_CHARS_MAX - 3] + "..."
