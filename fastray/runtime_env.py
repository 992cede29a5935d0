"""`runtime_env`: what a task's process has to look like. Matches `ray.runtime_env`.

    env_vars      set in the worker; `${NAME}` is replaced by what the variable was
    working_dir   a directory or a .zip file: the worker's directory, also first on `sys.path`
    py_modules    packages, modules, .zip and .whl files that the worker can import
    pip, uv       requirements, installed once for each list of them; the worker is a fresh interpreter
    excludes      patterns as in .gitignore: what of the directories above does not go to other nodes
    config        {"setup_timeout_seconds": 600}
    worker_process_setup_hook, py_executable

What is wrong with a field is said when the task is declared, not when it runs; what cannot be done is refused then.
Unknown fields are kept, with a warning, as Ray keeps them for its plug-ins.

A runtime_env is part of the scheduling class: workers are started per runtime_env and never change theirs, so
`key()` says when two are the same. Called by options.py and config.py; fastray/runtime_envs checks the fields that take
more than a look, brings files to other nodes, and sets workers up.
"""

from __future__ import annotations

import os

from fastray.exceptions import InvalidOptionError, OptionTypeError, RuntimeEnvSetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

JOB = "_job"  # field of an attached driver's tasks: its sys_path, cwd, environ and namespace
GROUP = "_group"  # field of a worker's: id of the placement group that the children of its tasks run in
HOOK = "_hook"  # the pickled worker_process_setup_hook, when it is a function
STAMPS = "_stamps"  # path -> size and time of an archive or wheel: another one is another runtime_env
PACKAGES = "_packages"  # path -> (package, number of the node that made it), in a cluster: runtime_envs/publish.py
PRIVATE = (JOB, GROUP, HOOK, STAMPS, PACKAGES)
UNITED = ("env_vars", STAMPS, PACKAGES)  # of job, parent and task together
PLAIN = {JOB, GROUP, HOOK, STAMPS, "env_vars", "working_dir", "excludes", "config", "worker_process_setup_hook"}
AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")  # beginnings of variables that are read when a process starts
SUPPORTED_FIELDS = (
    "env_vars", "working_dir", "py_modules", "pip", "uv", "excludes", "config", "worker_process_setup_hook",
    "py_executable",
)  # fmt: skip
REFUSED_FIELDS = {
    "conda": "use pip or uv, or start the node in that environment",
    "container": "start the nodes in containers",
    "image_uri": "start the nodes in containers",
    "java_jars": "fastray runs Python only",
    "nsight": "set py_executable to a wrapper of the interpreter",
    "_nsight": "set py_executable to a wrapper of the interpreter",
    "rocprof_sys": "set py_executable to a wrapper of the interpreter",
    "_rocprof_sys": "set py_executable to a wrapper of the interpreter",
    "mpi": "start the processes of the job from a task",
}


