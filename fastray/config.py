"""What `init` is told, and what it finds out about the machine by itself.

    detect_cpus, detect_memory_bytes, ...   read /proc and /sys; a container's limits count, not the host's
    size
    InitOptions                             the checked arguments of `init`; `None` where the machine decides
    parse_init(**kwargs)                    arguments of `init` -> InitOptions, or a typed error

A limit of a control group holds for everything below it, so a process looks at its own group and at all
groups above. Version 2 has one hierarchy (`cpu.max`, `memory.max`), version 1 one for each controller
(`cpu.cfs_quota_us`, `memory.limit_in_bytes`); inside a container the path in /proc/self/cgroup is often not
there, and its nearest existing parent is the container's own group.

Functions that read files take `root` for tests. This module is on the path of `import fastray`: no
dataclasses, no typing, no numpy. Called by api.py (`init`) and node.py.
"""

from __future__ import annotations

import os

from fastray.exceptions import InvalidOptionError, OptionTypeError, UnknownInitOptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OBJECT_STORE_FRACTION = 0.3  # of the available memory, as Ray
OBJECT_STORE_BYTES_MIN = 75 << 20  # less is refused, as in Ray
OBJECT_STORE_BYTES_MAX = 200_000_000_000  # of the default; a larger one has to be asked for
PAGE_BYTES = 2 << 20  # the default store is whole huge pages
_WORD_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


# ---- the machine --------------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:  # not there, not ours to read, or a controller that is off: then there is no limit
        return ""


def _groups(root: str, controller: str) -> Iterator[str]:
    """Directories of this process's control groups that may limit `controller`, innermost first."""
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top = os.path.join(root, "sys/fs/cgroup")
        elif controller in controllers.split(","):
            top = os.path.join(root, "sys/fs/cgroup", controller)
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield os.path.join(top, *parts[:depth])


def _cpu_quota(root: str) -> float | None:
    """CPUs' worth of time that the control groups allow, None without a limit."""
    quotas: list[float] = []
    for group in _groups(root, "cpu"):
        words = _read(os.path.join(group, "cpu.max")).split()
        if not words:
            words = [
                _read(os.path.join(group, name)).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas) if quotas else None


def detect_cpus(root: str = "/") -> int:
    """CPUs that this process may use: the least of its affinity mask and its cgroup quota (rounded down), >=
    1.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return max(1, cpus if quota is None else min(cpus, int(quota)))


def _meminfo_bytes(root: str, key: str) -> int | None:
    for line in _read(os.path.join(root, "proc/meminfo")).splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() and int(text) < _WORD_LIMIT else None


def _memory_groups(root: str) -> list[tuple[int, int]]:
    """(limit, usage) in bytes of each control group that has a memory limit."""
    found: list[tuple[int, int]] = []
    for group in _groups(root, "memory"):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(os.path.join(group, limit_name))
            if limit is not None:
                found.append((limit, _number(os.path.join(group, usage_name)) or 0))
    return found


def detect_memory_bytes(root: str = "/") -> int:
    """Memory that this process may ever use: the least of the machine's and its cgroups' limits."""
    total = _meminfo_bytes(root, "MemTotal") or 1 << 30
    return min([total, *(limit for limit, _ in _memory_groups(root))])


def detect_available_bytes(root: str = "/") -> int:
    """Memory that is free to use now, without swapping and within the cgroups' limits."""
    available = _meminfo_bytes(root, "MemAvailable") or detect_memory_bytes(root)
    return max(0, min([available, *(limit - usage for limit, usage in _memory_groups(root))]))


