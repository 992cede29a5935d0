"""The driver's handle on the node process it started: starting it, noticing its death, ending it, its logs.

`AttachedNode` (attach.py) is the same for a daemon's node.

The node is started with posix_spawn (no fork of the driver, which may have threads) as `python -c`, with the
segment, the bell, the control socket and the log socket as file descriptors 3 to 6. It boots on its own; the
driver does not wait for it. `fastray.node` has the other side.
"""

from __future__ import annotations

import _thread
import fcntl
import marshal
import os
import select
import signal
import socket
import sys
import time

STOP_WAIT_S = 5.0  # for tasks' last output to be printed; then the node is killed
FD_MIN = 20  # our ends are moved up here, out of the way of 3..6

_PROGRAM = "import sys; sys.path[0] = {root!r}; from fastray.node import main; main()  # fastray.node"
_PRELOAD = ("numpy",)  # what workers import before they are forked, when the driver has it


class NodeProcess:
    """One private node. Its life ends with `stop`, or when this process does."""

    def __init__(
        self, segment_fd: int, bell_fd: int, cpus: int, log_to_driver: bool, namespace: str = "",
        record_failures: str | None = None, labels: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log_ours, log_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._owner_pid = os.getpid()
        self._control = ours
        self._logs = log_ours
        self._status: int | None = None
        self._printed = _thread.allocate_lock()
        self._printed.acquire()
        given = {"record_failures": record_failures, "labels": labels or {}}
        ours.send(marshal.dumps({**_hello(cpus, namespace), **given}))
        self.pid = _spawn((segment_fd, bell_fd, theirs.fileno(), log_theirs.fileno()))
        theirs.close()
        log_theirs.close()
        os.close(segment_fd)
        self._pidfd = os.pidfd_open(self.pid)
        _thread.start_new_thread(print_until_closed, (self._logs, log_to_driver, self._printed))

    @property
    def control_fd(self) -> int:
        return self._control.fileno()

    def alive(self) -> bool:
        """False once the kernel says that the process ended."""
        return self._status is None and not select.select([self._pidfd], [], [], 0)[0]

    def describe_death(self) -> str:
        """How it ended: "signal 9", "exit code 1"."""
        self._reap()
        if self._status is None:
            return "still running"
        code = os.waitstatus_to_exitcode(self._status)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def stop(self, quickly: bool = False, reads_on: bool = False) -> None:
        """Asks it to end, prints what tasks printed, waits; kills it when it takes too long. With `reads_on` this
        process still has the segment mapped: so it may, the memory goes with the last mapping."""
        from fastray.control import shutdown_message

        try:
            self._control.send(shutdown_message())
        except OSError:
            pass  # gone already
        wait_s = 0.5 if quickly else STOP_WAIT_S
        deadline = time.monotonic() + wait_s
        if not select.select([self._pidfd], [], [], wait_s)[0]:
            os.kill(self.pid, signal.SIGKILL)
            select.select([self._pidfd], [], [], wait_s)
        self._reap()
        self._printed.acquire(timeout=max(0.1, deadline - time.monotonic()))
        self._control.close()
        os.close(self._pidfd)

    def abandon(self) -> None:
        """In a forked child: closes our ends, touches nothing else."""
        self._control.close()
        self._logs.close()

    def _reap(self) -> None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else in this program waited for it
                pid, status = self.pid, 0
            if pid:
                self._status = status


def print_until_closed(logs: socket.socket, log_to_driver: bool, printed: _thread.LockType) -> None:
    """Thread: prints what the node sends until it closes the socket; then `printed` is released."""
    from fastray.log_reader import print_logs

    try:
        print_logs(logs, log_to_driver)
    finally:
        logs.close()
        printed.release()


def _hello(cpus: int, namespace: str) -> dict[str, object]:
    return {**describe_process(), "num_cpus": cpus, "namespace": namespace, "preload": to_preload()}


def describe_process() -> dict[str, object]:
    """What a worker has to have in common with this process: where it imports from, and where it is."""
    paths = [os.path.abspath(p) if p else os.getcwd() for p in sys.path if isinstance(p, str)]
    return {"sys_path": paths, "cwd": os.getcwd()}


def to_preload() -> list[str]:
    """What workers will want to have imported, because this process has."""
    return [name for name in _PRELOAD if name in sys.modules]


def _spawn(fds: tuple[int, ...]) -> int:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FD_MIN) for fd in fds]
    actions = [(os.POSIX_SPAWN_DUP2, fd, 3 + i) for i, fd in enumerate(moved)]
    arguments = [sys.executable or "python3", "-c", _PROGRAM.format(root=root)]
    if sys.flags.optimize:
        arguments.insert(1, "-" + "O" * sys.flags.optimize)
    try:
        return os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions)
    finally:
        for fd in moved:
            os.close(fd)
