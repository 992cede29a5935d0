"""Bad input and failures: each has its type, says what is wrong and where, and leaves the session usable."""

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


# ---- what cannot be pickled ----------------------------------------------------------------------


class Model:
    """Cannot travel: has a lock."""

    def __init__(self):
        self.lock = threading.Lock()
        self.weights = [1, 2]


def test_a_function_over_a_lock_names_the_path_to_it():
    model = Model()

    @fastray.remote
    def f():
        return model.weights

    with pytest.raises(exceptions.SerializationError) as caught:
        f.remote()
    assert caught.value.path == "f.closure.model.lock"
    assert "f.closure.model.lock" in str(caught.value)
    assert "lock" in caught.value.reason
    assert isinstance(caught.value, TypeError)


the_lock_of_this_module = threading.Lock()


def test_a_global_of_a_function_is_named():
    @fastray.remote
    def f():
        return the_lock_of_this_module

    with pytest.raises(exceptions.SerializationError) as caught:
        f.remote()
    assert "the_lock_of_this_module" in caught.value.path


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((Model(),), {}, ".lock"),
        (({"db": [1, Model()]},), {}, "['db'][1].lock"),
        ((), {"value": Model()}, "value.lock"),
        (((1, (2, threading.Lock())),), {}, "[1][1]"),
        (((i for i in range(3)),), {}, ""),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(args, kwargs, path):
    with pytest.raises(exceptions.SerializationError) as caught:
        echo.remote(*args, **kwargs)
    assert path in caught.value.path
    assert caught.value.path in str(caught.value)


def test_put_of_what_cannot_be_pickled_is_named():
    with pytest.raises(exceptions.SerializationError) as caught:
        fastray.put({"a": Model()})
    assert "['a'].lock" in caught.value.path


def test_a_result_that_cannot_be_pickled_is_the_tasks_error():
    @fastray.remote
    def make():
        return {"model": threading.Lock()}

    error = error_of(make.remote())
    assert isinstance(error, exceptions.SerializationError)
    assert isinstance(error, exceptions.TaskError)
    assert "['model']" in str(error)


def test_one_unpicklable_value_of_several_is_an_error():
    """As in Ray, what was written before it stays."""

    @fastray.remote(num_returns=2)
    def make():
        return 1, threading.Lock()

    first, second = make.remote()
    assert isinstance(error_of(second), exceptions.SerializationError)
    try:
        assert fastray.get(first, timeout=GET_S) == 1
    except exceptions.SerializationError:
        pass


def test_what_cannot_be_unpickled_in_the_worker_is_the_tasks_error():
    class Grenade:
        def __reduce__(self):
            return (int, ("not a number",))

    assert isinstance(error_of(echo.remote(Grenade())), ValueError)


def test_what_cannot_be_unpickled_here_raises_here():
    class Grenade:
        def __reduce__(self):
            return (int, ("not a number",))

    @fastray.remote
    def make():
        return Grenade()

    assert isinstance(error_of(make.remote()), ValueError)


def test_a_function_whose_module_is_missing_in_the_worker_says_so():
    import types

    module = types.ModuleType("module_that_only_the_driver_has")
    exec("def f(): return 1", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        error = error_of(fastray.remote(module.f).remote())
    finally:
        del sys.modules[module.__name__]
    assert isinstance(error, ModuleNotFoundError)
    assert "module_that_only_the_driver_has" in str(error)


# ---- options and arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"num_cpu": 1}, exceptions.UnknownOptionError, "num_cpus"),
        ({"max_restarts": 1}, exceptions.UnknownOptionError, "actors"),
        ({"object_store_memory": 1}, ValueError, "object_store_memory"),
        ({"num_cpus": -1}, exceptions.InvalidOptionError, "num_cpus"),
        ({"num_cpus": "1"}, exceptions.OptionTypeError, "num_cpus"),
        ({"num_gpus": -0.5}, exceptions.InvalidOptionError, "num_gpus"),
        ({"num_gpus": 1.5}, exceptions.InvalidOptionError, "num_gpus"),
        ({"memory": -1}, exceptions.InvalidOptionError, "memory"),
        ({"resources": {"a": -1}}, exceptions.InvalidOptionError, "a"),
        ({"resources": {"CPU": 1}}, exceptions.InvalidOptionError, "num_cpus"),
        ({"resources": [1]}, exceptions.OptionTypeError, "resources"),
        ({"num_returns": -1}, exceptions.InvalidOptionError, "num_returns"),
        ({"num_returns": "many"}, exceptions.OptionTypeError, "streaming"),
        ({"max_retries": -2}, exceptions.InvalidOptionError, "max_retries"),
        ({"retry_exceptions": [1]}, exceptions.InvalidOptionError, "retry_exceptions"),
        ({"retry_exceptions": ValueError}, exceptions.OptionTypeError, "retry_exceptions"),
        ({"max_calls": -1}, exceptions.InvalidOptionError, "max_calls"),
        ({"name": 3}, exceptions.OptionTypeError, "name"),
        ({"scheduling_strategy": "FAST"}, exceptions.InvalidOptionError, "SPREAD"),
        ({"runtime_env": "x"}, exceptions.OptionTypeError, "runtime_env"),
        ({"_generator_backpressure_num_objects": 0}, exceptions.InvalidOptionError, "backpressure"),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_given(options, kind, says):
    with pytest.raises(kind, match=says):
        fastray.remote(**options)(lambda: 1)
    with pytest.raises(kind):
        echo.options(**options)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"num_cpus": 3}, "CPU"),
        ({"num_gpus": 1}, "GPU"),
        ({"resources": {"telescope": 1}}, "telescope"),
        ({"memory": 2**45}, "memory"),
    ],
)
def test_a_request_that_can_never_be_met_is_an_error_at_once(options, missing):
    with pytest.raises(exceptions.TaskUnschedulableError, match=missing):
        echo.options(**options).remote(1)


