"""Bad input and failures: each has its type, says what is wrong and where, and leaves the session usable."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest

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
