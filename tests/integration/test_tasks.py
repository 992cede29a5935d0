"""Calls of remote functions: arguments of every kind, numbers of returns, options."""

from __future__ import annotations

import os
from collections import OrderedDict, namedtuple
from datetime import date
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import fastray

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def echo(value):
    return value


@fastray.remote
def collect(*args, **kwargs):
    return args, kwargs


@fastray.remote
def with_defaults(a, b=2, *, c=3, **rest):
    return a, b, c, rest


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**500,
    0.0,
    -0.0,
    float("inf"),
    1e-300,
    1 + 2j,
    "",
    "a" * 31,
    "a" * 32,
    "a" * 33,
    "grüße 🎈\0end",
    "\ud800",
    b"",
    b"\0" * 64,
    b"x" * 100_000,
    bytearray(b"abc"),
    (),
    (1, "a", None),
    [],
    [1, [2, [3, [4]]]],
    {},
    {"a": 1, 2: [3], (4, 5): {6: 7}},
    {1, 2, 3},
    frozenset("ab"),
    range(3, 9, 2),
    slice(1, None, 2),
    Ellipsis,
    NotImplemented,
    Decimal("1.10"),
    Fraction(1, 3),
    date(2020, 2, 29),
    OrderedDict(b=1, a=2),
    int,
    len,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_an_argument_comes_back_as_it_was(value):
    back = fastray.get(echo.remote(value), timeout=GET_S)
    assert back == value
    assert type(back) is type(value)
    again = fastray.get(echo.remote(value=value), timeout=GET_S)
    assert again == value
    assert type(again) is type(value)


def test_a_nan_stays_one_and_the_sign_of_zero_stays():
    nan, zero = fastray.get([echo.remote(float("nan")), echo.remote(-0.0)], timeout=GET_S)
    assert nan != nan
    assert str(zero) == "-0.0"


def test_subclasses_of_builtins_keep_their_class():
    class Number(int):
        pass

    class Text(str):
        pass

    class Items(list):
        pass

    pair = namedtuple("pair", "a b")
    for value in (Number(3), Text("t"), Items([1]), pair(1, 2)):
        back = fastray.get(echo.remote(value), timeout=GET_S)
        assert back == value
        assert type(back).__name__ == type(value).__name__
        assert type(back) not in (int, str, list, tuple)


def test_numpy_scalars_stay_numpy_scalars():
    for value in (np.float32(1.5), np.int8(-3), np.bool_(True), np.datetime64("2020-01-01")):
        back = fastray.get(echo.remote(value), timeout=GET_S)
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "i1", "u2", "?", "c16", "S5", "U3", "M8[ns]", [("a", "i4"), ("b", "f8")]]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (100, 30)])
def test_arrays_of_any_kind_and_size_arrive(dtype, shape):
    array = np.zeros(shape, dtype)
    back = fastray.get(echo.remote(array), timeout=GET_S)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_arrays_of_objects_transposed_and_strided_arrive():
    square = np.arange(10_000).reshape(100, 100)
    for array in (square.T, square[::2, ::3], square[::-1], np.array([1, "a", None], dtype=object)):
        back = fastray.get(echo.remote(array), timeout=GET_S)
        assert back.tolist() == array.tolist()


def test_an_object_that_refers_to_itself_arrives():
    loop = [1]
    loop.append(loop)
    back = fastray.get(echo.remote(loop), timeout=GET_S)
    assert back[0] == 1
    assert back[1] is back


def test_an_object_named_twice_is_one_object_in_the_task():
    @fastray.remote
    def same(a):
        return a[0] is a[1]

    shared = [1, 2]
    assert fastray.get(same.remote([shared, shared]), timeout=GET_S)


def test_positional_keyword_and_default_arguments_bind_as_in_python():
    cases = [
        ((1,), {}, (1, 2, 3, {})),
        ((1, 5), {"c": 6}, (1, 5, 6, {})),
        ((), {"a": 7, "z": 8}, (7, 2, 3, {"z": 8})),
        ((1,), {"b": None, "self": 1}, (1, None, 3, {"self": 1})),
    ]
    refs = [with_defaults.remote(*args, **kwargs) for args, kwargs, _ in cases]
    assert fastray.get(refs, timeout=GET_S) == [expected for _, _, expected in cases]


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 255, 256, 300, 5000])
def test_any_number_of_arguments_arrives_in_order(n):
    args, kwargs = fastray.get(collect.remote(*range(n)), timeout=GET_S)
    assert args == tuple(range(n))
    assert kwargs == {}


@pytest.mark.parametrize("n", [1, 16, 17, 300])
def test_any_number_of_keywords_arrives_in_order(n):
    given = {f"key_{i}": i for i in range(n)}
    args, kwargs = fastray.get(collect.remote(**given), timeout=GET_S)
    assert args == ()
    assert list(kwargs.items()) == list(given.items())


def test_keywords_that_are_no_identifiers_arrive():
    _, kwargs = fastray.get(collect.remote(**{"not a name": 1, "größe": 2, "": 3}), timeout=GET_S)
    assert kwargs == {"not a name": 1, "größe": 2, "": 3}


