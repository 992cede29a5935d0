"""The processes of a cluster are killed or stopped: servers of the store, agents, daemons. What is promised is in
docs/internals/cluster.md.

    seen      as another node's agent sees it; nothing here asserts how fast, the bounds are the store's own
"""

from __future__ import annotations

import os
import select
import signal
import threading

import pytest

pytest.importorskip("grpc")

from cluster_helpers import Nodes, alive, ids, kill_and_wait, row_of, rows, sees
from daemon_helpers import HELPERS, Daemon
from waiting import eventually, free_port

import fastray
from fastray import sessions
from fastray.cluster.jobs import BLOCK
from fastray.exceptions import LocalRayletDiedError
from fastray.util import state

pytestmark = pytest.mark.crash
GET_S = 60.0


@pytest.fixture
def pair(tmp_path):
    """A head and a node, which see each other."""
    made = Nodes(tmp_path, port=free_port())
    made.join()
    for node in made.all:
        assert sees(node, *made.all)
    assert eventually(lambda: len(made.head.helpers()) == HELPERS)
    yield made
    made.stop()


def square(x):
    return x * x


def works(node):
    with fastray.init(address=node.path):
        refs = [fastray.remote(square).remote(i) for i in range(100)]
        return fastray.get(refs, timeout=GET_S) == [i * i for i in range(100)]


def epochs(node):
    return {node_id: row["epoch"] for node_id, row in rows(node).items() if row["state"] == "ALIVE"}


def test_a_killed_server_is_replaced_and_nobody_notices(pair):
    head, node = pair.all
    before = epochs(node)
    for _ in range(3):
        first = head.helpers("fastray.gcs")
        kill_and_wait(min(first))
        assert eventually(lambda: len(set(head.helpers("fastray.gcs")) - set(first)) == 1)  # noqa: B023
        third = pair.join()  # the store answers
        assert sees(node, *pair.all)
        third.stop()
        pair.all.remove(third)
        assert sees(node, *pair.all)
    assert epochs(node) == before
    assert works(head)
    assert works(node)


def test_both_servers_killed_at_once_come_back_with_what_they_knew(pair):
    head, node = pair.all
    before = epochs(node)
    with fastray.init(address=node.path):
        add = fastray.remote(lambda x: x + 1)
        refs = [add.remote(i) for i in range(1000)]
        for pid in head.helpers("fastray.gcs"):
            os.kill(pid, signal.SIGKILL)
        refs += [add.remote(i) for i in range(1000)]  # the node works on without it
        assert fastray.get(refs, timeout=GET_S) == [i + 1 for i in range(1000)] * 2
    third = pair.join()
    assert sees(node, *pair.all)
    assert {node_id: epochs(third)[node_id] for node_id in before} == before


def test_a_killed_agent_is_replaced_and_the_node_joins_again(pair):
    head, node = pair.all
    before = row_of(head, node)["epoch"]
    with fastray.init(address=node.path):
        slow = fastray.remote(lambda: __import__("time").sleep(0.5) or 7)
        ref = slow.remote()  # the node's own work goes on
        (agent,) = node.helpers("node agent")
        kill_and_wait(agent)
        assert eventually(lambda: row_of(head, node)["state"] == "ALIVE" and row_of(head, node)["epoch"] > before)
        assert fastray.get(ref, timeout=GET_S) == 7
    assert node.helpers("node agent") != [agent]
    assert sees(node, *pair.all)
    assert works(node)


def test_a_killed_daemon_is_seen_dead_by_its_closed_connection(pair):
    head, node = pair.all
    node.kill()
    pair.all.remove(node)
    assert sees(head, head)
    row = row_of(head, node)
    assert row["reason"] == "its connection closed"
    assert sessions.remove_stale(node.path)
    assert works(head)


def test_a_store_that_hangs_holds_up_nobody_but_drivers_without_a_number(tmp_path):
    """Shorter than it takes to be given up: the store is stopped, not its clients."""
    made = Daemon(tmp_path)
    try:
        _attach_while_the_store_hangs(made)
    finally:
        made.stop()


def _attach_while_the_store_hangs(made):
    attached = []

    def attach_again(times):
        for _ in range(times):
            with fastray.init(address=made.path):
                attached.append(fastray.get_runtime_context().get_job_id())

    attach_again(1)  # the node has its first block of numbers
    servers = made.helpers("fastray.gcs")
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        with fastray.init(address=made.path):
            attached.append(fastray.get_runtime_context().get_job_id())
            assert fastray.get(fastray.remote(square).remote(3), timeout=GET_S) == 9
            assert [row["NodeID"] for row in fastray.nodes()] == [made.info["node_id"]]  # the agent knows
        attaching = threading.Thread(target=attach_again, args=(BLOCK,))
        attaching.start()
        assert eventually(lambda: len(attached) == BLOCK)
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    attaching.join(GET_S)
    assert len(set(attached)) == BLOCK + 2


def tree(node):
    """The daemon and all that it started."""
    return [node.pid, *node.children()]


