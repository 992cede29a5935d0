"""What a task raises, and how else it can end: type, attributes, chain and text as they arrive here."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback

import pytest
from integration_helpers import note, open_gate, tally, wait_for_gate

import fastray
from fastray import exceptions

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def echo(value):
    return value


@fastray.remote
def fail(error):
    raise error


def error_of(ref):
    """What `get` raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        fastray.get(ref, timeout=GET_S)
    return caught.value


@pytest.fixture(autouse=True)
def the_session_stays_usable():
    yield
    assert fastray.get(echo.remote(1), timeout=GET_S) == 1


def test_an_error_is_a_task_error_and_of_the_users_type():
    @fastray.remote
    def outer():
        inner_function()

    def inner_function():
        raise LookupError("the message", 3)

    error = error_of(outer.remote())
    assert isinstance(error, exceptions.TaskError)
    assert isinstance(error, exceptions.RayTaskError)
    assert isinstance(error, LookupError)
    assert error.args == ("the message", 3)
    assert type(error.cause) is LookupError
    assert isinstance(error.__cause__, LookupError)
    text = str(error)
    assert "outer" in text
    assert "inner_function" in text
    assert "the message" in text
    assert str(error.pid) in text
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "inner_function" in shown
    assert "fastray/worker.py" not in shown


def test_each_get_raises_an_error_of_its_own():
    ref = fail.remote(ValueError("x"))
    one, two = error_of(ref), error_of(ref)
    assert one is not two
    assert str(one) == str(two)


class NeedsThree(Exception):
    """Unpickles only by its own arguments, which are not its `args`."""

    def __init__(self, a, b, *, c):
        super().__init__(f"{a} and {b}")
        self.a, self.b, self.c = a, b, c


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        self.code = code


class Frozen(Exception):
    def __init__(self, code):
        super().__init__(code)
        object.__setattr__(self, "code", code)

    def __setattr__(self, name, value):
        raise AttributeError("frozen")


class OddText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Silent(Exception):
    def __reduce__(self):
        raise TypeError("never")


class Refuses(Exception):
    def __init_subclass__(cls):
        raise TypeError("final")


def test_exceptions_with_an_init_of_their_own_arrive():
    @fastray.remote
    def raise_it():
        raise NeedsThree(1, 2, c=[3])

    error = error_of(raise_it.remote())
    assert isinstance(error, NeedsThree)
    assert (error.a, error.b, error.c) == (1, 2, [3])
    assert "1 and 2" in str(error)


@pytest.mark.parametrize("kind", [Slotted, Frozen])
def test_odd_exceptions_keep_type_and_attributes(kind):
    @fastray.remote
    def raise_it():
        raise kind(7)

    error = error_of(raise_it.remote())
    assert isinstance(error, kind)
    assert error.code == 7


@pytest.mark.parametrize("kind", [OddText, Silent, Refuses])
def test_impossible_exceptions_arrive_as_a_task_error_with_their_text(kind):
    @fastray.remote
    def raise_it():
        raise kind("hello")

    error = error_of(raise_it.remote())
    assert isinstance(error, exceptions.TaskError)
    assert kind.__name__ in str(error)
    assert "raise_it" in str(error)


def test_an_exception_that_holds_what_cannot_be_pickled_arrives_as_text():
    @fastray.remote
    def raise_it():
        error = ValueError("with a lock")
        error.lock = threading.Lock()
        raise error

    error = error_of(raise_it.remote())
    assert isinstance(error, exceptions.TaskError)
    assert "with a lock" in str(error)
    assert "ValueError" in str(error)