def default_object_store_bytes(root: str = "/") -> int:
    """30 % of the available memory, as Ray; whole huge pages, within the limits named above."""
    wanted = int(detect_available_bytes(root) * OBJECT_STORE_FRACTION)
    wanted = min(wanted, OBJECT_STORE_BYTES_MAX) // PAGE_BYTES * PAGE_BYTES
    return max(wanted, -(-OBJECT_STORE_BYTES_MIN // PAGE_BYTES) * PAGE_BYTES)


def detect_gpus(root: str = "/", environ: Mapping[str, str] | None = None) -> int:
    """GPUs that this process may use: what CUDA_VISIBLE_DEVICES leaves of what the NVIDIA driver lists."""
    try:
        present = len(os.listdir(os.path.join(root, "proc/driver/nvidia/gpus")))
    except OSError:  # no driver
        present = 0
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    names = [name.strip() for name in visible.split(",")]
    # CUDA stops at the first entry that names no device.
    usable = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
    return min(present, usable)


# ---- the arguments of init ------------------------------------------------------------------------

_DEFAULTS: dict[str, object] = {
    "address": None,
    "num_cpus": None,
    "num_gpus": None,
    "resources": None,
    "labels": None,
    "object_store_memory": None,
    "local_mode": False,
    "ignore_reinit_error": False,
    "include_dashboard": None,
    "dashboard_host": "127.0.0.1",
    "dashboard_port": None,
    "job_config": None,
    "configure_logging": True,
    "logging_level": "info",
    "logging_format": None,
    "logging_config": None,
    "log_to_driver": True,
    "record_failures": None,
    "namespace": None,
    "runtime_env": None,
    "durable": None,
}
# Ray's, with nothing to decide here: accepted, so that its programs run, and said to be without effect.
_WITHOUT_EFFECT = frozenset(
    [
        "enable_resource_isolation",
        "cgroup_path",
        "system_reserved_cpu",
        "system_reserved_memory",
        "proxy_server_url",
        "_enable_object_reconstruction",
        "_plasma_directory",
        "_object_spilling_directory",
        "_node_ip_address",
        "_driver_object_store_memory",
        "_redis_username",
        "_redis_password",
        "_metrics_export_port",
        "_tracing_startup_hook",
        "_node_name",
        "_temp_dir",
    ]
)
_RESERVED_RESOURCES = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "_memory",
    "object_store_memory": "object_store_memory",
}
_OF_THE_NODE = ("durable", "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "memory")
SYSTEM_CONFIG_KEYS: frozenset[str] = frozenset()  # what `_system_config` may name; later issues add theirs


class InitOptions:
    """The checked arguments of `init`; immutable. `None` stands for "as the machine is" (or "not given")."""

    __slots__ = (*_DEFAULTS, "memory", "system_config")

    address: str | None
    num_cpus: int | None
    num_gpus: int | None
    resources: dict[str, int]
    labels: dict[str, str]
    object_store_memory: int | None
    local_mode: bool
    ignore_reinit_error: bool
    include_dashboard: bool | None
    dashboard_host: str
    dashboard_port: int | None
    job_config: object
    configure_logging: bool
    logging_level: int | str
    logging_format: str | None
    logging_config: object
    log_to_driver: bool
    record_failures: str | None
    namespace: str | None
    runtime_env: dict[str, object] | None
    durable: str | None
    memory: int | None
    system_config: dict[str, object]

    def __init__(self, values: Mapping[str, object]) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, values[name])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"InitOptions is immutable: cannot set {name}")

    def __repr__(self) -> str:
        return "InitOptions(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"

    def check_attaching(self, address: str) -> None:
        """Raises InvalidOptionError (a ValueError, as Ray) for what a node that runs already has decided."""
        given = {name: getattr(self, name) for name in _OF_THE_NODE}
        for name, value in given.items():
            if value is not None and value != {}:
                raise InvalidOptionError(
                    f"init({name}=...) is for a session that init() starts, but this one attaches to the node at "
                    f"{address!r}, which has its own: leave it out, or pass address=\"local\"",
                    option=name,
                )

    def node_resources(self) -> dict[str, float]:
        """Resources of the node that these options start: CPU, GPU if any, memory, object_store_memory, the
        rest.

        Reads the machine where an option leaves it open.
        """
        store = self.object_store_memory
        store = default_object_store_bytes() if store is None else store
        memory = max(0, detect_available_bytes() - store) if self.memory is None else self.memory
        cpus = detect_cpus() if self.num_cpus is None else self.num_cpus
        gpus = detect_gpus() if self.num_gpus is None else self.num_gpus
        found: dict[str, float] = {"CPU": cpus, "memory": memory, "object_store_memory": store}
        if gpus:
            found["GPU"] = gpus
        found.update(self.resources)
        return found


def _fail_type(option: str, value: object, wanted: str) -> OptionTypeError:
    return OptionTypeError(
        f"init({option}=...) must be {wanted}, not {type(value).__name__} {value!r}", option=option
    )


def _whole(option: str, value: object, least: int = 0) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _fail_type(option, value, "a whole number")
    if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
        raise InvalidOptionError(f"init({option}={value!r}): must be a whole number", option=option)
    if value < least:
        raise InvalidOptionError(f"init({option}={value!r}): must be at least {least}", option=option)
    return int(value)


def _resources(value: object) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fail_type("resources", value, "a dict of names to whole numbers")
    checked: dict[str, int] = {}
    for name, amount in value.items():
        if not isinstance(name, str) or not name:
            raise _fail_type("resources", name, "a dict with names (non-empty strings) as keys")
        if name in _RESERVED_RESOURCES:
            raise InvalidOptionError(
                f"init(resources={{{name!r}: ...}}): use {_RESERVED_RESOURCES[name]}=... instead",
                option="resources",
            )
        number = _whole(f"resources[{name!r}]", amount)
        checked[name] = 0 if number is None else number
    return checked


