"""Generators as tasks: items as they are made, backpressure, errors, ends, dynamic returns."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest
from integration_helpers import eventually, kill_self, note, open_gate, store_bytes, tally, wait_for_gate

import fastray

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def count(n):
    yield from range(n)


@fastray.remote
def echo(value):
    return value


@pytest.fixture
def place(tmp_path):
    return lambda name: str(tmp_path / name)


def values_of(items):
    return [fastray.get(ref, timeout=GET_S) for ref in items]


@pytest.mark.parametrize("n", [0, 1, 2, 10, 3000])
def test_a_generator_gives_its_items_in_order(n):
    items = count.remote(n)
    assert isinstance(items, fastray.ObjectRefGenerator)
    assert values_of(items) == list(range(n))
    with pytest.raises(StopIteration):
        next(items)


def test_more_items_than_a_small_number_can_count():
    items = count.remote(70_000)
    for i, ref in enumerate(items):
        if i % 1000 == 0 or i > 65_500:
            assert fastray.get(ref, timeout=GET_S) == i
    assert i == 69_999


def test_an_item_is_there_before_the_next_is_made(place):
    @fastray.remote
    def stepwise():
        for i in range(3):
            yield i
            wait_for_gate(place(str(i)))

    items = stepwise.remote()
    for i in range(3):
        assert fastray.get(next(items), timeout=GET_S) == i
        open_gate(place(str(i)))
    with pytest.raises(StopIteration):
        next(items)


def test_only_generators_stream():
    """As in Ray 2.60, where the decorator says so."""
    with pytest.raises(ValueError, match=r"echo.*yield|yield.*echo"):
        echo.options(num_returns="streaming").remote([7, 8])


def test_items_of_every_size_and_kind():
    @fastray.remote
    def mixed():
        yield None
        yield np.arange(200_000)
        yield {"a": [1, 2]}
        yield b"x" * 5_000_000
        yield fastray.put([3])
        yield lambda: 4

    none, array, mapping, data, ref, function = values_of(mixed.remote())
    assert none is None
    assert array[-1] == 199_999
    assert mapping == {"a": [1, 2]}
    assert len(data) == 5_000_000
    assert fastray.get(ref, timeout=GET_S) == [3]
    assert function() == 4


def test_items_are_arguments_of_other_tasks_and_outlive_the_stream():
    refs = list(count.remote(50))
    gc.collect()
    assert fastray.get([echo.remote(ref) for ref in refs], timeout=GET_S) == list(range(50))
    assert fastray.get(refs, timeout=GET_S) == list(range(50))


def test_an_error_is_the_last_item():
    @fastray.remote
    def breaks():
        yield 1
        yield 2
        raise KeyError("three")

    items = breaks.remote()
    assert fastray.get([next(items), next(items)], timeout=GET_S) == [1, 2]
    with pytest.raises(KeyError):
        fastray.get(next(items), timeout=GET_S)
    with pytest.raises(StopIteration):
        next(items)


def test_an_error_before_the_first_item():
    @fastray.remote
    def breaks():
        raise KeyError("one")
        yield 1

    items = breaks.remote()
    with pytest.raises(KeyError):
        fastray.get(next(items), timeout=GET_S)
    with pytest.raises(StopIteration):
        next(items)


def test_an_item_that_cannot_be_pickled_ends_the_stream_with_an_error():
    @fastray.remote
    def breaks():
        yield 1
        yield threading.Lock()
        yield 3

    items = breaks.remote()
    assert fastray.get(next(items), timeout=GET_S) == 1
    with pytest.raises(fastray.exceptions.SerializationError):
        fastray.get(next(items), timeout=GET_S)
    with pytest.raises(StopIteration):
        next(items)


def test_a_failed_dependency_fails_the_stream():
    @fastray.remote
    def fail():
        raise KeyError("first")

    items = count.remote(fail.remote())
    with pytest.raises(KeyError):
        fastray.get(next(items), timeout=GET_S)


@pytest.mark.parametrize("ahead", [1, 3])
def test_backpressure_keeps_the_producer_near(place, ahead):
    @fastray.remote(_generator_backpressure_num_objects=ahead)
    def eager():
        for i in range(20):
            note(place("made"), i)
            yield i

    items = eager.remote()
    taken = 0
    for ref in items:
        taken += 1
        assert fastray.get(ref, timeout=GET_S) == taken - 1
        assert len(tally(place("made"))) <= taken + ahead + 1
    assert taken == 20


def test_without_backpressure_the_producer_runs_ahead(place):
    @fastray.remote
    def eager():
        yield from range(100)
        open_gate(place("end"))

    items = eager.remote()
    wait_for_gate(place("end"))
    assert values_of(items) == list(range(100))


def test_dropping_the_generator_ends_the_producer_and_frees_the_items(place):
    @fastray.remote
    def endless():
        try:
            while True:
                yield b"x" * 100_000
        finally:
            open_gate(place("closed"))

    fastray.get(echo.remote(1), timeout=GET_S)
    before = store_bytes()
    items = endless.remote()
    fastray.get(next(items), timeout=GET_S)
    del items
    wait_for_gate(place("closed"))
    assert eventually(lambda: store_bytes() <= before + 2_000_000, 10)


def test_a_stream_of_much_more_than_the_store_runs_in_little_memory(run_program):
    run_program(
        """
        import fastray
        fastray.init(num_cpus=1, object_store_memory=100_000_000)

        @fastray.remote(_generator_backpressure_num_objects=3)
        def flood():
            for i in range(200):
                yield bytes([i]) * 5_000_000

        for i, ref in enumerate(flood.remote()):
            data = fastray.get(ref)
            assert len(data) == 5_000_000 and data[0] == i
        assert i == 199
        """
    )


def test_a_stream_whose_worker_dies_goes_on_where_it_was(place):
    @fastray.remote
    def fragile():
        for i in range(10):
            yield i
            if i == 4 and not os.path.exists(place("died")):
                open_gate(place("died"))
                kill_self()

    assert values_of(fragile.remote()) == list(range(10))


def test_a_stream_without_retries_left_ends_with_the_crash():
    @fastray.remote(max_retries=0)
    def doomed():
        yield 1
        kill_self()

    items = doomed.remote()
    assert fastray.get(next(items), timeout=GET_S) == 1
    with pytest.raises(fastray.exceptions.WorkerCrashedError):
        fastray.get(next(items), timeout=GET_S)
    with pytest.raises(StopIteration):
        next(items)


def test_what_a_generator_knows_of_itself(place):
    @fastray.remote
    def stepwise():
        yield 1
        wait_for_gate(place("gate"))
        yield 2

    items = stepwise.remote()
    fastray.get(next(items), timeout=GET_S)
    assert not items.is_finished()
    assert not items.next_ready()
    end = items.completed()
    assert fastray.wait([end], timeout=0) == ([], [end])
    open_gate(place("gate"))
    assert fastray.get(end, timeout=GET_S) is None
    assert items.next_ready()
    next(items)
    assert items.is_finished()


def test_wait_takes_generators():
    """As in Ray: a generator in the list is ready when it has a next item."""
    items = count.remote(3)
    ready, rest = fastray.wait([items], timeout=GET_S)
    assert (ready, rest) == ([items], [])
    assert fastray.get(next(items), timeout=GET_S) == 0


def test_threads_share_a_generator():
    items = count.remote(500)
    seen, lock = [], threading.Lock()

    def take():
        while True:
            with lock:
                try:
                    ref = next(items)
                except StopIteration:
                    return
            seen.append(fastray.get(ref, timeout=GET_S))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_S)
    assert sorted(seen) == list(range(500))


def test_streams_in_tasks():
    @fastray.remote
    def total(n):
        return sum(fastray.get(ref) for ref in count.remote(n))

    @fastray.remote
    def doubled(n):
        for ref in count.remote(n):
            yield fastray.get(ref) * 2

    assert fastray.get([total.remote(50) for _ in range(4)], timeout=GET_S) == [1225] * 4
    assert values_of(doubled.remote(20)) == list(range(0, 40, 2))


def test_many_streams_at_once():
    streams = [count.remote(30) for _ in range(50)]
    assert [values_of(items) for items in streams] == [list(range(30))] * 50


def test_asynchronous_iteration_takes_turns_with_other_coroutines(place):
    @fastray.remote
    def slow():
        for i in range(5):
            wait_for_gate(place(str(i)))
            yield i

    async def main():
        seen = []

        async def open_gates():
            for i in range(5):
                open_gate(place(str(i)))
                while len(seen) <= i:
                    await asyncio.sleep(0.001)

        opener = asyncio.ensure_future(open_gates())
        async for ref in slow.remote():
            seen.append(await ref)  # noqa: PERF401
        await opener
        return seen

    assert asyncio.run(asyncio.wait_for(main(), GET_S)) == list(range(5))


def test_asynchronous_iteration_of_an_error():
    @fastray.remote
    def breaks():
        yield 1
        raise KeyError("x")

    async def main():
        seen = []
        with pytest.raises(KeyError):
            async for ref in breaks.remote():
                seen.append(await ref)  # noqa: PERF401
        return seen

    assert asyncio.run(main()) == [1]


@pytest.mark.parametrize(
    "use", ["next(items)", "items.is_finished()", "items.next_ready()", "items.completed()"]
)
@pytest.mark.parametrize("again", [False, True])
def test_a_generator_of_an_ended_session_is_stale(run_program, use, again):
    run_program(
        f"""
        import fastray
        @fastray.remote
        def count():
            yield 1
            yield 2
        fastray.init(num_cpus=1)
        items = count.remote()
        next(items)
        fastray.shutdown()
        if {again}:
            fastray.init(num_cpus=1)
        try:
            {use}
        except fastray.exceptions.StaleReferenceError:
            pass
        else:
            raise AssertionError("no error")
        assert fastray.is_initialized() == {again}
        """,
        seconds=10,
    )


# ---- dynamic -------------------------------------------------------------------------------------------


def test_dynamic_returns_come_as_one_value_to_iterate():
    @fastray.remote(num_returns="dynamic")
    def split(n):
        for i in range(n):
            yield [i] * 3

    ref = split.remote(4)
    items = fastray.get(ref, timeout=GET_S)
    assert isinstance(items, fastray.DynamicObjectRefGenerator)
    assert [fastray.get(item, timeout=GET_S) for item in items] == [[i] * 3 for i in range(4)]


def test_dynamic_returns_of_none_and_of_an_error():
    @fastray.remote(num_returns="dynamic")
    def split(n):
        yield from range(n)
        if n == 3:
            raise KeyError("three")

    assert list(fastray.get(split.remote(0), timeout=GET_S)) == []
    with pytest.raises(KeyError):
        for item in fastray.get(split.remote(3), timeout=GET_S):
            fastray.get(item, timeout=GET_S)


def test_a_generator_cannot_be_sent_away():
    with pytest.raises(TypeError):
        echo.remote([count.remote(3)])


def test_a_consumer_slower_than_the_producer_and_the_other_way_round():
    @fastray.remote
    def bursts():
        for i in range(100):
            if i % 20 == 0:
                time.sleep(0.01)
            yield i

    seen = []
    for ref in bursts.remote():
        seen.append(fastray.get(ref, timeout=GET_S))
        if len(seen) % 30 == 0:
            time.sleep(0.01)
    assert seen == list(range(100))
