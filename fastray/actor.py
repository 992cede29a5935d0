"""Actors: `@remote` on classes, handles and their methods (paper, section 3.1 and Table 1; Ray's actors).

    ActorClass    a class made remote; `.remote(...)` creates an actor and returns its handle
    ActorHandle   names one actor; `handle.method.remote(...)` calls it. Pass it to tasks and actors, store it
    ActorMethod   a method of one actor; a call is all C (fastray/_native/submit.pyx)

A handle holds a reference to the actor's creation record; the actor ends when no handle is left. A method holds the
same reference, not the handle, so that no cycle keeps an actor alive. docs/internals/actors.md has the rest.
"""

from __future__ import annotations

import os

from fastray import actor_names
from fastray import runtime as _runtime
from fastray._native import actors as _native
from fastray._native.submit import TaskFunction, create_actor
from fastray.actor_info import SPECIAL, ActorInfo, describe
from fastray.actor_options import ActorOptions, MethodOptions, parse_actor_options, parse_method_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray.runtime import Runtime

KILL_WAIT_NS = 5_000_000_000
DETACHED, OUT_OF_ORDER, CHECKPOINTS = 1, 2, 4  # ActorFlag


class ActorID(bytes):
    """The id of an actor: 16 bytes, of its session and its creation record. The same on all nodes."""

    def __repr__(self) -> str:
        return f"ActorID({self.hex()})"


def actor_id(identity: tuple[int, int]) -> ActorID:
    """The ActorID of the actor with this session and id of its creation record."""
    return ActorID(b"".join(part.to_bytes(8, "big") for part in identity))


# ---- methods -------------------------------------------------------------------------------------------


def method(*args: Any, **options: Any) -> Any:
    """Decorator: options of a method of an actor's class, `@fastray.method(num_returns=2)`; matches Ray's.

    Takes num_returns, max_task_retries, retry_exceptions, timeout_s (seconds; a call that runs longer takes the actor's
    process with it; also for `__init__`; no effect in local mode), concurrency_group, name, and `read_only=True` for a
    method that changes nothing (it is not run again after a restart from a checkpoint). Raises InvalidOptionError,
    OptionTypeError for a wrong one.
    """
    if args or not options:
        raise TypeError("@fastray.method takes only keyword options: @method(num_returns=2)")
    parse_method_options(options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        target = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
        target.__fastray_method__ = options  # type: ignore[attr-defined]
        return function

    return decorate


class ActorMethod(TaskFunction):
    """A method of one actor: `.remote(...)` calls it, `.options(...)` is the same with other options."""

    def __init__(self, handle: ActorHandle, name: str, options: MethodOptions) -> None:
        self._ref = handle._fastray_ref
        self._index = handle._fastray_index
        self._info = handle._fastray_info
        self._pending = handle._fastray_pending
        self._options = options
        self.__name__ = name
        self.counted = self._info.max_pending_calls > 0
        known = self._info.methods.get(name)
        if known is not None:
            self._takes(known.args_min, known.args_max)

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            f"methods of an actor cannot be called directly: use {self.__name__}.remote() instead of {self.__name__}()"
        )

    def __repr__(self) -> str:
        return f"ActorMethod({self._info.name}.{self.__name__})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_method, (self._ref, self.__name__, self._options)

    def options(self, **given: object) -> ActorMethod:
        """The same method with other options. Raises InvalidOptionError, OptionTypeError as `@method` does."""
        options = parse_method_options(given, self._options)
        self._info.check_group(self.__name__, options.concurrency_group)
        return ActorMethod(ActorHandle(self._ref, self._index, self._info, self._pending), self.__name__, options)

    def _check_call(self, nargs: int, names: tuple[str, ...]) -> None:
        known = self._info.methods.get(self.__name__)
        if known is not None:
            known.check_call(f"{self._info.name}.{self.__name__}", nargs, names)

    def _export(self) -> None:
        """Enters the method into the function table of the session (called by the fast path)."""
        actor = _native.actor_index(self._ref)
        tables = _runtime.current_runtime().actors
        function, returns, streaming, ahead = tables.export_method(self._index, self.__name__, self._options)
        self._exported(function, _runtime.ACTOR_CLASS + actor, returns, streaming, ahead)

    def _admit(self) -> None:
        """Raises PendingCallsLimitExceeded when too many calls of this handle are not done."""
        limit = self._info.max_pending_calls
        if len(self._pending) < limit:
            return
        self._pending[:] = [handle for handle in self._pending if not _native.is_done(handle)]
        if len(self._pending) < limit:
            return
        from fastray.exceptions import PendingCallsLimitExceeded

        raise PendingCallsLimitExceeded(
            f"{self._info.name}.{self.__name__}: {len(self._pending)} calls through this handle are not done and "
            f"max_pending_calls is {limit}: get() some results first, or raise the limit"
        )

    def _submitted(self, result: Any) -> None:
        first = result[0] if isinstance(result, list) else result
        if first is None:
            return
        ref = first._task() if hasattr(first, "_task") else first
        self._pending.append(_runtime.current_runtime().attachment.handle_of(ref))


