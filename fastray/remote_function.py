"""`@remote` on functions: `RemoteFunction`, what `f.remote`, `f.options` and `f.map` hang on.

A remote function is exported to a session on its first call: the pickled function and its options go into
the function table (by content, so the same function is there once), its resources and runtime_env into a
scheduling class. After that a call is all C (fastray/_native/submit.pyx). `.options(...)` makes a variant with
an entry of its own; variants of equal options are made once.

Called by api.py; the worker's side is worker.load_function.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import
from _blake2 import blake2b  # what hashlib.blake2b is, without loading OpenSSL at start

from fastray._native.submit import TaskFunction
from fastray.option_checks import to_milliseconds
from fastray.options import STREAMING, TaskOptions, parse_task_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray.recovery.cache import CachedFunction
    from fastray.runtime import Runtime

NEVER = 1 << 30
CO_VARARGS = 0x04
CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200  # see inspect; it costs 15 ms to import
FLAG_RETRY_EXCEPTIONS, FLAG_STREAMING, FLAG_RUNTIME_ENV = 1, 2, 4


class RemoteFunction(TaskFunction):
    """A function that runs as tasks. Made by `@fastray.remote`; `f.remote(...)` submits a call.

    Matches Ray's RemoteFunction: calling it directly raises TypeError; `.options` takes what `@remote` takes.
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        if code_flags(function) & (CO_COROUTINE | CO_ASYNC_GENERATOR):
            raise ValueError(
                f"{function.__qualname__} is an async function: a task is a plain function or generator. Call "
                "asyncio.run() in it, or use an async method of an actor."
            )
        self._function = function
        self._options = options
        self._variants: dict[object, RemoteFunction] = {}
        self._blob: tuple[bytes, list[ObjectRef[Any]]] | None = None
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", "__main__")
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self._takes(*positional_arguments(function))
        self.cached = options.cache is not None
        self._cache: CachedFunction | None = None

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            f"remote function {self.__qualname__} cannot be called directly: use {self.__name__}.remote() to run "
            f"it as a task, or {self.__name__}.__wrapped__() to run it here"
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self.__module__}.{self.__qualname__})"

    def __get__(self, instance: object, owner: type | None = None) -> RemoteFunction:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteFunction, (self._function, self._options)

    def options(self, **given: object) -> RemoteFunction:
        """The same function with other options for the calls made through the result.

        Raises InvalidOptionError, OptionTypeError as `@remote` does.
        """
        options = parse_task_options(given, self._options)
        try:
            variant = self._variants.get(options.key())
        except TypeError:  # an unhashable strategy
            return self._variant(options)
        if variant is None:
            variant = self._variants[options.key()] = self._variant(options)
        return variant

    def _variant(self, options: TaskOptions) -> RemoteFunction:
        variant = RemoteFunction(self._function, options)
        variant._blob = self._blob
        return variant

    def map(self, iterable: Iterable[Any], *, timeout: float | None = None) -> Iterator[Any]:
        """Applies the function to each item; an iterator of the results in order.

        Items are fused into tasks of about a millisecond each, measured as they run; an item whose call
        raises, raises at its place when it is reached. Like `concurrent.futures.Executor.map`.
        """
        from fastray.fused_map import fused_map

        return fused_map(self, iterable, timeout)

    def _check_call(self, nargs: int, names: tuple[str, ...]) -> None:
        """Raises TypeError, as a plain call would, when the function does not take such arguments."""
        import inspect

        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # a function that does not say what it takes
            return
        try:
            signature.bind(*[None] * nargs, **dict.fromkeys(names))
        except TypeError as error:
            raise TypeError(f"{self.__name__}() {error}") from None

    # ---- export -----------------------------------------------------------------------------------

    def _pickled(self) -> tuple[bytes, list[ObjectRef[Any]]]:
        """The function, and the references its closure holds (they are kept as long as this object)."""
        if self._blob is None:
            from fastray.serialization import dumps_function_with_references

            self._blob = dumps_function_with_references(self._function, self.__name__)
        return self._blob

    def _export(self) -> None:
        """Enters the function into the tables of the current session (called by the fast path)."""
        from fastray.runtime import current_runtime

        runtime = current_runtime()
        options = self._options
        if options.cache is not None:
            self._export_cached(runtime)
            return
        returns = options.returns(bool(code_flags(self._function) & CO_GENERATOR), self.__qualname__)
        streaming = returns == STREAMING
        cls = runtime.scheduling_class(options)
        group, group_life = runtime.group_of_class(cls)
        shown = 0 if group else cls  # groups come and go: the entry is the same for all of them
        flags = (FLAG_RETRY_EXCEPTIONS if options.retry_exceptions else 0) | (FLAG_STREAMING if streaming else 0)
        name = options.name or self.__qualname__.rpartition(">.")[2]
        retry_on: object = options.retry_exceptions
        if isinstance(retry_on, tuple):
            from fastray.serialization import dumps_function

            retry_on = dumps_function(retry_on)  # classes may be of __main__
        timeout_ms = to_milliseconds(options.timeout_s)
        numbers = (flags, options.max_retries, 1 if streaming else returns, options.max_calls, timeout_ms)
        data, references = self._pickled()
        handles = [runtime.attachment.handle_of(ref) for ref in references]
        blob = pickle.dumps((data, handles, retry_on, name, None, self._digest(runtime), options.seed), protocol=5)
        digest = blake2b(blob + repr((numbers, shown)).encode(), digest_size=16).digest()
        index = runtime.attachment.register_function(
            blob, digest, name, flags, options.max_retries, 1 if streaming else returns, options.max_calls, shown,
            timeout_ms,
        )  # fmt: skip
        ahead = max(0, options.generator_backpressure_num_objects)
        self._exported(index, cls, 1 if streaming else returns, streaming, ahead, group, group_life)

    def _export_cached(self, runtime: Runtime) -> None:
        from fastray.recovery.cache import CachedFunction

        environment = runtime.environment_of(self._options)
        self._cache = CachedFunction(self._function, self.__name__, self._options, environment)
        self._exported(0, 0, self._cache.returns, False, 0)

    def _cached(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submits a call that may be answered from the cache."""
        assert self._cache is not None  # _export made it
        return self._cache.submit(args, kwargs)

    def _digest(self, runtime: Runtime) -> tuple[int, int]:
        """In a durable session what stands for this function in its tasks' keys, else (0, 0)."""
        if not runtime.is_durable:
            return 0, 0
        from fastray.recovery.durable import function_digest

        return function_digest(self._function, self._options, runtime.environment_of(self._options))


def code_flags(function: object) -> int:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return int(getattr(code, "co_flags", 0))


def positional_arguments(function: object) -> tuple[int, int]:
    """(least, most) number of arguments of a call without keywords; most is -1 for any number."""
    code = getattr(function, "__code__", None)
    if code is None or not hasattr(function, "__globals__") or hasattr(function, "__wrapped__"):
        return 0, -1  # not a plain function: it is found out when it runs
    kinds = code.co_flags
    defaults = getattr(function, "__defaults__", None) or ()
    most = -1 if kinds & CO_VARARGS else code.co_argcount
    missing = code.co_kwonlyargcount - len(getattr(function, "__kwdefaults__", None) or {})
    if missing > 0:  # it needs keywords: every call without is checked, and refused
        return NEVER, -1
    return code.co_argcount - len(defaults), most


def remote_function(function: Callable[..., Any], given: dict[str, object]) -> RemoteFunction:
    """`function` as a remote function with the options `given`."""
    return RemoteFunction(function, parse_task_options(given))
