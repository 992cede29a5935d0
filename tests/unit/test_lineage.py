"""Lineage as a graph: the smallest set of tasks to run again, and what is missing."""

from __future__ import annotations

import random

import pytest

from fastray.recovery.lineage import NO_ATTEMPTS, NO_LINEAGE, NO_TASK, Node, plan


def task(state, *arguments, **more):
    return Node("task", state, more.pop("name", "f"), list(arguments), **more)


def test_what_is_there_needs_nothing():
    assert plan({"a": task("done")}, "a").runs == []


@pytest.mark.parametrize("state", ["waiting", "ready", "running"])
def test_what_is_under_way_needs_nothing(state):
    assert plan({"a": task("lost", "b"), "b": task(state)}, "a").runs == ["a"]


def test_arguments_come_before_what_needs_them():
    graph = {"c": task("lost", "a", "b"), "a": task("lost"), "b": task("lost", "a")}
    runs = plan(graph, "c").runs
    assert sorted(runs) == ["a", "b", "c"]
    assert runs.index("a") < runs.index("b") < runs.index("c")


def test_what_is_still_reachable_is_used():
    graph = {"c": task("lost", "b"), "b": task("done", "a"), "a": task("lost")}
    assert plan(graph, "c").runs == ["c"]


def test_a_return_value_needs_its_task():
    graph = {"r": Node("return", "lost", "f", ["t"]), "t": task("done", "x"), "x": Node("put", "done")}
    assert plan(graph, "r").runs == ["t"]
    graph["t"].state = "running"
    assert plan(graph, "r").runs == []


def test_a_failed_argument_is_there():
    assert plan({"b": task("lost", "a"), "a": task("failed")}, "b").runs == ["b"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("put", "lost"), NO_TASK),
        (Node("item", "lost", "g"), NO_TASK),
        (Node("freed", "freed"), NO_TASK),
        (Node("task", "lost", "g", None), NO_LINEAGE),
        (Node("task", "lost", "g", [], attempts=2, max_retries=2), NO_ATTEMPTS),
    ],
)
def test_what_is_missing_is_named_with_its_chain(node, reason):
    graph = {"c": task("lost", "b", name="c"), "b": task("lost", "a", name="b"), "a": node}
    found = plan(graph, "c")
    assert not found.possible
    (missing,) = found.missing
    assert (missing.key, missing.reason) == ("a", reason)
    assert missing.chain[0] == node.title()
    assert missing.chain[1:] == ("b()", "c()")


def test_retries_without_end():
    assert plan({"a": task("lost", attempts=200, max_retries=-1)}, "a").possible


def test_long_chains():
    graph = {0: task("lost")}
    graph.update({i: task("lost", i - 1) for i in range(1, 50_000)})
    assert plan(graph, 49_999).runs == list(range(50_000))


def needed(graph, wanted):
    """The definition, recursively: what is lost, and what that needs."""
    found = set()

    def look(key):
        if graph[key].state != "lost" or key in found:
            return
        found.add(key)
        for argument in graph[key].arguments:
            look(argument)

    look(wanted)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed):
    rng = random.Random(seed)
    graph = {
        i: task(rng.choice(["lost", "lost", "done"]), *rng.sample(range(i), min(i, rng.randrange(4))))
        for i in range(60)
    }
    graph[59].state = "lost"
    found = plan(graph, 59)
    assert found.possible
    assert set(found.runs) == needed(graph, 59)
    place = {key: at for at, key in enumerate(found.runs)}
    for key in found.runs:
        assert all(place[a] < place[key] for a in graph[key].arguments if a in place)
