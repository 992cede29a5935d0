"""What handles and workers know of an actor's class: its methods, their arguments, how calls are served.

    MethodInfo    one method: what arguments it takes, how many values it returns, its `@method` options
    ActorInfo     a class with the options of an actor; goes into the function table once, by content, and from
                  there into every process that holds a handle. The class itself stays with the worker
    describe      class + options -> ActorInfo

Called by actor.py (creation, handles) and actor_worker.py.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import
from _blake2 import blake2b

from fastray.remote_function import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    FLAG_RETRY_EXCEPTIONS,
    FLAG_STREAMING,
    code_flags,
    positional_arguments,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray.actor_options import ActorOptions, MethodOptions
    from fastray.runtime import Runtime

FLAG_READ_ONLY = 8
ASYNC_CONCURRENCY = 1000  # of actors with `async def` methods, as Ray's
# Methods that every actor has, in both spellings; actor_worker.py has them.
READY, CALL, TERMINATE = "ready", "call", "terminate"
SPECIAL = {
    f"__{prefix}_{name}__": name for prefix in ("ray", "fastray") for name in (READY, CALL, TERMINATE)
}


class MethodInfo:
    """One method of an actor's class."""

    def __init__(self, function: Any, given: dict[str, object], is_static: bool, is_class: bool) -> None:
        flags = code_flags(function)
        self.is_generator = bool(flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))
        self.is_async = bool(flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))
        self.given = given  # of @method
        self.bound = 0 if is_static else 1  # arguments that are not the caller's
        least, most = positional_arguments(function)
        self.args_min = max(0, least - self.bound)
        self.args_max = most if most < 0 else max(0, most - self.bound)
        self.parameters = _parameters(function, is_static)

    def check_call(self, name: str, nargs: int, names: tuple[str, ...]) -> None:
        """Raises TypeError, as a plain call would, when the method does not take such arguments."""
        if self.parameters is None:
            return
        from inspect import Parameter, Signature, _ParameterKind

        signature = Signature(
            [
                Parameter(parameter, _ParameterKind(kind), default=None if optional else Parameter.empty)
                for parameter, kind, optional in self.parameters
            ]
        )
        try:
            signature.bind(*[None] * nargs, **dict.fromkeys(names))
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None


def _parameters(function: Any, is_static: bool) -> list[tuple[str, int, bool]] | None:
    """(name, kind, is optional) of what the caller passes; None when the function does not say."""
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if not is_static and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        del parameters[0]
    return [(p.name, int(p.kind), p.default is not p.empty) for p in parameters]


class ActorInfo:
    """An actor's class as callers see it, with the options that concern calls."""

    def __init__(self, name: str, methods: dict[str, MethodInfo], constructor: MethodInfo | None) -> None:
        self.name = name
        self.methods = methods
        self.constructor = constructor
        self.is_async = any(method.is_async for method in methods.values())
        self.max_task_retries = 0
        self.max_pending_calls = -1
        self.max_concurrency = 1
        self.groups: dict[str, int] = {}
        self.checkpoints = False
        self.checkpoint_calls = 0
        self.checkpoint_s: float | None = None

    def with_options(self, options: ActorOptions, checkpoints: bool) -> ActorInfo:
        """A copy for actors with these options. Raises InvalidOptionError for what does not go together."""
        from fastray.exceptions import InvalidOptionError

        info = ActorInfo(self.name, self.methods, self.constructor)
        info.max_task_retries = options.max_task_retries
        info.max_pending_calls = options.max_pending_calls
        info.max_concurrency = options.max_concurrency or (ASYNC_CONCURRENCY if self.is_async else 1)
        info.groups = dict(options.concurrency_groups or {})
        info.checkpoints = checkpoints
        info.checkpoint_calls = options.checkpoint_calls
        info.checkpoint_s = options.checkpoint_s
        if checkpoints and (info.is_async or info.max_concurrency != 1 or info.groups):
            raise InvalidOptionError(
                f"{self.name} has __fastray_save__: an actor with checkpoints runs one call after the other, without "
                "async methods, max_concurrency or concurrency groups",
                option="max_concurrency",
            )
        for name, method in self.methods.items():
            info.check_group(name, method.given.get("concurrency_group"))
        return info

    def constructor_timeout_ms(self) -> int:
        """Limit of the constructor, `@method(timeout_s=...)` of `__init__`; 0: none."""
        if self.constructor is None or "timeout_s" not in self.constructor.given:
            return 0
        from fastray.actor_options import parse_method_options
        from fastray.option_checks import to_milliseconds

        return to_milliseconds(parse_method_options(self.constructor.given).timeout_s)

    def check_group(self, method: str, group: object) -> None:
        """Raises ValueError when no group of this name exists."""
        if group is not None and group not in self.groups:
            known = ", ".join(self.groups) or "none"
            raise ValueError(
                f"{self.name}.{method}: no concurrency group {group!r} (concurrency_groups has: {known})"
            )

    def suggest(self, name: str) -> str:
        """What to say after "has no method `name`"."""
        import difflib

        near = difflib.get_close_matches(name, self.methods, 3)
        if near:
            return f"; did you mean {' or '.join(near)}?"
        return f". Its methods: {', '.join(self.methods) or 'none'}"


