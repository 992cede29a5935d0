"""Virtual environments for `pip` and `uv`: one for each list of requirements, made once on a machine and kept.

    name       a digest of the requirements and options, the interpreter, and size and time of local files among them
    parent     the packages of the node's own interpreter: importable in the environment, behind its own (a .pth file)
    installer  the worker that comes first; it waits for pip, the node does not (csrc/local_scheduler.h, kSettingUp)

The environment is made at its final place, since scripts in `bin` name it; the store says whether it is complete. pip
runs in the worker's process group, dies with it, and holds the store's lock as long as it lives. Called by setup.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
from _blake2 import blake2b
from importlib.util import find_spec

from fastray._native.node import die_with_parent
from fastray.exceptions import RuntimeEnvSetupError
from fastray.runtime_envs.setup import DIGEST_BYTES, TIMEOUT_S, probe_program
from fastray.runtime_envs.store import user_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PIP_OPTIONS = ["--disable-pip-version-check", "--no-cache-dir"]  # as Ray's
UV_OPTIONS = ["--no-cache"]
TAIL_CHARS = 2000
LOG, REQUIREMENTS = "install.log", "requirements.txt"
NOT_FOR_PIP = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH")


def environment(
    field: str, spec: dict[str, Any], timeout_s: float | None, wait: Callable[[], object]
) -> tuple[str, int]:
    """(path, descriptor that keeps it) of the environment with what `spec` asks for, made now if there is none.

    Raises RuntimeEnvSetupError with the end of what pip said, when it failed here or in a process that was first.
    """
    limit = TIMEOUT_S if timeout_s is None else timeout_s

    def make(path: str, lock: int) -> None:
        _Maker(field, spec, path, lock, None if limit == -1 else limit).make()

    return user_store().use(f"{field}-{name_of(field, spec)}", make, wait)


def name_of(field: str, spec: dict[str, Any]) -> str:
    """The same for what gives the same environment."""
    files = []
    for word in " ".join([*spec["packages"], *spec.get(f"{field}_install_options", ())]).split():
        path = word.partition("file://")[2] or word
        if os.path.isfile(path):
            found = os.stat(path)
            files.append((path, found.st_size, found.st_mtime_ns))
    about = [field, spec, files, sys.version, sys.executable, sys.prefix, _parent_folders()]
    return blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _parent_folders() -> list[str]:
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in folders if os.path.isdir(folder)]


class _Maker:
    """Makes one environment in the directory `path`."""

    def __init__(self, field: str, spec: dict[str, Any], path: str, lock: int, timeout_s: float | None) -> None:
        self._field = field
        self._spec = spec
        self._path = path
        self._lock = lock
        self._timeout_s = timeout_s
        self._python = os.path.join(path, "bin", "python")
        self._scratch = os.path.join(path, "tmp")  # of an installer that is killed, it goes with the environment
        variables = {name: value for name, value in os.environ.items() if name not in NOT_FOR_PIP}
        self._variables = {**variables, "TMPDIR": self._scratch}

    def make(self) -> None:
        import venv

        # of pip, only what the parent has not: that is a second more
        with_pip = bool(self._spec.get("pip_version")) or find_spec("pip") is None
        venv.EnvBuilder(symlinks=True, with_pip=with_pip and self._field == "pip").create(self._path)
        os.mkdir(self._scratch, 0o700)
        self._let_parent_in()
        requirements = os.path.join(self._path, REQUIREMENTS)
        with open(requirements, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self._spec["packages"])
        (self._pip if self._field == "pip" else self._uv)(requirements)
        self._run([self._python, "-c", probe_program()])  # what was installed may not go with fastray
        shutil.rmtree(self._scratch)

    def _let_parent_in(self) -> None:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        path = os.path.join(self._path, "lib", version, "site-packages", "zz_parent.pth")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"import site; site.addsitedir({folder!r})\n" for folder in _parent_folders())

    def _pip(self, requirements: str) -> None:
        pip = [self._python, "-I", "-m", "pip"]
        version = self._spec.get("pip_version")
        if version:
            self._run([*pip, "install", "--no-input", *PIP_OPTIONS, f"pip{version}"])
        options = self._spec.get("pip_install_options", PIP_OPTIONS)
        self._run([*pip, "install", "--no-input", "-r", requirements, *options])
        if self._spec.get("pip_check"):
            self._run([*pip, "check", "--disable-pip-version-check"])

    def _uv(self, requirements: str) -> None:
        uv = shutil.which("uv")
        if uv is None:
            raise RuntimeEnvSetupError("runtime_env['uv'] needs the program uv, and none is on PATH here", field="uv")
        version = self._spec.get("uv_version")
        if version:
            raise RuntimeEnvSetupError(
                f"runtime_env['uv']['uv_version'] = {version!r}: the uv on PATH is used, {uv}", field="uv"
            )
        options = self._spec.get("uv_pip_install_options", UV_OPTIONS)
        self._run([uv, "pip", "install", "--python", self._python, "-r", requirements, *options])
        if self._spec.get("uv_check"):
            self._run([uv, "pip", "check", "--python", self._python])

    def _run(self, command: list[str]) -> None:
        """Raises RuntimeEnvSetupError when the command fails, or takes too long."""
        log = os.path.join(self._path, LOG)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._variables, cwd=self._path,
                pass_fds=(self._lock,), preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise RuntimeEnvSetupError(
                    f"runtime_env[{self._field!r}] was not installed within {self._timeout_s} s "
                    f"(config['setup_timeout_seconds']). {_end_of(log)}",
                    field=self._field,
                ) from None
        if status:
            raise RuntimeEnvSetupError(
                f"runtime_env[{self._field!r}] = {self._spec['packages']} could not be installed: "
                f"{' '.join(os.path.basename(word) for word in command[:5])} ended with {status}. {_end_of(log)}",
                field=self._field,
            )


def _end_of(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        return f"It said:\n{file.read()[-TAIL_CHARS:].strip()}"
