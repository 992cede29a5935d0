"""`init(durable=PATH)`: a session finds what earlier ones on the same path have finished, and runs the rest.

Each task notes its runs in a tally, a file. Most sessions here end by `shutdown`; test_durable_resume.py and
tests/crash/test_durable_kills.py kill them.
"""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

import numpy as np
import pytest
from integration_helpers import note, tally

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


def logs(tmp_path):
    return [path for path in sorted((tmp_path / "durable").iterdir()) if path.name.startswith(("log-", "base-"))]


def twice(session, program):
    """Results of two sessions that run the same program."""
    results = []
    for _ in range(2):
        with session():
            results.append(program())
    return results


def test_finished_tasks_are_not_run_again(session, runs):
    @fastray.remote
    def double(x):
        note(runs)
        return 2 * x

    values = [0, -5, 1 << 70, 1.5, "text", b"bytes" * 100, None, (1, [2, {"three": 4}]), True]
    first, second = twice(session, lambda: fastray.get([double.remote(v) if v is not None else double.remote(0) for v in values]))
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
    def helper(x):
        return x + 1

    def f(x):
        note(runs)
        return helper(x)

    with session():
        assert fastray.get(fastray.remote(f).remote(1)) == 2

    def helper(x):
        return x + 10

    with session():
        assert fastray.get(fastray.remote(f).remote(1)) == 11


def test_dependencies_count_by_their_values(session, runs):
    @fastray.remote
    def draw():
        return random.getrandbits(60)

    @fastray.remote
    def add(a, b):
        note(runs)
        return a + b

    def program():
        a, b = draw.remote(), draw.remote()
        c = add.remote(a, b)
        return fastray.get([a, b, c, add.remote(c, fastray.put(1))])

    first, second = twice(session, program)
    assert first == second
    assert first[0] != first[1]
    assert first[3] == first[0] + first[1] + 1
    assert len(tally(runs)) == 2


@pytest.mark.parametrize("kept", range(8))
def test_equal_calls_keep_their_own_results(session, tmp_path, kept):
    """A task that draws random numbers, and what was computed from them, whatever part of the log is left."""

    @fastray.remote
    def draw():
        return random.getrandbits(60)

    @fastray.remote
    def negative(a):
        return -a

    def program():
        drawn = [draw.remote() for _ in range(4)]
        return fastray.get(drawn), fastray.get([negative.remote(d) for d in drawn])

    with session():
        program()
    for path in logs(tmp_path):
        os.truncate(path, 64 + 40 * kept)
    with session():
        drawn, negated = program()
    assert len(set(drawn)) == 4
    assert negated == [-d for d in drawn]


def test_nested_tasks(session, runs):
    @fastray.remote
    def leaf(x):
        note(runs, "leaf")
        return x

    @fastray.remote
    def tree(n):
        note(runs, "tree")
        return sum(fastray.get([leaf.remote(i) for i in range(n)]))

    first, second = twice(session, lambda: fastray.get([tree.remote(n) for n in (3, 4)]))
    assert first == second == [3, 6]
    assert sorted(tally(runs)) == ["leaf"] * 7 + ["tree"] * 2


def test_children_of_an_unfinished_task_are_found(session, runs, tmp_path):
    @fastray.remote
    def leaf(x):
        note(runs, "leaf")
        return x

    @fastray.remote(max_retries=0)
    def tree(n):
        note(runs, "tree")
        total = sum(fastray.get([leaf.remote(i) for i in range(n)]))
        if not os.path.exists(tmp_path / "go"):
            raise RuntimeError("not yet")
        return total

    with session(), pytest.raises(RuntimeError):
        fastray.get(tree.remote(5))
    (tmp_path / "go").touch()
    for _ in range(2):
        with session():
            assert fastray.get(tree.remote(5)) == 10
    assert sorted(tally(runs)) == ["leaf"] * 5 + ["tree"] * 2


def test_a_result_serves_one_task_only(session, runs, tmp_path):
    """Children of equal calls: those of finished ones, and those taken over by one that finished, are used up."""

    @fastray.remote
    def draw():
        return random.getrandbits(60)

    @fastray.remote(max_retries=0)
    def sample(allowed):
        value = fastray.get(draw.remote())
        note(runs)
        if len(tally(runs)) > int(Path(allowed).read_text()):
            raise RuntimeError("not yet")
        return value

    allowed = tmp_path / "allowed"

    def program(calls, may_finish):
        allowed.write_text(str(len(tally(runs)) + may_finish))
        finished = []
        with session():
            for ref in [sample.remote(str(allowed)) for _ in range(calls)]:
                try:
                    finished.append(fastray.get(ref))
                except RuntimeError:
                    continue
        return finished

    assert len(program(4, 2)) == 2
    assert len(set(program(4, 1))) == 3
    assert len(set(program(5, 2))) == 5


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


def test_references_inside_arguments(session, runs):
    @fastray.remote
    def part(x):
        note(runs, "part")
        return x

    @fastray.remote
    def whole(parts):
        note(runs, "whole")
        return sum(fastray.get(parts))

    first, second = twice(session, lambda: fastray.get(whole.remote([part.remote(i) for i in range(20)])))
    assert first == second == 190
    assert sorted(tally(runs)) == ["part"] * 20 + ["whole"]


def test_references_in_a_closure(session, runs):
    def program(value):
        with session():
            data = fastray.put([value] * 100)

            @fastray.remote
            def at(i):
                note(runs)
                return fastray.get(data)[i]

            return fastray.get([at.remote(i) for i in range(3)])

    assert program(1) == program(1) == [1] * 3
    assert len(tally(runs)) == 3
    assert program(2) == [2] * 3


def test_results_with_references_run_again_and_find_their_children(session, runs):
    @fastray.remote
    def child(x):
        note(runs, "child")
        return x

    @fastray.remote
    def parent():
        note(runs, "parent")
        return [child.remote(i) for i in range(3)]

    @fastray.remote
    def after(refs):
        note(runs, "after")
        return sum(fastray.get(refs))

    def program():
        refs = parent.remote()
        return fastray.get(fastray.get(refs)), fastray.get(after.remote(refs))

    first, second = twice(session, program)
    assert first == second == ([0, 1, 2], 3)
    assert tally(runs).count("child") == 3
    assert tally(runs).count("parent") == 2


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


def test_actors_run_again_and_their_tasks_do_not(session, runs):
    @fastray.remote
    def task(x):
        note(runs, "task")
        return x

    @fastray.remote
    class Counter:
        def __init__(self):
            self.total = 0

        def add(self, x):
            note(runs, "add")
            self.total += fastray.get(task.remote(x))
            return self.total

    @fastray.remote
    def through(counter):
        note(runs, "through")
        return fastray.get(counter.add.remote(10))

    def program():
        counter = Counter.remote()
        return fastray.get([counter.add.remote(i) for i in range(3)]), fastray.get(through.remote(counter))

    first, second = twice(session, program)
    assert first == second == ([0, 1, 3], 13)
    assert tally(runs).count("task") == 4
    assert tally(runs).count("add") == 8
    assert tally(runs).count("through") == 2


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
