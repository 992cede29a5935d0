"""How a user's exception crosses a process boundary without running the user's code on the way.

`pickle` rebuilds an exception by calling its class with `args`. That breaks for every class whose
`__init__` takes something else (`MyError(code, message)`, keyword-only arguments), and it drops what the
exception was raised from. Here an exception is taken apart into what CPython keeps of it, and put together
without calling its `__init__` or `__new__`.

    native     the nearest class in C below an exception class (`OSError`, `BaseException`, ...); its
               `__new__` makes an instance of any class above it
    fields     values kept outside `__dict__`: `errno` of an OSError, `code` of a SystemExit, `__slots__`
    link       one exception of a chain: itself, then its `__cause__` or `__context__`, and so on

A class that defines its own `__reduce__` or `__reduce_ex__` knows better and is left to pickle. A link that
cannot be pickled ends the chain; when that is the first link, `pack_exception` returns None and the caller
sends text instead.

Callers: fastray.task_error (dual instances, pickling of TaskError) and fastray.worker (packing what a task
raised). Nothing here knows about fastray's own exceptions.
"""

from __future__ import annotations

import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHAIN_LINKS_MAX = 32
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, so its __new__ may be the user's
_NOT_FIELDS = frozenset(
    ("__dict__", "__weakref__", "args", "__traceback__", "__context__", "__cause__", "__suppress_context__")
)
_GROUP_FIELDS = frozenset(("message", "exceptions"))  # its __new__ takes them
_FIELD_KINDS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _default_dumps(value: object) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, protocol=5)
    return data


def _default_loads(data: bytes) -> object:
    import pickle

    return pickle.loads(data)


def _native_of(cls: type) -> type:
    native = cls
    while native.__flags__ & _HEAP_TYPE and native.__base__ is not None:
        native = native.__base__
    return native


def is_group(cls: type[BaseException]) -> bool:
    """Whether `cls` is an exception group (Python 3.11 and later)."""
    return _native_of(cls).__name__ == "BaseExceptionGroup"


def new_exception(cls: type[BaseException], model_args: tuple[object, ...]) -> BaseException:
    """An instance of `cls` that no `__init__` has seen, with `args` set.

    Raises TypeError or ValueError when the class in C below `cls` refuses (an exception group needs a message
    and exceptions in `model_args`; an `ExceptionGroup` refuses a `BaseException` inside).
    """
    new: Callable[..., BaseException] = _native_of(cls).__new__
    made = new(cls, *model_args) if is_group(cls) else new(cls)
    object.__setattr__(made, "args", model_args)
    return made


def fields_of(exc: BaseException) -> dict[str, object]:
    """What `exc` keeps outside `__dict__` and `args`: C members and `__slots__`."""
    fields: dict[str, object] = {}
    passed_over = _NOT_FIELDS | _GROUP_FIELDS if is_group(type(exc)) else _NOT_FIELDS
    for cls in type(exc).__mro__:
        if cls is object:
            continue
        for name, descriptor in vars(cls).items():
            if name in passed_over or name in fields or not isinstance(descriptor, _FIELD_KINDS):
                continue
            try:
                fields[name] = descriptor.__get__(exc, type(exc))
            except AttributeError:  # a slot that was never filled
                continue
    return fields


def set_fields(exc: BaseException, fields: dict[str, object]) -> None:
    """Writes `fields` back; one that is read-only or absent here (`exceptions` of a group) is passed over."""
    for name, value in fields.items():
        try:
            object.__setattr__(exc, name, value)
        except (AttributeError, TypeError):
            continue


def _has_own_reduce(cls: type) -> bool:
    for base in cls.__mro__:
        if not base.__flags__ & _HEAP_TYPE:
            return False  # reached the class in C: its __reduce__ is the one `fields` replace
        defined = vars(base)
        if "__reduce__" in defined or "__reduce_ex__" in defined or "__getstate__" in defined:
            return True
    return False


def _take_apart(exc: BaseException) -> object:
    if _has_own_reduce(type(exc)):
        return exc
    members: list[object] | None = None
    if is_group(type(exc)):  # a group derived by split() has the args of its origin: members are the truth
        members = [_take_apart(member) for member in getattr(exc, "exceptions", ())]
    args = (getattr(exc, "message", ""),) if members is not None else tuple(exc.args)
    return (type(exc), args, members, fields_of(exc), dict(vars(exc)))


def _put_together(parts: object) -> BaseException:
    if isinstance(parts, BaseException):
        return parts
    assert isinstance(parts, tuple)  # what _take_apart returned
    cls, args, members, fields, attributes = parts
    if members is not None:
        args = (*args, [_put_together(member) for member in members])
    exc = new_exception(cls, args)
    set_fields(exc, fields)
    for name, value in attributes.items():
        # cloudpickle rebuilds a class without its __slots__: what was a plain attribute there is a slot here
        if isinstance(getattr(cls, name, None), types.MemberDescriptorType):
            set_fields(exc, {name: value})
        else:
            vars(exc)[name] = value
    return exc


def pack_exception(exc: BaseException, dumps: Callable[[object], bytes] = _default_dumps) -> bytes | None:
    """`exc` and the chain it was raised from, as bytes; None when `exc` itself cannot be pickled.

    `dumps` is the serializer of the runtime, which may know how to keep object references inside.
    """
    links: list[tuple[bytes, bool]] = []  # pickled link, whether it is the __cause__ of the one before
    seen: set[int] = set()
    link: BaseException | None = exc
    is_cause = False
    while link is not None and id(link) not in seen and len(links) < CHAIN_LINKS_MAX:
        seen.add(id(link))
        try:
            links.append((dumps(_take_apart(link)), is_cause))
        except Exception:  # whatever a user's __reduce__ or __getstate__ raises: the chain ends here
            break
        is_cause = link.__cause__ is not None
        link = link.__cause__ if is_cause or link.__suppress_context__ else link.__context__
    if not links:
        return None
    import pickle  # here: 5 ms at start-up that a program without errors does not pay

    return pickle.dumps(links, 5)


def unpack_exception(data: bytes, loads: Callable[[bytes], object] = _default_loads) -> BaseException | None:
    """The exception that `pack_exception` packed; None when its class cannot be loaded in this process."""
    import pickle

    first: BaseException | None = None
    last: BaseException | None = None
    for packed, is_cause in pickle.loads(data):
        try:
            link = _put_together(loads(packed))
        except Exception:  # a module that is missing here, a __setstate__ that raises: keep what there is
            break
        if last is None:
            first = link
        elif is_cause:
            last.__cause__ = link
        else:
            last.__context__ = link
        last = link
    return first
