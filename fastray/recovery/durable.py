"""The path of `init(durable=PATH)`: header, lock, and the logs of the sessions before this one.

    header    what wrote the logs: their format, Python's and fastray's version; another one does not read them
    lock      held by the driver for the life of its session, so that a path has one session at a time
    logs      `log-<generation>-<slot>`, one of each worker, and `base-<generation>`, what was left of older ones

`DurablePath.open` is called by runtime.start before the segment is made, whose size the index of the logs decides.
The formats are csrc/durable_log.h's; docs/internals/durable.md has the design.
"""

from __future__ import annotations

import os
import sys

from fastray._native.durable import Logs, open_log
from fastray.exceptions import DurablePathError, DurablePathInUseError, DurablePathMismatchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray.options import TaskOptions

FORMAT = 1  # of the logs and of what a key is made of
HEADER, LOCK = "fastray-durable.json", "lock"
WRITERS_WAIT_MS = 10_000  # workers of a session whose driver was killed are gone after a second
PATH_BYTES_MAX = 4000


class DurablePath:
    """An open path: locked, its logs read. Made by `open`."""

    def __init__(self, path: str, lock_fd: int, logs: Logs) -> None:
        self.path = path
        self.logs = logs
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, given: str) -> DurablePath:
        """Makes the directory when there is none; reads and tidies its logs.

        Raises DurablePathError for a path that cannot be used, DurablePathInUseError when another process uses it,
        DurablePathMismatchError when another version wrote it.
        """
        path = make_directory(given)
        check_header(path)
        lock_fd = lock(path)
        try:
            logs = read_logs(path)
            try:
                logs.compact()
            except OSError as error:  # nothing is lost: the old logs stay
                warn(f"the logs in {path} could not be compacted: {error}")
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, lock_fd, logs)

    def close(self) -> None:
        """Others may use the path; in a forked child, leaves the lock to the parent."""
        os.close(self._lock_fd)


# ---- the directory ---------------------------------------------------------------------------------------


def make_directory(given: str) -> str:
    """The absolute path, which is a directory of ours or an empty one afterwards."""
    path = os.path.abspath(os.path.expanduser(given))
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise DurablePathError(f"durable path {path[:60]}... is longer than {PATH_BYTES_MAX} bytes", path=path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        entries = os.listdir(path)
    except (FileExistsError, NotADirectoryError):
        raise DurablePathError(
            f"durable path {path} is, or leads through, a file: name a directory", path=path
        ) from None
    except OSError as error:
        raise DurablePathError(f"durable path {path} cannot be made or read: {error.strerror}", path=path) from None
    if HEADER not in entries and set(entries) - {LOCK, HEADER + ".tmp"}:
        raise DurablePathError(
            f"durable path {path} has other files in it: name an empty directory, or one that does not exist",
            path=path,
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise DurablePathError(f"durable path {path} is not writable for this user", path=path)
    if HEADER not in entries:
        os.chmod(path, 0o700)
    return path


def versions() -> dict[str, object]:
    from fastray import __version__

    return {"format": FORMAT, "python": "{}.{}".format(*sys.version_info), "fastray": __version__}


def check_header(path: str) -> None:
    """Writes the header where there is none. Raises DurablePathMismatchError when it is another version's."""
    import json

    file = os.path.join(path, HEADER)
    ours = versions()
    try:
        with open(file, encoding="utf-8") as stream:
            theirs = json.load(stream)
    except FileNotFoundError:
        try:
            with open(file + ".tmp", "w", encoding="utf-8") as stream:
                json.dump(ours, stream)
            os.replace(file + ".tmp", file)
        except OSError as error:
            raise DurablePathError(
                f"durable path {path} cannot be written to: {error.strerror}", path=path
            ) from None
        return
    except (OSError, ValueError) as error:
        raise DurablePathMismatchError(
            f"{file} cannot be read ({error}): delete the directory, or name another", path=path
        ) from None
    if theirs != ours:
        shown = ", ".join(f"{key} {theirs.get(key)} (here {value})" for key, value in ours.items())
        raise DurablePathMismatchError(
            f"durable path {path} was written by another version: {shown}. Go on with that version, name another "
            f"path, or empty this one with `fastray durable clear {path}`.",
            path=path,
        )


def lock(path: str) -> int:
    """A descriptor that holds the path's lock. Raises DurablePathInUseError, which names the holder."""
    import fcntl

    fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise in_use(path, int(text) if text.isdigit() else 0) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def in_use(path: str, pid: int) -> DurablePathInUseError:
    who = f"process {pid}" if pid > 0 else "another process"
    return DurablePathInUseError(
        f"durable path {path} is in use by {who}: a path has one session at a time. Wait for it, or name another.",
        path=path,
        pid=pid if pid > 0 else None,
    )


def read_logs(path: str, wait_ms: int = WRITERS_WAIT_MS) -> Logs:
    try:
        logs = Logs(path, wait_ms)
    except OSError as error:
        raise DurablePathError(f"the logs of durable path {path} cannot be read: {error}", path=path) from None
    if logs.writer:
        raise in_use(path, logs.writer)
    return logs


# ---- functions -------------------------------------------------------------------------------------------


def function_digest(function: Callable[..., Any], options: TaskOptions, environment: object) -> tuple[int, int]:
    """What stands for a remote function in the keys of its tasks: its code, number of results, runtime_env."""
    from fastray.recovery.code_digest import digest_of

    seeded = () if options.seed is None else (options.seed,)
    digest = digest_of((function, options.num_returns, environment, *seeded))
    return int.from_bytes(digest[:8], "little") | 1, int.from_bytes(digest[8:], "little")  # (0, 0) is none


def name_classes() -> None:
    """From now on, classes that this process pickles by value have the same ids in every run."""
    from fastray._native import pickling
    from fastray.recovery.code_digest import name_class

    pickling.name_class = name_class


def open_log_here() -> None:
    """Tasks that run in this process find results of earlier sessions, and are written down."""
    name_classes()
    problem = open_log()
    if problem:
        warn_not_kept(problem)


# ---- trouble ---------------------------------------------------------------------------------------------


def warn(text: str) -> None:
    print(f"fastray: {text}", file=sys.stderr, flush=True)


def warn_not_kept(problem: str) -> None:
    """The session goes on, but what it finishes from now on is not kept."""
    warn(f"durable session: results are not kept any more ({problem}). Tasks go on; a later session runs them again.")
