"""What placement groups over several nodes become when a node, an agent or a driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import waiting

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import agent_of, far_cluster, kill_and_wait
from waiting import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray.cluster import inquiry
from fastray.exceptions import ActorDiedError, InvalidOptionError
from fastray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside

GET_S = 60
FAR = {"resources": {"far": 4}, "num_cpus": 2}


@pytest.fixture
def cluster(tmp_path):
    with far_cluster(tmp_path / "runtime", head_cpus=2, resources={"far": 4}) as made:
        yield made


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def state(pg):
    return placement_group_table(pg)["state"]


def nodes_of(pg):
    """The node of each bundle, when all have one."""
    assert eventually(lambda: state(pg) == "CREATED")
    return list(placement_group_table(pg)["bundles_to_node_id"].values())


def free_on(node, name="CPU"):
    """As the cluster knows it."""
    rows = inquiry.ask(node.session_path, "nodes")
    return next(row["available"].get(name, 0) for row in rows if row["is_self"])


def all_is_free():
    free, total = fastray.available_resources(), fastray.cluster_resources()
    return all(free.get(name, 0) == total.get(name, 0) for name in ("CPU", "far"))


def remove(pg):
    remove_placement_group(pg)
    assert eventually(all_is_free)


@fastray.remote(num_cpus=1)
def hold(started, gate):
    note(started, fastray.get_runtime_context().get_node_id())
    wait_for_gate(gate)
    return fastray.get_runtime_context().get_node_id()


@fastray.remote(num_cpus=0)
def where():
    return fastray.get_runtime_context().get_node_id()


@fastray.remote(num_cpus=0)
class Actor:
    def where(self):
        return fastray.get_runtime_context().get_node_id(), os.getpid()


def test_lost_bundles_are_placed_around_those_that_are_left(cluster, tmp_path):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    pg = placement_group([{"CPU": 1}, {"far": 1, "CPU": 1}], "STRICT_SPREAD")
    head, far = nodes_of(pg)
    held = [hold.options(scheduling_strategy=Inside(pg, i)).remote(started, gate) for i in range(2)]
    lasting = Actor.options(scheduling_strategy=Inside(pg, 1), max_restarts=1, max_task_retries=-1).remote()
    mortal = Actor.options(scheduling_strategy=Inside(pg, 1)).remote()
    beside = Actor.options(scheduling_strategy=Inside(pg, 0)).remote()
    assert [node for node, _ in get([lasting.where.remote(), mortal.where.remote()])] == [far, far]
    pid = get(beside.where.remote())[1]
    assert eventually(lambda: len(tally(started)) == 2)
    cluster.kill_node(cluster.far_node)
    assert eventually(lambda: state(pg) == "RESCHEDULING")
    assert placement_group_table(pg)["bundles_to_node_id"] == {0: head, 1: ""}
    meanwhile = where.options(scheduling_strategy=Inside(pg, 1)).remote()
    second = cluster.add_node(**FAR).node_id
    assert nodes_of(pg) == [head, second]
    open_gate(gate)
    assert get(held) == [head, second]
    assert tally(started).count(head) == 1  # what ran in the bundle that was left went on
    assert get(meanwhile) == second
    assert get(lasting.where.remote())[0] == second
    assert get(beside.where.remote()) == (head, pid)
    with pytest.raises(ActorDiedError):
        get(mortal.where.remote())
    assert get(pg.ready()) == pg
    remove(pg)


def test_what_a_node_reserved_for_a_group_that_is_not_placed_is_given_back_when_another_dies(cluster, tmp_path):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    busy = [hold.options(resources={"far": 1}).remote(started, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(started)) == 2)
    pg = placement_group([{"CPU": 2}, {"CPU": 2, "far": 2}], "STRICT_SPREAD")
    assert eventually(lambda: free_on(cluster.head_node) == 0)  # it has agreed, the other waits for its tasks
    assert state(pg) == "PENDING"
    cluster.kill_node(cluster.far_node)
    assert eventually(lambda: free_on(cluster.head_node) == 2)
    cluster.add_node(**FAR)
    open_gate(gate)
    assert len(set(nodes_of(pg))) == 2
    remove_placement_group(pg)
    get(busy)
    assert eventually(all_is_free)


@pytest.mark.parametrize("which", ["head", "far"])
@pytest.mark.parametrize("then", ["placed", "removed"])
def test_an_agent_dies_between_agreement_and_placing(cluster, tmp_path, which, then):
    """The head's is the placer, until it is dead: then the other is."""
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    busy = [hold.options(resources={"far": 1}).remote(started, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(started)) == 2)
    pg = placement_group([{"CPU": 2}, {"CPU": 2, "far": 2}], "STRICT_SPREAD")
    assert eventually(lambda: free_on(cluster.head_node) == 0)
    kill_and_wait(agent_of(cluster.head_node if which == "head" else cluster.far_node))
    if then == "removed":
        remove_placement_group(pg)
    open_gate(gate)
    if then == "placed":
        assert pg.wait(GET_S)
        assert get(where.options(scheduling_strategy=Inside(pg, 1)).remote()) == cluster.far_node.node_id
    remove_placement_group(pg)
    get(busy)  # after it: on the same CPUs
    assert eventually(all_is_free)


