"""What tasks, objects and actors become when a node, an agent or a driver of a cluster is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import waiting

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import agent_of, far_cluster
from waiting import eventually, is_alive, note, open_gate, tally, wait_for_gate

import fastray
from fastray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError

GET_S = 60
BIG = 200_000


@pytest.fixture
def cluster(tmp_path):
    with far_cluster(tmp_path / "runtime", head_cpus=1, resources={"far": 4}) as made:
        yield made


far = fastray.remote(resources={"far": 1}, num_cpus=0)


def get(refs):
    return fastray.get(refs, timeout=GET_S)


@far
def hold(started, gate):
    note(started, fastray.get_runtime_context().get_node_id())
    wait_for_gate(gate)
    return fastray.get_runtime_context().get_node_id()


@far
def make(log, value):
    note(log)
    return np.full(BIG, float(value))


def test_tasks_of_a_killed_node_run_on_another(cluster, tmp_path):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    refs = [hold.remote(started, gate) for _ in range(4)]
    assert eventually(lambda: len(tally(started)) == 4)
    second = cluster.add_node(num_cpus=2, resources={"far": 4})
    cluster.kill_node(cluster.far_node)
    assert eventually(lambda: len(tally(started)) == 8)
    open_gate(gate)
    assert set(get(refs)) == {second.node_id}


def test_a_task_without_retries_says_that_its_node_died(cluster, tmp_path):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    ref = hold.options(max_retries=0).remote(started, gate)
    assert eventually(lambda: tally(started))
    cluster.kill_node(cluster.far_node)
    with pytest.raises(NodeDiedError, match=r"where the task ran, is gone"):
        get(ref)


def test_a_value_only_a_killed_node_had_is_computed_again(cluster, tmp_path):
    log = str(tmp_path / "log")
    refs = [make.remote(log, k) for k in range(3)]
    assert len(fastray.wait(refs, num_returns=3, fetch_local=False, timeout=GET_S)[0]) == 3
    assert np.array_equal(get(refs[0]), np.zeros(BIG))  # here now
    cluster.add_node(num_cpus=1, resources={"far": 4})
    cluster.kill_node(cluster.far_node)
    assert [int(array[0]) for array in get(refs)] == [0, 1, 2]
    assert len(tally(log)) == 5


@far
def grow(before, log=None, gate=None):
    if log is not None:
        note(log)
        wait_for_gate(gate)
    return before + 1


def test_a_lost_argument_whose_task_let_go_of_its_own_is_brought_back_by_its_owner(cluster, tmp_path):
    """A value of `put` is no lineage, so who used it lets go of it. Its owner may take it up, the agent may not."""
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")
    first = fastray.put(np.zeros(BIG))
    grown = grow.remote(first)
    fastray.wait([grown], fetch_local=False, timeout=GET_S)
    again = grow.remote(grown, log, gate)
    assert eventually(lambda: tally(log))
    get([grow.options(resources={}).remote(1) for _ in range(10)])
    cluster.kill_node(cluster.far_node)
    cluster.add_node(num_cpus=1, resources={"far": 4})
    open_gate(gate)
    assert get(again)[0] == 2


@far
def total(array):
    return float(array.sum())


@pytest.mark.parametrize("at", [0, 5, 25])
def test_large_arguments_of_tasks_on_a_killed_node_go_to_another(cluster, at):
    """The node dies when some have run, others do, and the arguments of others are on their way."""
    refs = [total.remote(np.full(BIG, float(i))) for i in range(40)]
    cluster.add_node(num_cpus=1, resources={"far": 4})
    fastray.wait(refs, num_returns=at or 1, timeout=GET_S)
    cluster.kill_node(cluster.far_node)
    assert get(refs) == [float(i * BIG) for i in range(40)]


def test_large_arguments_are_there_again_when_the_agent_that_sent_them_dies(cluster, tmp_path):
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")

    @far
    def held(array):
        note(log)
        wait_for_gate(gate)
        return float(array.sum())

    refs = [held.options(max_retries=-1).remote(np.full(BIG, float(i))) for i in range(8)]
    assert eventually(lambda: len(tally(log)) >= 4)
    os.kill(agent_of(cluster.head_node), signal.SIGKILL)
    open_gate(gate)
    assert get(refs) == [float(i * BIG) for i in range(8)]
    assert len(tally(log)) >= 12  # those that ran were run again, by the next agent


def test_an_actor_of_a_killed_node_starts_on_another(cluster):
    @fastray.remote(resources={"far": 1}, num_cpus=0, max_restarts=1, max_task_retries=-1)
    class Counter:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n, fastray.get_runtime_context().get_node_id()

    counter = Counter.remote()
    assert get([counter.add.remote() for _ in range(3)])[-1] == (3, cluster.far_node.node_id)
    second = cluster.add_node(num_cpus=1, resources={"far": 4})
    cluster.kill_node(cluster.far_node)
    assert get(counter.add.remote()) == (1, second.node_id)
    cluster.kill_node(second)
    with pytest.raises(ActorDiedError, match="node where it ran is gone"):
        get(counter.add.remote())


def test_an_actor_elsewhere_starts_again_when_the_agent_that_sent_it_dies(cluster):
    @fastray.remote(resources={"far": 1}, num_cpus=0, max_restarts=2, max_task_retries=-1)
    class Counter:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

    counter = Counter.remote()
    assert get([counter.add.remote() for _ in range(3)]) == [1, 2, 3]
    os.kill(agent_of(cluster.head_node), signal.SIGKILL)
    assert eventually(lambda: get(counter.add.remote()) == 1)


def test_calls_in_flight_to_a_killed_node_say_whether_they_may_have_run(cluster, tmp_path):
    started = str(tmp_path / "started")

    @fastray.remote(resources={"far": 1}, num_cpus=0, max_restarts=1)
    class Sleeper:
        def sleep(self):
            note(started)
            time.sleep(600)

    sleeper = Sleeper.remote()
    ref = sleeper.sleep.remote()
    assert eventually(lambda: tally(started))
    cluster.kill_node(cluster.far_node)
    with pytest.raises((ActorUnavailableError, ActorDiedError), match="may have run"):
        get(ref)


@pytest.mark.parametrize("which", ["head", "far"])
def test_an_agent_that_is_killed_comes_back_and_nothing_is_lost(cluster, tmp_path, which):
    log = str(tmp_path / "log")
    add = far(lambda i: i + 1)
    away = make.remote(log, 7)
    fastray.wait([away], fetch_local=False, timeout=GET_S)
    refs = [add.remote(i) for i in range(2000)]
    os.kill(agent_of(cluster.head_node if which == "head" else cluster.far_node), signal.SIGKILL)
    refs += [add.remote(i) for i in range(2000, 3000)]
    assert get(refs) == list(range(1, 3001))
    assert get(away)[0] == 7


@pytest.mark.parametrize("which", ["head", "far"])
def test_what_is_away_when_an_agent_dies_is_computed_again(cluster, tmp_path, which):
    log = str(tmp_path / "log")
    away, small = make.remote(log, 7), far(lambda: 1)
    fastray.wait([away], fetch_local=False, timeout=GET_S)
    node = cluster.head_node if which == "head" else cluster.far_node
    killed = agent_of(node)
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: not is_alive(killed))
    assert get(small.remote()) == 1  # by the link of the next agent
    assert get(away)[0] == 7
    assert len(tally(log)) >= 2


PROGRAM = """
import sys, fastray
sys.path[:0] = sys.argv[3:]
from waiting import note
fastray.init(address=sys.argv[1])
@fastray.remote(resources={"far": 1}, num_cpus=0)
def forever(path):
    import os, time
    note(path, str(os.getpid()))
    time.sleep(600)
refs = [forever.remote(sys.argv[2]) for _ in range(2)]
fastray.get(refs)
"""


def test_what_a_killed_driver_had_on_other_nodes_ends(cluster, tmp_path):
    started = str(tmp_path / "started")
    arguments = [cluster.address, started, os.path.dirname(waiting.__file__)]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments]) as driver:
        try:
            assert eventually(lambda: len(tally(started)) == 2)
        finally:
            driver.kill()
    assert eventually(lambda: not any(is_alive(int(pid)) for pid in tally(started)))
    assert get(far(lambda: 1).remote()) == 1
