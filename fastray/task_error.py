"""FastrayError, the base of all errors of fastray, and TaskError: an exception that a task raised.

    cause         the exception that the user's code raised, as it was in the task (without its frames)
    hop           one task through which an error passed: when task `outer` gets the result of `inner` and
                  `inner` failed, the error that leaves `outer` has two hops
    dual class    subclass of both TaskError and the cause's class, so that `except TaskError` and
                  `except MyError` both catch it; named `TaskError(MyError)`

A dual instance has the arguments, attributes and slots of the cause, copied without calling its `__init__`.
TaskError's own names (`cause`, `pid`, ...) win over attributes of the same name: those are at `error.cause`.
`str(error)` is the remote traceback, and `error.__cause__` is the cause, so that Python's own display of an
uncaught TaskError shows what the user's code raised and where.

Not every cause gets a dual class; the rest are plain TaskErrors with the cause in `.cause`:
- SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError and what derives from them: control
  flow of a worker must not become control flow of the program that asked (a silent `sys.exit`, an asyncio
  task that looks cancelled);
- classes that refuse to be subclassed or instantiated so (`__init_subclass__`, a metaclass, a layout in C
  that excludes ours, a group that holds a BaseException).

Pickling keeps all of it, over any number of hops. Callers: fastray.exceptions re-exports everything here;
runtime.py turns failed records into `TaskError.from_remote(...)`.
"""

from __future__ import annotations

import os
import sys
import types
import weakref

from fastray.exception_transport import (
    fields_of,
    is_group,
    new_exception,
    pack_exception,
    set_fields,
    unpack_exception,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def rebuild_error(
    cls: type[FastrayError], args: tuple[object, ...], state: dict[str, object]
) -> FastrayError:
    """Unpickles a FastrayError of any class: its `__init__`, which builds the message, is not called
    again.
    """
    error = new_exception(cls, args)
    assert isinstance(error, FastrayError)
    vars(error).update(state)
    return error


class FastrayError(Exception):
    """Base of every error that fastray raises. Matches `ray.exceptions.RayError`."""

    def __reduce__(self) -> tuple[object, ...]:
        return (rebuild_error, (type(self), self.args, dict(vars(self))))


class _Remote:
    """What a TaskError knows besides the user's exception."""

    __slots__ = ("cause", "cause_text", "function_name", "inner", "pid", "task_id", "traceback_str")

    def __init__(
        self,
        raised: BaseException | None,
        traceback_str: str,
        function_name: str,
        pid: int | None,
        cause_text: str,
        task_id: str,
    ) -> None:
        self.inner = raised if isinstance(raised, TaskError) else None
        self.cause = raised.cause if isinstance(raised, TaskError) else raised
        self.traceback_str = traceback_str
        self.function_name = function_name
        self.pid = pid
        self.cause_text = cause_text
        self.task_id = task_id


class TaskError(FastrayError):
    """A task raised an exception. Matches `ray.exceptions.RayTaskError`.

    Raised by `get`, `await ref` and whatever else returns the value of a failed task. Unless the task's
    exception is one of those named in this module's introduction, the instance is also an instance of that
    exception's class: catch it by that name.
    """

    def __init__(
        self,
        function_name: str = "",
        traceback_str: str = "",
        cause: BaseException | None = None,
        pid: int | None = None,
        cause_text: str = "",
        task_id: str = "",
    ) -> None:
        super().__init__(function_name, traceback_str)
        self._attach(_Remote(cause, traceback_str, function_name, pid, cause_text, task_id))

    def _attach(self, remote: _Remote) -> None:
        # object.__setattr__: the user's class may be frozen.
        object.__setattr__(self, "_fastray_remote", remote)
        object.__setattr__(self, "__cause__", remote.cause)

    @property
    def _remote(self) -> _Remote:
        remote: _Remote = vars(self)["_fastray_remote"]
        return remote

    @property
    def cause(self) -> BaseException | None:
        """The user's exception; None when it could not be pickled (`cause_text` has its text)."""
        return self._remote.cause

    @property
    def inner(self) -> TaskError | None:
        """The error of the previous hop, when the task failed because a task that it asked had failed."""
        return self._remote.inner

    @property
    def traceback_str(self) -> str:
        """The traceback as the worker printed it, all hops included."""
        return self._remote.traceback_str

    @property
    def function_name(self) -> str:
        """Name of the task that raised, of the last hop."""
        return self._remote.function_name

    @property
    def pid(self) -> int | None:
        """Process that ran the task, of the last hop."""
        return self._remote.pid

    @property
    def task_id(self) -> str:
        """Id of the task that raised, of the last hop, as `ObjectRef.task_id` prints it; "" when not known."""
        return self._remote.task_id

    @property
    def cause_text(self) -> str:
        """`ClassName: message` of the user's exception, there even when the exception is not."""
        return self._remote.cause_text

    @classmethod
    def from_remote(
        cls,
        cause: BaseException | None,
        traceback_text: str,
        function_name: str,
        pid: int | None,
        cause_text: str = "",
        task_id: str = "",
    ) -> TaskError:
        """The error to raise in the process that asked for the result; dual with the cause's class if it can
        be.

        `cause` is what the task raised: the user's exception, a TaskError of a task that it asked, or None
        when it could not be pickled. Raises nothing.
        """
        remote = _Remote(cause, traceback_text, function_name, pid, cause_text, task_id)
        if remote.cause is not None and not isinstance(remote.cause, _control_flow()):
            try:
                return _dual_instance(remote, remote.cause)
            except Exception:  # the user's class or metaclass objects: that is what plain TaskErrors are for
                pass
        return TaskError(function_name, traceback_text, cause, pid, cause_text, task_id)

    @classmethod
    def from_exception(cls, raised: BaseException, function_name: str) -> TaskError:
        """The same from the exception that a task raised here, in the worker, with this process's pid."""
        return cls.from_remote(
            raised, format_remote_traceback(raised), function_name, os.getpid(), describe_cause(raised)
        )

    def as_instanceof_cause(self) -> TaskError:
        """This error, dual if it can be. Ray's name for `from_remote`."""
        r = self._remote
        return TaskError.from_remote(
            r.inner or r.cause, r.traceback_str, r.function_name, r.pid, r.cause_text, r.task_id
        )

    def as_plain(self) -> TaskError:
        """This error as a plain TaskError: for a future, which refuses a StopIteration."""
        r = self._remote
        return TaskError(
            r.function_name, r.traceback_str, r.inner or r.cause, r.pid, r.cause_text, r.task_id
        )

    def pack(
        self, dumps: Callable[[object], bytes] | None = None
    ) -> tuple[bytes | None, str, str, int | None, str, str]:
        """What has to travel: the packed cause (None if it cannot be pickled) and five plain values."""
        r = self._remote
        raised = r.inner or r.cause
        packed = None
        if raised is not None:
            packed = pack_exception(raised) if dumps is None else pack_exception(raised, dumps)
        text = r.cause_text or describe_cause(raised)
        return (packed, r.traceback_str, r.function_name, r.pid, text, r.task_id)

    @staticmethod
    def unpack(
        packed: bytes | None,
        traceback_str: str,
        function_name: str,
        pid: int | None,
        cause_text: str,
        task_id: str = "",
        notes: list[str] | None = None,
    ) -> TaskError:
        """The inverse of `pack`. A cause whose class is missing in this process arrives as text."""
        raised = unpack_exception(packed) if packed is not None else None
        error = TaskError.from_remote(raised, traceback_str, function_name, pid, cause_text, task_id)
        if notes:
            vars(error)["__notes__"] = list(notes)
        return error

    def __reduce__(self) -> tuple[object, ...]:
        return (TaskError.unpack, (*self.pack(), vars(self).get("__notes__")))

    def __str__(self) -> str:
        remote = self._remote
        named = f", task_id={remote.task_id}" if remote.task_id else ""
        where = f"{remote.function_name or 'task'} (pid={remote.pid}{named})"
        text = remote.traceback_str.strip("\n") or remote.cause_text or describe_cause(remote.cause)
        return f"{where} raised:\n{text}" if text else f"{where} failed"

    def __repr__(self) -> str:
        remote = self._remote
        inside = remote.cause_text if remote.cause is None else repr(remote.cause)
        return f"{type(self).__name__}({inside})"


TaskError.__module__ = "fastray.exceptions"
FastrayError.__module__ = "fastray.exceptions"

# Values are weak: a class redefined in a notebook must not be kept by the dual class made of it.
_duals: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()


def _control_flow() -> tuple[type[BaseException], ...]:
    kinds: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt, GeneratorExit)
    asyncio = sys.modules.get("asyncio.exceptions")  # not loaded: then nobody raised or expects it
    return (*kinds, asyncio.CancelledError) if asyncio is not None else kinds


