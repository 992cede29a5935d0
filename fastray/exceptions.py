"""Every error of fastray, under its own name and under Ray's.

    FastrayError                base of all
      TaskError                 the user's code raised (task_error.py)
      TaskCancelledError, TaskUnschedulableError ...    what can happen to a task
      WorkerCrashedError, TaskTimeoutError (crash_errors.py)
      ObjectLostError ...       what can happen to an object
      ActorError ...            what can happen to an actor
      InvalidOptionError, SerializationError, StaleReferenceError ...       what a caller did wrong
      (usage_errors.py)

A name that Ray has means the same here, and has Ray's bases: `except ray.exceptions.X` of a Ray program works
unchanged. Where Ray raises a bare ValueError, TypeError or RuntimeError, fastray raises a class of its own
that is also one of those. Each class says in its docstring what happened and what to do; each keeps what it
knows as attributes and pickles with them.
"""

from __future__ import annotations

from fastray.cluster_errors import (
    GcsRequestError,
    GcsUnavailableError,
    NodeFencedError,
    VersionMismatchError,
)
from fastray.crash_errors import TaskTimeoutError, WorkerCrashedError
from fastray.task_error import FastrayError, TaskError
from fastray.usage_errors import (
    DurablePathError,
    DurablePathInUseError,
    DurablePathMismatchError,
    ForkedProcessError,
    FunctionTableFullError,
    InvalidOptionError,
    NumReturnsError,
    OptionTypeError,
    OutOfBandSerializationError,
    ReplayError,
    RuntimeEnvSetupError,
    RuntimeNotInitializedError,
    SerializationError,
    StaleReferenceError,
    UnknownInitOptionError,
    UnknownOptionError,
)

RayError = FastrayError
RayTaskError = TaskError
OufOfBandObjectRefSerializationException = OutOfBandSerializationError


# ---- tasks ------------------------------------------------------------------------------------


class TaskCancelledError(FastrayError):
    """The task was cancelled before it had a result (`cancel`, or its parent was cancelled recursively)."""

    def __init__(self, task_id: object = None, error_message: str | None = None) -> None:
        self.task_id = task_id
        named = (
            f"Task {task_id} was cancelled"
            if task_id is not None
            else "This task or its dependency was cancelled"
        )
        super().__init__(error_message or named)


class GetTimeoutError(FastrayError, TimeoutError):
    """`get(timeout=...)` ended before the value was there. The task goes on: ask again, or `cancel` it."""


