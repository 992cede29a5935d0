"""The processes beside a daemon's node: servers of the global control store (a head's), and the agent.

    child      one of them, with a pidfd and a pipe or socket; the daemon's loop says when one is readable
    serving    the server that answers. The other one, if the store is a file, stands by and takes over
    joined     the agent has registered the node: then the daemon is ready
    rejoin     the cluster has declared the node dead: it has to begin anew, under another id

A child that dies is started again, after a pause when it had not lived for long. Every server but the first is
started as a standby: it serves at once when nobody holds the store. When a store in memory dies, the head ends. All
die with the daemon, by the kernel; `stop` ends them in order. Nothing here imports gRPC, and no thread is made: the
daemon forks its workers. Used by daemon.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

from fastray import sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray._native.node import LocalScheduler

CHANNEL_FD = 3
MESSAGE_BYTES_MAX = 1 << 16
END_WAIT_S = 3.0
LIVED_S = 2.0  # who lived as long is started again at once
PAUSE_FIRST_S, PAUSE_MAX_S = 0.05, 2.0

_BEGIN = (
    "import sys; sys.path[0] = {root!r}; from fastray.cluster.child import begin; begin({pid}, {name!r}, {pause}); "
)
_SERVER = _BEGIN + "from fastray.gcs.__main__ import main; sys.exit(main())  # fastray.gcs"
_AGENT = _BEGIN + "from fastray.cluster.agent import main; main()  # fastray.node agent"


def _log(text: str) -> None:
    print(time.strftime("%F %T"), text, file=sys.stderr, flush=True)


class Child:
    """A process that was started with `theirs` as descriptor 3; `channel` is our end of it."""

    def __init__(self, program: str, name: str, arguments: list[str], pause_s: float) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = program.format(root=root, pid=os.getpid(), name=name, pause=pause_s)
        command = [sys.executable or "python3", "-c", code, *arguments]
        self.started = time.monotonic() + pause_s
        self.pause_s = pause_s
        with theirs:
            self.pid = os.posix_spawn(
                command[0], command, os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), CHANNEL_FD)],
                setsigmask=(), setsigdef=(signal.SIGINT, signal.SIGPIPE),
            )  # fmt: skip
        self.pidfd = os.pidfd_open(self.pid)
        self._received = b""

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # it died: its pidfd says so

    def lines(self) -> list[str] | None:
        """What it said since; None when it has closed the channel."""
        if not select.select([self.channel], [], [], 0)[0]:
            return []
        try:
            data = self.channel.recv(MESSAGE_BYTES_MAX)
        except OSError:
            return None
        if not data:
            return None
        *whole, self._received = (self._received + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def next_pause_s(self) -> float:
        """Before the next one is started."""
        if time.monotonic() - self.started > LIVED_S:
            return 0.0
        return min(PAUSE_MAX_S, 2 * self.pause_s or PAUSE_FIRST_S)

    def ended(self, wait_s: float) -> bool:
        return bool(select.select([self.pidfd], [], [], max(0.0, wait_s))[0])

    def end(self, number: int, wait_s: float = END_WAIT_S) -> None:
        """Sends the signal, 0 for none, and SIGKILL when it has not ended after `wait_s`."""
        for sent, wait in ((number, wait_s), (signal.SIGKILL, END_WAIT_S)):
            try:
                signal.pidfd_send_signal(self.pidfd, sent)
            except ProcessLookupError:
                pass
            if self.ended(wait):
                break
        self.forget()

    def forget(self) -> None:
        self.channel.close()
        os.close(self.pidfd)
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # the node's loop took its status
            pass


class Supervisor:
    """`node` is what the agent has to know: see `Agent`. `on_joined` is called when the node is in the cluster, or
    with an error when it never will be."""

    def __init__(
        self, path: str, settings: dict[str, Any], node: dict[str, Any], on_joined: Callable[[dict[str, Any]], None]
    ) -> None:
        self.address: str = settings["address"] or ""
        self.rejoin = False
        self._path = path
        self._host: str = node["host"]
        self.port: int = settings["port"]
        self._is_head = not self.address
        self._store: str = settings["store"] or f"sqlite:{os.path.join(path, sessions.STORE)}"
        self._node = node
        self._on_joined = on_joined
        self._joined = False
        self._loop: LocalScheduler | None = None
        self._servers: list[Child] = []
        self._serving: Child | None = None
        if self._is_head:
            self._servers.append(self._server(standby=False))
        self._agent = self._new_agent(0.0)

    # ---- starting -------------------------------------------------------------------------------------

    def _server(self, standby: bool, pause_s: float = 0.0) -> Child:
        arguments = ["--host", self._host, "--port", str(self.port), "--store", self._store]
        arguments += ["--token-path", os.path.join(self._path, sessions.TOKEN), "--ready-fd", str(CHANNEL_FD)]
        if self._is_followed:
            arguments += ["--standby"] if standby else ["--followed"]
        return Child(_SERVER, "fastray.gcs", arguments, pause_s)

    @property
    def _is_followed(self) -> bool:
        return self._store.startswith("sqlite:")

    def _new_agent(self, pause_s: float) -> Child:
        agent = Child(_AGENT, "fastray.agent", [], pause_s)
        agent.send(self._node)
        if self.address:
            agent.send({"gcs": self.address})
        return agent

    def watch(self, loop: LocalScheduler) -> None:
        """From now on `loop` says when there is something to do: `on_readable`."""
        self._loop = loop
        for child in (*self._servers, self._agent):
            self._watch(child)

    def _watch(self, child: Child) -> None:
        assert self._loop is not None
        self._loop.spare(child.pid)
        self._loop.watch(child.channel.fileno())
        self._loop.watch(child.pidfd)

    # ---- while the node runs --------------------------------------------------------------------------

    def on_readable(self, fd: int) -> None:
        for server in list(self._servers):
            if fd == server.channel.fileno():
                self._server_said(server)
            elif fd == server.pidfd:
                self._server_died(server)
        if fd == self._agent.channel.fileno():
            self._listen_to_agent()
        elif fd == self._agent.pidfd:
            self._listen_to_agent()
            self._agent_died()

    def _unwatch(self, fd: int) -> None:
        assert self._loop is not None
        self._loop.unwatch(fd)

    def _bury(self, child: Child, what: str) -> float:
        pause_s = child.next_pause_s()
        _log(f"{what} (pid {child.pid}) ended")
        self._unwatch(child.channel.fileno())
        self._unwatch(child.pidfd)
        child.forget()
        return pause_s

    def _server_said(self, server: Child) -> None:
        said = server.lines()
        if said is None:
            self._unwatch(server.channel.fileno())
        for line in said or ():
            word, _, rest = line.partition(" ")
            if word == "failed" and not self.address:
                self._fail(f"the global control store did not start: {rest}")
            elif word == "serving":
                self._serving = server
                if not self.address:
                    self.address, self.port = rest, int(rest.rpartition(":")[2])
                    self._agent.send({"gcs": rest})

    def _server_died(self, server: Child) -> None:
        self._servers.remove(server)
        self._server_said(server)
        pause_s = self._bury(server, "a server of the global control store")
        if not self.address:
            self._fail("the global control store did not start: its process ended", ended=True)
        elif self._is_followed:
            self._add_server(pause_s)
        else:
            self._fail("what was in the memory of the control store is gone, and the cluster with it")

    def _add_server(self, pause_s: float = 0.0) -> None:
        server = self._server(standby=True, pause_s=pause_s)
        self._servers.append(server)
        self._watch(server)

    def _listen_to_agent(self) -> None:
        said = self._agent.lines()
        if said is None:
            self._unwatch(self._agent.channel.fileno())
        for line in said or ():
            self._agent_said(json.loads(line))

    def _agent_said(self, message: dict[str, Any]) -> None:
        assert self._loop is not None
        if "joined" in message and not self._joined:
            self._joined = True
            self._node["cluster"] = message["cluster"]  # the next agent joins no other
            self._on_joined(message)
            if self._is_head and self._is_followed:
                self._add_server()
        elif "failed" in message and not self._joined:
            self._fail(f"the node cannot join the cluster at {self.address}: {message['failed']}")
        elif "fenced" in message or message.get("refused"):  # by a store that knows nothing of this node's jobs
            _log(f"this node begins anew: {message.get('fenced') or message['failed']}")
            self.rejoin = True
            self._loop.end()

    def _agent_died(self) -> None:
        pause_s = self._bury(self._agent, "the agent")
        if not self._joined:
            self._fail("the node cannot join a cluster: its agent ended", ended=True)
            return
        self._agent = self._new_agent(pause_s)
        self._watch(self._agent)

    def _fail(self, why: str, *, ended: bool = False) -> None:
        """The node ends. `ended`: only the log may say more."""
        assert self._loop is not None
        if self._joined:
            _log(why)
        else:
            self._on_joined({"failed": why, "ended": ended})
        self._loop.end()

    # ---- the end --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The agent says goodbye, then the servers end, who stands by first: else it would take over."""
        if self._agent.channel.fileno() >= 0:
            self._agent.send({"leave": not self.rejoin})
            self._agent.end(0)
        for server in sorted(self._servers, key=lambda server: server is self._serving):
            server.end(signal.SIGTERM if server is self._serving else signal.SIGKILL)