def _labels(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fail_type("labels", value, "a dict of strings to strings")
    for name, label in value.items():
        if not isinstance(name, str) or not isinstance(label, str):
            raise _fail_type("labels", {name: label}, "a dict of strings to strings")
    return dict(value)


def _directory(option: str, value: object, variable: str) -> str | None:
    """An absolute path; what the environment says when it is not given."""
    if value is None:
        value = os.environ.get(variable) or None
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _fail_type(option, value, "the path of a directory")
    path = os.fspath(value)
    if not path:
        raise InvalidOptionError(f'init({option}=""): must not be empty; None means none', option=option)
    return os.path.abspath(os.path.expanduser(path))


def _address(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _fail_type("address", value, '"auto", "local", "host:port" or a path')
    if value in ("auto", "local") or (os.sep in value and "://" not in value):
        return value
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidOptionError(
            f'init(address={value!r}): must be "auto", "local", "host:port" or the path of a session', option="address"
        )
    return value


def _durable(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _fail_type("durable", value, "the path of a directory")
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise InvalidOptionError(f"init(durable={path!r}): must be the path of a directory", option="durable")
    return path


def _system_config(value: object) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fail_type("_system_config", value, "a dict")
    unknown = sorted(str(key) for key in value if key not in SYSTEM_CONFIG_KEYS)
    if unknown:
        import warnings

        warnings.warn(f"init: _system_config keys without effect: {', '.join(unknown)}", stacklevel=4)
    return {key: setting for key, setting in value.items() if key in SYSTEM_CONFIG_KEYS}


def _check_unknown(kwargs: Mapping[str, object]) -> None:
    known = set(_DEFAULTS) | {"_memory", "_system_config"}
    for name in kwargs:
        if name in known:
            continue
        if name in _WITHOUT_EFFECT:
            import warnings

            warnings.warn(f"init({name}=...) has no effect in fastray", stacklevel=4)
            continue
        import difflib

        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f". Known ones: {', '.join(sorted(known))}"
        raise UnknownInitOptionError(
            f"init() has no option {name}{hint}", option=name, suggestion=near[0] if near else None
        )


_FLAGS = ("local_mode", "ignore_reinit_error", "configure_logging", "log_to_driver", "include_dashboard")
_STRINGS = ("dashboard_host", "logging_format", "namespace")


def parse_init(**kwargs: object) -> InitOptions:
    """Checks the arguments of `init`. Matches `ray.init`.

    Raises UnknownInitOptionError (a RuntimeError, as Ray), OptionTypeError (a TypeError) and
    InvalidOptionError (a ValueError); RuntimeEnvSetupError for fields of a runtime_env that are not
    supported. Warns about unknown keys of `_system_config` and about options of Ray that have no effect here.
    """
    _check_unknown(kwargs)
    given = {**_DEFAULTS, **kwargs}
    for name in _FLAGS:
        if given[name] is None:  # Ray takes None for "the default"
            given[name] = _DEFAULTS[name]
        elif not isinstance(given[name], bool):
            raise _fail_type(name, given[name], "a bool")
    for name in _STRINGS:
        if given[name] is not None and not isinstance(given[name], str):
            raise _fail_type(name, given[name], "a string")
    if given["namespace"] == "":
        raise InvalidOptionError('init(namespace=""): must not be empty; None means none', option="namespace")
    if not isinstance(given["logging_level"], (int, str)):
        raise _fail_type("logging_level", given["logging_level"], "a number or a name")
    values = dict(given)
    values["address"] = _address(given["address"])
    values["durable"] = _durable(given["durable"])
    values["record_failures"] = _directory(
        "record_failures", given["record_failures"], "FASTRAY_RECORD_FAILURES"
    )
    values["num_cpus"] = _whole("num_cpus", given["num_cpus"])
    values["num_gpus"] = _whole("num_gpus", given["num_gpus"])
    values["dashboard_port"] = _whole("dashboard_port", given["dashboard_port"])
    values["object_store_memory"] = _whole(
        "object_store_memory", given["object_store_memory"], OBJECT_STORE_BYTES_MIN
    )
    values["memory"] = _whole("_memory", given.get("_memory"))
    values["resources"] = _resources(given["resources"])
    values["labels"] = _labels(given["labels"])
    values["system_config"] = _system_config(given.get("_system_config"))
    if given["runtime_env"] is not None:
        from fastray.runtime_env import parse_runtime_env

        values["runtime_env"] = parse_runtime_env(given["runtime_env"])
    return InitOptions(values)
