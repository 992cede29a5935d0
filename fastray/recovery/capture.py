"""What is needed to run one task again, taken out of the session while it is there.

    Step      one function call: pickled function, arguments, id, seed
    Lineage   a Step with its environment; for an actor's call also how the actor gets to where the call began
    Actor     class, constructor's arguments, the last checkpoint's state, the logged calls up to the one in question

A record keeps its function and arguments until it is freed; an actor with checkpoints keeps state and log
(docs/internals/actors.md). Called by replay.py (a living session) and failures.py (to disk).
"""

from __future__ import annotations

import _pickle as pickle

from fastray._native import replay as native
from fastray.crash_report import task_id
from fastray.exceptions import ReplayError
from fastray.runtime_env import GROUP, JOB, PACKAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray.runtime import Runtime


class Step:
    """One call of a function."""

    __slots__ = ("args", "data", "kwargs", "name", "record_id", "references", "seed")

    def __init__(
        self, data: bytes, references: list[Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        record_id: int, seed: bool | int | None,
    ) -> None:  # fmt: skip
        self.data = data  # the pickled function
        self.references = references  # ObjectRefs in its closure
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.record_id = record_id
        self.seed = seed


class Actor:
    """How to get an instance into the state in which a call began."""

    __slots__ = ("constructor", "has_log", "log", "state")

    def __init__(self, constructor: Step, has_log: bool, state: tuple[Any, ...], log: list[Step]) -> None:
        self.constructor = constructor
        self.has_log = has_log  # False: nothing is known of the calls before
        self.state = state  # (that of the last checkpoint,), or () when there is none yet
        self.log = log


class Lineage:
    """All of it, for one task."""

    __slots__ = ("actor", "attempts", "environment", "step", "task_id")

    def __init__(
        self, task_id: str, step: Step, environment: dict[str, Any], attempts: int, actor: Actor | None
    ) -> None:
        self.task_id = task_id
        self.step = step
        self.environment = environment
        self.attempts = attempts
        self.actor = actor


def capture(runtime: Runtime, handle: int) -> Lineage:
    """The lineage of the task with this handle. Raises ReplayError that says what is missing."""
    record_id, function, state, attempts, environment, actor = native.describe(handle)
    name = runtime.attachment.function_name(function)
    shown = f"task {name} {task_id(runtime.attachment.session_id, record_id)}"
    try:
        if state in ("free", "promised"):
            raise ReplayError("it is gone")
        step = _step(runtime, handle)
        whole = None if actor < 0 else _actor(runtime, actor, handle)
    except ReplayError as error:
        raise ReplayError(f"cannot run {shown} again: {error}") from error.__cause__
    blob = runtime.attachment.function_blob(environment) if environment else None
    fields = pickle.loads(blob) if blob else {}
    fields = {name: value for name, value in fields.items() if name not in (JOB, GROUP, PACKAGES)}
    return Lineage(task_id(runtime.attachment.session_id, record_id), step, fields, attempts + 1, whole)


def _step(runtime: Runtime, handle: int) -> Step:
    record_id, function, *_ = native.describe(handle)
    data, handles, _, name, *rest = pickle.loads(runtime.attachment.function_blob(function))
    args, kwargs = native.arguments(handle)
    references = [runtime.attachment.borrow(h) for h in handles]
    return Step(data, references, name, args, kwargs, record_id, rest[2] if rest else None)


def _actor(runtime: Runtime, index: int, call: int) -> Actor:
    if runtime.is_local:
        raise ReplayError("actors of local mode keep no log; call the method again, the actor is in this process")
    part = native.actor_part(index, call)
    if part is None:
        raise ReplayError("its actor is gone: keep a handle of it")
    creation, _, has_log, checkpoint, logged = part
    if native.describe(call)[2] in ("waiting", "ready"):
        raise ReplayError("it has not run yet, so the state in which it will begin is unknown")
    constructor = _step(runtime, creation)
    if not has_log:
        return Actor(constructor, False, (), [])
    state: tuple[Any, ...] = ()
    if checkpoint is not None:
        from fastray._native.wait import get

        state = get(checkpoint, writable=True)
    return Actor(constructor, True, state, [_step(runtime, h) for h in _before(call, logged)])


def _before(call: int, logged: list[int]) -> list[int]:
    """The calls that ran before `call`. One that is not in the log (read-only, or it took its actor with it) comes
    before the first that its caller made later."""
    if call in logged:
        return logged[: logged.index(call)]
    if native.was_logged(call):
        raise ReplayError("its actor has saved its state since, and what was before is gone (checkpoint_calls)")
    mine = native.describe(call)[0]
    for i, other in enumerate(logged):
        its = native.describe(other)[0]
        if its >> 40 == mine >> 40 and its > mine:
            return logged[:i]
    return logged