def _rebuild_method(ref: ObjectRef[Any], name: str, options: MethodOptions) -> ActorMethod:
    return ActorMethod(_rebuild(ref), name, options)


# ---- handles -------------------------------------------------------------------------------------------


class ActorHandle:
    """Names an actor. Made by `Class.remote()` and `get_actor`; `handle.method.remote(...)` calls it."""

    def __init__(
        self, ref: ObjectRef[Any], index: int, info: ActorInfo, pending: list[int] | None = None
    ) -> None:
        self._fastray_ref = ref
        self._fastray_index = index  # of `info` in the function table
        self._fastray_info = info
        self._fastray_pending: list[int] = [] if pending is None else pending

    def __getattr__(self, name: str) -> ActorMethod:
        info: ActorInfo = self.__dict__["_fastray_info"]
        known = info.methods.get(name)
        if known is None and name not in SPECIAL:
            raise AttributeError(
                f"actor class {info.name} has no method {name!r}{info.suggest(name)}", name=name, obj=self
            )
        if not name.startswith("__") or known is not None or name in SPECIAL:
            options = parse_method_options(known.given if known is not None else {})
            self.__dict__[name] = ActorMethod(self, name, options)
        found: ActorMethod = self.__dict__[name]
        return found

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._fastray_info.methods})

    @property
    def _actor_id(self) -> ActorID:
        return actor_id(_native.identity_of(self._fastray_ref))

    _ray_actor_id = _actor_id

    def __repr__(self) -> str:
        try:
            return f"Actor({self._fastray_info.name}, {self._actor_id.hex()})"
        except Exception:  # of a session that has ended
            return f"Actor({self._fastray_info.name}, stale)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._fastray_ref == other._fastray_ref

    def __hash__(self) -> int:
        return hash(self._fastray_ref)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self._fastray_ref,)

    def __class_getitem__(cls, item: object) -> type[ActorHandle]:
        return cls


def _rebuild(ref: ObjectRef[Any], index: int | None = None) -> ActorHandle:
    """`index`: of its info in the function table, which is another on each node."""
    if index is None:
        index = _native.info_of(ref)
    return ActorHandle(ref, index, _runtime.current_runtime().actors.info(index))


def handle_of_this_actor() -> ActorHandle:
    """A handle of the actor whose worker this is."""
    from fastray._native.actor_worker import creation_reference, info_index

    return _rebuild(creation_reference(), info_index())


# ---- classes -------------------------------------------------------------------------------------------


