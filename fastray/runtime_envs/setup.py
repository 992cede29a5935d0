"""A worker's side of a runtime_env: where its files are on this node, and which interpreter is to run.

    front     directories that come first on `sys.path`: py_modules, then working_dir, as in Ray
    direct    a file or directory on the node that named it is used as it is; elsewhere, and archives, are unpacked
    view      an entry of the store with a link to one module: so its neighbours are not importable
    fresh     the worker goes on as a new interpreter (fresh.py): for pip, uv and py_executable, since modules that the
              node has imported must not be what it sees, and for variables that an interpreter reads at its start

Entries that this process uses stay in their stores until it ends. Called by node_child.py before a worker attaches,
and by recovery/replay.py.
"""

from __future__ import annotations

import os
import sys
from _blake2 import blake2b

from fastray.exceptions import RuntimeEnvSetupError
from fastray.runtime_env import AT_START, JOB, PACKAGES, STAMPS
from fastray.runtime_envs.store import Store, session_store, user_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROBE_WAIT_S, TIMEOUT_S = 60.0, 600.0  # the second is Ray's
FOR_EVER_S = 1e6
ARCHIVES = (".zip", ".whl")
DIGEST_BYTES = 16


class Setup:
    """What `set_up` found: `front`, `directory` ("" for none), `interpreter` (its command; empty: go on in this
    process), `prefix` of a virtual environment ("" for none)."""

    def __init__(self) -> None:
        self.front: list[str] = []
        self.directory = ""
        self.interpreter: list[str] = []
        self.prefix = ""
        self.locks: list[int] = []  # of what this process uses: closed by its end

    def packages(self) -> list[str]:
        """site-packages of the virtual environment."""
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        return [os.path.join(self.prefix, "lib", version, "site-packages")] if self.prefix else []


def set_up(fields: dict[str, Any], node: int = 0, wait: Callable[[], object] = lambda: None) -> Setup:
    """Prepares what the runtime_env names; variables are the caller's, and set already. `node` is the number of this
    node, `wait` is called before anything that takes long.

    Raises RuntimeEnvSetupError.
    """
    setup = Setup()
    files = _Files(fields, node, wait, setup.locks)
    for path in fields.get("py_modules") or ():
        setup.front += files.module(path)
    if fields.get("working_dir"):
        setup.directory = files.directory(fields["working_dir"])
        setup.front.append(setup.directory)
    for field in ("pip", "uv"):
        if fields.get(field):
            from fastray.runtime_envs.venv import environment

            timeout_s = (fields.get("config") or {}).get("setup_timeout_seconds")
            setup.prefix, lock = environment(field, fields[field], timeout_s, wait)
            setup.locks.append(lock)
            setup.interpreter = [os.path.join(setup.prefix, "bin", "python")]
    if fields.get("py_executable"):
        if setup.interpreter:
            raise RuntimeEnvSetupError("runtime_env: py_executable goes with neither pip nor uv", field="py_executable")
        setup.interpreter = probed(fields["py_executable"])
    elif not setup.interpreter and any(name.startswith(AT_START) for name in fields.get("env_vars") or ()):
        setup.interpreter = [sys.executable]
    return setup