def describe(cls: type) -> ActorInfo:
    """The methods of a class: what is callable in it and its bases, but what every object has."""
    methods: dict[str, MethodInfo] = {}
    for name in dir(cls):
        if name.startswith("__") and (name in SPECIAL or getattr(object, name, None) is getattr(cls, name, None)):
            continue
        raw = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        is_static, is_class = isinstance(raw, staticmethod), isinstance(raw, classmethod)
        function = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
        if isinstance(function, type) or not callable(function) or name in _NOT_METHODS:
            continue
        given = dict(getattr(function, "__fastray_method__", {}))
        methods[name] = MethodInfo(function, given, is_static, is_class)
    constructor = methods.pop("__init__", None)
    return ActorInfo(cls.__qualname__.rpartition(">.")[2], methods, constructor)


_NOT_METHODS = frozenset(
    ("__class__", "__new__", "__subclasshook__", "__init_subclass__", "__class_getitem__", "__reduce__",
     "__getattribute__", "__setattr__", "__delattr__", "__weakref__", "__abstractmethods__")
)  # fmt: skip


# ---- the tables of a session -------------------------------------------------------------------------


class ActorTables:
    """What this process has exported or looked up in one session. Hangs on the Runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._infos: dict[int, ActorInfo] = {}
        self._exported: dict[tuple[object, ...], tuple[int, int, bool, int]] = {}

    def add_info(self, info: ActorInfo) -> int:
        """Its index in the function table."""
        blob = pickle.dumps(info, protocol=5)
        index = self._register(blob, info.name, 0, 0, 0)
        self._infos[index] = info
        return index

    def info(self, index: int) -> ActorInfo:
        """The ActorInfo with this index."""
        found = self._infos.get(index)
        if found is None:
            found = self._infos[index] = pickle.loads(self._runtime.attachment.function_blob(index))
        return found

    def _register(
        self, blob: bytes, name: str, flags: int, max_retries: int, returns: int, timeout_ms: int = 0
    ) -> int:
        numbers = (flags, max_retries, returns, timeout_ms)
        digest = blake2b(blob + repr(numbers).encode(), digest_size=16).digest()
        index: int = self._runtime.attachment.register_function(
            blob, digest, name, flags, max_retries, returns, 0, 0, timeout_ms, shared=True
        )
        return index

    def export_method(self, info_index: int, name: str, options: MethodOptions) -> tuple[int, int, bool, int]:
        """(function-table index, number of returns, streaming, items ahead) of calls with these options."""
        key = (info_index, name, options.key())
        found = self._exported.get(key)
        if found is None:
            found = self._exported[key] = self._export(self.info(info_index), name, options)
        return found

    def _export(self, info: ActorInfo, name: str, options: MethodOptions) -> tuple[int, int, bool, int]:
        from fastray.actor_worker import method_pickle
        from fastray.option_checks import to_milliseconds
        from fastray.options import STREAMING

        method = info.methods.get(name)
        returns = options.returns(method is not None and method.is_generator, f"{info.name}.{name}")
        streaming = returns == STREAMING
        if streaming:
            returns = 1
        retries = options.max_task_retries if options.max_task_retries is not None else info.max_task_retries
        retry_on: object = options.retry_exceptions
        if isinstance(retry_on, tuple):
            from fastray.serialization import dumps_function

            retry_on = dumps_function(retry_on)  # classes may be of __main__
        flags = (FLAG_RETRY_EXCEPTIONS if retry_on else 0) | (FLAG_STREAMING if streaming else 0)
        flags |= FLAG_READ_ONLY if options.read_only else 0
        shown = options.name or f"{info.name}.{name}"
        blob = pickle.dumps(
            (method_pickle(name), [], retry_on, shown, options.concurrency_group, (0, 0), options.seed), protocol=5
        )
        index = self._register(blob, shown, flags, retries, returns, to_milliseconds(options.timeout_s))
        return index, returns, streaming, max(0, options.generator_backpressure_num_objects)
