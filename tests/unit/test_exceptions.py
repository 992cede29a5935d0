"""TaskError's dual classes, their way through pickle, and what every other error keeps."""

from __future__ import annotations

import asyncio
import builtins
import copy
import pickle
import sys
import traceback
from dataclasses import dataclass

import cloudpickle
import pytest

from fastray import exceptions
from fastray.exception_transport import CHAIN_LINKS_MAX, pack_exception, unpack_exception
from fastray.exceptions import TaskError


class CodeError(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    def __str__(self):
        return f"code {self.code}: {self.args[0]}"


class KeywordError(Exception):
    def __init__(self, *, limit):
        self.limit = limit


class SlotError(Exception):
    __slots__ = ("empty", "place")

    def __init__(self, place):
        self.place = place


class NewError(Exception):
    def __new__(cls, first, second):
        self = super().__new__(cls)
        self.pair = (first, second)
        return self

    def __init__(self, first, second):
        pass


@dataclass(frozen=True)
class FrozenError(Exception):
    n: int


class HttpError(OSError):
    def __init__(self, status, url):
        super().__init__(status, "refused", url)
        self.url = url


class ReducedError(Exception):
    def __init__(self, a, b):
        super().__init__(a + b)
        self.a, self.b = a, b

    def __reduce__(self):
        return (ReducedError, (self.a, self.b))


class BaseOnlyError(BaseException):
    pass


class ExitError(SystemExit):
    pass


class Meta(type):
    def __call__(cls, *args):
        raise RuntimeError("only the factory may call this class")


class MetaError(Exception, metaclass=Meta):
    pass


class NoSubclassError(Exception):
    def __init_subclass__(cls):
        raise TypeError("final")


class LockError(Exception):
    def __init__(self):
        super().__init__("has a lock")
        self.lock = sys.stdout


def raised_in_task(exc):
    try:
        raise exc
    except BaseException as error:
        return error


def task_error(exc, name="mod.f"):
    return TaskError.from_exception(raised_in_task(exc), name)


def check_code_error(error):
    assert error.code == 7
    assert error.args == ("disk",)
    assert str(error.cause) == "code 7: disk"


DUALS = [
    pytest.param(lambda: CodeError(7, "disk"), check_code_error, id="custom init"),
    pytest.param(lambda: KeywordError(limit=5), lambda e: e.limit == 5, id="keyword only"),
    pytest.param(
        lambda: SlotError("here"), lambda e: e.place == "here" and not hasattr(e, "empty"), id="slots"
    ),
    pytest.param(lambda: NewError(1, 2), lambda e: e.pair == (1, 2), id="custom new"),
    pytest.param(lambda: FrozenError(3), lambda e: e.n == 3, id="frozen dataclass"),
    pytest.param(
        lambda: HttpError(404, "u"), lambda e: (e.errno, e.filename, e.url) == (404, "u", "u"), id="os"
    ),
    pytest.param(lambda: ReducedError(1, 2), lambda e: (e.a, e.b, e.args) == (1, 2, (3,)), id="own reduce"),
    pytest.param(lambda: BaseOnlyError("b"), lambda e: e.args == ("b",), id="BaseException"),
    pytest.param(lambda: KeyError("k"), lambda e: e.args == ("k",), id="KeyError"),
    pytest.param(lambda: StopIteration(3), lambda e: e.value == 3, id="StopIteration"),
    pytest.param(
        lambda: FileNotFoundError(2, "no", "f"), lambda e: (e.errno, e.filename) == (2, "f"), id="errno"
    ),
    pytest.param(
        lambda: UnicodeDecodeError("utf8", b"x", 0, 1, "r"),
        lambda e: (e.object, e.end) == (b"x", 1),
        id="unicode",
    ),
    pytest.param(lambda: SyntaxError("m", ("f.py", 3, 1, "x")), lambda e: e.lineno == 3, id="SyntaxError"),
    pytest.param(lambda: MemoryError("m"), lambda e: e.args == ("m",), id="MemoryError"),
    pytest.param(lambda: ImportError("m", name="n"), lambda e: e.name == "n", id="ImportError"),
    pytest.param(
        lambda: exceptions.WorkerCrashedError(signal=9, pid=1), lambda e: e.signal == 9, id="fastray's own"
    ),
]


@pytest.mark.parametrize(("make", "check"), DUALS)
def test_a_dual_has_the_class_arguments_and_attributes_of_the_cause(make, check):
    cause = make()
    error = task_error(cause)
    for e in (
        error,
        pickle.loads(pickle.dumps(error)),
        copy.copy(error),
        cloudpickle.loads(cloudpickle.dumps(error)),
    ):
        assert isinstance(e, TaskError)
        assert isinstance(e, type(cause))
        assert type(e).__name__ == f"TaskError({type(cause).__name__})"
        assert check(e) is not False
        assert e.args == cause.args
        assert type(e.cause) is type(cause)
        assert e.__cause__ is e.cause
        assert e.function_name == "mod.f"
        assert "raised_in_task" in str(e)
        assert e.traceback_str == error.traceback_str


def test_one_dual_class_for_each_class_of_causes():
    assert type(task_error(CodeError(1, "a"))) is type(task_error(CodeError(2, "b")))


def test_a_dual_can_be_raised_and_caught_by_either_name():
    for name in (TaskError, CodeError, exceptions.RayError):
        with pytest.raises(name) as caught:
            raise task_error(CodeError(7, "disk"))
        assert caught.value.code == 7


@pytest.mark.parametrize(
    "cause",
    [
        SystemExit(3),
        ExitError(4),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        NoSubclassError("n"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_control_flow_and_final_classes_arrive_as_plain_task_errors(cause):
    error = task_error(cause)
    for e in (error, pickle.loads(pickle.dumps(error))):
        assert type(e) is TaskError
        assert type(e.cause) is type(cause)
        assert e.cause.args == cause.args


def test_a_metaclass_that_forbids_calls_does_not_hinder():
    cause = BaseException.__new__(MetaError, 1)
    error = pickle.loads(pickle.dumps(task_error(cause)))
    assert isinstance(error, MetaError)
    assert error.args == (1,)


@pytest.mark.parametrize("base_only", [False, True])
def test_exception_groups_keep_their_members(base_only):
    make = getattr(builtins, "BaseExceptionGroup", None)
    if make is None:
        return  # groups came with Python 3.11
    inside = [KeyboardInterrupt() if base_only else ValueError(1), CodeError(7, "disk")]
    cause = make("several", inside)
    error = task_error(cause)
    for e in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(e, make) is not base_only
        group = e.cause if base_only else e
        assert group.message == "several"
        assert [type(member) for member in group.exceptions] == [type(member) for member in inside]
        assert e.cause.exceptions[1].code == 7


def test_a_group_that_was_split_keeps_what_is_left():
    if not hasattr(builtins, "ExceptionGroup"):
        return  # groups came with Python 3.11
    group = builtins.ExceptionGroup("several", [ValueError(1), KeyError(2)]).subgroup(ValueError)
    error = pickle.loads(pickle.dumps(task_error(group)))
    assert [repr(member) for member in error.exceptions] == ["ValueError(1)"]


def test_two_hops_keep_the_users_class_and_the_chain():
    inner = pickle.loads(pickle.dumps(task_error(CodeError(7, "disk"), "inner")))
    outer = task_error(inner, "outer")
    for e in (outer, pickle.loads(pickle.dumps(outer))):
        assert isinstance(e, CodeError)
        assert e.code == 7
        assert type(e.cause) is CodeError
        assert e.function_name == "outer"
        assert e.inner.function_name == "inner"
        assert e.inner.inner is None
        assert "inner (pid=" in str(e)
        assert "outer (pid=" in str(e)


def test_causes_and_contexts_of_the_cause_travel():
    def work():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise CodeError(7, "second") from error

    with pytest.raises(CodeError) as caught:
        work()
    error = pickle.loads(pickle.dumps(TaskError.from_exception(caught.value, "f")))
    assert repr(error.cause.__cause__) == "KeyError('first')"
    assert error.cause.__suppress_context__


def test_context_is_kept_unless_suppressed():
    def work(suppress):
        try:
            raise KeyError("first")
        except KeyError:
            if suppress:
                raise ValueError("second") from None
            raise ValueError("second")  # noqa: B904  # the implicit context is what is tested

    for suppress in (False, True):
        with pytest.raises(ValueError, match="second") as caught:
            work(suppress)
        back = unpack_exception(pack_exception(caught.value))
        assert (back.__context__ is None) is suppress


def test_chains_that_are_circular_or_endless_end():
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    back = unpack_exception(pack_exception(first))
    assert back.__cause__.args == (2,)
    assert back.__cause__.__cause__ is None
    last = ValueError(0)
    for i in range(100):
        link = ValueError(i)
        link.__cause__ = last
        last = link
    back, links = unpack_exception(pack_exception(last)), 0
    while back is not None:
        back, links = back.__cause__, links + 1
    assert links == CHAIN_LINKS_MAX


def test_an_exception_that_cannot_be_pickled_arrives_as_text():
    error = task_error(LockError())
    assert isinstance(error, LockError)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is TaskError
    assert back.cause is None
    assert back.cause_text.endswith("LockError: has a lock")
    assert "raised_in_task" in str(back)


def test_a_class_that_is_missing_here_arrives_as_text():
    error = TaskError.unpack(pickle.dumps([(b"cno_such_module\nX\n.", False)]), "tb", "f", 3, "X: x")
    assert type(error) is TaskError
    assert error.cause_text == "X: x"
    assert repr(error) == "TaskError(X: x)"


def test_a_class_of_main_or_a_function_keeps_its_identity():
    class LocalError(Exception):
        pass

    back = pickle.loads(pickle.dumps(task_error(LocalError(1))))
    assert isinstance(back, LocalError)


def test_attributes_named_like_ours_stay_on_the_cause():
    cause = CodeError(7, "disk")
    cause.pid, cause.function_name = "theirs", "theirs"
    error = TaskError.from_remote(cause, "tb", "f", 12)
    assert (error.pid, error.function_name) == (12, "f")
    assert (error.cause.pid, error.cause.function_name) == ("theirs", "theirs")


def test_display_of_an_uncaught_error_shows_where_it_was_raised():
    error = pickle.loads(pickle.dumps(task_error(CodeError(7, "disk"))))
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "code 7: disk" in text
    assert "raised_in_task\n    raise exc" in text
    assert "fastray.exceptions.TaskError(CodeError): mod.f (pid=" in text


def test_frames_of_fastray_at_the_start_are_left_out():
    code = compile("def call(f):\n    f()\n", "fastray/_native/worker.pyx", "exec")
    scope = {}
    exec(code, scope)

    def users_code():
        raise CodeError(7, "disk")

    with pytest.raises(CodeError) as caught:
        scope["call"](users_code)
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    text = TaskError.from_exception(error, "f").traceback_str
    assert "users_code" in text
    assert "worker.pyx" not in text


def test_broken_str_and_notes_do_not_break_the_error():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("no")

    error = task_error(MuteError())
    assert "MuteError" in str(error)
    assert error.cause_text.endswith("<str() raised RuntimeError>")
    noted = task_error(CodeError(7, "disk"))
    vars(noted)["__notes__"] = ["said later"]
    assert pickle.loads(pickle.dumps(noted)).__notes__ == ["said later"]


def test_as_plain_is_for_those_who_cannot_raise_the_cause():
    error = task_error(StopIteration(3)).as_plain()
    assert type(error) is TaskError
    assert isinstance(error.as_instanceof_cause(), StopIteration)


EXAMPLES = {
    "WorkerCrashedError": dict(signal=9, pid=5, last_task="f", stderr_tail="boom", attempts=4),
    "TaskTimeoutError": dict(timeout_s=1.5, signal=9, pid=5, last_task="f", attempts=4),
    "TaskUnschedulableError": dict(task_name="f", missing={"GPU": (2, 0)}),
    "ActorUnschedulableError": dict(actor_name="A", missing={"CPU": (4, 2)}),
    "SerializationError": dict(path="f.closure.lock", reason="cannot pickle"),
    "ObjectStoreFullError": dict(needed_bytes=5, capacity_bytes=4, used_bytes=3),
    "NumReturnsError": dict(function_name="f", expected=3, returned=2),
    "TooManyTasksError": dict(records_max=10),
    "FunctionTableFullError": dict(functions_max=10),
    "StaleReferenceError": dict(object_ref_hex="ab"),
    "ActorError": dict(actor_id="ab", error_msg="m", actor_init_failed=True),
    "ActorUnavailableError": dict(error_message="m", actor_id=b"ab"),
    "ObjectReconstructionFailedError": dict(object_ref_hex="ab", reason_message="why"),
    "InvalidOptionError": dict(message="m", option="num_cpus"),
    "OptionTypeError": dict(message="m", option="num_cpus"),
    "UnknownOptionError": dict(message="m", option="num_cpu", suggestion="num_cpus"),
    "UnknownInitOptionError": dict(message="m", option="x"),
    "RuntimeEnvSetupError": dict(error_message="m", field="pip"),
    "RpcError": dict(message="m", rpc_code=3),
    "GcsUnavailableError": dict(address="h:1", waited_s=2.0),
    "GcsRequestError": dict(message="m", kind="missing"),
    "NodeFencedError": dict(message="m"),
}


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_pickles_with_its_fields_and_has_a_docstring(name):
    cls = getattr(exceptions, name)
    assert issubclass(cls, exceptions.FastrayError)
    assert cls.__module__ == "fastray.exceptions"
    assert cls.__doc__
    error = cls(**EXAMPLES.get(cls.__name__, {}))
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert str(back) == str(error)
    assert back.args == error.args
    if not isinstance(error, TaskError):
        assert vars(back) == vars(error)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("GetTimeoutError", TimeoutError),
        ("TaskTimeoutError", TimeoutError),
        ("TaskTimeoutError", exceptions.WorkerCrashedError),
        ("ReferenceCountingAssertionError", AssertionError),
        ("ActorDiedError", exceptions.ActorError),
        ("ActorUnavailableError", exceptions.RayActorError),
        ("ObjectFreedError", exceptions.ObjectLostError),
        ("OwnerDiedError", exceptions.ObjectLostError),
        ("SerializationError", TypeError),
        ("NumReturnsError", ValueError),
        ("StaleReferenceError", ValueError),
        ("OptionTypeError", TypeError),
        ("InvalidOptionError", ValueError),
        ("UnknownInitOptionError", RuntimeError),
        ("ActorAlreadyExistsError", ValueError),
    ],
)
def test_bases_are_those_of_ray_or_the_class_that_ray_raises(name, base):
    assert issubclass(getattr(exceptions, name), base)


def test_messages_say_what_is_known():
    crash = exceptions.WorkerCrashedError(signal=9, pid=5, last_task="f", stderr_tail="boom\n", attempts=4)
    for part in ("SIGKILL", "pid 5", "task f", "tried 4 times", "boom"):
        assert part in str(crash)
    assert "exited with code 3" in str(exceptions.WorkerCrashedError(exit_code=3))
    assert "signal 250" in str(exceptions.WorkerCrashedError(signal=250))
    late = exceptions.TaskTimeoutError(timeout_s=1.5, signal=9, pid=5, last_task="f", attempts=4)
    for part in ("timeout_s=1.5", "pid 5", "task f", "tried 4 times"):
        assert part in str(late)
    assert "SIGKILL" not in str(late)
    lack = exceptions.TaskUnschedulableError(task_name="f", missing={"GPU": (2, 0), "CPU": (4, 2)})
    assert str(lack) == (
        "Task f can never be scheduled (CPU: asked for 4, the largest node has 2, "
        "GPU: asked for 2, no node has any)."
    )
    assert "f.closure.lock cannot be pickled" in str(exceptions.SerializationError(path="f.closure.lock"))
    assert str(exceptions.NumReturnsError(function_name="f", expected=3, returned=2)) == (
        "f returned 2 objects, but num_returns=3."
    )
