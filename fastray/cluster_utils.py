"""`Cluster`: several nodes on this machine, for tests of programs that run on several. Matches `ray.cluster_utils`.

Each node is a real daemon with its own workers, store, agent and session directory; what differs from several machines
is that they share cores, memory and a clock. They end with `shutdown`, and with this process, however it ends. Imported
on use; called by users and tests.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import time

from fastray import daemon, runtime, sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray.api import Context

END_WAIT_S = 15.0
LOOK_EVERY_S = 0.005
OBJECT_STORE_BYTES = 150 << 20  # as Ray's
NODE_ARGUMENTS = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
HEAD_ARGUMENTS = ("port", "store")  # of the head only


class ClusterNode:
    """One node: `node_id`, `pid` of its daemon, `session_path`; `address` of the cluster."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.pid: int = info["pid"]
        self.address: str = info["gcs"]
        self.session_path: str = info["path"]
        self._pidfd = os.pidfd_open(self.pid)

    @property
    def node_id(self) -> str:
        """56 hexadecimal digits. Another one when the node had to begin anew."""
        return str(sessions.read_info(self.session_path).get("node_id", ""))

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def kill(self, *, allow_graceful: bool = False) -> None:
        """Ends it, by SIGKILL unless `allow_graceful`, and waits until all its processes are gone."""
        if self._pidfd < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL) if allow_graceful else (signal.SIGKILL,):
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:  # somebody else waited for it
                break
            if select.select([self._pidfd], [], [], END_WAIT_S)[0]:
                break
        os.close(self._pidfd)
        self._pidfd = -1
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass
        sessions.remove_stale(self.session_path)

    def __repr__(self) -> str:
        return f"ClusterNode({self.session_path!r}, pid {self.pid}{'' if self.alive else ', dead'})"


class Cluster:
    """`initialize_head` starts the head, with `head_node_args` (see `add_node`); `connect` makes this process a driver
    of it. With `shutdown_at_exit` the nodes end with this process, otherwise only by `shutdown`.

    Raises what `add_node` and `connect` raise; ValueError for `connect` without a head.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        self.head_node: ClusterNode | None = None
        self.worker_nodes: set[ClusterNode] = set()
        self._shutdown_at_exit = shutdown_at_exit
        self._pid = os.getpid()
        if head_node_args and not initialize_head:
            raise ValueError("Cluster(head_node_args=...) goes with initialize_head=True")
        if connect and not initialize_head:
            raise ValueError("Cluster(connect=True) goes with initialize_head=True: there is nothing to connect to")
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**head_node_args or {})
            if connect:
                self.connect()

    @property
    def address(self) -> str:
        """HOST:PORT, for `init(address=...)` and `fastray start --address`. Raises RuntimeError without a head."""
        return self._head().address

    gcs_address = address

    def _head(self) -> ClusterNode:
        if self.head_node is None:
            raise RuntimeError("this cluster has no head: call add_node() first")
        return self.head_node

    def connect(self, namespace: str | None = None) -> Context:
        """Makes this process a driver of the head's node; the context that `init` returns."""
        from fastray.api import init

        return init(address=self._head().session_path, namespace=namespace)

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Starts a node; the first one is the head. `node_args`: num_cpus (1), num_gpus (0), resources, labels,
        object_store_memory (150 MiB); of the head also port (any) and store. With `wait` all nodes alive see it when
        this returns.

        Raises TypeError for an unknown argument, InvalidOptionError for a wrong one, fastray.daemon.StartError when it
        does not start, TimeoutError.
        """
        is_head = self.head_node is None
        known = NODE_ARGUMENTS + (HEAD_ARGUMENTS if is_head else ())
        unknown = ", ".join(name for name in node_args if name not in known)
        if unknown:
            which = "the head" if is_head else "a node"
            raise TypeError(f"add_node() of {which} does not know {unknown}; it takes {', '.join(known)}")
        given = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES, **node_args}
        from fastray.config import parse_init

        parse_init(**{name: value for name, value in given.items() if name in NODE_ARGUMENTS})
        settings = {
            **dict.fromkeys(NODE_ARGUMENTS), "port": 0, "temp_dir": None, **given,
            "with_starter": self._shutdown_at_exit, "address": None if is_head else self.address,
        }  # fmt: skip
        node = ClusterNode(daemon.launch(settings))
        if is_head:
            self.head_node = node
        else:
            self.worker_nodes.add(node)
        if wait:
            self._wait(lambda: all(node.node_id in seen for seen in self._views()), 30.0)
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """Ends a node: it says goodbye and ends what it runs, or is SIGKILLed without `allow_graceful`. Waits.

        Raises ValueError when it is not of this cluster, or the one that this process is a driver of.
        """
        if node is not self.head_node and node not in self.worker_nodes:
            raise ValueError(f"not a node of this cluster: {node!r}")
        if runtime.is_running() and runtime.current_runtime().session_path == node.session_path:
            raise ValueError(f"this process is a driver of {node!r}: call shutdown() first, or remove another node")
        self._forget(node)
        node.kill(allow_graceful=allow_graceful)

    def kill_node(self, node: ClusterNode) -> None:
        """SIGKILL to the node's daemon: as `remove_node` with `allow_graceful=False`, but the driver's node, too."""
        self._forget(node)
        node.kill()

    def _forget(self, node: ClusterNode) -> None:
        self.worker_nodes.discard(node)
        if node is self.head_node:
            self.head_node = None

    def list_all_nodes(self) -> list[ClusterNode]:
        """The head first."""
        return [*([self.head_node] if self.head_node else []), *self.worker_nodes]

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Returns when every node sees exactly the nodes of this cluster alive. Raises TimeoutError when one is missing
        or died without `remove_node`.
        """
        nodes = self.list_all_nodes()

        def complete() -> bool:
            ids = {node.node_id for node in nodes if node.alive}
            return len(ids) == len(nodes) and all(seen == ids for seen in self._views())

        self._wait(complete, timeout)

    def remaining_processes_alive(self) -> bool:
        """Whether the nodes that were not removed all live."""
        return all(node.alive for node in self.list_all_nodes())

    def _views(self) -> list[set[str]]:
        """Of each node: the ids of the nodes that it sees alive."""
        from fastray.cluster import members

        return [
            {row["node_id"] for row in members.node_table(node.session_path) if row["state"] == "ALIVE"}
            for node in self.list_all_nodes()
            if node.alive
        ]

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout:g} s the nodes still see {[len(seen) for seen in self._views()]} nodes each; this "
                    f"cluster has {self.list_all_nodes()}"
                )
            time.sleep(LOOK_EVERY_S)

    def shutdown(self) -> None:
        """Ends all nodes, the head last, and this process's session when it is a driver of one; in a fork, nothing."""
        if os.getpid() != self._pid:
            return
        atexit.unregister(self.shutdown)
        paths = {node.session_path for node in self.list_all_nodes()}
        if runtime.is_running() and runtime.current_runtime().session_path in paths:
            runtime.stop()
        for node in reversed(self.list_all_nodes()):
            self._forget(node)
            node.kill(allow_graceful=True)
