"""Session directories: where a daemon is found, and how its death is seen.

    runtime directory   FASTRAY_TMPDIR, else $XDG_RUNTIME_DIR/fastray, else /tmp/fastray-<uid>; holds sessions
    session directory   session-<port>, mode 0700: `lock` (held by the daemon as long as it lives), `node.sock`
                        (drivers attach there), `daemon.json` (about it), `daemon.log` (what it and nobody's tasks say),
                        `agent.sock`, `auth_token` and `gcs.db*` (see docs/internals/cluster.md), `env` (files of
                        runtime_envs)
    name                session-<port> of a head whose port is given; session-<port>-<8 digits> of any other node
    stale               a session directory whose lock nobody holds: its daemon was killed

A daemon takes the lock before anything else and removes the directory before it ends. Used by daemon.py, attach.py
and node_commands.py. Imports nothing of the runtime.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 6379  # as Ray's: where other nodes join; names the head's session
LOCK, SOCKET, INFO, LOG = "lock", "node.sock", "daemon.json", "daemon.log"
STORE, TOKEN = "gcs.db", "auth_token"
CLAIM_WAIT_S = 1.0  # for somebody who removes a stale directory
SO_PEERPIDFD = 77  # of asm-generic/socket.h
SOCKET_PATH_MAX = 107  # of a Unix socket's name; longer ones go through /proc


class SessionRunningError(RuntimeError):
    """A daemon holds this session directory; `path` is the directory."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class UnsafeDirectoryError(OSError):
    """A directory that others could write to, or that belongs to somebody else."""


def runtime_dir(given: str | None = None) -> str:
    """The directory that holds this user's sessions; `given` (--temp-dir) wins. It may not exist."""
    path = given or os.environ.get("FASTRAY_TMPDIR")
    if path:
        return os.path.abspath(path)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "fastray") if runtime else f"/tmp/fastray-{os.geteuid()}"


def session_path(base: str, port: int) -> str:
    return os.path.join(base, f"session-{port}")


def _check_private(path: str, others: int) -> None:
    """Raises UnsafeDirectoryError unless `path` is a directory of ours in which nobody has the rights `others`."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & others:
        raise UnsafeDirectoryError(
            errno.EPERM,
            f"not a directory of user {os.geteuid()} that is closed to others: remove it, or choose another "
            "with --temp-dir or FASTRAY_TMPDIR",
            path,
        )


def claim(base: str, port: int, unique: str = "") -> tuple[str, int]:
    """Makes and locks the session directory: (path, descriptor of the lock). What a dead daemon left goes, but for the
    cluster's store and token: a head that was killed goes on with them.

    Raises SessionRunningError when a daemon has it, UnsafeDirectoryError, OSError.
    """
    os.makedirs(base, 0o700, exist_ok=True)
    _check_private(base, stat.S_IWGRP | stat.S_IWOTH)
    path = session_path(base, port) + (f"-{unique}" if unique else "")
    deadline = time.monotonic() + CLAIM_WAIT_S
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:  # the last session of `base` went, and `base` with it
            os.makedirs(base, 0o700, exist_ok=True)
            continue
        _check_private(path, 0o077)
        lock = _lock(path)
        if lock >= 0:
            clear(path)
            return path, lock
        if lock == -errno.EWOULDBLOCK and (is_listening(path) or time.monotonic() > deadline):
            raise SessionRunningError(path)
        time.sleep(0.005)  # somebody removes it, or a daemon in there is starting


def _lock(path: str) -> int:
    """The descriptor of the locked lock file, or -errno: EWOULDBLOCK when somebody has it, ENOENT when it went."""
    name = os.path.join(path, LOCK)
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return -errno.ENOENT
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(name)):
            return fd
        problem = -errno.ENOENT
    except BlockingIOError:
        problem = -errno.EWOULDBLOCK
    except FileNotFoundError:  # removed between open and flock
        problem = -errno.ENOENT
    os.close(fd)
    return problem


def clear(path: str) -> None:
    """Removes from a session directory what is its daemon's and not the cluster's."""
    for name in os.listdir(path):
        if name not in (LOCK, TOKEN, LOG) and not name.startswith(STORE):
            _remove_entry(os.path.join(path, name))


def _remove_entry(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):  # files of runtime_envs
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def remove(path: str) -> None:
    """Removes a session directory whose lock the caller holds; the runtime directory too, if it is ours and empty."""
    try:
        for name in os.listdir(path):
            if name != LOCK:
                _remove_entry(os.path.join(path, name))
        os.unlink(os.path.join(path, LOCK))  # last: until then nobody else can have it
        os.rmdir(path)
        base = os.path.dirname(path)
        if base == runtime_dir() and not os.environ.get("FASTRAY_TMPDIR"):
            os.rmdir(base)
    except OSError:
        pass  # somebody took it away, or put something in: the next start looks again


def remove_stale(path: str) -> bool:
    """Removes the directory of a daemon that was killed. False when a daemon holds it, or it is gone."""
    try:
        _check_private(path, 0o077)
    except OSError:
        return False
    lock = _lock(path)
    if lock < 0:
        return False
    remove(path)
    os.close(lock)
    return True


def connect(path: str) -> socket.socket:
    """A connection to the daemon of a session directory. Raises OSError when none listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with short_name(os.path.join(path, SOCKET)) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pidfd, pid) of the daemon at the other end of `connect`, whatever numbers it has elsewhere. The pid is 0 when
    it is not visible in this PID namespace; then signals do not reach it either. Raises OSError when it has ended.
    """
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", peer)[0]
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD), pid
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT or not pid:  # before Linux 6.5
            raise
    return os.pidfd_open(pid), pid


class short_name:  # noqa: N801  (a context manager, used as a function)
    """A name for the socket `path` that is short enough for the kernel, while the block lasts."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= SOCKET_PATH_MAX:
            return self._path
        directory, name = os.path.split(self._path)
        self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{name}"

    def __exit__(self, *_exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def is_listening(path: str) -> bool:
    """Whether a daemon listens in this session directory."""
    try:
        connect(path).close()
    except OSError:
        return False
    return True


def directories(base: str) -> Iterator[str]:
    """The session directories in `base`, the latest first; of live and of dead daemons."""
    try:
        names = [name for name in os.listdir(base) if name.startswith("session-")]
    except OSError:
        return
    found: list[tuple[float, str]] = []
    for name in names:
        try:
            found.append((os.stat(os.path.join(base, name)).st_mtime, os.path.join(base, name)))
        except OSError:
            continue
    for _, path in sorted(found, reverse=True):
        yield path


def read_info(path: str) -> dict[str, object]:
    """What the daemon of a session directory wrote about itself; empty when it has not yet."""
    import json

    try:
        with open(os.path.join(path, INFO), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
