"""Options of actors and of their methods, checked once; the counterpart of options.py.

    ActorOptions          what `@remote(...)` on a class and `Class.options(...)` take
    MethodOptions         what `@method(...)` and `actor.f.options(...)` take
    parse_actor_options, parse_method_options   given, over the defaults or over those of a base

Types and ranges are Ray's. fastray's own: `checkpoint_calls`, `checkpoint_s`, and `read_only` of methods.
"""

from __future__ import annotations

from fastray.exceptions import InvalidOptionError, UnknownOptionError
from fastray.option_checks import (
    check_amount,
    check_anything,
    check_backpressure,
    check_flag,
    check_gpus,
    check_integer,
    check_label_selector,
    check_memory,
    check_num_returns,
    check_resources,
    check_retry_exceptions,
    check_runtime_env,
    check_seconds,
    check_seed,
    check_strategy,
    check_string,
    type_error,
)
from fastray.options import STREAMING, strategy_key, strategy_of_group, to_units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastray.runtime_env import RuntimeEnv

LOG_CALLS_MAX = 4000  # calls between checkpoints: the log has 4,096 places (kActorLogEntries)
CONCURRENCY_MAX = 1_000_000

_ACTOR_DEFAULTS: dict[str, object] = {
    "num_cpus": None,  # 1 to be placed on a node, none while it runs
    "num_gpus": 0,
    "memory": 0,
    "resources": {},
    "name": None,
    "namespace": None,
    "lifetime": None,
    "get_if_exists": False,
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_concurrency": None,
    "max_pending_calls": -1,
    "concurrency_groups": None,
    "allow_out_of_order_execution": False,
    "runtime_env": None,
    "scheduling_strategy": None,
    "label_selector": {},
    "fallback_strategy": None,
    "accelerator_type": None,
    "enable_task_events": True,
    "_labels": {},
    "placement_group": "default",
    "placement_group_bundle_index": -1,
    "placement_group_capture_child_tasks": None,
    "checkpoint_calls": 100,
    "checkpoint_s": None,
}
_ACTOR_FIELDS = tuple(name.lstrip("_") for name in _ACTOR_DEFAULTS)