@pytest.mark.parametrize("what", ["all of it", "the daemon", "the agent"])
def test_a_silent_node_is_declared_dead_and_begins_anew(pair, what):
    head, node = pair.all
    with fastray.init(address=node.path):
        stuck = fastray.remote(lambda: signal.pause()).remote()
        assert eventually(lambda: [row for row in state.list_workers() if row.is_running_task])
        workers = set(node.children()) - set(node.helpers())
        stopped = {"all of it": tree(node), "the daemon": [node.pid], "the agent": node.helpers("node agent")}[what]
        watched = [os.pidfd_open(pid) for pid in workers]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert sees(head, head)
            old = row_of(head, node)
            assert old["reason"].startswith("no heartbeat")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        with pytest.raises(LocalRayletDiedError):
            fastray.get(stuck, timeout=GET_S)
    for pidfd in watched:  # what it ran is gone
        assert select.select([pidfd], [], [], GET_S)[0]
        os.close(pidfd)
    assert eventually(lambda: len(alive(head)) == 2)
    (new,) = alive(head) - ids(head)
    assert new != old["node_id"]
    assert (rows(head)[new]["info"]["pid"], rows(head)[new]["info"]["path"]) == (str(node.pid), node.path)
    assert eventually(lambda: sessions.read_info(node.path).get("node_id") == new)
    assert works(node)
    assert rows(head)[old["node_id"]]["state"] == "DEAD"


def test_a_head_that_is_declared_dead_begins_anew_with_its_cluster(pair):
    """Its store's servers start again, too: the other node is none the worse."""
    head, node = pair.all
    before = epochs(node)[node.info["node_id"]]
    (agent,) = head.helpers("node agent")
    os.kill(agent, signal.SIGSTOP)
    assert sees(node, node)
    os.kill(agent, signal.SIGCONT)
    assert eventually(lambda: len(alive(node)) == 2)
    (new,) = alive(node) - ids(node)
    assert new != head.info["node_id"]
    assert rows(node)[new]["info"]["head"] == "1"
    assert epochs(node)[node.info["node_id"]] == before
    assert eventually(lambda: sessions.read_info(head.path).get("gcs") == pair.address)
    third = pair.join()
    assert eventually(lambda: len(alive(third)) == 3)
    assert works(head)


def test_what_a_killed_node_left_goes_with_the_next_one(pair):
    _, node = pair.all
    node.kill()
    pair.all.remove(node)
    assert os.path.exists(node.path)
    again = pair.join()
    assert not os.path.exists(node.path)
    assert works(again)


def test_a_head_that_is_started_again_has_its_nodes_back(pair):
    head, node = pair.all
    before = epochs(node)[node.info["node_id"]]
    with fastray.init(address=node.path):
        add = fastray.remote(lambda x: x + 1)
        assert fastray.get(add.remote(1), timeout=GET_S) == 2
        head.kill()
        refs = [add.remote(i) for i in range(1000)]
        assert fastray.get(refs, timeout=GET_S) == [i + 1 for i in range(1000)]
        pair.head = pair.all[0] = Daemon(pair.folder, port=head.info["port"])
        assert pair.head.path == head.path
        assert sees(pair.head, *pair.all)
        assert sees(node, *pair.all)
        assert fastray.get([add.remote(i) for i in range(1000)], timeout=GET_S) == [i + 1 for i in range(1000)]
    assert epochs(pair.head)[node.info["node_id"]] == before  # it has never been declared dead
    assert rows(node)[head.info["node_id"]]["state"] == "DEAD"


def test_a_head_that_begins_from_nothing_makes_its_nodes_begin_anew(tmp_path):
    """Epochs count from 1 again: another node's must not be taken for one's own."""
    made = Nodes(tmp_path, port=free_port(), store="memory:")
    node = made.join()
    try:
        assert sees(node, *made.all)
        made.head.kill()
        made.head = made.all[0] = Daemon(tmp_path, port=made.head.info["port"], store="memory:")
        assert eventually(lambda: len(alive(made.head)) == 2)
        (new,) = alive(made.head) - ids(made.head)
        assert new != node.info["node_id"]
        assert eventually(lambda: sessions.read_info(node.path).get("node_id") == new)
        assert works(node)
    finally:
        made.stop()


def test_a_node_that_cannot_begin_anew_ends_and_leaves_its_log(tmp_path):
    """Another head is at the address of its own, with another token."""
    made = Nodes(tmp_path, port=free_port())
    node = made.join()
    made.head.kill()
    assert sessions.remove_stale(made.head.path)
    made.head = made.all[0] = Daemon(tmp_path, port=made.head.info["port"])
    try:
        assert node.end(0) == 1 << 8
        made.all.remove(node)
        with open(os.path.join(node.path, sessions.LOG)) as file:
            assert "could not begin anew" in file.read()
        assert sessions.remove_stale(node.path)
        assert alive(made.head) == ids(made.head)
    finally:
        made.stop()


def test_an_agent_that_finds_another_store_makes_its_node_begin_anew(tmp_path):
    """It is registered there, and its jobs have numbers that this store has not given."""
    made = Nodes(tmp_path, port=free_port(), store="memory:")
    node = made.join()
    try:
        with fastray.init(address=node.path):
            stuck = fastray.remote(lambda: signal.pause()).remote()
            (agent,) = node.helpers("node agent")
            os.kill(agent, signal.SIGSTOP)
            made.head.kill()
            made.head = made.all[0] = Daemon(tmp_path, port=made.head.info["port"], store="memory:")
            kill_and_wait(agent)
            with pytest.raises(LocalRayletDiedError):
                fastray.get(stuck, timeout=GET_S)
        assert eventually(lambda: len(alive(made.head)) == 2)
        assert eventually(lambda: sessions.read_info(node.path).get("node_id") in alive(made.head))
        assert works(node)
    finally:
        made.stop()


def test_the_head_ends_when_its_store_in_memory_dies(tmp_path):
    made = Daemon(tmp_path, store="memory:")
    assert len(made.helpers()) == 2  # nobody stands by
    (server,) = made.helpers("fastray.gcs")
    kill_and_wait(server)
    assert made.end(0) == 0
    assert not os.path.exists(made.path)
