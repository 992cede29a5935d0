"""`f.map`: results in order, lazy, fused by measured time; errors and crashes at their place. map_unordered,
as_completed."""

from __future__ import annotations

import itertools
import os

import pytest
from integration_helpers import kill_self, note, open_gate, tally, wait_for_gate

import fastray
from fastray.util import as_completed, map_unordered

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def square(x):
    return x * x


@pytest.mark.parametrize("n", [0, 1, 2, 100, 20_000])
def test_results_come_in_order(n):
    assert list(square.map(range(n), timeout=GET_S)) == [i * i for i in range(n)]


def test_any_iterable_is_taken_and_read_as_needed():
    assert list(square.map(i for i in (3, 1, 2))) == [9, 1, 4]
    assert set(square.map({1, 2, 3})) == {1, 4, 9}
    results = square.map(itertools.count())
    assert list(itertools.islice(results, 1000)) == [i * i for i in range(1000)]
    results.close()
    with pytest.raises(TypeError):
        square.map(3)


def test_short_calls_are_fused_and_long_ones_are_not(tmp_path):
    path = str(tmp_path / "tally")

    @fastray.remote
    def task_id(_):
        return fastray.get_runtime_context().get_task_id()

    ids = list(task_id.map(range(5000)))
    assert len(set(ids)) < 2500

    @fastray.remote
    def slow(i):
        import time

        note(path, fastray.get_runtime_context().get_task_id())
        time.sleep(0.01)
        return i

    assert list(slow.map(range(20))) == list(range(20))
    assert len(set(tally(path))) == 20


def test_an_error_is_raised_at_its_place():
    @fastray.remote
    def odd(i):
        if i == 700:
            raise KeyError(i)
        return i

    results = odd.map(range(2000))
    assert list(itertools.islice(results, 700)) == list(range(700))
    with pytest.raises(KeyError) as caught:
        next(results)
    assert isinstance(caught.value, fastray.exceptions.TaskError)
    assert "odd" in str(caught.value)


def test_an_error_of_the_iterable_comes_through():
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(square.map(items()))


def test_a_crash_in_a_map_is_retried(tmp_path):
    path = str(tmp_path / "died")

    @fastray.remote
    def fragile(i):
        if i == 50 and not os.path.exists(path):
            open_gate(path)
            kill_self()
        return i

    assert list(fragile.map(range(200), timeout=GET_S)) == list(range(200))


def test_a_map_gives_up_after_its_timeout(tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote
    def stay(_):
        wait_for_gate(gate)

    with pytest.raises(fastray.exceptions.GetTimeoutError):
        list(stay.map(range(3), timeout=0.05))
    open_gate(gate)


def test_maps_nest_and_take_options():
    @fastray.remote
    def row(n):
        return sum(square.map(range(n)))

    assert list(row.map([1, 2, 3, 10])) == [0, 1, 5, 285]
    assert list(square.options(num_cpus=2, name="other").map([5])) == [25]


def test_items_may_hold_references_and_results_may_be_large():
    @fastray.remote
    def read(pair):
        i, ref = pair
        return fastray.get(ref) * i

    ref = fastray.put(b"x" * 10_000)
    results = list(read.map([(i, ref) for i in range(30)]))
    assert [len(r) for r in results] == [10_000 * i for i in range(30)]


def test_map_unordered_gives_every_result_once():
    assert sorted(map_unordered(square, range(500))) == sorted(i * i for i in range(500))
    assert sorted(map_unordered(square, iter(range(50)), backpressure_size=10)) == sorted(
        i * i for i in range(50)
    )


def test_as_completed_gives_the_first_done_first(tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote
    def late():
        wait_for_gate(gate)
        return "late"

    refs = [late.remote(), *[square.remote(i) for i in range(5)]]
    results = as_completed(refs, timeout=GET_S)
    early = [next(results) for _ in range(5)]
    assert sorted(early) == [0, 1, 4, 9, 16]
    open_gate(gate)
    assert next(results) == "late"
    assert list(results) == []