def _dual_class(cause_class: type[BaseException]) -> type[BaseException]:
    dual = _duals.get(cause_class)
    if dual is None:
        name = f"TaskError({cause_class.__name__})"
        body = {"__module__": "fastray.exceptions", "__qualname__": name, "__doc__": TaskError.__doc__}
        dual = types.new_class(name, (TaskError, cause_class), exec_body=lambda ns: ns.update(body))
        _duals[cause_class] = dual
    return dual


def _dual_instance(remote: _Remote, cause: BaseException) -> TaskError:
    model_args = tuple(cause.args)
    if is_group(type(cause)):
        model_args = (getattr(cause, "message", ""), list(getattr(cause, "exceptions", ())))
    error = new_exception(_dual_class(type(cause)), model_args)
    object.__setattr__(error, "args", tuple(cause.args))
    assert isinstance(error, TaskError)
    set_fields(error, fields_of(cause))
    vars(error).update(vars(cause))
    error._attach(remote)
    # Some class in between may have odd attribute access: find out here, not where it is raised.
    if error.cause is not cause or not str(error):
        raise TypeError(f"{type(cause).__name__} does not keep attributes")
    return error


def describe_cause(exc: BaseException | None) -> str:
    """`module.Class: message`, also for an exception whose `__str__` raises."""
    if exc is None:
        return ""
    if isinstance(exc, TaskError):
        return exc.cause_text or describe_cause(exc.cause)
    cls = type(exc)
    name = (
        cls.__qualname__
        if cls.__module__ in ("builtins", "__main__")
        else f"{cls.__module__}.{cls.__qualname__}"
    )
    try:
        text = str(exc)
    except Exception as error:  # the user's own __str__
        text = f"<str() raised {type(error).__name__}>"
    return f"{name}: {text}" if text else name


def format_remote_traceback(exc: BaseException) -> str:
    """The traceback of `exc` as text, without fastray's own frames at its start; never raises."""
    import traceback

    # Cython's frames have the path that the compiler was given.
    own = (os.path.dirname(os.path.abspath(__file__)) + os.sep, os.path.join("fastray", "_native") + os.sep)
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(own):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(exc), exc, frames or exc.__traceback__))
    except Exception:  # a __str__ or a __notes__ that raises
        return "".join(traceback.format_tb(frames)) + describe_cause(exc) + "\n"
