"""`init(durable=PATH)`: a session finds what earlier ones on the same path have finished, and runs the rest.

Each task notes its runs in a tally, a file. Most sessions here end by `shutdown`; test_durable_resume.py and
tests/crash/test_durable_kills.py kill them.
"""

from __future__ import annotations

import dataclasses
import os
import random

import numpy as np
import pytest
from integration_helpers import note, tally, twice

import fastray


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    names: frozenset = frozenset(["a", "b", "c"])


@pytest.fixture
def runs(tmp_path):
    return str(tmp_path / "runs")


@pytest.fixture
def session(tmp_path):
    def begin(**options):
        return fastray.init(num_cpus=2, durable=tmp_path / "durable", **options)

    return begin


def test_finished_tasks_are_not_run_again(session, runs):
    @fastray.remote
    def double(x):
        note(runs)
        return 2 * x

    values = [0, -5, 1 << 70, 1.5, "text", b"bytes" * 100, "", (1, [2, {"three": 4}]), True]
    first, second = twice(session, lambda: fastray.get([double.remote(v) for v in values]))
    assert first == second
    assert len(tally(runs)) == len(values)


def test_new_calls_run_and_are_found_by_the_next_session(session, runs):
    @fastray.remote
    def f(x):
        note(runs, x)
        return x

    for stop in (3, 5, 5):
        with session():
            assert fastray.get([f.remote(i) for i in reversed(range(stop))]) == list(reversed(range(stop)))
    assert sorted(tally(runs)) == list("01234")


def test_keyword_arguments_count(session, runs):
    @fastray.remote
    def f(a, b=1):
        note(runs)
        return a, b

    calls = lambda: fastray.get([f.remote(1), f.remote(1, b=2), f.remote(a=1), f.remote(1, 2)])  # noqa: E731
    first, second = twice(session, calls)
    assert first == second == [(1, 1), (1, 2), (1, 1), (1, 2)]
    assert len(tally(runs)) == 4


def test_another_function_runs_again(session, runs):
    def run(function):
        with session():
            return fastray.get(fastray.remote(function).remote(1))

    def f(x):
        note(runs)
        return x + 1

    assert run(f) == 2
    assert run(f) == 2
    assert len(tally(runs)) == 1
    old = f

    def f(x):
        note(runs)
        return x + 2

    assert run(f) == 3
    assert run(old) == 2
    assert len(tally(runs)) == 2


def test_what_a_function_calls_counts(session, runs):
    helper = lambda x: x + 1  # noqa: E731

    def f(x):
        note(runs)
        return helper(x)

    with session():
        assert fastray.get(fastray.remote(f).remote(1)) == 2
    helper = lambda x: x + 10  # noqa: E731
    with session():
        assert fastray.get(fastray.remote(f).remote(1)) == 11


def test_several_returns(session, runs):
    @fastray.remote(num_returns=3)
    def split(x):
        note(runs)
        return x, "long" * 100, np.full(1000, x)

    def program():
        first = split.remote(1)[0]  # the others are dropped at once
        a, b, c = split.remote(2)
        return [*fastray.get([first, a, b]), fastray.get(c).sum()]

    one, two = twice(session, program)
    assert one == two == [1, 2, "long" * 100, 2000]
    assert len(tally(runs)) == 2


def test_no_returns_and_dropped_references(session, runs):
    @fastray.remote(num_returns=0)
    def nothing():
        note(runs)

    @fastray.remote
    def dropped(x):
        note(runs)
        return x

    @fastray.remote
    def last(x):
        return x

    def program():
        nothing.remote()
        dropped.remote(1)
        dropped.remote(np.zeros(1000))
        while len(tally(runs)) < 3:
            fastray.get(last.remote(0))
        return fastray.get([last.remote(i) for i in range(100)])[-1]  # behind the others in the queue

    twice(session, program)
    assert len(tally(runs)) == 3


