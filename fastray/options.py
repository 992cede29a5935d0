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

from fastray.exceptions import InvalidOptionError, OptionTypeError, UnknownOptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastray.runtime_env import RuntimeEnv

UNITS = 10_000  # a resource is counted in 1/10000
STREAMING = -1  # num_returns of a generator
RETURNS_MAX = 65_535
_SMALLEST = 1 / UNITS
_AMOUNT_MAX = 2**63 // UNITS
_CUSTOM_SELECTOR_MAX = 63

DEFAULTS: dict[str, object] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "memory": 0,
    "resources": {},
    "num_returns": None,  # 1, or "streaming" for a generator function
    "max_retries": 3,
    "retry_exceptions": False,
    "max_calls": 0,
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
            _strategy_key(self.scheduling_strategy),
            tuple(sorted(self.label_selector.items())),
        )

    def key(self) -> tuple[object, ...]:
        """Hashable; equal for options that are the same in everything."""
        if self._key is None:
            rest = (
                self.num_returns,
                self.max_retries,
                self.retry_exceptions,
                self.max_calls,
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


def _strategy_key(strategy: object) -> object:
    if strategy is None or isinstance(strategy, str):
        return strategy or "DEFAULT"
    key: Callable[[], object] = strategy.key  # type: ignore[attr-defined]  # checked by _strategy
    return key()


# ---- one check per option --------------------------------------------------------------------------


def _type_error(option: str, value: object, wanted: str) -> OptionTypeError:
    return OptionTypeError(f"{option} must be {wanted}, not {type(value).__name__} {value!r}", option=option)


def _amount(option: str, value: object) -> float:
    if not isinstance(value, (int, float)):
        raise _type_error(option, value, "a number")
    if value != value or abs(value) > _AMOUNT_MAX:
        raise InvalidOptionError(f"{option}={value!r} is no amount that could be counted", option=option)
    if value < 0:
        raise InvalidOptionError(f"{option}={value!r} must not be negative", option=option)
    if 0 < value < _SMALLEST:
        raise InvalidOptionError(
            f"{option}={value!r} is less than the smallest fraction, {_SMALLEST}", option=option
        )
    return int(value) if int(value) == value else value


def _gpus(option: str, value: object) -> float:
    amount = _amount(option, value)
    if amount > 1 and not isinstance(amount, int):
        raise InvalidOptionError(f"{option}={value!r} must be whole when it is more than 1", option=option)
    return amount


def _memory(option: str, value: object) -> int:
    return int(_amount(option, value))


def _resources(option: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _type_error(option, value, "a dict of names to numbers")
    checked: dict[str, float] = {}
    for name, amount in value.items():
        if not isinstance(name, str) or not name:
            raise _type_error(option, name, "a dict with names (non-empty strings) as keys")
        if name in ("CPU", "GPU"):
            raise InvalidOptionError(
                f"{option}: use num_{name.lower()}s=... instead of {name!r}", option=option
            )
        if name in ("memory", "object_store_memory"):
            raise InvalidOptionError(f"{option} must not contain {name!r}: use memory=...", option=option)
        checked[name] = _amount(f"{option}[{name!r}]", amount)
    return checked


def _integer(least: int, most: int | None = None) -> Callable[[str, object], int]:
    def check(option: str, value: object) -> int:
        if not isinstance(value, int):
            raise _type_error(option, value, "a whole number")
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            meaning = " (-1: without limit)" if least == -1 else ""
            raise InvalidOptionError(f"{option}={value!r} must be {limits}{meaning}", option=option)
        return int(value)

    return check


def _num_returns(option: str, value: object) -> int | str:
    if isinstance(value, str):
        if value not in ("streaming", "dynamic"):
            raise OptionTypeError(
                f'{option}={value!r} must be a whole number, "streaming" or "dynamic"', option=option
            )
        return value
    return _integer(0, RETURNS_MAX)(option, value)


def _retry_exceptions(option: str, value: object) -> bool | tuple[type[Exception], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise _type_error(option, value, "a bool or a list of exception classes")
    for item in value:
        if not isinstance(item, type) or not issubclass(item, Exception):
            raise InvalidOptionError(f"{option}: {item!r} is no subclass of Exception", option=option)
    return tuple(value)


def _backpressure(option: str, value: object) -> int:
    if value == 0 and isinstance(value, int):
        raise InvalidOptionError(
            f"{option}=0 would never yield: use 1 for one item at a time, -1 for no limit", option=option
        )
    return _integer(-1)(option, value)


def _string(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise _type_error(option, value, "a string")
    return value


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _type_error(option, value, "a bool")
    return value


def _anything(option: str, value: object) -> object:
    return value


def _runtime_env(option: str, value: object) -> RuntimeEnv:
    from fastray.runtime_env import parse_runtime_env

    return parse_runtime_env(value)


def _strategy(option: str, value: object) -> object:
    if isinstance(value, str):
        if value in ("DEFAULT", "SPREAD"):
            return value
        raise InvalidOptionError(
            f'{option}={value!r} must be "DEFAULT", "SPREAD" or one of fastray.util.scheduling_strategies',
            option=option,
        )
    from fastray.util import scheduling_strategies

    if not isinstance(value, scheduling_strategies.STRATEGIES):
        raise _type_error(option, value, '"DEFAULT", "SPREAD" or one of fastray.util.scheduling_strategies')
    return value


def _is_label_name(text: str) -> bool:
    inner = text.replace("-", "").replace("_", "").replace(".", "")
    ends = text[:1].isalnum() and text[-1:].isalnum()
    return text.isascii() and 0 < len(text) <= _CUSTOM_SELECTOR_MAX and ends and inner.isalnum()


def _label_selector(option: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _type_error(option, value, "a dict of strings to strings")
    for name, wanted in value.items():
        if not isinstance(name, str) or not isinstance(wanted, str):
            raise _type_error(option, {name: wanted}, "a dict of strings to strings")
        if not _is_label_name(name.rpartition("/")[2]):
            raise InvalidOptionError(f"{option}: {name!r} is no name of a label", option=option)
        text = wanted[1:] if wanted.startswith("!") else wanted
        values = text[3:-1].split(",") if text.startswith("in(") and text.endswith(")") else [text]
        for item in values:
            if item.strip() and not _is_label_name(item.strip()):
                raise InvalidOptionError(f"{option}: {item!r} is no value of a label", option=option)
    return dict(value)


def _labels(option: str, value: object) -> dict[str, str]:
    return _label_selector(option, value)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "num_cpus": _amount,
    "num_gpus": _gpus,
    "memory": _memory,
    "resources": _resources,
    "num_returns": _num_returns,
    "max_retries": _integer(-1),
    "retry_exceptions": _retry_exceptions,
    "max_calls": _integer(0),
    "name": _string,
    "runtime_env": _runtime_env,
    "scheduling_strategy": _strategy,
    "label_selector": _label_selector,
    "fallback_strategy": _anything,
    "accelerator_type": _string,
    "_generator_backpressure_num_objects": _backpressure,
    "_num_objects_per_yield": _integer(1),
    "enable_task_events": _flag,
    "_labels": _labels,
    "placement_group": _anything,
    "placement_group_bundle_index": _integer(-1),
    "placement_group_capture_child_tasks": _flag,
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
            raise _type_error(option, value, "a bool or a list of exception classes")
        values[option.lstrip("_")] = DEFAULTS[option] if value is None else check(option, value)
    if given.get("placement_group") not in (None, "default"):
        values["scheduling_strategy"] = _strategy_of_group(values)
    return TaskOptions(values)


def _strategy_of_group(values: Mapping[str, object]) -> object:
    """The strategy that Ray's older options `placement_group...` stand for."""
    from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    index, capture = values["placement_group_bundle_index"], values["placement_group_capture_child_tasks"]
    assert isinstance(index, int)
    assert capture is None or isinstance(capture, bool)
    return PlacementGroupSchedulingStrategy(values["placement_group"], index, capture)