@pytest.mark.parametrize(
    "error",
    [OSError(2, "no such thing", "/x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), StopIteration(3)],
)
def test_builtin_exceptions_with_layouts_of_their_own_arrive(error):
    got = error_of(fail.remote(error))
    assert isinstance(got, type(error))
    assert got.args == error.args
    for name in ("errno", "filename", "encoding", "start", "value"):
        assert getattr(got, name, None) == getattr(error, name, None)


def test_chained_exceptions_show_their_chain():
    @fastray.remote
    def raise_it():
        try:
            {}["first"]
        except KeyError as error:
            raise ValueError("second") from error

    error = error_of(raise_it.remote())
    assert isinstance(error, ValueError)
    assert isinstance(error.cause.__cause__, KeyError)
    assert "direct cause" in str(error)
    assert "'first'" in str(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups and notes came with 3.11")
def test_groups_and_notes_arrive():
    @fastray.remote
    def raise_it():
        inner = ExceptionGroup("inner", [KeyError(2)])  # noqa: F821
        error = ExceptionGroup("several", [ValueError(1), inner])  # noqa: F821
        error.add_note("a note")
        raise error

    error = error_of(raise_it.remote())
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert type(error.exceptions[0]) is ValueError
    assert error.exceptions[1].exceptions[0].args == (2,)
    assert error.__notes__ == ["a note"]
    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        fastray.get(raise_it.remote(), timeout=GET_S)
    assert caught.value.split(KeyError)[0] is not None


def test_errors_through_nested_tasks_show_every_hop():
    @fastray.remote
    def lowest():
        raise NeedsThree(1, 2, c=3)

    @fastray.remote
    def middle():
        return fastray.get(lowest.remote())

    @fastray.remote
    def top():
        return fastray.get(middle.remote())

    error = error_of(top.remote())
    assert isinstance(error, NeedsThree)
    assert type(error.cause) is NeedsThree
    for name in ("lowest", "middle", "top"):
        assert name in str(error)


def test_errors_survive_a_pickle_and_a_trip_as_argument():
    @fastray.remote
    def raise_it():
        raise NeedsThree(1, 2, c=3)

    error = error_of(raise_it.remote())
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, NeedsThree)
    assert isinstance(back, exceptions.TaskError)
    assert str(back) == str(error)
    again = fastray.get(echo.remote([error]), timeout=GET_S)[0]
    assert isinstance(again, NeedsThree)
    assert again.c == 3


def test_an_exception_as_a_value_is_a_value():
    value = fastray.get(echo.remote(ValueError("v")), timeout=GET_S)
    assert type(value) is ValueError
    assert fastray.get(fastray.put([KeyError(1)]), timeout=GET_S)[0].args == (1,)


def test_fastrays_own_errors_raised_by_tasks_keep_their_fields():
    @fastray.remote
    def raise_it():
        raise exceptions.WorkerCrashedError(signal=9, pid=3, last_task="x", stderr_tail="tail")

    error = error_of(raise_it.remote())
    assert isinstance(error, exceptions.WorkerCrashedError)
    assert (error.signal, error.stderr_tail) == (9, "tail")


# ---- ends that are no exceptions -----------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 3, "text", None])
def test_sys_exit_in_a_task_is_a_crash_of_its_worker(code):
    @fastray.remote(max_retries=0)
    def leave():
        sys.exit(code)

    error = error_of(leave.remote())
    assert isinstance(error, exceptions.WorkerCrashedError)
    assert not isinstance(error, SystemExit)


def test_sys_exit_in_a_task_is_tried_again(tmp_path):
    path = str(tmp_path / "tally")

    @fastray.remote(max_retries=2)
    def leave():
        note(path)
        if len(tally(path)) < 3:
            sys.exit(1)
        return "stayed"

    assert fastray.get(leave.remote(), timeout=GET_S) == "stayed"


def test_a_keyboard_interrupt_in_a_task_counts_as_cancelled():
    @fastray.remote
    def interrupt():
        raise KeyboardInterrupt

    error = error_of(interrupt.remote())
    assert isinstance(error, exceptions.TaskCancelledError)
    assert not isinstance(error, KeyboardInterrupt)


def test_other_base_exceptions_do_not_become_the_drivers():
    class Final(BaseException):
        pass

    @fastray.remote(max_retries=0)
    def raise_it(kind):
        raise kind("x")

    for kind in (GeneratorExit, Final):
        error = error_of(raise_it.remote(kind))
        assert isinstance(error, exceptions.RayError)
        assert isinstance(error, Exception)


def test_a_recursion_without_end_is_an_error_and_no_crash():
    @fastray.remote
    def endless():
        def again(n):
            return again(n + 1)

        return again(0)

    assert isinstance(error_of(endless.remote()), RecursionError)


def test_a_memory_error_is_an_error():
    @fastray.remote
    def greedy():
        return bytearray(2**62)

    assert isinstance(error_of(greedy.remote()), (MemoryError, OverflowError))


def test_the_first_error_of_a_list_comes_although_others_run(tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote
    def slow():
        wait_for_gate(gate)

    refs = [slow.remote(), fail.remote(KeyError("early"))]
    with pytest.raises(KeyError):
        fastray.get(refs, timeout=GET_S)
    open_gate(gate)
    fastray.wait(refs, num_returns=2, timeout=GET_S)


def test_an_error_nobody_asked_for_is_no_trouble():
    for _ in range(1000):
        fail.remote(ValueError("x" * 1000))
    assert fastray.get(echo.remote(2), timeout=GET_S) == 2
