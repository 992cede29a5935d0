"""Checks of the fields of a runtime_env that take more than a look. Names and forms are Ray's.

    stamps    path -> what changes when the archive or wheel there does; part of the runtime_env's key

Called by runtime_env.py.
"""

from __future__ import annotations

import os
from types import ModuleType

from fastray.exceptions import InvalidOptionError, OptionTypeError
from fastray.runtime_env import HOOK, local_path, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ARCHIVES = (".whl", ".zip")
CONFIG = {"setup_timeout_seconds": int, "eager_install": bool, "log_files": list}


def check_field(name: str, value: object, checked: dict[str, object], stamps: dict[str, str]) -> object:
    """The value as workers take it; None to leave the field out. `checked` gets what belongs to it."""
    if name == "py_modules":
        return _py_modules(value, stamps)
    if name == "pip":
        options = {"pip_check": bool, "pip_version": str, "pip_install_options": list}
        return _requirements(name, value, options, stamps)
    if name == "uv":
        options = {"uv_check": bool, "uv_version": str, "uv_pip_install_options": list}
        return _requirements(name, value, options, stamps)
    if name == "excludes":
        return _strings(name, value) or None
    if name == "config":
        return _config(value)
    if name == "worker_process_setup_hook":
        return _hook(value, checked)
    return _executable(value)


def _type_error(field: str, wanted: str, value: object) -> OptionTypeError:
    return OptionTypeError(
        f"runtime_env[{field!r}] must be {wanted}, not {type(value).__name__}", option="runtime_env"
    )


def _value_error(field: str, why: str) -> InvalidOptionError:
    return InvalidOptionError(f"runtime_env[{field!r}] {why}", option="runtime_env")


def _strings(field: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _type_error(field, "a list of strings", value)
    return list(value)


# ---- files ---------------------------------------------------------------------------------------------


def _py_modules(value: object, stamps: dict[str, str]) -> list[str] | None:
    if not isinstance(value, list):
        raise _type_error("py_modules", "a list of paths and imported modules", value)
    return [_py_module(item, stamps) for item in value] or None


def _py_module(item: object, stamps: dict[str, str]) -> str:
    if isinstance(item, ModuleType):
        item = _path_of(item)
    elif isinstance(item, os.PathLike):
        item = os.fspath(item)
    if not isinstance(item, str):
        raise _type_error("py_modules", "a list of paths and imported modules; one of them is something else", item)
    path = local_path("py_modules", item)
    if os.path.isdir(path):
        return path
    if not os.path.isfile(path):
        raise _value_error("py_modules", f"has {item!r}: there is no such file or directory")
    if path.endswith(ARCHIVES):
        stamps[path] = stamp_of(path)
    elif not path.endswith(".py"):
        raise _value_error("py_modules", f"has {item!r}: neither a directory nor a .py, .zip or .whl file")
    return path


def _path_of(module: ModuleType) -> str:
    folders = list(getattr(module, "__path__", ()))
    if len(folders) > 1:
        raise _value_error("py_modules", f"has module {module.__name__!r}, which is in several directories: {folders}")
    path = folders[0] if folders else getattr(module, "__file__", None)
    if not path:
        raise _value_error("py_modules", f"has module {module.__name__!r}, which is not in a file")
    return str(path)


# ---- what is installed ---------------------------------------------------------------------------------


def _requirements(
    field: str, value: object, options: dict[str, type], stamps: dict[str, str]
) -> dict[str, Any] | None:
    """As Ray: a list, the path of a requirements file, or a dictionary. The file is read now."""
    given: dict[Any, Any] = {"packages": value} if isinstance(value, (str, os.PathLike, list)) else {}
    if isinstance(value, dict):
        given = dict(value)
    elif not given:
        raise _type_error(field, "a list of requirements, the path of a requirements file, or a dictionary", value)
    unknown = [name for name in given if name != "packages" and name not in options]
    if unknown:
        raise _value_error(field, f"has no field {unknown[0]!r}, only packages, {', '.join(options)}")
    if "packages" not in given:
        raise _value_error(field, "has to have the field 'packages'")
    for name, kind in options.items():
        if name not in given:
            continue
        if kind is list:
            given[name] = _strings(f"{field}']['{name}", given[name])
        elif not isinstance(given[name], kind):
            raise _type_error(f"{field}']['{name}", f"a {kind.__name__}", given[name])
    packages = given["packages"]
    if isinstance(packages, (str, os.PathLike)):
        packages = _lines_of(field, os.fspath(packages))
    given.setdefault(f"{field}_check", False)  # as Ray shows it
    given["packages"] = list(dict.fromkeys(_strings(field, packages)))
    stamps.update({path: stamp_of(path) for path in given["packages"] if os.path.isfile(path)})
    return given if given["packages"] else None


def _lines_of(field: str, path: str) -> list[str]:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except OSError as error:
        raise _value_error(field, f"= {path!r}: not a requirements file that can be read ({error})") from None
    return [line for line in lines if line and not line.startswith("#")]


def _config(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _type_error("config", "a dictionary", value)
    for name, kind in CONFIG.items():
        if name in value and (not isinstance(value[name], kind) or (kind is int and value[name] is True)):
            raise _type_error(f"config']['{name}", f"a {kind.__name__}", value[name])
    timeout = value.get("setup_timeout_seconds", 1)
    if timeout <= 0 and timeout != -1:
        raise _value_error("config", f"has setup_timeout_seconds={timeout}: it is more than zero, or -1 for no limit")
    return dict(value)


# ---- the process ---------------------------------------------------------------------------------------


def _hook(value: object, checked: dict[str, object]) -> str:
    field = "worker_process_setup_hook"
    if isinstance(value, str):
        module, _, function = value.rpartition(".")
        if not module or not function:
            raise _value_error(field, f"= {value!r}: it is named as 'module.function'")
        return value
    if not callable(value):
        raise _type_error(field, "a function or 'module.function'", value)
    from fastray.serialization import dumps_function

    checked[HOOK] = dumps_function(value)
    return str(getattr(value, "__name__", type(value).__name__))


def _executable(value: object) -> str:
    import shlex

    if not isinstance(value, str):
        raise _type_error("py_executable", "a string", value)
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise _value_error("py_executable", f"= {value!r}: {error}") from None
    if not words:
        raise _value_error("py_executable", "is empty")
    return value
