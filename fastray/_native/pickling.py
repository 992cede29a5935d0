"""Pickle 5 for what the codec does not write itself.

Three ways, tried in this order:

  plain     `_pickle.dumps`, in codec.pyx: about 1 us for a small object. Its result is thrown away
            when it names `__main__`, which no worker can import.
  by value  `cloudpickle.Pickler`: functions and classes of `__main__`, local ones, lambdas. Also
            whenever a module was registered with `cloudpickle.register_pickle_by_value`.
  custom    either of them with the serializers of `register_serializer` in the dispatch table.

Called by codec.pyx and by `fastray.serialization`. cloudpickle is imported on first need: it costs
15 ms, and a program of plain values never needs it.
"""

from __future__ import annotations

import _pickle
import collections
import copyreg
import io
import sys
import types
from _pickle import PicklingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    BufferCallback = Callable[[Any], object]

# Types with a serializer of the user's: cls -> reducer. The codec looks at it for every pickle, and
# before it writes an array natively.
custom: dict[type, Callable[[Any], tuple[Any, ...]]] = {}
# Durable sessions: called with each class before it is written, see recovery/code_digest.py.
name_class: Callable[[type], None] | None = None


def dumps(value: object, buffer_callback: BufferCallback | None = None) -> bytes:
    """Pickle `value`, by value where it has to be.

    Raises whatever the value's own reducers raise, and `PicklingError` or `TypeError` for what
    cannot be pickled at all.
    """
    buffers: list[Any] = []
    keep = None if buffer_callback is None else buffers.append
    try:
        data = dumps_plain(value, keep)
    except Exception:  # cloudpickle tries, and its error tells more
        data = None
    if data is None or b"_main__" in data:
        return dumps_by_value(value, buffer_callback)
    if buffer_callback is not None:
        for buffer in buffers:
            buffer_callback(buffer)
    return data


def dumps_plain(value: object, buffer_callback: BufferCallback | None = None) -> bytes | None:
    """Pickle without cloudpickle; None when a module is registered to be pickled by value."""
    module = sys.modules.get("cloudpickle.cloudpickle")
    if module is not None and module._PICKLE_BY_VALUE_MODULES:
        return None
    if not custom:
        return _pickle.dumps(value, 5, buffer_callback=buffer_callback)
    file = io.BytesIO()
    pickler = _pickle.Pickler(file, 5, buffer_callback=buffer_callback)
    pickler.dispatch_table = collections.ChainMap(custom, copyreg.dispatch_table)  # type: ignore[arg-type]
    pickler.dump(value)
    return file.getvalue()


def dumps_by_value(
    value: object, buffer_callback: BufferCallback | None = None, files: bool | None = None
) -> bytes:
    """Pickle `value` with cloudpickle; see `dumps`.

    `files`: code says what file it is from. By default it does, but not where pickles are parts of keys.
    """
    import cloudpickle

    file = io.BytesIO()
    if files is None:
        files = name_class is None
    pickler = _pickler(cloudpickle.Pickler, files)(file, protocol=5, buffer_callback=buffer_callback)
    use_table(pickler, files)
    try:
        pickler.dump(value)
    except RuntimeError as error:  # as cloudpickle.dumps does
        if "recursion" in str(error):
            raise PicklingError("could not pickle object as excessively deep recursion") from error
        raise
    return file.getvalue()


def use_table(pickler: Any, files: bool = True) -> None:
    """Gives a pickler of cloudpickle the user's serializers, and ours for code."""
    ours = {types.CodeType: _reduce_code} if files else {}
    # The C member: the Python attribute of cloudpickle's class has been read already.
    table = collections.ChainMap(custom, ours, pickler.dispatch_table)
    _pickle.Pickler.dispatch_table.__set__(pickler, table)  # type: ignore[attr-defined]


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """As cloudpickle reduces it, but with its file: tracebacks of tasks and pdb show source lines by it."""
    from cloudpickle import cloudpickle

    make, parts = cloudpickle._code_reduce(code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


def _pickler(base: type, files: bool) -> type:
    if name_class is None:
        return base
    give_name = name_class

    class Naming(base):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type):
                give_name(obj)
            elif type(obj) is types.CodeType:
                make, parts = (_reduce_code if files else self.dispatch_table[types.CodeType])(obj)
                return make, tuple([_in_order(part) for part in parts])
            return super().reducer_override(obj)

    return Naming


class _Ordered:
    """Stands for a frozenset among a code's constants, whose own order is another in each run."""

    def __init__(self, items: frozenset[Any]) -> None:
        self._items = items

    def __reduce__(self) -> tuple[Any, ...]:
        return frozenset, (sorted(self._items, key=repr),)


def _in_order(part: Any) -> Any:
    if type(part) is not tuple:
        return part
    return tuple([_Ordered(item) if type(item) is frozenset else item for item in part])


def dtype_name(dtype: Any) -> bytes | None:
    """`dtype.str` when it says everything about the dtype, else None: arrays of it are pickled."""
    numpy = sys.modules["numpy"]
    plain = dtype.kind in "biufcSUmM" and dtype.itemsize > 0 and dtype.isbuiltin != 2
    if not plain or dtype.metadata is not None or numpy.dtype(dtype.str) != dtype:
        return None
    name: bytes = dtype.str.encode()
    return name
