"""Clusters of daemons for tests: who is in it, as any of its nodes sees it.

    Nodes          a head and nodes that join it, all in one folder; they end with the test, whatever was killed
    far_cluster    two nodes, for programs that run on both
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager

import pytest
from daemon_helpers import Daemon
from waiting import eventually

import fastray
from fastray.cluster import inquiry
from fastray.cluster_utils import Cluster


class Nodes:
    def __init__(self, folder, **settings):
        self.folder = folder
        self.head = Daemon(folder, **settings)
        self.all = [self.head]

    @property
    def address(self):
        return self.head.info["gcs"]

    def join(self, **settings):
        """A node more."""
        node = Daemon(self.folder, address=self.address, **settings)
        self.all.append(node)
        return node

    def stop(self):
        for node in reversed(self.all):
            node.stop()


def rows(node):
    """Node id -> row, as this node's agent sees the cluster."""
    return {row["node_id"]: row for row in inquiry.ask(node.path, "nodes")}


def alive(node):
    return {node_id for node_id, row in rows(node).items() if row["state"] == "ALIVE"}


def ids(*nodes):
    return {node.info["node_id"] for node in nodes}


def sees(node, *others):
    """Waits until the node sees exactly these alive."""
    return eventually(lambda: alive(node) == ids(*others))


def row_of(node, other):
    return rows(node)[other.info["node_id"]]


def kill_and_wait(pid):
    """SIGKILL; returns when the process is gone."""
    import select

    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)


def agent_of(node):
    """Pid of the node's agent."""
    found = subprocess.run(["pgrep", "-P", str(node.pid), "-f", "cluster"], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"agent" in file.read():
                return int(pid)
    raise AssertionError("the node has no agent")


@contextmanager
def far_cluster(folder, head_cpus=2, **far):
    """A head, of which this process is a driver, and `far_node` with what is given; its sessions are in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRAY_TMPDIR", str(folder))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus})
        made.far_node = made.add_node(num_cpus=2, **far)
        made.wait_for_nodes()
        fastray.init(address=made.address)
        yield made
        fastray.shutdown()
        made.shutdown()