def test_large_results(session, runs):
    @fastray.remote
    def big(n):
        note(runs)
        return {"array": np.arange(n), "text": "x" * n, "view": np.arange(n).reshape(2, -1).T}

    @fastray.remote
    def total(d):
        note(runs)
        return int(d["array"].sum())

    def program():
        ref = big.remote(1_000_000)
        return fastray.get(ref), fastray.get(total.remote(ref))

    (one, one_sum), (two, two_sum) = twice(session, program)
    assert one_sum == two_sum == 499_999_500_000
    for key in one:
        assert np.array_equal(one[key], two[key])
    assert len(tally(runs)) == 2


def test_large_arguments_count_by_content(session, runs):
    @fastray.remote
    def total(a):
        note(runs)
        return float(a.sum())

    def program(value):
        array = np.full(100_000, value)
        with session():
            return fastray.get([total.remote(array), total.remote(fastray.put(array))])

    assert program(1.0) == program(1.0) == [100_000.0] * 2
    assert len(tally(runs)) == 2
    assert program(2.0) == [200_000.0] * 2
    assert len(tally(runs)) == 4


def test_exceptions_are_not_kept(session, runs):
    @fastray.remote
    def fails():
        note(runs)
        raise ValueError("no")

    for _ in range(2):
        with session(), pytest.raises(ValueError, match="no"):
            fastray.get(fails.remote())
    assert len(tally(runs)) == 2


def test_classes_of_the_program_come_back_as_themselves(session, runs):
    @fastray.remote
    def move(p):
        note(runs)
        return Point(p.x + 1)

    first, second = twice(session, lambda: fastray.get([move.remote(Point(i)) for i in range(3)]))
    assert first == second == [Point(1), Point(2), Point(3)]
    assert all(type(p) is Point for p in second)
    assert len(tally(runs)) == 3


def test_streams_run_again(session, runs):
    @fastray.remote
    def stream(n):
        note(runs, "stream")
        yield from range(n)

    first, second = twice(session, lambda: [fastray.get(ref) for ref in stream.remote(3)])
    assert first == second == [0, 1, 2]
    assert tally(runs) == ["stream"] * 2


def test_map_finds_its_items(session, runs):
    @fastray.remote
    def square(x):
        note(runs)
        return x * x

    for n in (500, 700):
        with session():
            assert list(square.map(range(n))) == [x * x for x in range(n)]
    assert len(tally(runs)) == 700


def test_a_program_that_goes_by_the_clock(session, runs):
    """`wait` decides what is submitted next: another order each time, the same calls."""

    @fastray.remote
    def step(chain, i):
        note(runs)
        return i

    def program(seed):
        shuffled = random.Random(seed)
        chains = {step.remote(c, 0): (c, 0) for c in range(5)}
        done = []
        while chains:
            ready, _ = fastray.wait(shuffled.sample(list(chains), len(chains)))
            c, i = chains.pop(ready[0])
            done.append((c, fastray.get(ready[0])))
            if i < 9:
                chains[step.remote(c, i + 1)] = (c, i + 1)
        return sorted(done)

    with session():
        first = program(1)
    with session():
        assert program(2) == first
    assert len(tally(runs)) == 50


def test_retries_are_kept_once_they_succeed(session, runs):
    @fastray.remote(max_retries=5, retry_exceptions=True)
    def flaky():
        note(runs)
        if len(tally(runs)) < 3:
            raise OSError
        return "well"

    assert twice(session, lambda: fastray.get(flaky.remote())) == ["well"] * 2
    assert len(tally(runs)) == 3


def test_local_mode(session, runs):
    @fastray.remote
    def leaf(x):
        note(runs)
        return x

    @fastray.remote
    def tree(n):
        note(runs)
        return sum(fastray.get([leaf.remote(i) for i in range(n)]))

    for local in (True, True, False):
        with session(local_mode=local):
            assert fastray.get([tree.remote(3), leaf.remote(7)]) == [3, 7]
    assert len(tally(runs)) == 5


def test_runtime_env_counts(session, runs):
    @fastray.remote
    def variable():
        note(runs)
        return os.environ.get("DURABLE_TEST")

    def program(value):
        with session():
            return fastray.get(variable.options(runtime_env={"env_vars": {"DURABLE_TEST": value}}).remote())

    assert [program("a"), program("a"), program("b")] == ["a", "a", "b"]
    assert len(tally(runs)) == 2
