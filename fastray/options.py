"""Options of a task: `@remote(...)` and `.options(...)`, checked once, before anything is submitted.

    TaskOptions                    one value per option, defaults filled in; never changed after it was made
    parse_task_options(given)      what the decorator got -> TaskOptions
    parse_task_options(given, base)  what `.options` got, over those of the function
    demand()                       resources in 1/10000 of a unit: the integers that csrc counts in
    key(), scheduling_key()        hashable content: equal keys share a function-table entry, a scheduling
    class

Types and ranges are Ray's. What Ray accepts here and refuses when the task is submitted (an unknown strategy,
1.5 GPUs, `resources={"memory": ...}`) is refused here. Fractions are cut to 1/10000, so that three thirds
fit into one. An option that is None has its default.

Called by remote_function.py.
"""

from __future__ import annotations

from fastray.exceptions import InvalidOptionError, UnknownOptionError
from fastray.option_checks import (
    UNITS,
    check_amount,
    check_anything,
    check_backpressure,
    check_cache,
    check_flag,
    check_gpus,
    check_integer,
    check_label_selector,
    check_labels,
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastray.runtime_env import RuntimeEnv

STREAMING = -1  # num_returns of a generator

DEFAULTS: dict[str, object] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "memory": 0,
    "resources": {},
    "num_returns": None,  # 1, or "streaming" for a generator function
    "max_retries": 3,
    "retry_exceptions": False,
    "max_calls": 0,
    "timeout_s": None,
    "cache": None,
    "seed": None,
    "name": None,
    "runtime_env": None,
    "scheduling_strategy": None,
    "label_selector": {},
    "fallback_strategy": None,
    "accelerator_type": None,
    "_generator_backpressure_num_objects": -1,
    "_num_objects_per_yield": 1,
    "enable_task_events": True,
    "_labels": {},
    "placement_group": "default",
    "placement_group_bundle_index": -1,
    "placement_group_capture_child_tasks": None,
}
_FIELDS = tuple(name.lstrip("_") for name in DEFAULTS)


