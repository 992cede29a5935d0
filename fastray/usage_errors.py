"""Errors of wrong use: what a caller passed or did, and how to put it right.

Each is also the built-in class that Ray raises in its place (ValueError, TypeError, RuntimeError), so that a
Ray program that catches those goes on working. Users import them from fastray.exceptions.
"""

from __future__ import annotations

from fastray.task_error import FastrayError


class InvalidOptionError(FastrayError, ValueError):
    """An option has a value that makes no sense. Ray raises a ValueError. `option` names it."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.option = option
        super().__init__(message)


class OptionTypeError(InvalidOptionError, TypeError):
    """An option has a value of the wrong type. Ray raises a TypeError."""


class UnknownOptionError(InvalidOptionError):
    """There is no option of this name; `suggestion` is the nearest one. Ray raises a ValueError."""

    def __init__(self, message: str, *, option: str | None = None, suggestion: str | None = None) -> None:
        self.suggestion = suggestion
        super().__init__(message, option=option)


class UnknownInitOptionError(UnknownOptionError, RuntimeError):
    """`init` has no keyword of this name. Ray raises a RuntimeError."""


class RuntimeEnvSetupError(FastrayError):
    """The runtime_env cannot be set up: the message says which field and why."""

    def __init__(self, error_message: str | None = None, *, field: str | None = None) -> None:
        self.error_message = error_message
        self.field = field
        super().__init__(error_message or "The runtime environment could not be set up.")


class RuntimeNotInitializedError(FastrayError, RuntimeError):
    """This call needs a running session, and does not start one itself: call `fastray.init()` first."""

    def __init__(
        self, message: str = "fastray is not running in this process: call fastray.init() first."
    ) -> None:
        super().__init__(message)


class ForkedProcessError(FastrayError, RuntimeError):
    """This process is a fork of one that runs fastray, and cannot use its parent's session.

    Call `fastray.init()` here for a session of its own, or do the work in a task.
    """

    def __init__(
        self,
        message: str = "This process was forked from one that runs fastray and cannot use its session: "
        "call fastray.init() here, or do the work in a task.",
    ) -> None:
        super().__init__(message)


class SerializationError(FastrayError, TypeError):
    """An argument, a function or a result cannot be pickled. Ray raises a TypeError.

    `path` leads to the culprit (`f.closure.model.lock`), `reason` is what pickle said.
    """

    def __init__(self, message: str | None = None, *, path: str | None = None, reason: str = "") -> None:
        self.path = path
        self.reason = reason
        culprit = f"{path} cannot be pickled" if path else "the value cannot be pickled"
        super().__init__(message or f"Cannot serialize: {culprit}" + (f": {reason}" if reason else "."))


class OutOfBandSerializationError(FastrayError):
    """An ObjectRef was pickled outside of fastray (by `pickle.dumps`, say), where nobody counts it.

    Pass it as an argument, in a container, in a closure or in a result instead.
    """


class ReplayError(FastrayError):
    """`replay` cannot run the task again: something that it needs is not there. The message says what."""


class StaleReferenceError(FastrayError, ValueError):
    """The ObjectRef belongs to an earlier session: `shutdown` ended it and its objects. Ray raises a
    ValueError.
    """

    def __init__(self, message: str | None = None, *, object_ref_hex: str = "") -> None:
        self.object_ref_hex = object_ref_hex
        super().__init__(
            message
            or f"ObjectRef {object_ref_hex} belongs to an earlier session, which shutdown() ended: "
            "its value is gone. Submit the task or put the object again."
        )


class FunctionTableFullError(FastrayError):
    """Too many different functions (or options of functions) were exported in one session.

    Mostly a function that is defined anew in a loop: define it once and pass what changes as an argument.
    """

    def __init__(self, message: str | None = None, *, functions_max: int | None = None) -> None:
        self.functions_max = functions_max
        limit = f" ({functions_max:,})" if functions_max is not None else ""
        super().__init__(
            message
            or f"The node's function table is full{limit}: define remote functions once, outside of loops, "
            "and pass what changes as an argument."
        )


class NumReturnsError(FastrayError, ValueError):
    """A task returned another number of values than its `num_returns` says. Ray raises a ValueError."""

    def __init__(
        self,
        message: str | None = None,
        *,
        function_name: str = "Task",
        expected: int | None = None,
        returned: int | None = None,
    ) -> None:
        self.function_name = function_name
        self.expected = expected
        self.returned = returned
        what = "something that is no sequence" if returned is None else f"{returned} objects"
        super().__init__(message or f"{function_name} returned {what}, but num_returns={expected}.")


class DurablePathError(FastrayError, OSError):
    """The path of `init(durable=PATH)` cannot be used; `path` is the absolute one, the message says why."""

    def __init__(self, message: str | None = None, *, path: str = "") -> None:
        self.path = path
        super().__init__(message or f"the durable path {path} cannot be used")


class DurablePathInUseError(DurablePathError):
    """Another session uses the durable path; `pid` is the process that does, if it is known."""

    def __init__(self, message: str | None = None, *, path: str = "", pid: int | None = None) -> None:
        self.pid = pid
        super().__init__(message or f"the durable path {path} is in use by process {pid}", path=path)


class DurablePathMismatchError(DurablePathError):
    """The durable path was written by another version of Python or fastray, whose results may mean something else."""
