"""`fastray.cluster_utils.Cluster`: nodes for tests, with the names and semantics of Ray's."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("grpc")

from integration_helpers import is_alive
from waiting import eventually

import fastray
from fastray import sessions
from fastray.cluster_utils import Cluster
from fastray.exceptions import InvalidOptionError

GET_S = 30.0


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where the sessions are; it is empty again afterwards."""
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path / "runtime"))
    yield tmp_path / "runtime"
    assert not os.path.exists(tmp_path / "runtime") or not os.listdir(tmp_path / "runtime")


@pytest.fixture
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"head": 1}})
    yield made
    made.shutdown()


def test_nodes_come_and_go(cluster):
    assert cluster.list_all_nodes() == [cluster.head_node]
    node = cluster.add_node(num_cpus=3, resources={"disk": 1}, labels={"zone": "b"})
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [cluster.head_node, node]
    assert cluster.worker_nodes == {node}
    assert cluster.remaining_processes_alive()
    fastray.init(address=cluster.address)
    assert (fastray.cluster_resources()["CPU"], fastray.cluster_resources()["disk"]) == (5, 1)
    assert fastray.get_runtime_context().get_node_id() == cluster.head_node.node_id
    cluster.remove_node(node)
    cluster.wait_for_nodes()
    assert not os.path.exists(node.session_path)
    assert fastray.cluster_resources()["CPU"] == 2
    (dead,) = [row for row in fastray.nodes() if not row["Alive"]]
    assert dead["DeathReasonMessage"] == "it left"


def test_what_a_node_has_by_default_is_rays(cluster):
    node = cluster.add_node()
    with fastray.init(address=node.session_path):
        (row,) = [row for row in fastray.nodes() if row["NodeID"] == node.node_id]
        assert row["Resources"]["CPU"] == 1
        assert "GPU" not in row["Resources"]
        assert row["Resources"]["object_store_memory"] == 150 << 20


@pytest.mark.parametrize("how", ["remove_node", "kill_node"])
def test_a_node_that_is_killed_leaves_nothing(cluster, how):
    node = cluster.add_node()
    if how == "remove_node":
        cluster.remove_node(node, allow_graceful=False)
    else:
        cluster.kill_node(node)
    assert not node.alive
    assert not os.path.exists(node.session_path)
    cluster.wait_for_nodes()
    with cluster.connect() as context:
        assert context.address_info["node_pid"] == cluster.head_node.pid
        (dead,) = [row for row in fastray.nodes() if not row["Alive"]]
        assert dead["DeathReasonMessage"] == "its connection closed"
    with pytest.raises(ValueError, match="not a node of this cluster"):
        cluster.remove_node(node)


def test_a_node_that_died_by_itself_is_missed(cluster):
    node = cluster.add_node()
    os.kill(node.pid, signal.SIGKILL)
    assert eventually(lambda: not cluster.remaining_processes_alive())
    with pytest.raises(TimeoutError, match="dead"):
        cluster.wait_for_nodes(timeout=1)
    cluster.remove_node(node)
    cluster.wait_for_nodes()


def test_a_process_connects_as_a_driver_of_the_head(place):
    cluster = Cluster(initialize_head=True, connect=True)
    try:
        assert fastray.is_initialized()
        assert fastray.get(fastray.remote(lambda: 7).remote(), timeout=GET_S) == 7
        with pytest.raises(ValueError, match="driver"):
            cluster.remove_node(cluster.head_node)
    finally:
        cluster.shutdown()
    assert not fastray.is_initialized()
    cluster.shutdown()  # again: nothing to do
    with pytest.raises(RuntimeError, match="no head"):
        cluster.connect()


def test_the_first_node_that_is_added_is_the_head(place):
    cluster = Cluster()
    assert cluster.list_all_nodes() == []
    try:
        head = cluster.add_node(num_cpus=1, store="memory:")
        assert cluster.head_node is head
        assert cluster.address == cluster.gcs_address == head.address
    finally:
        cluster.shutdown()


def test_wrong_arguments_are_named(cluster):
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(head_node_args={"num_cpus": 1})
    with pytest.raises(ValueError, match="connect"):
        Cluster(connect=True)
    with pytest.raises(TypeError, match="does not know cpus"):
        cluster.add_node(cpus=1)
    with pytest.raises(TypeError, match="does not know store"):
        cluster.add_node(store="memory:")
    with pytest.raises(InvalidOptionError, match="num_cpus"):
        cluster.add_node(num_cpus=-1)
    cluster.wait_for_nodes()


def test_a_fork_that_exits_ends_no_node(cluster):
    child = os.fork()
    if child == 0:
        try:
            cluster.shutdown()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cluster.remaining_processes_alive()
    cluster.wait_for_nodes()


PROGRAM = """
import os, signal
from fastray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True)
nodes = [cluster.head_node, cluster.add_node()]
print(*[node.pid for node in nodes], flush=True)
if os.environ["HOW"] == "kill":
    signal.pause()
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_nothing_is_left_of_a_cluster_whose_program_ends(start_program, tmp_path, place, how):
    process = start_program(PROGRAM, tmp_path, env={"HOW": how})
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2, process.stderr.read()
    if how == "kill":
        process.kill()
    process.wait(60)
    for pid in pids:
        assert eventually(lambda pid=pid: not is_alive(pid))
    assert eventually(lambda: not list(sessions.directories(str(place))))
