"""A directory of things that are made once: unpacked packages and virtual environments.

    entry     a directory of the store with a name that says what is in it
    lock      NAME.lock; who makes or removes an entry holds it alone, who uses one shares it, for as long as it lives
    done      NAME.done: the entry is complete. Made last, removed first; its time is that of the last use
    failure   NAME.failed: when and why the last attempt failed. Who waited for that attempt fails with it at once; who
              comes later tries again

The kernel gives locks back when a process dies, so a killed maker leaves an entry that is not done, and the next one
begins anew. A lock is also held by what a maker has started (pip): nobody begins while that still writes.

`<session directory>/env` is the store of a daemon's node, and goes with the session. FASTRAY_ENV_CACHE, by default
~/.cache/fastray/envs, is the user's: there the entries used longest ago go when there are more than
FASTRAY_ENV_CACHE_MAX (32), but for those in use. Used by setup.py, publish.py and transfer/packages.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time

from fastray.exceptions import RuntimeEnvSetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = "env"  # of a session directory
ENTRIES_MAX = 32
DONE, LOCK, FAILED = ".done", ".lock", ".failed"


class Store:
    """The entries of the directory `root`. `entries_max`: how many are kept when another is made; 0 for all."""

    def __init__(self, root: str, entries_max: int = 0) -> None:
        self.root = root
        self._entries_max = entries_max
        os.makedirs(root, 0o700, exist_ok=True)

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def use(
        self, name: str, make: Callable[[str, int], None], wait: Callable[[], object] = lambda: None
    ) -> tuple[str, int]:
        """(path of the entry, descriptor that keeps it from being removed). When it is not there, one process calls
        `make(path of an empty directory, descriptor of the lock)`; others wait. `wait` is called before that.

        Raises RuntimeEnvSetupError when making it failed, here or in the process that this one waited for.
        """
        began = time.time_ns()
        lock = self.lock(name, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if lock >= 0 and self._touch(name):
            return self.path(name), lock
        wait()
        while True:
            if lock < 0:
                lock = self.lock(name, fcntl.LOCK_SH)
            try:
                if self._touch(name):
                    return self.path(name), lock
                self._raise_failure(name, began)
                fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may have been first, or have removed it
                if self._is_current(name, lock) and not self._is_done(name):
                    self._raise_failure(name, began)
                    self._make(name, make, lock)
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
            lock = -1

    def _make(self, name: str, make: Callable[[str, int], None], lock: int) -> None:
        path = self.path(name)
        try:
            shutil.rmtree(path, ignore_errors=True)
            os.mkdir(path, 0o700)
            make(path, lock)
        except Exception as error:
            shutil.rmtree(path, ignore_errors=True)
            write_atomically(path + FAILED, json.dumps([time.time_ns(), str(error)]).encode())
            if isinstance(error, RuntimeEnvSetupError):
                raise
            raise RuntimeEnvSetupError(f"runtime_env: {type(error).__name__}: {error}") from error
        write_atomically(path + DONE, b"")
        if self._entries_max:
            self.prune(self._entries_max)

    def _raise_failure(self, name: str, since_ns: int) -> None:
        try:
            with open(self.path(name) + FAILED, encoding="utf-8") as file:
                at, message = json.load(file)
        except (FileNotFoundError, ValueError):
            return
        if at >= since_ns:
            raise RuntimeEnvSetupError(message)

    def _is_done(self, name: str) -> bool:
        return os.path.exists(self.path(name) + DONE)

    def _touch(self, name: str) -> bool:
        try:
            os.utime(self.path(name) + DONE)
        except FileNotFoundError:
            return False
        return True

    # ---- locks ----------------------------------------------------------------------------------------

    def lock(self, name: str, how: int) -> int:
        """A descriptor of the entry's lock, locked as fcntl.flock does; -1 when it is taken and LOCK_NB was given."""
        while True:
            fd = os.open(self.path(name) + LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                os.close(fd)
                return -1
            except BaseException:
                os.close(fd)
                raise
            if self._is_current(name, fd):
                return fd
            os.close(fd)  # the entry was removed, and its lock with it

    def _is_current(self, name: str, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path(name) + LOCK))
        except FileNotFoundError:
            return False

    # ---- removing -------------------------------------------------------------------------------------

    def remove(
        self, name: str, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Removes the entry and what is beside it (NAME.zip). False when it is in use, or `unless` says no."""
        lock = self.lock(name, how)
        if lock < 0:
            return False
        try:
            if unless():
                return False
            path = self.path(name)
            for suffix in (DONE, FAILED, ".zip"):
                _unlink(path + suffix)
            shutil.rmtree(path, ignore_errors=True)
            _unlink(path + LOCK)  # last: until then nobody else makes it
        finally:
            os.close(lock)
        return True

    def prune(self, keep: int) -> None:
        """Removes entries that nobody uses: those that are not done, and the longest unused until `keep` are left."""
        done = sorted(self._done(), reverse=True)
        names = {entry.name[: -len(LOCK)] for entry in os.scandir(self.root) if entry.name.endswith(LOCK)}
        for name in names.difference(name for _, name in done):
            self.remove(name, unless=lambda name=name: self._is_done(name))  # type: ignore[misc]
        for _, name in done[keep:]:
            self.remove(name)

    def _done(self) -> Iterator[tuple[float, str]]:
        for entry in os.scandir(self.root):
            if entry.name.endswith(DONE):
                try:
                    yield entry.stat().st_mtime, entry.name[: -len(DONE)]
                except FileNotFoundError:  # somebody else removes it
                    continue


def user_store() -> Store:
    """The store of this user, on this machine."""
    given = os.environ.get("FASTRAY_ENV_CACHE")
    base = os.environ.get("FASTRAY_CACHE_DIR") or os.path.join("~", ".cache", "fastray")
    root = os.path.abspath(os.path.expanduser(given or os.path.join(base, "envs")))
    try:
        most = max(1, int(os.environ.get("FASTRAY_ENV_CACHE_MAX", "")))
    except ValueError:
        most = ENTRIES_MAX
    return Store(root, most)


def session_store(session_path: str) -> Store:
    """The store of the node in this session directory."""
    return Store(os.path.join(session_path, FOLDER))


def write_atomically(path: str, data: bytes) -> None:
    """The file has all of `data`, or is as it was."""
    unfinished = f"{path}.{os.urandom(8).hex()}.tmp"  # pids are not unique: containers share a home
    with open(unfinished, "wb") as file:
        file.write(data)
    os.replace(unfinished, path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