class TaskOptions:
    """Checked options of a task. Made by `parse_task_options`; to change one, parse again over this."""

    __slots__ = (*_FIELDS, "_key")

    num_cpus: float
    num_gpus: float
    memory: int
    resources: dict[str, float]
    num_returns: int | str | None
    max_retries: int
    retry_exceptions: bool | tuple[type[Exception], ...]
    max_calls: int
    timeout_s: float | None
    cache: tuple[str | None, int] | None  # directory (None: the default one), bytes at most
    seed: bool | int | None
    name: str | None
    runtime_env: RuntimeEnv | None
    scheduling_strategy: object
    label_selector: dict[str, str]
    fallback_strategy: object
    accelerator_type: str | None
    generator_backpressure_num_objects: int
    num_objects_per_yield: int
    enable_task_events: bool
    labels: dict[str, str]
    placement_group: object
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool | None
    _key: tuple[object, ...] | None

    def __init__(self, values: Mapping[str, object]) -> None:
        for name in _FIELDS:
            setattr(self, name, values[name])
        self._key = None

    def __repr__(self) -> str:
        shown = [
            f"{n}={getattr(self, n)!r}" for n in _FIELDS if getattr(self, n) != getattr(DEFAULT_OPTIONS, n)
        ]
        return f"TaskOptions({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskOptions) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def demand(self) -> dict[str, int]:
        """What the task needs, by resource, in 1/10000 of a unit (of a byte for `memory`); no zeros."""
        wanted: dict[str, float] = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory}
        wanted.update(self.resources)
        if self.accelerator_type is not None:
            wanted[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: units for name, amount in wanted.items() if (units := to_units(amount))}

    def returns(self, is_generator: bool, function_name: str = "function") -> int:
        """Number of return values of a function, STREAMING for a generator.

        Raises InvalidOptionError when "streaming" or "dynamic" is asked of a function without `yield`.
        """
        if self.num_returns is None:
            return STREAMING if is_generator else 1
        if isinstance(self.num_returns, int):
            return self.num_returns
        if not is_generator:
            raise InvalidOptionError(
                f"num_returns={self.num_returns!r} needs a generator: {function_name} does not yield",
                option="num_returns",
            )
        return STREAMING

    def scheduling_key(self) -> tuple[object, ...]:
        """Hashable; equal for tasks that can take each other's place in a queue."""
        return (
            tuple(sorted(self.demand().items())),
            self.runtime_env.key() if self.runtime_env else None,
            strategy_key(self.scheduling_strategy),
            tuple(sorted(self.label_selector.items())),
            None if self.fallback_strategy is None else repr(self.fallback_strategy),
        )

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for options that are the same in everything."""
        if self._key is None:
            rest = (
                self.num_returns,
                self.max_retries,
                self.retry_exceptions,
                self.max_calls,
                self.timeout_s,
                self.cache,
                (type(self.seed), self.seed),
                self.name,
                self.generator_backpressure_num_objects,
                self.num_objects_per_yield,
                self.enable_task_events,
                tuple(sorted(self.labels.items())),
            )
            self._key = (self.scheduling_key(), rest)
        return self._key


def to_units(amount: float) -> int:
    """`amount` in 1/10000, cut (not rounded) so that n parts of 1/n fit into one."""
    return amount * UNITS if isinstance(amount, int) else int(amount * UNITS + 1e-6)


def strategy_key(strategy: object) -> object:
    if strategy is None or isinstance(strategy, str):
        return strategy or "DEFAULT"
    key: Callable[[], object] = strategy.key  # type: ignore[attr-defined]  # checked by check_strategy
    return key()


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "num_cpus": check_amount,
    "num_gpus": check_gpus,
    "memory": check_memory,
    "resources": check_resources,
    "num_returns": check_num_returns,
    "max_retries": check_integer(-1),
    "retry_exceptions": check_retry_exceptions,
    "max_calls": check_integer(0),
    "timeout_s": check_seconds,
    "cache": check_cache,
    "seed": check_seed,
    "name": check_string,
    "runtime_env": check_runtime_env,
    "scheduling_strategy": check_strategy,
    "label_selector": check_label_selector,
    "fallback_strategy": check_anything,
    "accelerator_type": check_string,
    "_generator_backpressure_num_objects": check_backpressure,
    "_num_objects_per_yield": check_integer(1),
    "enable_task_events": check_flag,
    "_labels": check_labels,
    "placement_group": check_anything,
    "placement_group_bundle_index": check_integer(-1),
    "placement_group_capture_child_tasks": check_flag,
}
_ACTOR_ONLY = frozenset(
    [
        "max_restarts",
        "max_task_retries",
        "max_concurrency",
        "max_pending_calls",
        "lifetime",
        "namespace",
        "get_if_exists",
        "concurrency_groups",
        "allow_out_of_order_execution",
        "concurrency_group",
    ]
)


def _unknown(option: object) -> InvalidOptionError:
    if option == "object_store_memory":
        return InvalidOptionError(
            "object_store_memory cannot be asked for by a task", option="object_store_memory"
        )
    name = str(option)
    if name in _ACTOR_ONLY:
        return UnknownOptionError(f"{name} is an option of actors, not of tasks", option=name)
    import difflib

    near = difflib.get_close_matches(name, _CHECKS, 1)
    hint = f"; did you mean {near[0]}?" if near else f". Known ones: {', '.join(_CHECKS)}"
    return UnknownOptionError(
        f"a task has no option {name}{hint}", option=name, suggestion=near[0] if near else None
    )


DEFAULT_OPTIONS = TaskOptions({name.lstrip("_"): value for name, value in DEFAULTS.items()})


def parse_task_options(given: Mapping[str, object], base: TaskOptions | None = None) -> TaskOptions:
    """Checks `given` over the defaults (`@remote(...)`), or over `base` (`.options(...)`).

    Raises UnknownOptionError and InvalidOptionError (ValueErrors, as Ray), OptionTypeError (a TypeError),
    RuntimeEnvSetupError; InvalidOptionError for `max_calls` over a base, as Ray. Matches `ray.remote` and
    `RemoteFunction.options`.
    """
    if base is not None and not given:
        return base
    values = {name: getattr(base or DEFAULT_OPTIONS, name) for name in _FIELDS}
    for option, value in given.items():
        check = _CHECKS.get(option)
        if check is None:
            raise _unknown(option)
        if option == "max_calls" and base is not None:
            raise InvalidOptionError(
                "max_calls belongs to the function: set it in @remote(...)", option=option
            )
        if value is None and option == "retry_exceptions":
            raise type_error(option, value, "a bool or a list of exception classes")
        values[option.lstrip("_")] = DEFAULTS[option] if value is None else check(option, value)
    if given.get("placement_group") not in (None, "default"):
        values["scheduling_strategy"] = strategy_of_group(values)
    return TaskOptions(values)


def strategy_of_group(values: Mapping[str, object]) -> object:
    """The strategy that Ray's older options `placement_group...` stand for."""
    from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    index, capture = values["placement_group_bundle_index"], values["placement_group_capture_child_tasks"]
    assert isinstance(index, int)
    assert capture is None or isinstance(capture, bool)
    return PlacementGroupSchedulingStrategy(values["placement_group"], index, capture)
