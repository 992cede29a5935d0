"""put, get, wait, empty: what they give, for how long, and that memory comes back."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from integration_helpers import eventually, open_gate, store_bytes, wait_for_gate

import fastray

GET_S = 30
MB = 2**20

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def after(gate, value=None):
    wait_for_gate(gate)
    return value


@fastray.remote
def echo(value):
    return value


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    yield str(path)
    if not path.exists():
        open_gate(path)


# ---- put and get ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "text", b"x" * 200, [1, {"a": (2,)}], range(5), "y" * 3_000_000])
def test_what_was_put_is_got(value):
    ref = fastray.put(value)
    assert isinstance(ref, fastray.ObjectRef)
    assert fastray.get(ref) == value
    assert fastray.get([ref, ref]) == [value, value]


def test_get_of_a_list_keeps_its_order_and_takes_duplicates():
    refs = [fastray.put(i) for i in range(100)]
    assert fastray.get(refs[::-1] + refs) == list(range(99, -1, -1)) + list(range(100))
    assert fastray.get([]) == []


def test_what_was_put_does_not_change_with_the_original():
    items = [1]
    array = np.zeros(100_000)
    refs = [fastray.put(items), fastray.put(array)]
    items.append(2)
    array[:] = 1
    assert fastray.get(refs[0]) == [1]
    assert fastray.get(refs[1]).sum() == 0


def test_each_get_of_a_list_is_a_list_of_its_own():
    ref = fastray.put([1])
    fastray.get(ref).append(2)
    assert fastray.get(ref) == [1]


def test_an_array_is_a_read_only_view_without_a_copy():
    ref = fastray.put(np.arange(1_000_000))
    first, second = fastray.get(ref), fastray.get(ref)
    assert not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    with pytest.raises(ValueError, match="cannot set"):
        first.flags.writeable = True
    assert np.shares_memory(first, second)


def test_an_array_that_is_so_small_that_it_stands_in_its_record_is_writable_too():
    for value in ((np.zeros(1),), (1, np.zeros(4)), {"a": np.zeros(100)}):
        ref = fastray.put(value)
        mine = fastray.get(ref, writable=True)
        array = mine["a"] if isinstance(mine, dict) else mine[-1]
        array += 1
        again = fastray.get(ref)
        assert not (again["a"] if isinstance(again, dict) else again[-1]).any()


def test_a_writable_array_is_a_private_copy():
    ref = fastray.put({"a": np.zeros(100_000)})
    mine = fastray.get(ref, writable=True)["a"]
    mine[:] = 5
    assert mine.sum() == 500_000
    assert fastray.get(ref)["a"].sum() == 0
    both = fastray.get([ref, ref], writable=True)
    both[0]["a"][0] = 1
    assert both[1]["a"][0] == 0


def test_an_array_in_a_task_is_read_only_and_its_result_too():
    @fastray.remote
    def look(array):
        return array.flags.writeable, array

    writeable, array = fastray.get(look.remote(fastray.put(np.ones(100_000))), timeout=GET_S)
    assert not writeable
    assert not array.flags.writeable


def test_put_of_a_reference_is_refused():
    with pytest.raises(TypeError, match="ObjectRef"):
        fastray.put(fastray.put(1))


def test_a_reference_in_a_list_stays_a_reference():
    inner = fastray.put(1)
    outer = fastray.put([inner, {"k": inner}])
    got = fastray.get(outer)
    assert got[0] == inner
    assert got[1]["k"] == inner
    assert fastray.get(got[0]) == 1


# ---- references ----------------------------------------------------------------------------------------


def test_references_compare_hash_and_name_themselves():
    a, b = fastray.put(1), fastray.put(1)
    assert a == a
    assert a != b
    assert a != 5
    assert len({a, b, a}) == 2
    assert {a: "x"}[a] == "x"
    assert a.hex() != b.hex()
    assert int(a.hex(), 16)
    assert a.hex() in repr(a)
    assert bytes.fromhex(a.hex()) == a.binary()
    with pytest.raises(TypeError):
        _ = a < b


def test_a_reference_got_back_from_a_task_equals_the_one_passed():
    ref = fastray.put(1)
    back = fastray.get(echo.remote([ref]), timeout=GET_S)[0]
    assert back == ref
    assert hash(back) == hash(ref)
    assert back.hex() == ref.hex()


def test_a_reference_cannot_be_pickled_out_of_band():
    import copy
    import pickle

    ref = fastray.put(1)
    with pytest.raises(fastray.exceptions.OufOfBandObjectRefSerializationException):
        pickle.dumps(ref)
    assert copy.copy(ref) == ref
    assert copy.deepcopy([ref]) == [ref]


def test_references_are_no_iterables_and_no_awaited_values():
    with pytest.raises(TypeError):
        list(fastray.put([1]))
    with pytest.raises(TypeError):
        fastray.ObjectRef()


# ---- get: timeouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_get_gives_up_after_its_timeout(gate, timeout):
    ref = after.remote(gate, 1)
    for refs in (ref, [ref], [fastray.put(0), ref]):
        with pytest.raises(fastray.exceptions.GetTimeoutError) as caught:
            fastray.get(refs, timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
    open_gate(gate)
    assert fastray.get(ref, timeout=GET_S) == 1


def test_get_with_a_timeout_of_zero_takes_what_is_done():
    assert fastray.get(fastray.put(1), timeout=0) == 1
    ref = echo.remote(2)
    fastray.wait([ref], timeout=GET_S)
    assert fastray.get([ref, ref], timeout=0) == [2, 2]


def test_wait_refuses_a_negative_timeout_and_get_takes_it_for_none(gate):
    ref = after.remote(gate)
    with pytest.raises(ValueError, match="timeout"):
        fastray.wait([ref], timeout=-1)
    assert fastray.get(fastray.put(1), timeout=-1) == 1


def test_get_of_a_list_raises_the_error_of_a_later_one_early(gate):
    @fastray.remote
    def fail():
        raise KeyError("early")

    slow, failing = after.remote(gate), fail.remote()
    with pytest.raises(KeyError):
        fastray.get([slow, failing], timeout=GET_S)


# ---- wait ------------------------------------------------------------------------------------------------


def test_wait_splits_into_ready_and_not_ready_in_order(gate):
    slow = [after.remote(gate, i) for i in range(2)]
    done = [fastray.put(i) for i in range(3)]
    refs = [slow[0], done[0], done[1], slow[1], done[2]]
    assert fastray.wait(refs, num_returns=3, timeout=GET_S) == (done, slow)
    assert fastray.wait(refs, num_returns=5, timeout=0) == (done, slow)
    assert fastray.wait(refs, timeout=GET_S) == ([done[0]], [slow[0], done[1], slow[1], done[2]])
    open_gate(gate)
    assert fastray.wait(refs, num_returns=5, timeout=GET_S) == (refs, [])


def test_wait_returns_when_enough_are_ready_and_never_more(gate):
    done = [fastray.put(i) for i in range(4)]
    ready, rest = fastray.wait(done, num_returns=2)
    assert (ready, rest) == (done[:2], done[2:])


def test_wait_counts_a_failed_task_as_ready():
    @fastray.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert fastray.wait([ref], timeout=GET_S) == ([ref], [])


def test_wait_until_the_timeout_returns_what_there_is(gate):
    ref = after.remote(gate)
    before = time.monotonic()
    assert fastray.wait([ref], timeout=0.1) == ([], [ref])
    assert 0.09 < time.monotonic() - before < 5


def test_wait_refuses_wrong_arguments():
    ref = fastray.put(1)
    cases = [
        (ValueError, lambda: fastray.wait([ref, ref])),
        (ValueError, lambda: fastray.wait([ref], num_returns=2)),
        (ValueError, lambda: fastray.wait([ref], num_returns=0)),
        (TypeError, lambda: fastray.wait(ref)),
        (TypeError, lambda: fastray.wait([1])),
        (TypeError, lambda: fastray.wait({ref})),
    ]
    for error, call in cases:
        with pytest.raises(error):
            call()
    assert fastray.wait([]) == ([], [])


def test_a_list_that_shrinks_while_waiting_is_waited_for_as_it_was():
    refs = [echo.remote(i) for i in range(1000)]
    seen = []
    while refs:
        ready, refs = fastray.wait(refs, timeout=GET_S)
        seen += fastray.get(ready)
    assert sorted(seen) == list(range(1000))


def test_threads_may_wait_for_and_get_the_same_references(gate):
    ref = after.remote(gate, "value")
    got = []
    threads = [threading.Thread(target=lambda: got.append(fastray.get(ref, timeout=GET_S))) for _ in range(4)]
    threads += [
        threading.Thread(target=lambda: got.append(fastray.wait([ref], timeout=GET_S)[0] and "value"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    open_gate(gate)
    for thread in threads:
        thread.join(GET_S)
    assert got == ["value"] * 8


# ---- empty -----------------------------------------------------------------------------------------------


def test_empty_is_filled_in_place_and_sealed_by_put():
    array = fastray.empty((1000, 100), "float32")
    assert array.shape == (1000, 100)
    assert array.dtype == np.float32
    array[:] = 3
    ref = fastray.put(array)
    assert not array.flags.writeable
    assert np.shares_memory(fastray.get(ref), array)
    assert fastray.get(echo.remote(ref), timeout=GET_S).sum() == 300_000


def test_empty_takes_what_numpy_takes_and_refuses_the_rest():
    assert fastray.empty(5, np.int8).shape == (5,)
    assert fastray.empty((), "f8").shape == ()
    assert fastray.empty((0, 3)).size == 0
    with pytest.raises(TypeError, match="objects"):
        fastray.empty(5, object)
    with pytest.raises(ValueError, match="negative"):
        fastray.empty((2, -1))
    with pytest.raises(fastray.exceptions.ObjectStoreFullError):
        fastray.empty(2**46)


def test_an_empty_array_that_is_never_put_gives_its_memory_back():
    gc.collect()
    before = store_bytes()
    array = fastray.empty(4 * MB, np.uint8)
    assert store_bytes() >= before + 4 * MB
    del array
    assert eventually(lambda: store_bytes() <= before + 4096)


def test_empty_in_a_task_is_a_result_like_any_other():
    @fastray.remote
    def make():
        array = fastray.empty(100_000)
        array[:] = 2
        return array

    @fastray.remote
    def make_and_put():
        array = fastray.empty(100_000)
        array[:] = 3
        return fastray.put(array)

    assert fastray.get(make.remote(), timeout=GET_S).sum() == 200_000
    assert fastray.get(fastray.get(make_and_put.remote(), timeout=GET_S), timeout=GET_S).sum() == 300_000
