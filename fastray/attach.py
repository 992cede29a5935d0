"""A driver's handle on the node of a daemon: finding it, attaching to it, noticing its death, leaving it.

    address   what `init(address=...)` takes: "auto", "host:port" of a cluster that has a node on this machine, or a
              path: of a session directory, of a runtime directory, or of a socket, with or without "unix:" before it

Where several nodes run here, heads come first, then the latest.

`AttachedNode` does for a daemon what `NodeProcess` does for a private node; docs/internals/daemon.md has the protocol.
Imported when there is an address; used by runtime.py and node_commands.py.
"""

from __future__ import annotations

import _thread
import array
import os
import select
import socket
import sys

from fastray import control, sessions
from fastray.node_process import describe_process, print_until_closed, to_preload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastray.config import InitOptions

ANSWER_WAIT_S = 10.0  # the daemon answers between two steps of its loop; it may be importing
STOP_WAIT_S = 5.0  # for tasks' last output to be printed


def find(address: str) -> str:
    """The session directory that `address` names. Raises ConnectionError when no daemon is there."""
    if address == "auto":
        given = os.environ.get("FASTRAY_ADDRESS")
        if given and given not in ("auto", "local"):
            return find(given)
        return _only(_heads_first(sessions.runtime_dir()), address, f"in {sessions.runtime_dir()}")
    path = address[len("unix:") :] if address.startswith("unix:") else address
    if os.sep not in path:
        return _find_port(address)
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.basename(path) == sessions.SOCKET:
        path = os.path.dirname(path)
    if os.path.basename(path).startswith("session-"):
        return _only([path], address, "there")
    return _only(_heads_first(path), address, "there")


def _heads_first(base: str) -> list[str]:
    return sorted(sessions.directories(base), key=lambda path: not sessions.read_info(path).get("head"))


def _find_port(address: str) -> str:
    """A driver is a process of a node: it attaches to one on its own machine."""
    from fastray.cluster.launch import is_same_store

    base = sessions.runtime_dir()
    for path in _heads_first(base):
        gcs = sessions.read_info(path).get("gcs")
        if isinstance(gcs, str) and is_same_store(gcs, address) and sessions.is_listening(path):
            return path
    raise ConnectionError(
        f"no fastray node of the cluster at {address!r} runs on this machine (looked in {base}). Start one with "
        f"`fastray start --address={address}`, or the cluster itself with `fastray start --head`"
    )


def _only(paths: Iterable[str], address: str, where: str) -> str:
    for path in paths:
        if sessions.is_listening(path):
            return path
    raise ConnectionError(
        f"no fastray node found at address {address!r}: none runs {where}. Start one with `fastray start --head`, "
        "or leave address out for a private one"
    )


class AttachedNode:
    """A connection to a daemon's node, as one of its drivers. Ends with `stop`, or when this process does.

    Attributes: `pid` of the node; `slot` taken for this process; `segment_fd`, `bell_fd`: the caller closes them.

    Raises ConnectionError when no daemon answers or it refuses (another version of fastray or Python, no slot left).
    """

    def __init__(
        self, path: str, log_to_driver: bool = False, namespace: str = "", *, observer: bool = False,
        role: int = control.AS_DRIVER,
    ) -> None:  # fmt: skip
        self.path = path
        try:
            self._control = sessions.connect(path)
        except OSError as error:
            raise ConnectionError(f"no fastray node listens in {path}: {error}") from None
        try:
            fds = self._attach(namespace, control.AS_OBSERVER if observer else role)
        except BaseException:
            self._control.close()
            raise
        self.segment_fd, self.bell_fd, *logs = fds
        self._pidfd = _open_peer(self._control)
        self._printed = _thread.allocate_lock()
        if logs and role == control.AS_AGENT:
            self.log_socket = socket.socket(fileno=logs[0])  # frames as log_reader.py has them
        elif logs:
            self._logs = socket.socket(fileno=logs[0])
            self._printed.acquire()
            _thread.start_new_thread(print_until_closed, (self._logs, log_to_driver, self._printed))

    def _attach(self, namespace: str, role: int) -> list[int]:
        """Says who we are; the descriptors that come with the answer."""
        self._control.settimeout(ANSWER_WAIT_S)
        try:
            self._control.send(control.attach_message(namespace, _entrypoint(), role))
            data, fds = _receive(self._control)
            status, self.slot, self.pid, self.session, why = control.read_reply(data)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"the fastray node in {self.path} does not answer: {error}") from None
        finally:
            self._control.settimeout(None)
        if status != control.ATTACHED or len(fds) < 2:
            raise ConnectionError(f"the fastray node in {self.path} refuses this process: {why}")
        return fds

    @property
    def control_fd(self) -> int:
        return self._control.fileno()

    @property
    def address(self) -> str:
        """What another process passes to `init(address=...)`."""
        return f"unix:{os.path.join(self.path, sessions.SOCKET)}"

    def info(self) -> dict[str, object]:
        """What the daemon wrote about itself."""
        return sessions.read_info(self.path)

    def alive(self) -> bool:
        """False once the kernel says that the daemon ended, or it has closed the connection: it began anew, or it did
        not want us any more."""
        poll = select.poll()
        poll.register(self._control, 0)
        return not (self._pidfd >= 0 and select.select([self._pidfd], [], [], 0)[0]) and not poll.poll(0)

    def describe_death(self) -> str:
        """How it ended: its exit status is not ours to see."""
        return "still running" if self.alive() else f"pid {self.pid} is gone"

    def preload(self) -> None:
        """Has what workers will want imported before they are forked, when the daemon's interpreter is this one."""
        modules = to_preload()
        if modules and self.info().get("prefix") == sys.prefix:
            try:
                self._control.send(control.preload_message(modules))
            except OSError:
                pass  # the daemon died: the next call says so

    def stop(self, quickly: bool = False, reads_on: bool = False) -> None:
        """Ends this process's job and prints what its tasks printed. With `reads_on` this process still has the
        segment mapped: its objects stay until it ends."""
        try:
            self._control.send(control.shutdown_message(reads_on))
        except OSError:
            pass  # gone already
        # the daemon closes both sockets when the job's workers are dead and their output is sent
        select.select([self._control], [], [], 0.5 if quickly else STOP_WAIT_S)
        self._control.close()
        self._printed.acquire(timeout=0.1 if quickly else STOP_WAIT_S)
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def abandon(self) -> None:
        """In a forked child: closes our ends, touches nothing else."""
        self._control.close()
        self._logs.close()


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which are not inherited by programs this one starts."""
    room = socket.CMSG_LEN(3 * array.array("i").itemsize)
    data, ancillary, _, _ = connection.recvmsg(control.REPLY_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _open_peer(connection: socket.socket) -> int:
    """A pidfd of the daemon: the pid that it has told is that of its own namespace."""
    try:
        return sessions.peer_of(connection)[0]
    except OSError:  # it died since it answered, or the kernel cannot say: then its closed socket does
        return -1


def job_environment(node: AttachedNode, options: InitOptions) -> dict[str, object]:
    """What the workers of this driver's job have to have in common with it."""
    return {
        **describe_process(),
        "umask": own_umask(),
        "environ": dict(os.environ),
        "namespace": options.namespace or "",
        "record_failures": options.record_failures or "",
        "labels": node.info().get("labels"),
        "session": node.path,
    }


def own_umask() -> int:
    """The mode bits that files of this process are made without."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _entrypoint() -> str:
    return " ".join(sys.argv)[:159]