class RuntimeEnv(dict[str, object]):
    """A checked runtime_env; still a dict, so that it can be passed wherever a dict can.

    Raises as `parse_runtime_env`. Matches `ray.runtime_env.RuntimeEnv`.
    """

    def __init__(self, *, _validate: bool = True, **fields: object) -> None:
        super().__init__(_checked(fields) if _validate else fields)

    def __reduce__(self) -> tuple[object, ...]:
        """In a function that travels to another node, the files it names have to be found from there."""
        fields = dict(self)
        if "working_dir" in self or "py_modules" in self:
            from fastray.runtime_envs.publish import publish_here

            publish_here(fields)
        return _restored, (fields,)

    def set(self, name: str, value: object) -> None:
        """Checks a field and sets it."""
        self.update(_checked({name: value}))

    def to_dict(self) -> dict[str, object]:
        """A plain dict of the fields a user gave."""
        return {name: value for name, value in self.items() if name not in PRIVATE}

    def job(self) -> dict[str, object]:
        """What an attached driver gives its workers; empty in a private session."""
        value = self.get(JOB)
        return value if isinstance(value, dict) else {}

    def env_vars(self) -> dict[str, str]:
        """Environment variables to set; empty if there are none."""
        value = self.get("env_vars")
        return dict(value) if isinstance(value, dict) else {}

    def working_dir(self) -> str | None:
        """Directory or .zip file to work in, absolute; None if not set."""
        value = self.get("working_dir")
        return value if isinstance(value, str) else None

    def has_working_dir(self) -> bool:
        """Whether `working_dir` is set."""
        return self.working_dir() is not None

    def py_modules(self) -> list[str]:
        """Absolute paths of what is to be importable; empty if there are none."""
        value = self.get("py_modules")
        return list(value) if isinstance(value, list) else []

    def has_pip(self) -> bool:
        """Whether `pip` is set."""
        return bool(self.get("pip"))

    def pip_config(self) -> dict[str, object]:
        """The field `pip` as a dictionary with "packages"; empty if it is not set."""
        value = self.get("pip")
        return dict(value) if isinstance(value, dict) else {}

    def has_uv(self) -> bool:
        """Whether `uv` is set."""
        return bool(self.get("uv"))

    def uv_config(self) -> dict[str, object]:
        """The field `uv` as a dictionary with "packages"; empty if it is not set."""
        value = self.get("uv")
        return dict(value) if isinstance(value, dict) else {}

    def py_executable(self) -> str | None:
        """The command that starts a worker's interpreter; None for the node's own."""
        value = self.get("py_executable")
        return value if isinstance(value, str) else None

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for runtime_envs that want the same worker. Looks at no file."""
        return tuple((name, _hashable(self[name])) for name in sorted(self) if name not in (JOB, PACKAGES))

    def merged_over(self, parent: RuntimeEnv | None) -> RuntimeEnv:
        """This runtime_env in a job or task that has `parent`: its fields win, `env_vars` are united. As in
        Ray.
        """
        if not parent:
            return self
        inherited = dict(parent)
        if "worker_process_setup_hook" in self:
            inherited.pop(HOOK, None)
        if "pip" in self or "uv" in self:
            inherited.pop("pip", None)
            inherited.pop("uv", None)
        merged = {**inherited, **self}
        for name in UNITED:
            ours, theirs = self.get(name), parent.get(name)
            if isinstance(ours, dict) and isinstance(theirs, dict):
                merged[name] = {**theirs, **ours}
        return RuntimeEnv(_validate=False, **merged)


def is_plain(fields: Mapping[str, object]) -> bool:
    """Variables and a directory of this node are all that a worker needs: a forked one can be it as it is."""
    variables = fields.get("env_vars")
    if isinstance(variables, dict) and any(name.startswith(AT_START) for name in variables):
        return False
    return fields.keys() <= PLAIN and os.path.isdir(str(fields.get("working_dir") or "/"))


class RuntimeEnvConfig(dict[str, object]):
    """The field `config`: how long each step of an installation may take (-1: no limit). The others are accepted, and
    change nothing. Matches `ray.runtime_env.RuntimeEnvConfig`.
    """

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        super().__init__(
            setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=log_files or []
        )
        _checked({"config": self})


def _restored(fields: dict[str, object]) -> RuntimeEnv:
    return RuntimeEnv(_validate=False, **fields)


def _hashable(value: object) -> object:
    if isinstance(value, dict):
        return tuple(sorted((repr(name), _hashable(item)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    return value if isinstance(value, (str, bytes, int, float, type(None))) else repr(value)


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


def _working_dir(value: object, stamps: dict[str, str]) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise OptionTypeError(
            f"runtime_env['working_dir'] must be a string, not {type(value).__name__}", option="runtime_env"
        )
    path = local_path("working_dir", value)
    if os.path.isdir(path):
        return path
    if not os.path.isfile(path):
        raise InvalidOptionError(
            f"runtime_env['working_dir'] = {value!r}: there is no such directory", option="runtime_env"
        )
    if not path.endswith(".zip"):
        raise InvalidOptionError(
            f"runtime_env['working_dir'] = {value!r}: neither a directory nor a .zip file", option="runtime_env"
        )
    stamps[path] = stamp_of(path)
    return path


def local_path(field: str, value: str) -> str:
    """Absolute. Raises RuntimeEnvSetupError for a URI."""
    if "://" in value:
        raise RuntimeEnvSetupError(
            f"runtime_env[{field!r}] has {value!r}: only local files and directories are supported. Download it first.",
            field=field,
        )
    return os.path.abspath(os.path.expanduser(value))


def stamp_of(path: str) -> str:
    """Changes when the file does."""
    found = os.stat(path)
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"


def _checked(fields: Mapping[str, object]) -> dict[str, object]:
    checked: dict[str, object] = {}
    given_stamps = fields.get(STAMPS)
    stamps: dict[str, str] = dict(given_stamps) if isinstance(given_stamps, dict) else {}
    for name, value in fields.items():
        if value is None or (name == "env_vars" and value == {}):
            continue
        if name in REFUSED_FIELDS:
            raise RuntimeEnvSetupError(
                f"runtime_env[{name!r}] is not supported: {REFUSED_FIELDS[name]}. Supported are "
                f"{', '.join(SUPPORTED_FIELDS)}.",
                field=name,
            )
        if name == "env_vars":
            value = _env_vars(value)
        elif name == "working_dir":
            value = _working_dir(value, stamps)
        elif name in SUPPORTED_FIELDS and not (name == "worker_process_setup_hook" and HOOK in fields):
            from fastray.runtime_envs.fields import check_field

            value = check_field(name, value, checked, stamps)
            if value is None:
                continue
        elif name not in SUPPORTED_FIELDS and name not in PRIVATE:
            _warn_of(name)
        checked[name] = value
    if stamps:
        checked[STAMPS] = stamps
    if checked.get("pip") and checked.get("uv"):
        raise InvalidOptionError("runtime_env has both 'pip' and 'uv': give one of them", option="runtime_env")
    return checked


def _warn_of(name: str) -> None:
    import difflib
    import warnings

    near = difflib.get_close_matches(str(name), SUPPORTED_FIELDS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    warnings.warn(f"runtime_env has no field {name!r}, it has no effect{hint}", stacklevel=5)


def parse_runtime_env(value: object) -> RuntimeEnv:
    """Checks a dict or RuntimeEnv as the user passed it; RuntimeEnv with absolute paths and without Nones.

    Raises OptionTypeError (a TypeError), InvalidOptionError (a ValueError) and RuntimeEnvSetupError for
    fields that are not supported.
    """
    if isinstance(value, RuntimeEnv):
        return value
    if not isinstance(value, dict):
        raise OptionTypeError(
            f"runtime_env must be a dict or a RuntimeEnv, not {type(value).__name__}", option="runtime_env"
        )
    for name in value:
        if not isinstance(name, str):
            raise OptionTypeError(f"runtime_env has a field {name!r} that is no string", option="runtime_env")
    return RuntimeEnv(**value)