class TaskUnschedulableError(FastrayError):
    """No node can ever meet what the task asks for. Ask for less, or start the node with more.

    `missing` maps each resource that falls short to (asked for, there is).
    """

    def __init__(
        self,
        error_message: str | None = None,
        *,
        task_name: str | None = None,
        missing: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        self.task_name = task_name
        self.missing = dict(missing or {})
        super().__init__(error_message or _describe_missing("Task", task_name, self.missing))


def _describe_missing(kind: str, name: str | None, missing: dict[str, tuple[float, float]]) -> str:
    subject = f"{kind} {name}" if name else kind
    if not missing:
        return f"{subject} cannot be scheduled: no node can ever meet its request."
    lacks = ", ".join(
        f"{resource}: asked for {asked:g}, "
        + (f"the largest node has {there:g}" if there else "no node has any")
        for resource, (asked, there) in sorted(missing.items())
    )
    return f"{subject} can never be scheduled ({lacks})."


class TaskPlacementGroupRemoved(FastrayError):
    """The placement group that the task was to run in was removed."""

    def __init__(self, message: str = "The placement group of this task has been removed.") -> None:
        super().__init__(message)


class PlacementGroupExistsError(FastrayError, ValueError):
    """A placement group in this namespace has the name. Ray raises a RaySystemError."""


class TooManyTasksError(FastrayError):
    """The node's table of records is full: too many tasks and objects are referenced at once.

    Get results and drop their references before submitting more, or use `f.map`, which keeps a window.
    """

    def __init__(self, message: str | None = None, *, records_max: int | None = None) -> None:
        self.records_max = records_max
        limit = f" ({records_max:,} of {records_max:,} in use)" if records_max is not None else ""
        super().__init__(
            message
            or f"The node's table of tasks and objects is full{limit}: get results and drop references "
            "before submitting more."
        )


class PendingCallsLimitExceeded(FastrayError):
    """The actor has `max_pending_calls` calls waiting. Get some results first."""


class ObjectRefStreamEndOfStreamError(FastrayError):
    """The stream has no more items. `ObjectRefGenerator` turns it into StopIteration."""


class StreamReplayError(FastrayError):
    """A generator that was run again yielded other items than the first time: it must be deterministic."""


StreamingGeneratorReplayInconsistentError = StreamReplayError


# ---- objects ----------------------------------------------------------------------------------


class ObjectLostError(FastrayError):
    """No copy of the object is left and it could not be made again."""

    _why = "all copies of it have been lost"

    def __init__(self, object_ref_hex: str = "", owner_address: object = None, call_site: str = "") -> None:
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        made = f" It was made at {call_site}." if call_site else ""
        super().__init__(f"Cannot get object {object_ref_hex}: {self._why}.{made}")


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand while a reference to it was left."""

    _why = "it was freed explicitly"


class OwnerDiedError(ObjectLostError):
    """The process that made the object (by `.remote()` or `put`) is gone, and the object with it."""

    _why = "the process that owned it has died"


class ObjectFetchTimedOutError(ObjectLostError):
    """The object exists on another node, but could not be fetched from there in time."""

    _why = "fetching it from another node timed out"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was already deleted although a reference to it exists. A defect of fastray: please report
    it.
    """

    _why = "it was already deleted (a defect of fastray's reference counting)"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost, and running its task again failed or was not allowed (`max_retries=0`)."""

    _why = "it was lost and could not be made again"

    def __init__(
        self,
        object_ref_hex: str = "",
        reason: object = None,
        reason_message: str | None = None,
        owner_address: object = None,
        call_site: str = "",
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.reason = reason
        if reason_message:
            self.args = (f"{self.args[0]} {reason_message}",)


class ObjectStoreFullError(FastrayError):
    """The object store has no room, even after everything that may go was spilled.

    Drop references or start with a larger `object_store_memory`.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        needed_bytes: int | None = None,
        capacity_bytes: int | None = None,
        used_bytes: int | None = None,
    ) -> None:
        self.needed_bytes = needed_bytes
        self.capacity_bytes = capacity_bytes
        self.used_bytes = used_bytes
        numbers = [("needed", needed_bytes), ("in use", used_bytes), ("capacity", capacity_bytes)]
        detail = ", ".join(f"{name} {value:,} bytes" for name, value in numbers if value is not None)
        super().__init__(
            message
            or "The object store is full"
            + (f" ({detail})" if detail else "")
            + ": drop references to objects, or init() with a larger object_store_memory."
        )


class OutOfDiskError(FastrayError):
    """The disk that objects are spilled to is full."""


class OutOfMemoryError(FastrayError):
    """The node ran out of memory, and the worker of this task was stopped to save it."""


class UnserializableException(FastrayError):
    """The task's exception could not be pickled; its traceback came as text."""

    def __init__(self, original_stack_trace: str = "") -> None:
        self.original_stack_trace = original_stack_trace
        super().__init__(
            f"The exception of the task could not be pickled. Its traceback:\n{original_stack_trace}"
        )


# ---- actors -----------------------------------------------------------------------------------


class ActorError(FastrayError):
    """The actor failed, so that the call has no result. Matches `ray.exceptions.RayActorError`."""

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = "The actor failed before it finished this call.",
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        self.actor_id = actor_id
        self.error_msg = error_msg
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted
        self.report: object = None  # the ActorReport (actor_errors.py), when it is known
        super().__init__(error_msg)


RayActorError = ActorError


class ActorDiedError(ActorError):
    """The actor is dead and will not be restarted; `cause` is its constructor's error, if that is why."""

    def __init__(
        self, cause: TaskError | None = None, *, actor_id: str | None = None, error_msg: str | None = None
    ) -> None:
        self.cause = cause
        reason = f"The actor died because its __init__ raised:\n{cause}" if cause is not None else None
        super().__init__(
            actor_id,
            error_msg or reason or "The actor died unexpectedly before it finished this call.",
            actor_init_failed=cause is not None,
        )


