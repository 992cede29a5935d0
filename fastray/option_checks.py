"""One check per option of tasks, actors and methods: the checked value, or an error that says what was wrong.

Each takes the option's name and the value given. Called by options.py and actor_options.py.
"""

from __future__ import annotations

import os

from fastray.exceptions import InvalidOptionError, OptionTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.runtime_env import RuntimeEnv

UNITS = 10_000  # a resource is counted in 1/10000
RETURNS_MAX = 65_535
SMALLEST = 1 / UNITS
AMOUNT_MAX = 2**63 // UNITS
LABEL_MAX = 63
CACHE_BYTES = 4 << 30  # of a cache that names no limit
SEED_MAX = 2**63 - 1
SECONDS_MAX = 4_000_000  # milliseconds of a limit have 32 bits


def type_error(option: str, value: object, wanted: str) -> OptionTypeError:
    return OptionTypeError(f"{option} must be {wanted}, not {type(value).__name__} {value!r}", option=option)


def check_amount(option: str, value: object) -> float:
    if not isinstance(value, (int, float)):
        raise type_error(option, value, "a number")
    if value != value or abs(value) > AMOUNT_MAX:
        raise InvalidOptionError(f"{option}={value!r} is no amount that could be counted", option=option)
    if value < 0:
        raise InvalidOptionError(f"{option}={value!r} must not be negative", option=option)
    if 0 < value < SMALLEST:
        raise InvalidOptionError(
            f"{option}={value!r} is less than the smallest fraction, {SMALLEST}", option=option
        )
    return int(value) if int(value) == value else value


def check_seconds(option: str, value: object) -> float:
    seconds = check_amount(option, value)
    if not 0.001 <= seconds <= SECONDS_MAX:
        raise InvalidOptionError(
            f"{option}={value!r} must be a time from 0.001 to {SECONDS_MAX:,} seconds", option=option
        )
    return seconds


def check_seed(option: str, value: object) -> bool | int | None:
    if isinstance(value, bool):
        return True if value else None
    return check_integer(0, SEED_MAX)(option, value)


def to_milliseconds(seconds: float | None) -> int:
    """0 for None: no limit. A limit is never shorter than asked for."""
    return 0 if seconds is None else -int(-seconds * 1000 // 1)


def check_gpus(option: str, value: object) -> float:
    amount = check_amount(option, value)
    if amount > 1 and not isinstance(amount, int):
        raise InvalidOptionError(f"{option}={value!r} must be whole when it is more than 1", option=option)
    return amount


def check_memory(option: str, value: object) -> int:
    return int(check_amount(option, value))


def check_resources(option: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise type_error(option, value, "a dict of names to numbers")
    checked: dict[str, float] = {}
    for name, amount in value.items():
        if not isinstance(name, str) or not name:
            raise type_error(option, name, "a dict with names (non-empty strings) as keys")
        if name in ("CPU", "GPU"):
            raise InvalidOptionError(
                f"{option}: use num_{name.lower()}s=... instead of {name!r}", option=option
            )
        if name in ("memory", "object_store_memory"):
            raise InvalidOptionError(f"{option} must not contain {name!r}: use memory=...", option=option)
        checked[name] = check_amount(f"{option}[{name!r}]", amount)
    return checked


def check_integer(least: int, most: int | None = None) -> Callable[[str, object], int]:
    def check(option: str, value: object) -> int:
        if not isinstance(value, int):
            raise type_error(option, value, "a whole number")
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            meaning = " (-1: without limit)" if least == -1 else ""
            raise InvalidOptionError(f"{option}={value!r} must be {limits}{meaning}", option=option)
        return int(value)

    return check


def check_num_returns(option: str, value: object) -> int | str:
    if isinstance(value, str):
        if value not in ("streaming", "dynamic"):
            raise OptionTypeError(
                f'{option}={value!r} must be a whole number, "streaming" or "dynamic"', option=option
            )
        return value
    return check_integer(0, RETURNS_MAX)(option, value)


def check_retry_exceptions(option: str, value: object) -> bool | tuple[type[Exception], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise type_error(option, value, "a bool or a list of exception classes")
    for item in value:
        if not isinstance(item, type) or not issubclass(item, Exception):
            raise InvalidOptionError(f"{option}: {item!r} is no subclass of Exception", option=option)
    return tuple(value)


def check_backpressure(option: str, value: object) -> int:
    if value == 0 and isinstance(value, int):
        raise InvalidOptionError(
            f"{option}=0 would never yield: use 1 for one item at a time, -1 for no limit", option=option
        )
    return check_integer(-1)(option, value)


def check_string(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise type_error(option, value, "a string")
    return value


def check_flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise type_error(option, value, "a bool")
    return value


def check_cache(option: str, value: object) -> tuple[str | None, int] | None:
    if isinstance(value, bool):
        return (None, CACHE_BYTES) if value else None
    if not isinstance(value, dict):
        raise type_error(option, value, "a bool, or a dict with max_bytes and path")
    unknown = sorted(str(name) for name in value if name not in ("max_bytes", "path"))
    if unknown:
        raise InvalidOptionError(f"{option} knows max_bytes and path, not {', '.join(unknown)}", option=option)
    path = value.get("path")
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise type_error(f"{option}['path']", path, "the path of a directory")
    max_bytes = check_integer(1)(f"{option}['max_bytes']", value.get("max_bytes", CACHE_BYTES))
    return None if path is None else os.path.abspath(os.path.expanduser(os.fsdecode(path))), max_bytes


def check_anything(option: str, value: object) -> object:
    return value


def check_runtime_env(option: str, value: object) -> RuntimeEnv:
    from fastray.runtime_env import parse_runtime_env

    return parse_runtime_env(value)


def check_strategy(option: str, value: object) -> object:
    if isinstance(value, str):
        if value in ("DEFAULT", "SPREAD"):
            return value
        raise InvalidOptionError(
            f'{option}={value!r} must be "DEFAULT", "SPREAD" or one of fastray.util.scheduling_strategies',
            option=option,
        )
    from fastray.util import scheduling_strategies

    if not isinstance(value, scheduling_strategies.STRATEGIES):
        raise type_error(option, value, '"DEFAULT", "SPREAD" or one of fastray.util.scheduling_strategies')
    return value


def _is_label_name(text: str) -> bool:
    inner = text.replace("-", "").replace("_", "").replace(".", "")
    ends = text[:1].isalnum() and text[-1:].isalnum()
    return text.isascii() and 0 < len(text) <= LABEL_MAX and ends and inner.isalnum()


def check_label_selector(option: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise type_error(option, value, "a dict of strings to strings")
    for name, wanted in value.items():
        if not isinstance(name, str) or not isinstance(wanted, str):
            raise type_error(option, {name: wanted}, "a dict of strings to strings")
        if not _is_label_name(name.rpartition("/")[2]):
            raise InvalidOptionError(f"{option}: {name!r} is no name of a label", option=option)
        text = wanted[1:] if wanted.startswith("!") else wanted
        values = text[3:-1].split(",") if text.startswith("in(") and text.endswith(")") else [text]
        for item in values:
            if item.strip() and not _is_label_name(item.strip()):
                raise InvalidOptionError(f"{option}: {item!r} is no value of a label", option=option)
    return dict(value)


def check_labels(option: str, value: object) -> dict[str, str]:
    return check_label_selector(option, value)
