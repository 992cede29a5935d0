"""A node that no driver owns: the process behind `fastray start`.

It is the node process of node.py (template of the workers and local scheduler in one) with a segment of its own and a
socket in a session directory, where drivers attach (csrc/local_scheduler_drivers.cpp). It ends by SIGTERM: then all
that it started is dead and its session directory is gone. Beside the node it has processes that make it a part of a
cluster (fastray/cluster/supervisor.py); when the cluster has declared the node dead, the daemon begins anew.

`launch` starts one and waits until it has joined; `main` is the daemon's own program. The starter writes a line
of JSON to the daemon's descriptor 3 (a socket) and reads one: {"ready": ...} or {"error": ...}. Nothing
else is shared, so a starter may come and go.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

from fastray import sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.node import LocalScheduler

STARTER_FD = 3
READY_WAIT_S = 60.0
JOIN_WAIT_S, REJOIN_WAIT_S = 10.0, 60.0  # for a store that does not answer
LINE_BYTES_MAX = 1 << 16
LAST_WORDS_MAX = 2000
CLOSED_MAX = os.sysconf("SC_OPEN_MAX")
UNIT = 10000  # of a resource, as in csrc/types.h
FD_MIN = 20  # the starter's end is moved up here, out of the way of STARTER_FD
_PROGRAM = "import sys; sys.path[0] = {root!r}; from fastray.daemon import main; main()  # fastray.node daemon"


class StartError(RuntimeError):
    """The daemon could not start; says why. `running` is the session directory of the one that is there already."""

    def __init__(self, message: str, running: str = "") -> None:
        super().__init__(message)
        self.running = running


# ---- the starter's side --------------------------------------------------------------------------------


def launch(settings: dict[str, Any]) -> dict[str, Any]:
    """Starts a daemon; what it says about itself (sessions.INFO) once its node has joined its cluster.

    `settings`: temp_dir, port (0: any), num_cpus, num_gpus, resources, labels, object_store_memory (None: as the
    machine is), with_starter (the daemon ends when the starter does); address (HOST:PORT of the cluster to join; None
    for a head), host (address of this node; None: loopback, or the one that leads to the head), store (None: a file in
    the session directory). Raises StartError.
    """
    settings = {**dict.fromkeys(("address", "host", "store")), **settings, "starter": os.getpid()}
    ours, theirs = socket.socketpair()
    with ours:
        pid = _spawn(theirs)
        theirs.close()
        ours.sendall(json.dumps(settings).encode() + b"\n")
        ours.settimeout(READY_WAIT_S)
        try:
            answer = json.loads(_read_line(ours) or b"{}")
        except (OSError, ValueError) as error:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            raise StartError(f"the daemon (pid {pid}) did not start: {error}") from None
    if "ready" not in answer:
        os.waitpid(pid, 0)
        why = answer.get("error") or "its process ended before it was ready"
        raise StartError(str(why), str(answer.get("running") or ""))
    ready: dict[str, Any] = answer["ready"]
    return ready


def _spawn(starter: socket.socket) -> int:
    import fcntl

    arguments = _command()
    fd = fcntl.fcntl(starter.fileno(), fcntl.F_DUPFD_CLOEXEC, FD_MIN)
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, fd, STARTER_FD),
    ]
    try:
        return os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions)
    finally:
        os.close(fd)


def _command() -> list[str]:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable or "python3", "-c", _PROGRAM.format(root=root)]


def _read_line(connection: socket.socket) -> bytes:
    """Up to a newline; less at the end of the connection."""
    data = b""
    while not data.endswith(b"\n") and len(data) < LINE_BYTES_MAX:
        part = connection.recv(LINE_BYTES_MAX)
        if not part:
            break
        data += part
    return data


# ---- the daemon ----------------------------------------------------------------------------------------


def main() -> None:
    """Becomes the daemon and runs until SIGTERM. Does not return."""
    starter = socket.socket(fileno=STARTER_FD)
    starter.set_inheritable(False)
    path, lock = "", -1
    try:
        settings = json.loads(_read_line(starter))
        path, lock = settings.get("path", ""), settings.get("lock", -1)
        # what the starter's shell had open is not ours
        os.closerange(STARTER_FD + 1, lock if lock > 0 else CLOSED_MAX)
        os.closerange(max(STARTER_FD, lock) + 1, CLOSED_MAX)
        if path:  # this process was the daemon before: it has to begin anew
            os.set_inheritable(lock, False)
            sessions.clear(path)
        else:
            path, lock = _claim(settings)
        _serve(path, lock, settings, starter)
    except sessions.SessionRunningError as error:
        _answer(starter, {"error": f"a node runs already in {error.path}", "running": error.path})
        os._exit(1)
    except Exception as error:
        _answer(starter, {"error": f"{type(error).__name__}: {error}"})
        if path:
            sessions.remove(path)
        os._exit(1)
    sessions.remove(path)
    os.close(lock)
    os._exit(0)


def _claim(settings: dict[str, Any]) -> tuple[str, int]:
    """The session directory: one node of this machine can be the head at a given port."""
    port, unique = settings["port"], ""
    if settings["address"]:
        port = int(settings["address"].rpartition(":")[2])
    base = sessions.runtime_dir(settings["temp_dir"])
    if settings["address"] or not port:
        unique = os.urandom(4).hex()
        for path in sessions.directories(base):
            if os.path.basename(path).startswith(f"session-{port}-"):
                sessions.remove_stale(path)  # of a node that was killed: nobody takes its name again
    return sessions.claim(base, port, unique)


def _answer(starter: socket.socket, answer: dict[str, object]) -> None:
    with starter:
        try:
            starter.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # it is gone, or has its answer already


def _serve(path: str, lock: int, settings: dict[str, Any], starter: socket.socket) -> None:
    """Makes the node, joins the cluster, says that it is ready, and runs the node to its end."""
    from fastray.cluster.launch import own_address
    from fastray.cluster.supervisor import Supervisor
    from fastray.node import serve, settle

    starter_fd = os.pidfd_open(settings["starter"]) if settings["with_starter"] else -1
    if starter_fd >= 0 and os.getppid() != settings["starter"]:
        raise ProcessLookupError("who started this daemon, and is to end it, is gone")
    _to_log(path)
    settle({"cwd": "/"})
    host = own_address(settings["host"], settings["address"])
    head = not settings["address"]
    wait_s = REJOIN_WAIT_S if "lock" in settings else JOIN_WAIT_S
    told = {"path": path, "host": host, "labels": settings["labels"], "head": head, "wait_s": wait_s}
    info: dict[str, Any] = {
        "pid": os.getpid(), "path": path, "head": head, "host": host, "labels": settings["labels"] or {},
        "prefix": sys.prefix, "python": ".".join(map(str, sys.version_info[:3])),
    }  # fmt: skip

    def joined(answer: dict[str, Any]) -> None:
        if "failed" in answer:
            _answer(starter, {"error": answer["failed"] + (_last_words(path) if answer["ended"] else "")})
            info["failed"] = answer["failed"]
            return
        info.update(gcs=answer["gcs"], node_id=answer["node_id"], port=int(answer["gcs"].rpartition(":")[2]))
        _write_info(path, info)
        _answer(starter, {"ready": info})

    def readable(fd: int) -> None:
        if fd == starter_fd:
            loop.end()
        else:
            supervisor.on_readable(fd)

    supervisor = Supervisor(path, settings, told, joined)
    try:
        loop, session = _make_node(path, settings, host)
        info.update(session=session, started=time.time())
        supervisor.watch(loop)
        if starter_fd >= 0:
            loop.watch(starter_fd)
        serve(loop, on_readable=readable)
    finally:
        supervisor.stop()
    if "failed" in info and "lock" in settings:  # nobody hears it: the log stays, until the next start or stop
        print("this node could not begin anew:", info["failed"], file=sys.stderr, flush=True)
        os._exit(1)
    if supervisor.rejoin:
        _begin_anew(path, lock, {**settings, "port": supervisor.port})


def _make_node(path: str, settings: dict[str, Any], host: str) -> tuple[LocalScheduler, str]:
    """A segment, a socket for drivers, and the loop over them; the name of its session."""
    from fastray._native.node import LocalScheduler
    from fastray._native.session import create_segment, session_of
    from fastray.runtime import node_resources

    totals, cpus, store_bytes = node_resources(settings)
    totals[f"node:{host}"] = totals.pop("node:127.0.0.1")
    if not settings["address"]:
        totals["node:__internal_head__"] = UNIT
    segment_fd = create_segment(store_bytes, totals, cpus)
    bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sessions.short_name(os.path.join(path, sessions.SOCKET)) as name:
        listener.bind(name)
    listener.listen(128)
    listener.setblocking(False)
    loop = LocalScheduler(segment_fd, bell_fd, -1, -1, listener.detach(), True)
    return loop, f"session_{session_of(segment_fd):016x}"


def _begin_anew(path: str, lock: int, settings: dict[str, Any]) -> None:
    """This process's program again, with nothing but the settings, the session directory and its lock: its drivers see
    their connections closed. Does not return."""
    ours, theirs = socket.socketpair()
    ours.sendall(json.dumps({**settings, "path": path, "lock": lock}).encode() + b"\n")
    os.dup2(theirs.fileno(), STARTER_FD)
    os.set_inheritable(lock, True)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(sys.executable or "python3", _command())


def _last_words(path: str) -> str:
    """The end of the log, which goes with the session directory."""
    with open(os.path.join(path, sessions.LOG), encoding="utf-8", errors="replace") as file:
        words = file.read()[-LAST_WORDS_MAX:].strip()
    return f"; it said: {words}" if words else ""


def _to_log(path: str) -> None:
    """What this process says goes into the session directory."""
    fd = os.open(os.path.join(path, sessions.LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(fd, stream)
    os.close(fd)


def _write_info(path: str, info: dict[str, object]) -> None:
    name = os.path.join(path, sessions.INFO)
    fd = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(info, file)
    os.rename(f"{name}.new", name)