class ActorOptions:
    """Checked options of an actor. Made by `parse_actor_options`; to change one, parse again over this."""

    __slots__ = _ACTOR_FIELDS

    num_cpus: float | None
    num_gpus: float
    memory: int
    resources: dict[str, float]
    name: str | None
    namespace: str | None
    lifetime: str | None
    get_if_exists: bool
    max_restarts: int
    max_task_retries: int
    max_concurrency: int | None
    max_pending_calls: int
    concurrency_groups: dict[str, int] | None
    allow_out_of_order_execution: bool
    runtime_env: RuntimeEnv | None
    scheduling_strategy: object
    label_selector: dict[str, str]
    fallback_strategy: object
    accelerator_type: str | None
    enable_task_events: bool
    labels: dict[str, str]
    placement_group: object
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool | None
    checkpoint_calls: int
    checkpoint_s: float | None

    def __init__(self, values: Mapping[str, object]) -> None:
        for name in _ACTOR_FIELDS:
            setattr(self, name, values[name])

    def demand(self) -> dict[str, int]:
        """What it holds while it lives, by resource, in 1/10000 of a unit (of a byte for `memory`); no zeros."""
        wanted: dict[str, float] = {"CPU": self.num_cpus or 0, "GPU": self.num_gpus, "memory": self.memory}
        wanted.update(self.resources)
        if self.accelerator_type is not None:
            wanted[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: units for name, amount in wanted.items() if (units := to_units(amount))}

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for options that are the same in everything."""
        values = []
        for name in _ACTOR_FIELDS:
            value = getattr(self, name)
            if name == "scheduling_strategy":
                value = strategy_key(value)
            elif name == "runtime_env":
                value = value.key() if value else None
            elif isinstance(value, dict):
                value = tuple(sorted(value.items()))
            values.append(value)
        return tuple(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorOptions) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        shown = [
            f"{name.lstrip('_')}={getattr(self, name.lstrip('_'))!r}"
            for name, default in _ACTOR_DEFAULTS.items()
            if getattr(self, name.lstrip("_")) != default
        ]
        return f"ActorOptions({', '.join(shown)})"


_METHOD_DEFAULTS: dict[str, object] = {
    "num_returns": None,  # 1, or "streaming" for a generator
    "max_task_retries": None,  # the actor's
    "timeout_s": None,
    "seed": None,
    "retry_exceptions": False,
    "concurrency_group": None,
    "name": None,
    "enable_task_events": True,
    "_generator_backpressure_num_objects": -1,
    "read_only": False,
}
_METHOD_FIELDS = tuple(name.lstrip("_") for name in _METHOD_DEFAULTS)


class MethodOptions:
    """Checked options of a method, or of one way to call it."""

    __slots__ = _METHOD_FIELDS

    num_returns: int | str | None
    max_task_retries: int | None
    timeout_s: float | None
    seed: bool | int | None
    retry_exceptions: bool | tuple[type[Exception], ...]
    concurrency_group: str | None
    name: str | None
    enable_task_events: bool
    generator_backpressure_num_objects: int
    read_only: bool

    def __init__(self, values: Mapping[str, object]) -> None:
        for name in _METHOD_FIELDS:
            setattr(self, name, values[name])

    def returns(self, is_generator: bool, method_name: str = "method") -> int:
        """Number of return values of a method, STREAMING for a generator.

        Raises InvalidOptionError when "streaming" or "dynamic" is asked of a method without `yield`.
        """
        if self.num_returns is None:
            return STREAMING if is_generator else 1
        if isinstance(self.num_returns, int):
            return self.num_returns
        if not is_generator:
            raise InvalidOptionError(
                f"num_returns={self.num_returns!r} needs a generator: {method_name} does not yield",
                option="num_returns",
            )
        return STREAMING

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for options that are the same in everything."""
        return (*[getattr(self, name) for name in _METHOD_FIELDS], type(self.seed))  # 1 is not True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MethodOptions) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


# ---- checks that only actors have --------------------------------------------------------------------


def _name(option: str, value: object) -> str:
    name = check_string(option, value)
    if not name:
        raise InvalidOptionError(f"{option} must not be empty", option=option)
    return name


def _lifetime(option: str, value: object) -> str:
    if value not in ("detached", "non_detached"):
        raise InvalidOptionError(f'{option}={value!r} must be "detached" or "non_detached"', option=option)
    return str(value)


def _pending_calls(option: str, value: object) -> int:
    if value == 0 and isinstance(value, int):
        raise InvalidOptionError(
            f"{option}=0 would refuse every call: use -1 for no limit, or 1 and more", option=option
        )
    return check_integer(-1)(option, value)


def _groups(option: str, value: object) -> dict[str, int]:
    if isinstance(value, list) and all(isinstance(group, dict) for group in value):
        value = {group.get("name"): group.get("max_concurrency") for group in value}  # Ray's older form
    if not isinstance(value, dict):
        raise type_error(option, value, "a dict of names to numbers of calls that may run at once")
    for name, limit in value.items():
        if not isinstance(name, str) or not name:
            raise type_error(option, name, "a dict with names (non-empty strings) as keys")
        check_integer(1, CONCURRENCY_MAX)(f"{option}[{name!r}]", limit)
    return dict(value)


