"""Durable sessions of tasks that depend on each other, submit others, or draw random numbers: no result is used twice,
and none with values it was not made from.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from integration_helpers import note, tally, twice

import fastray


@pytest.fixture
def runs(tmp_path):
    return str(tmp_path / "runs")


@pytest.fixture
def session(tmp_path):
    return lambda: fastray.init(num_cpus=2, durable=tmp_path / "durable")


def logs(tmp_path):
    return [path for path in sorted((tmp_path / "durable").iterdir()) if path.name.startswith(("log-", "base-"))]


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
        with open(runs, "ab", buffering=0) as file:  # one write: its end says which run this is
            file.write(b"x\n")
            number = file.tell() // 2
        if number > int(Path(allowed).read_text()):
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
