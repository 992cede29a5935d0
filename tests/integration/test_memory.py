"""Objects live as long as somebody can ask for them, and their memory comes back afterwards."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from integration_helpers import eventually, store_bytes

import fastray

GET_S = 30
MB = 2**20

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture(autouse=True)
def base():
    """Bytes in the store before the test; they must be what is left after it (small rings may stay)."""
    gc.collect()
    before = store_bytes()
    yield before
    gc.collect()
    assert eventually(lambda: store_bytes() <= before + 256 * 1024, 2), (
        f"{store_bytes() - before} bytes leaked"
    )


def freed(base):
    gc.collect()
    return eventually(lambda: store_bytes() < base + MB // 2, 2)


@fastray.remote
def make(n):
    return np.ones(n, np.uint8)


@fastray.remote
def total(array):
    return int(array.sum())


@fastray.remote
def total_of(box):
    return int(fastray.get(box[0]).sum())


def test_a_dropped_object_is_freed(base):
    ref = fastray.put(np.ones(4 * MB, np.uint8))
    assert store_bytes() >= base + 4 * MB
    del ref
    assert freed(base)


def test_a_dropped_result_is_freed(base):
    refs = [make.remote(MB) for _ in range(4)]
    fastray.wait(refs, num_returns=4, timeout=GET_S)
    assert store_bytes() >= base + 4 * MB
    del refs
    assert freed(base)


def test_a_result_that_was_dropped_before_it_was_made_is_freed(base):
    for _ in range(20):
        make.remote(MB)
    fastray.get(total.remote(make.remote(10)), timeout=GET_S)
    assert freed(base)


def test_arguments_are_freed_with_their_task(base):
    assert fastray.get(total.remote(np.ones(4 * MB, np.uint8)), timeout=GET_S) == 4 * MB
    assert freed(base)


def test_an_array_keeps_the_memory_it_views(base):
    array = fastray.get(fastray.put(np.ones(4 * MB, np.uint8)))
    part = array[10:20]
    del array
    gc.collect()
    fastray.put(np.zeros(4 * MB, np.uint8))
    assert part.sum() == 10
    assert store_bytes() >= base + 4 * MB
    del part
    assert freed(base)


def test_a_nested_reference_keeps_its_object(base):
    outer = fastray.put([fastray.put(np.ones(4 * MB, np.uint8))])
    gc.collect()
    assert fastray.get(fastray.get(outer)[0]).sum() == 4 * MB
    del outer
    assert freed(base)


def test_references_nested_many_levels_deep_keep_their_object(base):
    ref = fastray.put(np.ones(4 * MB, np.uint8))
    for _ in range(50):
        ref = fastray.put([ref])
    for _ in range(50):
        ref = fastray.get(ref)[0]
    assert fastray.get(ref).sum() == 4 * MB
    del ref
    assert freed(base)


def test_dropping_the_outermost_of_a_long_chain_frees_all(base):
    ref = fastray.put(np.ones(4 * MB, np.uint8))
    for _ in range(20_000):
        ref = fastray.put([ref])
    del ref
    assert freed(base)


def test_an_argument_in_a_container_is_kept_until_the_task_has_run(base):
    refs = [total_of.remote([fastray.put(np.ones(MB, np.uint8))]) for _ in range(8)]
    gc.collect()
    assert fastray.get(refs, timeout=GET_S) == [MB] * 8
    del refs
    assert freed(base)


def test_an_argument_at_top_level_is_kept_until_the_task_has_run(base):
    refs = [total.remote(make.remote(MB)) for _ in range(8)]
    gc.collect()
    assert fastray.get(refs, timeout=GET_S) == [MB] * 8
    del refs
    assert freed(base)


def test_an_object_put_by_a_task_lives_while_its_result_does(base):
    @fastray.remote
    def put_inside():
        return [fastray.put(np.ones(4 * MB, np.uint8))]

    outer = put_inside.remote()
    inner = fastray.get(outer, timeout=GET_S)[0]
    del outer
    gc.collect()
    assert fastray.get(inner, timeout=GET_S).sum() == 4 * MB
    del inner
    assert freed(base)


def test_several_returns_are_freed_each_on_its_own(base):
    @fastray.remote(num_returns=4)
    def four():
        return [np.ones(2 * MB, np.uint8) for _ in range(4)]

    refs = four.remote()
    fastray.wait(refs, num_returns=4, timeout=GET_S)
    del refs[1:]
    gc.collect()
    assert eventually(lambda: store_bytes() < base + 3 * MB, 2)
    assert fastray.get(refs[0]).sum() == 2 * MB
    del refs
    assert freed(base)


def test_a_failed_task_keeps_nothing(base):
    @fastray.remote
    def fail(array):
        big = array + 1
        raise ValueError(f"with a frame that holds {big.nbytes} bytes")

    refs = [fail.remote(np.ones(MB, np.uint8)) for _ in range(4)]
    for ref in refs:
        with pytest.raises(ValueError, match="bytes"):
            fastray.get(ref, timeout=GET_S)
    del refs, ref
    assert freed(base)


def test_a_thousand_rounds_in_a_small_store_do_not_fill_it():
    """Each round makes more than the store could hold of all rounds together."""

    @fastray.remote
    def double(array):
        return array * 2

    for i in range(1000):
        array = fastray.get(double.remote(np.full(MB, i % 100, np.uint8)), timeout=GET_S)
        assert array[0] == i % 100 * 2
    del array


def test_two_hundred_thousand_dropped_tasks_run_in_constant_memory(base):
    @fastray.remote
    def work(data):
        return data

    for _ in range(200):
        for _ in range(1000):
            work.remote(b"x" * 200)
        fastray.get(work.remote(b""), timeout=GET_S)
    assert store_bytes() < base + 64 * MB
    assert freed(base)


def test_a_result_larger_than_the_store_is_a_typed_error(fresh_store):
    @fastray.remote(max_retries=0)
    def large():
        return np.ones(400 * MB, np.uint8)

    with pytest.raises(fastray.exceptions.ObjectStoreFullError):
        fastray.get(large.remote(), timeout=GET_S)
    with pytest.raises(fastray.exceptions.ObjectStoreFullError):
        fastray.put(np.ones(400 * MB, np.uint8))
    with pytest.raises(fastray.exceptions.ObjectStoreFullError):
        total.remote(np.ones(400 * MB, np.uint8))
    assert fastray.get(total.remote(np.ones(MB, np.uint8)), timeout=GET_S) == MB


def test_a_full_store_works_again_when_references_are_dropped(fresh_store):
    kept = []
    with pytest.raises(fastray.exceptions.ObjectStoreFullError):
        while len(kept) < 1000:
            kept.append(fastray.put(np.ones(5 * MB, np.uint8)))
    assert len(kept) >= 10
    del kept
    gc.collect()
    again = [fastray.put(np.ones(5 * MB, np.uint8)) for _ in range(10)]
    assert fastray.get(again[0]).sum() == 5 * MB
    del again


@pytest.fixture
def fresh_store(base):
    """The same process with a session whose store has 100 MiB, for one test."""
    fastray.shutdown()
    fastray.init(num_cpus=2, object_store_memory=100 * MB)
    yield
    fastray.shutdown()
    fastray.init(num_cpus=2)
