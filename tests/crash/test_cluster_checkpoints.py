"""Actors with checkpoints whose node dies: they go on elsewhere with their last state and the calls after it.

    steps    a file with a line for each run of `add`: what ran again, and what not
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import agent_of, far_cluster
from waiting import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray._native import actors as native_actors
from fastray.runtime import current_runtime

GET_S = 60
EVERY = 10  # calls between checkpoints


@pytest.fixture
def cluster(tmp_path):
    with far_cluster(tmp_path / "runtime", head_cpus=1, resources={"far": 4}) as made:
        yield made


@pytest.fixture
def steps(tmp_path):
    return str(tmp_path / "steps")


@fastray.remote(resources={"far": 1}, num_cpus=0, max_restarts=5, checkpoint_calls=EVERY)
class Counter:
    def __init__(self, steps, floats=0):
        self.n = 0
        self.steps = steps
        self.ballast = np.zeros(floats)

    def __fastray_save__(self):
        return self.n, self.ballast

    def __fastray_restore__(self, state):
        self.n, self.ballast = state

    def add(self, by=1):
        note(self.steps)
        self.n += by
        if len(self.ballast):
            self.ballast[:] = self.n
        return self.n

    def add_behind_gate(self, gate):
        note(self.steps)
        wait_for_gate(gate)
        self.n += 1
        return self.n

    def numbers(self, n):
        for _ in range(n):
            self.n += 1
            yield self.n

    @fastray.method(read_only=True)
    def look(self):
        return self.n, float(self.ballast.sum()), fastray.get_runtime_context().get_node_id()


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def saved_at(counter):
    """Calls before the last checkpoint that this node has of the actor."""
    attachment = current_runtime().attachment
    return attachment.actor_log(native_actors.actor_index(counter._fastray_ref))


def settled(counter, start, end):
    """This node has heard of `end` calls, and has the state after `start` of them."""
    return eventually(lambda: saved_at(counter) == (start, end))


def replace(cluster, node):
    second = cluster.add_node(num_cpus=1, resources={"far": 4})
    cluster.kill_node(node)
    return second


@pytest.mark.parametrize("floats", [0, 1000, 300_000])
def test_it_goes_on_elsewhere_with_its_state_and_the_calls_after_it(cluster, steps, floats):
    counter = Counter.remote(steps, floats)
    assert get([counter.add.remote() for _ in range(25)])[-1] == 25
    assert settled(counter, 20, 25)
    second = replace(cluster, cluster.far_node)
    assert get(counter.add.remote()) == 26
    assert get(counter.look.remote()) == (26, 26.0 * floats, second.node_id)
    assert len(tally(steps)) == 25 + 5 + 1


def test_it_goes_on_through_the_loss_of_one_node_after_the_other(cluster, steps):
    counter = Counter.remote(steps)
    node = cluster.far_node
    for n in range(3):
        refs = [counter.add.remote() for _ in range(7)]
        assert get(refs) == list(range(7 * n + 1, 7 * n + 8))
        node = replace(cluster, node)
    assert get(counter.look.remote())[::2] == (21, node.node_id)
    assert get([counter.add.remote() for _ in range(10)])[-1] == 31


def test_what_was_in_flight_runs_once_more_and_what_waits_behind_it(cluster, steps, tmp_path):
    gate = str(tmp_path / "gate")
    counter = Counter.remote(steps)
    assert get([counter.add.remote() for _ in range(3)]) == [1, 2, 3]
    refs = [counter.add_behind_gate.remote(gate), *[counter.add.remote() for _ in range(4)]]
    assert eventually(lambda: len(tally(steps)) == 4)
    replace(cluster, cluster.far_node)
    assert eventually(lambda: len(tally(steps)) == 8)  # three of the log, and the one in flight
    open_gate(gate)
    assert get(refs) == [4, 5, 6, 7, 8]


def test_it_goes_on_where_it_was_made(cluster, steps):
    """No other node is left that has what it needs but the one that sent it away."""
    counter = Counter.options(resources=None, scheduling_strategy="SPREAD", num_cpus=0.5).remote(steps)
    others = [Counter.options(resources=None, scheduling_strategy="SPREAD", num_cpus=0.5).remote(steps)]
    both = [counter, *others]
    assert get([each.add.remote() for each in both for _ in range(15)])
    assert {get(each.look.remote())[2] for each in both} == {cluster.far_node.node_id, cluster.head_node.node_id}
    assert all(settled(each, 10, 15) for each in both)
    cluster.kill_node(cluster.far_node)
    assert [get(each.add.remote()) for each in both] == [16, 16]
    assert {get(each.look.remote())[2] for each in both} == {cluster.head_node.node_id}


def test_a_crash_there_and_then_the_loss_of_the_node(cluster, steps):
    counter = Counter.remote(steps)
    assert get([counter.add.remote() for _ in range(14)])[-1] == 14
    fastray.kill(counter, no_restart=False)
    assert get([counter.add.remote() for _ in range(3)]) == [15, 16, 17]
    assert settled(counter, 10, 17)
    replace(cluster, cluster.far_node)
    assert get([counter.add.remote() for _ in range(3)]) == [18, 19, 20]


def test_it_goes_on_when_the_agent_that_sent_it_dies(cluster, steps):
    counter = Counter.remote(steps)
    assert get([counter.add.remote() for _ in range(12)])[-1] == 12
    assert settled(counter, 10, 12)
    os.kill(agent_of(cluster.head_node), signal.SIGKILL)
    assert get(counter.add.remote()) == 13
    assert get(counter.look.remote())[0] == 13


def test_arguments_by_reference_and_streams_run_again(cluster, steps):
    counter = Counter.remote(steps)
    two = fastray.put(2)
    five = fastray.remote(lambda: 5).remote()
    assert get([counter.add.remote(two), counter.add.remote(five)]) == [2, 7]
    assert [get(ref) for ref in counter.numbers.options(num_returns="streaming").remote(3)] == [8, 9, 10]
    del two, five
    replace(cluster, cluster.far_node)
    assert get(counter.add.remote()) == 11


def test_what_it_kept_is_given_back_with_the_actor(cluster, steps):
    size = 300_000 * 8

    def used():
        current_runtime().attachment.counters()  # a look around, as each call takes one
        return current_runtime().attachment.store_usage()["object_bytes"]

    counter = Counter.remote(steps, size // 8)
    assert get([counter.add.remote() for _ in range(35)])[-1] == 35
    assert settled(counter, 30, 35)
    assert used() > size
    del counter
    assert eventually(lambda: used() < size)  # queues stay