_ACTOR_CHECKS: dict[str, Callable[[str, object], object]] = {
    "num_cpus": check_amount,
    "num_gpus": check_gpus,
    "memory": check_memory,
    "resources": check_resources,
    "name": _name,
    "namespace": _name,
    "lifetime": _lifetime,
    "get_if_exists": check_flag,
    "max_restarts": check_integer(-1),
    "max_task_retries": check_integer(-1),
    "max_concurrency": check_integer(1, CONCURRENCY_MAX),
    "max_pending_calls": _pending_calls,
    "concurrency_groups": _groups,
    "allow_out_of_order_execution": check_flag,
    "runtime_env": check_runtime_env,
    "scheduling_strategy": check_strategy,
    "label_selector": check_label_selector,
    "fallback_strategy": check_anything,
    "accelerator_type": check_string,
    "enable_task_events": check_flag,
    "_labels": check_label_selector,
    "placement_group": check_anything,
    "placement_group_bundle_index": check_integer(-1),
    "placement_group_capture_child_tasks": check_flag,
    "checkpoint_calls": check_integer(1, LOG_CALLS_MAX),
    "checkpoint_s": check_seconds,
}
_METHOD_CHECKS: dict[str, Callable[[str, object], object]] = {
    "num_returns": check_num_returns,
    "max_task_retries": check_integer(-1),
    "timeout_s": check_seconds,
    "seed": check_seed,
    "retry_exceptions": check_retry_exceptions,
    "concurrency_group": check_string,
    "name": check_string,
    "enable_task_events": check_flag,
    "_generator_backpressure_num_objects": check_backpressure,
    "read_only": check_flag,
}
_OF_TASKS = {
    "max_retries": "max_restarts (of the actor) or max_task_retries (of its calls)",
    "num_returns": "@method(num_returns=...) or actor.method.options(num_returns=...)",
    "retry_exceptions": "@method(retry_exceptions=...)",
    "seed": "@method(seed=...)",
    "timeout_s": "@method(timeout_s=...) or actor.method.options(timeout_s=...)",
    "concurrency_group": "@method(concurrency_group=...)",
}


def _unknown(what: str, option: str, known: Mapping[str, object]) -> InvalidOptionError:
    import difflib

    if option in _OF_TASKS and what == "an actor":
        return UnknownOptionError(f"{option} is no option of an actor: use {_OF_TASKS[option]}", option=option)
    near = difflib.get_close_matches(option, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f". Known ones: {', '.join(known)}"
    return UnknownOptionError(
        f"{what} has no option {option}{hint}", option=option, suggestion=near[0] if near else None
    )


def parse_actor_options(given: Mapping[str, object], base: ActorOptions | None = None) -> ActorOptions:
    """Checks `given` over the defaults (`@remote(...)` on a class), or over `base` (`Class.options(...)`).

    Raises UnknownOptionError and InvalidOptionError (ValueErrors, as Ray), OptionTypeError (a TypeError),
    RuntimeEnvSetupError. Matches `ray.remote` on classes and `ActorClass.options`.
    """
    values: dict[str, object] = {
        name.lstrip("_"): default if base is None else getattr(base, name.lstrip("_"))
        for name, default in _ACTOR_DEFAULTS.items()
    }
    for option, value in given.items():
        check = _ACTOR_CHECKS.get(option)
        if check is None:
            raise _unknown("an actor", option, _ACTOR_CHECKS)
        values[option.lstrip("_")] = _ACTOR_DEFAULTS[option] if value is None else check(option, value)
    if values["get_if_exists"] and not values["name"]:
        raise InvalidOptionError("get_if_exists needs a name", option="get_if_exists")
    if given.get("placement_group") not in (None, "default"):
        values["scheduling_strategy"] = strategy_of_group(values)
    return ActorOptions(values)


def parse_method_options(given: Mapping[str, object], base: MethodOptions | None = None) -> MethodOptions:
    """Checks `given` over the defaults (`@method(...)`), or over `base` (`actor.f.options(...)`).

    Raises UnknownOptionError, InvalidOptionError (ValueErrors), OptionTypeError (a TypeError). Matches `ray.method`.
    """
    values: dict[str, object] = {
        name.lstrip("_"): default if base is None else getattr(base, name.lstrip("_"))
        for name, default in _METHOD_DEFAULTS.items()
    }
    for option, value in given.items():
        check = _METHOD_CHECKS.get(option)
        if check is None:
            raise _unknown("a method", option, _METHOD_CHECKS)
        values[option.lstrip("_")] = _METHOD_DEFAULTS[option] if value is None else check(option, value)
    return MethodOptions(values)
