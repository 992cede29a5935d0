"""Actors that run on another node than the one where they were made, and handles that travel."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("grpc")

from cluster_helpers import far_cluster
from integration_helpers import eventually

import fastray
from fastray.exceptions import ActorDiedError, ActorUnavailableError

GET_S = 60


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with far_cluster(tmp_path_factory.mktemp("runtime"), resources={"far": 8}) as made:
        yield made


class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, by=1):
        self.n += by
        return self.n

    def node(self):
        return fastray.get_runtime_context().get_node_id()

    def array(self):
        return np.ones(300_000)

    def numbers(self, n):
        yield from range(n)

    def die(self):
        os._exit(3)

    def another(self):
        return Here.remote(100)


Far = fastray.remote(resources={"far": 0.1}, num_cpus=0)(Counter)
Here = fastray.remote(num_cpus=0)(Counter)


def get(refs):
    return fastray.get(refs, timeout=GET_S)


@fastray.remote(resources={"far": 0.1}, num_cpus=0)
def use(handle, nested):
    return fastray.get([handle.add.remote() for _ in range(3)] + [nested[0].add.remote()])


def test_calls_run_there_in_order(cluster):
    counter = Far.remote(10)
    assert get(counter.node.remote()) == cluster.far_node.node_id
    assert get([counter.add.remote() for _ in range(3000)]) == list(range(11, 3011))
    assert get(counter.array.remote()).sum() == 300_000
    assert [get(ref) for ref in counter.numbers.options(num_returns="streaming").remote(4)] == [0, 1, 2, 3]


def test_calls_wait_for_their_arguments_in_order():
    counter = Far.remote()
    slow = fastray.remote(lambda: __import__("time").sleep(0.3) or 100).remote()
    assert get([counter.add.remote(slow), counter.add.remote(1)]) == [100, 101]


def test_handles_travel_both_ways(cluster):
    here, there = Here.remote(), Far.remote()
    assert get(use.remote(here, [there])) == [1, 2, 3, 1]
    assert get(use.remote(there, [here])) == [2, 3, 4, 4]
    made_there = get(there.another.remote())
    assert get(made_there.add.remote()) == 101
    assert get(made_there.node.remote()) == cluster.far_node.node_id
    assert get(use.remote(made_there, [made_there])) == [102, 103, 104, 105]


def test_an_actor_ends_when_its_last_handle_goes(cluster):
    counter = Far.remote()
    refs = [counter.add.remote() for _ in range(5)]
    del counter
    assert get(refs) == [1, 2, 3, 4, 5]
    from fastray.util.state import list_actors

    assert eventually(lambda: not [row for row in list_actors() if row["state"] == "ALIVE" and row["name"] == "x"])


def test_a_restart_there_is_a_restart():
    counter = Far.options(max_restarts=1).remote(5)
    assert get(counter.add.remote()) == 6
    with pytest.raises((ActorUnavailableError, ActorDiedError)):
        get(counter.die.remote())

    def answers():
        try:
            return get(counter.add.remote())
        except ActorUnavailableError:
            return None

    assert eventually(answers) == 6
    with pytest.raises(ActorDiedError):
        get(counter.die.remote())
    with pytest.raises(ActorDiedError, match="process died"):
        get(counter.add.remote())


def test_a_constructor_that_raises_says_so():
    @fastray.remote(resources={"far": 0.1}, num_cpus=0)
    class Bad:
        def __init__(self):
            raise KeyError("no such thing")

        def f(self):
            return 1

    bad = Bad.remote()
    for _ in range(3):
        with pytest.raises(ActorDiedError, match="no such thing"):
            get(bad.f.remote())


def test_kill():
    counter = Far.remote()
    assert get(counter.add.remote()) == 1
    fastray.kill(counter)
    with pytest.raises(ActorDiedError, match="killed"):
        get(counter.add.remote())
    again = Far.options(max_restarts=1).remote()
    assert get(again.add.remote()) == 1
    fastray.kill(again, no_restart=False)

    def restarted():
        try:
            return get(again.add.remote()) == 1
        except ActorUnavailableError:
            return False

    assert eventually(restarted)


def test_an_actor_that_no_node_can_run_dies():
    stuck = fastray.remote(resources={"nowhere": 1}, num_cpus=0)(Counter).remote()
    with pytest.raises(ActorDiedError):
        get(stuck.add.remote())