def test_a_request_that_can_never_be_met_in_a_task_is_that_tasks_error():
    @fastray.remote
    def parent():
        return fastray.get(echo.options(num_cpus=100).remote(1))

    assert isinstance(error_of(parent.remote()), exceptions.TaskUnschedulableError)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.remote(),
        lambda f: f.remote(1, 2, 3, 4),
        lambda f: f.remote(1, c=1, d=2),
        lambda f: f.remote(1, a=2),
        lambda f: f.remote(b=1),
        lambda f: f.options(num_cpus=0).remote(),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_call(call):
    @fastray.remote
    def f(a, b=1, *, c=2):
        return a, b, c

    with pytest.raises(TypeError):
        call(f)
    assert fastray.get([f.remote(1), f.remote(1, 2, c=3), f.remote(a=0)], timeout=GET_S) == [
        (1, 1, 2),
        (1, 2, 3),
        (0, 1, 2),
    ]


def test_remote_takes_functions_and_nothing_else():
    for thing in (3, "f", None):
        with pytest.raises(TypeError):
            fastray.remote(thing)
    with pytest.raises(TypeError):
        fastray.remote(3, num_cpus=1)
    with pytest.raises(TypeError):
        fastray.remote()
    with pytest.raises(TypeError, match=r"\.remote\(\)"):
        echo(1)

    async def coroutine():
        pass

    with pytest.raises(ValueError, match="async"):
        fastray.remote(coroutine)


# ---- references ----------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [3, "abc", None, {"a": 1}, b"x" * 28, object()])
def test_get_of_something_that_is_no_reference_says_so(thing):
    with pytest.raises((TypeError, ValueError), match=type(thing).__name__):
        fastray.get(thing)
    with pytest.raises((TypeError, ValueError), match=type(thing).__name__):
        fastray.get([fastray.put(1), thing])
    with pytest.raises(TypeError):
        fastray.wait([thing])
    with pytest.raises(TypeError):
        fastray.cancel(thing)


def test_a_reference_of_an_earlier_session_is_stale_everywhere(run_program):
    run_program(
        """
        import fastray
        from fastray.exceptions import StaleReferenceError
        f = fastray.remote(lambda x: x)
        fastray.init(num_cpus=1)
        put, task = fastray.put(1), f.remote(1)
        fastray.get(task)
        name = task.hex()
        fastray.shutdown()
        fastray.init(num_cpus=1)
        for ref in (put, task):
            for use in (
                "fastray.get(ref)", "fastray.get([ref])", "fastray.wait([ref])",
                "fastray.get(ref, timeout=0)",
                "f.remote(ref)", "f.remote([ref])", "fastray.put([ref])", "fastray.cancel(ref)",
                "ref.future().result(5)",
            ):
                try:
                    eval(use)
                except StaleReferenceError as error:
                    assert isinstance(error, ValueError)
                    assert "session" in str(error)
                else:
                    raise AssertionError(use)
        assert repr(task) and hash(task) is not None and task == task and task != put
        assert fastray.get(f.remote(2)) == 2
        """
    )


def test_references_and_generators_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        fastray.ObjectRef()
    with pytest.raises(TypeError):
        fastray.ObjectRefGenerator()
    with pytest.raises(exceptions.OutOfBandSerializationError):
        pickle.dumps(fastray.put(1))


@pytest.mark.parametrize(("value", "says"), [((1, 2), "2"), ((1, 2, 3, 4), "4"), ((), "0"), (None, "None")])
def test_a_tuple_of_the_wrong_length_is_an_error_of_each_return(value, says):
    @fastray.remote(num_returns=3)
    def several():
        return value

    for ref in several.remote():
        error = error_of(ref)
        assert isinstance(error, exceptions.NumReturnsError)
        assert isinstance(error, ValueError)
        assert "num_returns=3" in str(error)
        assert says in str(error)


def test_a_result_larger_than_the_store_is_a_typed_error(run_program):
    run_program(
        """
        import fastray
        fastray.init(num_cpus=1, object_store_memory=80_000_000)
        make = fastray.remote(lambda n: bytes(n))
        for n in (100_000_000, 400_000_000):
            try:
                fastray.get(make.remote(n))
            except fastray.exceptions.ObjectStoreFullError as error:
                assert isinstance(error, fastray.exceptions.TaskError)
            else:
                raise AssertionError(n)
            for use in (fastray.put, make.remote):
                try:
                    use(bytes(n))
                except fastray.exceptions.ObjectStoreFullError as error:
                    assert "object_store_memory" in str(error)
                else:
                    raise AssertionError(use)
        assert len(fastray.get(make.remote(1_000_000))) == 1_000_000
        """
    )


def test_kill_and_get_actor_refuse_what_is_no_actor():
    with pytest.raises(ValueError, match="cancel"):
        fastray.kill(echo.remote(1))
    with pytest.raises(ValueError, match="nobody"):
        fastray.get_actor("nobody")


# ---- exceptions of tasks -------------------------------------------------------------------------


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
