"""The worker of an actor: constructor, restore, calls, end. Also actors in local mode.

    serve          what worker.main calls when its process was forked for an actor
    Checkpoints    saves the state, logs calls (in C), restores and replays after a restart
    bound_method   what a method's entry in the function table unpickles to: the method of the instance here

The loop for one call at a time is `native.run`, the same as for tasks; actor_concurrency.py has the others.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import
import os
import signal
import sys
import time
import traceback

from fastray._native import actor_worker as native_actor
from fastray._native import worker as native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from fastray.actor import ActorHandle
    from fastray.actor_info import ActorInfo
    from fastray.exceptions import TaskError

END_INIT_FAILED, END_EXITED, END_HANDLES_GONE = 2, 4, 5  # ActorEnd
LOG_ROOM_MIN = 8  # so many calls before the log is full there must be a checkpoint
CHECKPOINTS = 4  # ActorFlag

_instance: Any = None
_local: dict[int, Any] = {}  # local mode: instances by actor index
replayed: Any = None  # recovery/replay.py: methods that are loaded now are those of this copy


class ActorExit(BaseException):
    """exit_actor() was called: passes through the user's code to the end of the process."""


# ---- methods -------------------------------------------------------------------------------------------


def method_pickle(name: str) -> bytes:
    """The pickled form of "method `name` of whatever instance is here"."""
    return pickle.dumps(_Unbound(name), protocol=5)


class _Unbound:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return bound_method, (self.name,)


def bound_method(name: str) -> Callable[..., Any]:
    """Method `name` of the actor of this process."""
    from fastray.actor_info import SPECIAL
    from fastray.runtime import current_runtime

    if replayed is None and current_runtime().is_local:
        return _LocalMethod(name)
    instance = _instance if replayed is None else replayed
    found = getattr(instance, name, None)
    if found is None and name in SPECIAL:
        return _special(SPECIAL[name], instance)
    return getattr(instance, name)  # type: ignore[no-any-return]  # raises AttributeError for one that went


def _special(name: str, instance: Any) -> Callable[..., Any]:
    from fastray.actor_info import CALL, READY

    if name == READY:
        return lambda: True
    if name == CALL:
        return lambda function, *args, **kwargs: function(instance, *args, **kwargs)
    return leave_actor


# ---- the end -------------------------------------------------------------------------------------------


def leave_actor() -> None:
    """exit_actor(): ends this actor after the running method has unwound."""
    from fastray.runtime import current_runtime, is_running

    if is_running() and current_runtime().is_local:
        _local_exit()
    if not native_actor.is_actor():
        raise TypeError("exit_actor() is for methods of actors: no actor runs in this process")
    native_actor.set_end(END_EXITED)
    raise ActorExit


def check_exit(error: BaseException) -> None:
    """Ends the process when `error` says so: exit_actor(), sys.exit()."""
    if isinstance(error, ActorExit):
        end_process()
    if isinstance(error, SystemExit):
        native_actor.set_end(END_EXITED)
        end_process(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)


def end_process(code: int = 0) -> NoReturn:
    """Leaves as an interpreter does: the actor's own end, atexit, streams. The node sees it."""
    global _instance
    import atexit

    try:
        for name in ("__ray_shutdown__", "__fastray_shutdown__"):
            shutdown = getattr(_instance, name, None)
            if shutdown is not None:
                shutdown()
                break
    except BaseException:
        traceback.print_exc()
    _instance = None
    native.forget_functions()
    try:
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(code)


# ---- its life ------------------------------------------------------------------------------------------


def serve(setup_error: Exception | None) -> None:
    """Constructs (or restores) the actor of this worker and runs its calls; does not return."""
    global _instance
    from fastray.runtime import current_runtime

    description = native_actor.become_actor()
    _restarts, flags, _code, info_index = description
    info = current_runtime().actors.info(info_index)
    if current_runtime().attachment.own_gpus():
        from fastray.worker import show_gpus

        show_gpus(current_runtime().attachment.own_gpus())
    # a running call is not interrupted: is_canceled() tells it; event loops put their own handler here
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: None)
    checkpoints: Checkpoints | None = None
    try:
        if setup_error is not None:
            raise setup_error
        _wait_for_arguments()
        _instance = native_actor.construct()
        if flags & CHECKPOINTS:
            checkpoints = Checkpoints(_instance, info)
            checkpoints.restore()
    except ActorExit:
        end_process()
    except SystemExit as error:
        check_exit(error)
    except BaseException as error:
        _fail(error, info)
    native_actor.constructed()
    if info.is_async or info.max_concurrency > 1 or info.groups:
        from fastray.actor_concurrency import serve_concurrently

        serve_concurrently(info)
    elif checkpoints is not None:
        native.serve_actor(None, checkpoints.log, checkpoints.after)
        native.run()
    else:
        native.serve_actor(None, None, None)
        native.run()
    end_process()


