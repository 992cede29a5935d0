"""`fastray.replay(ref)`: runs a task again in this process, with its arguments, environment and random numbers.

    replay          a task of the running session, by reference
    run             a captured task (capture.py), also one that was read from disk (failures.py)
    debugger        pdb at the line that raised, before the exception goes on

A task is a function call; an actor's call needs the actor: a private copy is constructed, gets the state of the last
checkpoint, runs the logged calls after it, and then the call. The real actor is not touched. Whatever the code does
to the world outside (files, prints, other tasks) it does again.
"""

from __future__ import annotations

import contextlib
import os
import sys

from fastray.exceptions import ReplayError
from fastray.recovery.capture import Actor, Lineage, Step, capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from fastray.runtime_envs.setup import Setup


def replay(ref: Any, *, pdb: bool = False, from_constructor: bool = False) -> Any:
    """Runs the task that makes `ref` again, in this process; returns what it returns, raises what it raises.

    The exception is the plain one, with the traceback of this run. A generator's items come as a list; of a task with
    several returns, what the function returned. The recorded result of `ref` stays what it is.

    Args:
        ref: of a task or an actor's call that failed, is done or runs; or its ObjectRefGenerator.
        pdb: start the debugger where the exception was raised.
        from_constructor: of a call of an actor without checkpoints: run it on a newly constructed instance, without
            the calls before it.

    Raises:
        ReplayError: an argument is not there (any more), the call's actor keeps no log, or no task made `ref`.
        TypeError: `ref` is no reference.
    """
    from fastray._native.object_ref import ObjectRef
    from fastray._native.replay import task_of
    from fastray.runtime import current_runtime

    if hasattr(ref, "_task"):  # a generator
        ref = ref._task()
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"replay() takes an ObjectRef or ObjectRefGenerator, got {type(ref).__name__}")
    handle = task_of(ref)
    if not handle:
        raise ReplayError(f"{ref!r} was not made by a task, but by put() or as an actor: there is nothing to run again")
    return run(capture(current_runtime(), handle), pdb=pdb, from_constructor=from_constructor)


def run(lineage: Lineage, *, pdb: bool = False, from_constructor: bool = False) -> Any:
    """Runs a captured task; see `replay`."""
    actor = lineage.actor
    if actor is not None and not actor.has_log and not from_constructor:
        raise ReplayError(
            f"cannot run {lineage.step.name} {lineage.task_id} again: its actor keeps no log, so that the state in "
            "which the call began is unknown. A class with __fastray_save__ and __fastray_restore__ keeps one; "
            "from_constructor=True (--from-constructor) runs the call on a newly constructed instance instead."
        )
    with _environment(lineage.environment), _random_state():
        instance = None if actor is None else _rebuild(actor)
        try:
            return _call(lineage.step, instance)
        except BaseException as error:
            error.__traceback__ = of_the_user(error.__traceback__)
            if pdb:
                debugger(error)
            raise


def debugger(error: BaseException) -> None:
    """pdb at the line that raised; returns when the user leaves it."""
    import pdb
    import traceback

    traceback.print_exception(type(error), error, error.__traceback__)
    pdb.post_mortem(error.__traceback__)


# ---- calls ---------------------------------------------------------------------------------------------


def _call(step: Step, instance: Any) -> Any:
    import inspect

    function = _load(step, instance)
    if step.seed is not None:
        from fastray.seeding import seed_task

        seed_task(step.record_id, step.seed)
    value = function(*step.args, **step.kwargs)
    if inspect.iscoroutine(value):
        import asyncio

        return asyncio.run(value)
    if inspect.isasyncgen(value):
        import asyncio

        return asyncio.run(_items(value))
    return list(value) if inspect.isgenerator(value) else value


async def _items(stream: Any) -> list[Any]:
    return [item async for item in stream]


def _load(step: Step, instance: Any) -> Any:
    """The function; of a method, that of `instance`."""
    import pickle

    from fastray import actor_worker
    from fastray._native.decoder import loads_pickle

    outer, actor_worker.replayed = actor_worker.replayed, instance
    try:
        return loads_pickle(step.data, step.references) if step.references else pickle.loads(step.data)
    finally:
        actor_worker.replayed = outer


def _rebuild(actor: Actor) -> Any:
    """The instance as it was when the call began. What logged calls raise, they raised before."""
    instance = _call(actor.constructor, None)
    for state in actor.state:
        instance.__fastray_restore__(state)
    for step in actor.log:
        with contextlib.suppress(Exception):
            _call(step, instance)
    return instance


# ---- around them -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment(fields: dict[str, Any]) -> Iterator[None]:
    """The runtime_env in this process, and afterwards what was before. Packages of its requirements come first, but
    modules that this program has imported already stay as they are."""
    from fastray.node_child import set_variables

    before = {name: os.environ.get(name) for name in fields.get("env_vars") or ()}
    path, here, locks = list(sys.path), os.getcwd(), []
    try:
        set_variables(fields.get("env_vars") or {})
        setup = _set_up(fields)
        locks += setup.locks
        sys.path[:0] = [*setup.front, *setup.packages()]
        os.chdir(setup.directory or here)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for lock in locks:
            os.close(lock)
        os.chdir(here)
        sys.path[:] = path


def _set_up(fields: dict[str, Any]) -> Setup:
    """Files are those that the task named, on this machine."""
    from fastray.exceptions import RuntimeEnvSetupError
    from fastray.runtime_envs.setup import set_up

    try:
        return set_up({name: value for name, value in fields.items() if name != "env_vars"})
    except RuntimeEnvSetupError as error:
        raise ReplayError(f"the task's runtime_env cannot be set up here: {error}") from error


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Seeds of replayed tasks do not change what this program draws next."""
    import random

    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def of_the_user(frames: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package at its start."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    kept = frames
    while kept is not None and kept.tb_frame.f_code.co_filename.startswith(own):
        kept = kept.tb_next
    return kept or frames
