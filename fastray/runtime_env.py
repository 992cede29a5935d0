"""`runtime_env`: what a task's process has to look like. Matches `ray.runtime_env`.

Supported on one node: `env_vars` (set in the worker) and `working_dir` (an existing directory; the worker
changes to it and puts it first on `sys.path`). `config` and `excludes` are accepted and change nothing there.
The fields that install or transport something are refused with RuntimeEnvSetupError when the task is
declared, not when it runs. Unknown fields are kept, with a warning, as Ray keeps them for its plug-ins.

A runtime_env is part of the scheduling class: workers are started per runtime_env and never change theirs, so
`key()` says when two are the same. Called by options.py and config.py; the worker applies it.
"""

from __future__ import annotations

import os

from fastray.exceptions import InvalidOptionError, OptionTypeError, RuntimeEnvSetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

JOB = "_job"  # field of an attached driver's tasks: its sys_path, cwd, environ and namespace
GROUP = "_group"  # field of a worker's: id of the placement group that the children of its tasks run in
SUPPORTED_FIELDS = ("env_vars", "working_dir", "excludes", "config")
REFUSED_FIELDS = (
    "pip",
    "uv",
    "conda",
    "py_modules",
    "py_executable",
    "worker_process_setup_hook",
    "container",
    "image_uri",
    "java_jars",
    "nsight",
    "_nsight",
    "rocprof_sys",
    "_rocprof_sys",
    "mpi",
)


class RuntimeEnv(dict[str, object]):
    """A checked runtime_env; still a dict, so that it can be passed wherever a dict can.

    Raises as `parse_runtime_env`. Matches `ray.runtime_env.RuntimeEnv`.
    """

    def __init__(self, *, _validate: bool = True, **fields: object) -> None:
        super().__init__(_checked(fields) if _validate else fields)

    def to_dict(self) -> dict[str, object]:
        """A plain dict of the fields a user gave."""
        return {name: value for name, value in self.items() if name != JOB}

    def job(self) -> dict[str, object]:
        """What an attached driver gives its workers; empty in a private session."""
        value = self.get(JOB)
        return value if isinstance(value, dict) else {}

    def env_vars(self) -> dict[str, str]:
        """Environment variables to set; empty if there are none."""
        value = self.get("env_vars")
        return dict(value) if isinstance(value, dict) else {}

    def working_dir(self) -> str | None:
        """Directory to work in, absolute; None if not set."""
        value = self.get("working_dir")
        return value if isinstance(value, str) else None

    def has_working_dir(self) -> bool:
        """Whether `working_dir` is set."""
        return self.working_dir() is not None

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for runtime_envs that want the same worker."""
        return (self.working_dir(), tuple(sorted(self.env_vars().items())))

    def merged_over(self, parent: RuntimeEnv | None) -> RuntimeEnv:
        """This runtime_env in a job or task that has `parent`: its fields win, `env_vars` are united. As in
        Ray.
        """
        if not parent:
            return self
        merged = RuntimeEnv(_validate=False, **{**parent, **self})
        variables = {**parent.env_vars(), **self.env_vars()}
        if variables:
            merged["env_vars"] = variables
        return merged


def _env_vars(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise OptionTypeError(
            f"runtime_env['env_vars'] must be a dict of strings to strings, not {type(value).__name__}",
            option="runtime_env",
        )
    for name, text in value.items():
        for what, item in (("key", name), ("value", text)):
            if not isinstance(item, str):
                raise OptionTypeError(
                    f"runtime_env['env_vars'] must be a dict of strings to strings, but {what} {item!r} "
                    f"is a {type(item).__name__}",
                    option="runtime_env",
                )
        if not name or "=" in name or "\0" in name or "\0" in text:
            raise InvalidOptionError(
                f"runtime_env['env_vars'] cannot set {name!r}: not a name of an environment variable, "
                "or a value with a NUL in it",
                option="runtime_env",
            )
    return dict(value)


def _working_dir(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise OptionTypeError(
            f"runtime_env['working_dir'] must be a string, not {type(value).__name__}", option="runtime_env"
        )
    if "://" in value:
        raise RuntimeEnvSetupError(
            f"runtime_env['working_dir'] = {value!r}: only local directories are supported yet",
            field="working_dir",
        )
    path = os.path.abspath(os.path.expanduser(value))
    if not os.path.isdir(path):
        raise InvalidOptionError(
            f"runtime_env['working_dir'] = {value!r}: there is no such directory", option="runtime_env"
        )
    return path


def _checked(fields: Mapping[str, object]) -> dict[str, object]:
    checked: dict[str, object] = {}
    for name, value in fields.items():
        if value is None or (name == "env_vars" and value == {}):
            continue
        if name in REFUSED_FIELDS:
            raise RuntimeEnvSetupError(
                f"runtime_env[{name!r}] is not supported on one node yet, only env_vars and working_dir. "
                "Prepare the environment before fastray.init() instead: workers inherit it.",
                field=name,
            )
        if name == "env_vars":
            value = _env_vars(value)
        elif name == "working_dir":
            value = _working_dir(value)
        elif name not in SUPPORTED_FIELDS:
            import difflib
            import warnings

            near = difflib.get_close_matches(str(name), SUPPORTED_FIELDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            warnings.warn(f"runtime_env has no field {name!r}, it has no effect{hint}", stacklevel=4)
        checked[name] = value
    return checked


def parse_runtime_env(value: object) -> RuntimeEnv:
    """Checks a dict or RuntimeEnv as the user passed it; RuntimeEnv with absolute paths and without Nones.

    Raises OptionTypeError (a TypeError), InvalidOptionError (a ValueError) and RuntimeEnvSetupError for
    fields that are not supported.
    """
    if not isinstance(value, dict):
        raise OptionTypeError(
            f"runtime_env must be a dict or a RuntimeEnv, not {type(value).__name__}", option="runtime_env"
        )
    for name in value:
        if not isinstance(name, str):
            raise OptionTypeError(f"runtime_env has a field {name!r} that is no string", option="runtime_env")
    return RuntimeEnv(**value)