def _wait_for_arguments() -> None:
    from fastray._native.wait import wait

    references = native_actor.dependencies()
    if references:
        wait(list(dict.fromkeys(references)), num_returns=len(set(references)), timeout=None)


def _fail(error: BaseException, info: ActorInfo) -> NoReturn:
    """The constructor raised, or what restores the actor: it is dead, and all its calls say why."""
    from fastray.serialization import dump_exception

    native_actor.set_end(END_INIT_FAILED, dump_exception(error, f"{info.name}.__init__"))
    end_process(1)


# ---- checkpoints ---------------------------------------------------------------------------------------


class Checkpoints:
    """Saves the actor's state every `checkpoint_calls` calls or `checkpoint_s` seconds (looked at after each call)."""

    def __init__(self, instance: Any, info: ActorInfo) -> None:
        self._instance = instance
        self._info = info
        self._position = 0  # of the last checkpoint in the log
        self._saved_at_s = time.monotonic()
        self.log = native_actor.log_call

    def restore(self) -> None:
        """After a restart: the last checkpoint, then the calls that were done after it, in their order."""
        from fastray._native.wait import get

        position = 0
        last = native_actor.checkpoint()
        if last is not None:
            reference, position = last
            self._instance.__fastray_restore__(get(reference, writable=True)[0])
        for handle in native_actor.logged_since(position):
            try:
                native_actor.rerun(handle)
            except Exception:
                pass  # it raised when it ran first, and whoever called knows
        self._position = position

    def after(self) -> None:
        """After each call: is it time?"""
        since = native_actor.log_position() - self._position
        if since == 0:
            return
        late = self._info.checkpoint_s is not None and time.monotonic() - self._saved_at_s >= self._info.checkpoint_s
        if since >= self._info.checkpoint_calls or late or native_actor.log_room() < LOG_ROOM_MIN:
            self._save()

    def _save(self) -> None:
        from fastray._native.objects import put

        position = native_actor.log_position()
        try:
            state = self._instance.__fastray_save__()
            reference = put((state,))
        except Exception as error:
            if native_actor.log_room() < LOG_ROOM_MIN:
                _fail(error, self._info)
            traceback.print_exc()
            print(f"{self._info.name}: this checkpoint failed; the one before it stays", file=sys.stderr)
            self._position = position  # try again after as many calls
            return
        native_actor.set_checkpoint(reference, position)
        self._position = position
        self._saved_at_s = time.monotonic()


# ---- local mode ----------------------------------------------------------------------------------------


class _LocalMethod:
    """A method of the actor whose call is being run, in the one process there is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import inspect

        from fastray.actor_info import SPECIAL

        instance = _local.get(native.current_actor_index())
        if instance is None or isinstance(instance, _Unborn):
            from fastray.exceptions import ActorDiedError

            if instance is None:
                raise ActorDiedError(error_msg="The actor is dead (local mode).")
            raise ActorDiedError(instance.cause)
        found = getattr(instance, self._name, None)
        if found is None and self._name in SPECIAL:
            found = _special(SPECIAL[self._name], instance)
        value = (found or getattr(instance, self._name))(*args, **kwargs)
        if inspect.iscoroutine(value):
            import asyncio

            return asyncio.run(value)
        return _items(value) if inspect.isasyncgen(value) else value


def _items(stream: Any) -> Iterator[Any]:
    """An async generator's items, one by one."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                item = loop.run_until_complete(stream.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


class _Unborn:
    """In place of the instance: the constructor raised."""

    def __init__(self, cause: TaskError) -> None:
        self.cause = cause


def construct_here(handle: ActorHandle) -> None:
    """Local mode: the constructor runs now, in this process. What it raises, every call says."""
    from fastray._native import actors

    index = actors.actor_index(handle._fastray_ref)
    try:
        _local[index] = native_actor.construct_local(index)
    except Exception as error:
        from fastray.exceptions import TaskError

        actors.release_name(handle._fastray_ref)
        _local[index] = _Unborn(TaskError.from_exception(error, f"{handle._fastray_info.name}.__init__"))


def end_here(handle: ActorHandle) -> None:
    """Local mode: the actor is dead from now on."""
    from fastray._native import actors

    _local.pop(actors.actor_index(handle._fastray_ref), None)
    actors.release_name(handle._fastray_ref)


def _local_exit() -> NoReturn:
    from fastray._native import actors
    from fastray.exceptions import ActorDiedError

    _local.pop(native.current_actor_index(), None)
    actors.release_name_of(native.current_actor_index())
    raise ActorDiedError(error_msg="The actor left by exit_actor() (local mode).")