@pytest.mark.parametrize("size", [1, 1000, 70_000, 2**20 + 1, 20 * 2**20])
def test_large_arguments_and_results_arrive_whole(size):
    data = os.urandom(size)
    assert fastray.get(echo.remote(data), timeout=GET_S) == data
    array = np.frombuffer(data, np.uint8)
    assert (fastray.get(echo.remote(array), timeout=GET_S) == array).all()


def test_an_argument_is_copied_when_the_task_is_submitted():
    items = [1, 2, 3]
    ref = echo.remote(items)
    items.append(4)
    array = np.zeros(1000)
    array_ref = echo.remote(array)
    array[:] = 1
    assert fastray.get(ref, timeout=GET_S) == [1, 2, 3]
    assert fastray.get(array_ref, timeout=GET_S).sum() == 0


def test_wrong_arguments_raise_type_error_like_a_call():
    @fastray.remote
    def two(a, b):
        return a, b

    for submit in (lambda: two.remote(1), lambda: two.remote(1, 2, 3), lambda: two.remote(1, c=2)):
        with pytest.raises(TypeError):
            fastray.get(submit(), timeout=GET_S)


# ---- several returns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 6, 7, 100, 1000])
def test_a_task_with_several_returns_gives_a_list_of_references(n):
    @fastray.remote(num_returns=n)
    def many():
        return tuple(range(n))

    refs = many.remote()
    assert isinstance(refs, list)
    assert len(set(refs)) == n
    assert fastray.get(refs, timeout=GET_S) == list(range(n))


def test_a_task_without_returns_gives_none_and_runs(tmp_path):
    from integration_helpers import eventually, note, tally

    @fastray.remote(num_returns=0)
    def work(path):
        note(path)

    path = str(tmp_path / "tally")
    assert work.remote(path) is None
    assert eventually(lambda: tally(path) == ["x"])


def test_returns_may_be_a_list_or_an_array_and_large():
    @fastray.remote(num_returns=3)
    def rows():
        return [np.full(100_000, i) for i in range(3)]

    @fastray.remote(num_returns=2)
    def array():
        return np.array([5, 6])

    assert [int(a[0]) for a in fastray.get(rows.remote(), timeout=GET_S)] == [0, 1, 2]
    assert fastray.get(array.remote(), timeout=GET_S) == [5, 6]


def test_one_of_several_returns_is_enough_to_get():
    @fastray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    second = three.remote()[1]
    assert fastray.get(second, timeout=GET_S) == 2


def test_an_error_fails_every_return():
    @fastray.remote(num_returns=3)
    def fail():
        raise KeyError("gone")

    for ref in fail.remote():
        with pytest.raises(KeyError):
            fastray.get(ref, timeout=GET_S)


def test_options_change_the_number_of_returns():
    @fastray.remote
    def pair():
        return 1, 2

    assert fastray.get(pair.remote(), timeout=GET_S) == (1, 2)
    assert fastray.get(pair.options(num_returns=2).remote(), timeout=GET_S) == [1, 2]
    one = pair.options(num_returns=1).remote()
    assert isinstance(one, fastray.ObjectRef)


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), (), 7, None])
def test_a_wrong_number_of_returned_values_is_an_error_that_says_so(value):
    @fastray.remote(num_returns=2)
    def wrong():
        return value

    for ref in wrong.remote():
        with pytest.raises(fastray.exceptions.NumReturnsError, match="num_returns=2") as caught:
            fastray.get(ref, timeout=GET_S)
        assert isinstance(caught.value, ValueError)


# ---- options -----------------------------------------------------------------------------------------


def test_the_name_option_is_the_name_of_the_task():
    @fastray.remote
    def nameless():
        return fastray.get_runtime_context().get_task_name()

    assert "nameless" in fastray.get(nameless.remote(), timeout=GET_S)
    assert fastray.get(nameless.options(name="my task").remote(), timeout=GET_S) == "my task"


def test_options_leave_the_function_itself_as_it_was():
    @fastray.remote(num_returns=2)
    def f():
        return 1, 2

    f.options(num_returns=1, name="other", num_cpus=0)
    assert len(f.remote()) == 2


def test_options_of_options_add_up():
    @fastray.remote
    def f():
        return fastray.get_runtime_context().get_task_name(), 2

    first, second = f.options(name="n").options(num_returns=2).remote()
    assert fastray.get([first, second], timeout=GET_S) == ["n", 2]


def test_a_remote_function_keeps_its_name_and_docstring_and_cannot_be_called():
    @fastray.remote
    def documented():
        """What it does."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."
    with pytest.raises(TypeError, match="remote"):
        documented()


def test_many_tasks_return_each_its_own_result():
    assert fastray.get([echo.remote(i) for i in range(50_000)], timeout=GET_S) == list(range(50_000))


def test_tasks_run_in_other_processes_and_in_several():
    @fastray.remote
    def pid(path, peers):
        from integration_helpers import eventually, note, tally

        note(path, os.getpid())
        assert eventually(lambda: len(tally(path)) >= peers)
        return os.getpid()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        pids = fastray.get([pid.remote(f"{folder}/tally", 2) for _ in range(2)], timeout=GET_S)
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
