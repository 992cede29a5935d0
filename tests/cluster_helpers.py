"""Clusters of daemons for tests: who is in it, as any of its nodes sees it.

    Nodes    a head and nodes that join it, all in one folder; they end with the test, whatever was killed
"""

from __future__ import annotations

import os
import signal

from daemon_helpers import Daemon
from waiting import eventually

from fastray.cluster import inquiry


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