class ActorClass:
    """A class whose instances are actors. Made by `@fastray.remote`; matches Ray's ActorClass."""

    def __init__(
        self, cls: type, options: ActorOptions, info: ActorInfo | None = None, checkpoints: bool | None = None
    ) -> None:
        self._class = cls  # while it is unpickled, perhaps one without its methods yet: the rest comes along then
        self._options = options
        self._described = info or describe(cls)
        self._checkpoints = hasattr(cls, "__fastray_save__") if checkpoints is None else checkpoints
        self._info = self._described.with_options(options, self._checkpoints)
        self._exported: tuple[tuple[int, int], int, int] | None = None  # session and life in it, class, info
        self._blob: tuple[bytes, list[ObjectRef[Any]]] | None = None
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__
        self.__wrapped__ = cls

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            f"actor class {self.__qualname__} cannot be instantiated directly: use {self.__name__}.remote() instead "
            f"of {self.__name__}()"
        )

    def __repr__(self) -> str:
        return f"ActorClass({self.__module__}.{self.__qualname__})"

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        raise TypeError(
            f"cannot inherit from actor class {self.__name__}: inherit from the plain class "
            f"({self.__name__}.__wrapped__) and make the subclass remote"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return ActorClass, (self._class, self._options, self._described, self._checkpoints)

    def options(self, **given: object) -> ActorClass:
        """The same class with other options for the actors made through the result. Raises as `@remote` does."""
        variant = ActorClass(self._class, parse_actor_options(given, self._options), self._described)
        variant._blob = self._blob
        return variant

    def remote(self, *args: object, **kwargs: object) -> ActorHandle:
        """Creates an actor; returns its handle at once (paper, Table 1: `Class.remote(args)`).

        Raises TypeError when the constructor takes no such arguments, ActorUnschedulableError when this node can
        never run it, ActorAlreadyExistsError (a ValueError) when its name is taken. What the constructor raises
        comes as the `cause` of the ActorDiedError of every call.
        """
        _runtime.ensure_attached()
        constructor = self._info.constructor
        if constructor is not None:
            constructor.check_call(self.__name__, len(args), tuple(kwargs))
        elif args or kwargs:
            raise TypeError(f"{self.__name__}() takes no arguments")
        runtime = _runtime.current_runtime()
        options = self._options
        name_space = options.namespace or runtime.namespace
        if options.get_if_exists and options.name:
            found = actor_names.find(runtime, name_space, options.name)
            if found is not None:
                return _rebuild(*found)
        code, info = self._export(runtime)
        demand, resources, environment, placement, place = runtime.actor_needs(options, self.__name__)
        flags = (DETACHED if options.lifetime == "detached" else 0) | (CHECKPOINTS if self._info.checkpoints else 0)
        flags |= OUT_OF_ORDER if options.allow_out_of_order_execution else 0
        try:
            actor = _native.register_actor(
                demand, resources, environment, flags, options.max_restarts, info, self._info.name,
                options.name or "", name_space if options.name else "", placement, place=place,
            )  # fmt: skip
        except _native.NameTaken:
            return self._existing(runtime, name_space)
        try:
            record = actor_names.reserve(
                runtime, options, name_space, self._info.name, actor, lambda: self._recipe(args, kwargs)
            )
            ref = None if record is None else create_actor(actor, code, args, kwargs, record)
        except BaseException:
            _native.release_actor(actor)
            raise
        if ref is None:
            _native.release_actor(actor)
            return self._existing(runtime, name_space)
        return self._begin(ref, info)

    def _existing(self, runtime: Runtime, name_space: str) -> ActorHandle:
        """Somebody else made an actor of this name meanwhile."""
        name = self._options.name or ""
        found = actor_names.find(runtime, name_space, name) if self._options.get_if_exists else None
        if found is not None:
            return _rebuild(*found)
        from fastray.exceptions import ActorAlreadyExistsError

        raise ActorAlreadyExistsError(
            f"an actor named {name!r} exists in namespace {name_space!r}: use get_actor({name!r}), "
            "get_if_exists=True, or another name"
        )

    def _recipe(self, args: tuple[object, ...], kwargs: dict[str, object]) -> bytes:
        from fastray.cluster.adoption import recipe_of

        return recipe_of(self, args, kwargs)

    def _begin(self, ref: ObjectRef[Any], info: int) -> ActorHandle:
        handle = ActorHandle(ref, info, self._info)
        if _runtime.current_runtime().is_local:
            from fastray.actor_worker import construct_here

            construct_here(handle)
        return handle

    def _export(self, runtime: Runtime) -> tuple[int, int]:
        """Function-table indices of the class and of its info."""
        session = (runtime.attachment.session_id, runtime.attachment.incarnation)
        if self._exported is None or self._exported[0] != session:
            if self._blob is None:
                from fastray.serialization import dumps_function_with_references

                self._blob = dumps_function_with_references(self._class, self.__name__)
            code = runtime.export_class(*self._blob, self._info.name, self._info.constructor_timeout_ms())
            self._exported = (session, code, runtime.actors.add_info(self._info))
        return self._exported[1], self._exported[2]


def make_actor_class(cls: type, given: dict[str, Any]) -> ActorClass:
    """`cls` as an actor class with the options `given`."""
    return ActorClass(cls, parse_actor_options(given))


# ---- functions of the API --------------------------------------------------------------------------------


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor, of this session's namespace if none is given; matches Ray's.

    Raises ValueError when there is none (it may have died).
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"get_actor() needs the name of an actor, got {name!r}")
    _runtime.ensure_attached()
    name_space = namespace or _runtime.current_runtime().namespace
    runtime = _runtime.current_runtime()
    found = actor_names.find(runtime, name_space, name)
    if found is None:
        known = [other for space, other in actor_names.names(runtime) if space == name_space]
        listed = f"; it has {', '.join(sorted(known))}" if known else ""
        raise ValueError(f"no actor named {name!r} lives in namespace {name_space!r}{listed}")
    return _rebuild(*found)


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the actors that live in this namespace; of all, as {"namespace", "name"}; matches Ray's."""
    _runtime.ensure_attached()
    rows = actor_names.names(_runtime.current_runtime())
    if all_namespaces:
        return [{"namespace": space, "name": name} for space, name in rows]
    mine = _runtime.current_runtime().namespace
    return [name for space, name in rows if space == mine]


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Kills the process of an actor at once; `no_restart=False`: it starts again if max_restarts allows it.

    Calls that are not done fail with ActorDiedError. An actor that is dead already is left alone. Raises ValueError
    for what is no actor handle (a task is stopped with `cancel`).
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() takes an actor handle, got {type(actor).__name__}; use cancel() to stop a task"
        )
    runtime = _runtime.current_runtime()
    handle = runtime.attachment.handle_of(actor._fastray_ref)
    if runtime.is_local:
        from fastray.actor_worker import end_here

        end_here(actor)
    elif runtime.control_fd >= 0:
        from fastray.control import kill_actor_message

        pid = _native.actor_state(actor._fastray_ref)[1]
        if no_restart:
            _native.release_name(actor._fastray_ref)
        os.write(runtime.control_fd, kill_actor_message(handle, no_restart))
        _native.wait_for_end(actor._fastray_ref, pid, KILL_WAIT_NS)  # so that calls made from now on come after it


def exit_actor() -> None:
    """Ends the actor that this method belongs to, as meant: it is not started again; matches Ray's.

    Calls that are not done fail with ActorDiedError. Raises TypeError outside of an actor.
    """
    from fastray.actor_worker import leave_actor

    leave_actor()


__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorID",
    "ActorMethod",
    "exit_actor",
    "get_actor",
    "kill",
    "list_named_actors",
    "method",
]