@pytest.mark.parametrize("which", ["head", "far"])
def test_a_node_whose_agent_dies_keeps_its_bundles(cluster, tmp_path, which):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    pg = placement_group([{"CPU": 1}, {"CPU": 1, "far": 1}], "STRICT_SPREAD")
    nodes = nodes_of(pg)
    cluster.add_node(**FAR)  # where the bundle could go
    cluster.wait_for_nodes()
    beside = Actor.options(scheduling_strategy=Inside(pg, 0)).remote()
    pid = get(beside.where.remote())[1]
    running = hold.options(scheduling_strategy=Inside(pg, 0)).remote(started, gate)
    assert eventually(lambda: tally(started))
    for _ in range(2):
        kill_and_wait(agent_of(cluster.head_node if which == "head" else cluster.far_node))
        assert get(where.options(scheduling_strategy=Inside(pg, 1)).remote()) == nodes[1]
        assert nodes_of(pg) == nodes
    open_gate(gate)
    assert get(running) == nodes[0]
    assert len(tally(started)) == 1
    assert get(beside.where.remote()) == (nodes[0], pid)
    remove(pg)


def test_a_node_that_was_fenced_leaves_no_bundles_behind(cluster):
    pg = placement_group([{"CPU": 1}, {"CPU": 1, "far": 1}], "STRICT_SPREAD")
    head, far = nodes_of(pg)
    os.kill(cluster.far_node.pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: state(pg) == "RESCHEDULING")
        second = cluster.add_node(**FAR).node_id
        assert nodes_of(pg) == [head, second]
    finally:
        os.kill(cluster.far_node.pid, signal.SIGCONT)
    assert eventually(lambda: cluster.far_node.node_id not in ("", far))
    assert get(where.options(scheduling_strategy=Inside(pg, 1)).remote()) == second
    remove(pg)
    assert eventually(lambda: fastray.cluster_resources()["CPU"] == 6)


DRIVER = """
import sys
import fastray
from fastray.util.placement_group import placement_group
from waiting import note

fastray.init(address=sys.argv[1], namespace=sys.argv[2])
for name, lifetime in (("mine", None), ("everybodys", "detached")):
    assert placement_group([{"CPU": 1}, {"far": 1}], name=name, lifetime=lifetime).wait(60)
note(sys.argv[3])
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", ["driver", "node"])
def test_groups_of_a_killed_driver_go_and_detached_ones_stay(cluster, tmp_path, killed):
    started = str(tmp_path / "started")
    namespace = fastray.get_runtime_context().namespace
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.far_node.session_path, namespace, started], stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(waiting.__file__), *sys.path])},
    )  # fmt: skip
    try:
        assert eventually(lambda: tally(started))
        detached = get_placement_group("everybodys")
        if killed == "driver":
            driver.kill()
        else:
            cluster.kill_node(cluster.far_node)
            cluster.add_node(**FAR)
        assert eventually(lambda: not named("mine"))
        assert named("everybodys")
        assert len(nodes_of(detached)) == 2
        get(where.options(scheduling_strategy=Inside(detached, 1)).remote())
        remove(detached)
    finally:
        driver.kill()
        driver.communicate()


def named(name):
    try:
        return get_placement_group(name)
    except InvalidOptionError:
        return None