class _Files:
    """Where the files of a runtime_env are on this node."""

    def __init__(self, fields: dict[str, Any], node: int, wait: Callable[[], object], locks: list[int]) -> None:
        self._packages: dict[str, tuple[str, int]] = fields.get(PACKAGES) or {}
        self._stamps: dict[str, str] = fields.get(STAMPS) or {}
        self._session = str((fields.get(JOB) or {}).get("session") or "")
        self._node = node
        limit = (fields.get("config") or {}).get("setup_timeout_seconds", TIMEOUT_S)
        self._wait_s = FOR_EVER_S if limit == -1 else limit
        self._wait = wait
        self._locks = locks

    def directory(self, path: str) -> str:
        if self._is_direct(path):
            if not os.path.isdir(path):
                raise _gone("working_dir", path)
            return path
        return self._unpacked("working_dir", path)

    def module(self, path: str) -> list[str]:
        """Directories to import it from."""
        if self._is_direct(path):
            if not os.path.exists(path):
                raise _gone("py_modules", path)
            return [self._use(self._store(), f"view-{_name(path)}", lambda entry, _: _link(path, entry))]
        folder = self._unpacked("py_modules", path)
        data = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".data")]  # of a wheel
        parts = [os.path.join(name, kind) for name in data for kind in ("purelib", "platlib")]
        return [folder, *filter(os.path.isdir, parts)]

    def _is_direct(self, path: str) -> bool:
        _, origin = self._packages.get(path, ("", self._node))
        return origin == self._node and not path.endswith(ARCHIVES)

    def _store(self) -> Store:
        return session_store(self._session) if self._session else user_store()

    def _unpacked(self, field: str, path: str) -> str:
        package = self._packages.get(path)
        if package is None:  # an archive, in a session without a cluster
            if not os.path.isfile(path):
                raise _gone(field, path)
            name = f"zip-{_name(path, self._stamps.get(path, ''))}"
            return self._use(self._store(), name, lambda entry, _: _unpack(path, entry))
        digest, origin = package
        store = self._store()

        def make(entry: str, _lock: int) -> None:
            if not os.path.exists(f"{entry}.zip"):
                self._fetch(path, digest, origin)
            _unpack(f"{entry}.zip", entry)

        return self._use(store, digest, make)

    def _fetch(self, path: str, digest: str, origin: int) -> None:
        from fastray.cluster.inquiry import ask

        answer = ask(self._session, "package", [digest, origin], wait_s=self._wait_s)
        if answer:
            raise RuntimeEnvSetupError(f"runtime_env: the package of {path!r} did not come to this node: {answer}")

    def _use(self, store: Store, name: str, make: Callable[[str, int], None]) -> str:
        path, lock = store.use(name, make, self._wait)
        self._locks.append(lock)
        return path


def _gone(field: str, path: str) -> RuntimeEnvSetupError:
    return RuntimeEnvSetupError(f"runtime_env[{field!r}] = {path!r} is not there (any more)", field=field)


def _unpack(package: str, entry: str) -> None:
    from fastray.runtime_envs.packages import unpack

    unpack(package, entry)


def _link(path: str, entry: str) -> None:
    os.symlink(path, os.path.join(entry, os.path.basename(path)))


def _name(*texts: str) -> str:
    return blake2b("\0".join(texts).encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).hexdigest()


# ---- interpreters --------------------------------------------------------------------------------------


def fastray_root() -> str:
    """The directory that has the package fastray of this process."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def probed(command: str) -> list[str]:
    """The words of a py_executable that can run a worker. Raises RuntimeEnvSetupError when it cannot."""
    import shlex
    import subprocess

    words = shlex.split(os.path.expandvars(command))
    program = probe_program()
    try:
        done = subprocess.run(
            [*words, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_WAIT_S,
            errors="replace",
        )  # fmt: skip
        problem = "" if done.stdout.endswith("fastray works\n") else (done.stderr.strip() or f"it said {done.stdout!r}")
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise RuntimeEnvSetupError(
            f"runtime_env['py_executable'] = {command!r} cannot run workers: it has to be the same Python as the "
            f"node's ({sys.implementation.cache_tag}), with what fastray needs. {problem[-1000:]}",
            field="py_executable",
        )
    return words


def probe_program() -> str:
    """A program that an interpreter can run when it can be a worker; then it prints "fastray works"."""
    return (
        f"import sys; sys.path.append({fastray_root()!r}); "
        f"assert sys.implementation.cache_tag == {sys.implementation.cache_tag!r}, sys.version; "
        "import cloudpickle, fastray._native.worker; print('fastray works')"
    )