class ActorUnavailableError(ActorError):
    """The actor cannot be reached now, but may come back. The call may or may not have run."""

    def __init__(self, error_message: str = "no connection", actor_id: bytes | None = None) -> None:
        hex_id = actor_id.hex() if actor_id is not None else None
        super().__init__(hex_id, f"The actor {hex_id} is unavailable: {error_message}")


class ActorUnschedulableError(FastrayError):
    """No node can ever meet what the actor asks for."""

    def __init__(
        self,
        error_message: str | None = None,
        *,
        actor_name: str | None = None,
        missing: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        self.actor_name = actor_name
        self.missing = dict(missing or {})
        super().__init__(error_message or _describe_missing("Actor", actor_name, self.missing))


class ActorPlacementGroupRemoved(FastrayError):
    """The placement group that the actor was to live in was removed."""

    def __init__(self, message: str = "The placement group of this actor has been removed.") -> None:
        super().__init__(message)


class ActorAlreadyExistsError(ValueError, FastrayError):
    """An actor of this name exists. Use `get_if_exists=True` or `get_actor`."""


class ActorHandleNotFoundError(ValueError, FastrayError):
    """The handle names an actor of another session."""


class AsyncioActorExit(FastrayError):
    """Raised inside an asyncio actor by `exit_actor`; not for programs to catch."""


# ---- nodes and the system -----------------------------------------------------------------------


class NodeDiedError(FastrayError):
    """The node that ran the task is gone."""


class LocalNodeDiedError(FastrayError):
    """The daemon of this process's own node has died; call `shutdown` and `init` again."""

    def __init__(
        self, message: str = "The node process of this session has died: shutdown() and init() again."
    ) -> None:
        super().__init__(message)


LocalRayletDiedError = LocalNodeDiedError


class RuntimeSystemError(FastrayError):
    """Something inside fastray failed that should not. Matches `ray.exceptions.RaySystemError`."""

    def __init__(self, client_exc: object = "", traceback_str: str | None = None) -> None:
        self.client_exc = client_exc
        self.traceback_str = traceback_str
        super().__init__(f"Internal error: {client_exc}" + (f"\n{traceback_str}" if traceback_str else ""))


RaySystemError = RuntimeSystemError


class RpcError(FastrayError):
    """A call to another process of the cluster failed."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        self.message = message
        self.rpc_code = rpc_code
        super().__init__(message)


class AuthenticationError(FastrayError):
    """The cluster asks for a token that this process does not have, or has wrong."""


class CrossLanguageError(FastrayError):
    """An error from a task written in another language. Kept for Ray programs that name it."""


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "DurablePathError",
    "DurablePathInUseError",
    "DurablePathMismatchError",
    "FastrayError",
    "ForkedProcessError",
    "FunctionTableFullError",
    "GcsRequestError",
    "GcsUnavailableError",
    "GetTimeoutError",
    "InvalidOptionError",
    "LocalNodeDiedError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "NodeFencedError",
    "NumReturnsError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OptionTypeError",
    "OufOfBandObjectRefSerializationException",
    "OutOfBandSerializationError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "RayActorError",
    "RayError",
    "PlacementGroupExistsError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "ReplayError",
    "RpcError",
    "RuntimeEnvSetupError",
    "RuntimeNotInitializedError",
    "RuntimeSystemError",
    "SerializationError",
    "StaleReferenceError",
    "StreamReplayError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskTimeoutError",
    "TaskUnschedulableError",
    "TooManyTasksError",
    "UnknownInitOptionError",
    "UnknownOptionError",
    "UnserializableException",
    "VersionMismatchError",
    "WorkerCrashedError",
]

for _error in [value for value in globals().values() if isinstance(value, type)]:
    if issubclass(_error, FastrayError):
        _error.__module__ = "fastray.exceptions"  # where users import them from, and what tracebacks show
del _error
