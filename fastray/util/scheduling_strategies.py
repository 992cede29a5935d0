"""Where a task or an actor may run, beyond what resources it needs. Matches `ray.util.scheduling_strategies`.

Besides the strings "DEFAULT" (pack) and "SPREAD", an option `scheduling_strategy` takes an object of one of
the classes in STRATEGIES. They are plain values: checked when made, compared and hashed by `key()`, and
interpreted by the scheduler. Called by options.py and by users.
"""

from __future__ import annotations

from fastray.exceptions import InvalidOptionError, OptionTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

_OPTION = "scheduling_strategy"


class _Value:
    """Equality, hash and repr of an immutable value, from its fields."""

    __slots__: tuple[str, ...] = ()
    _fields: tuple[str, ...] = ()

    def key(self) -> tuple[object, ...]:
        """Hashable content."""
        return (type(self).__name__, *(_hashable(getattr(self, name)) for name in self._fields))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Value) and other.key() == self.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"


def _hashable(value: object) -> object:
    if isinstance(value, dict):
        return tuple(sorted((name, _hashable(item)) for name, item in value.items()))
    if isinstance(value, list):
        return tuple(value)
    return value.key() if isinstance(value, _Value) else value


class PlacementGroupSchedulingStrategy(_Value):
    """Run inside a placement group; `placement_group_bundle_index` -1 means any of its bundles."""

    __slots__ = _fields = (
        "placement_group",
        "placement_group_bundle_index",
        "placement_group_capture_child_tasks",
    )

    def __init__(
        self,
        placement_group: object,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if not isinstance(placement_group_bundle_index, int):
            raise OptionTypeError("placement_group_bundle_index must be a whole number", option=_OPTION)
        if placement_group_bundle_index < -1:
            raise InvalidOptionError(
                f"placement_group_bundle_index={placement_group_bundle_index} must be at least -1",
                option=_OPTION,
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy(_Value):
    """Run on the node `node_id` (hex, as in `fastray.nodes()`); `soft` allows another when that one is gone.

    Raises InvalidOptionError (a ValueError) when `node_id` is no hex string.
    """

    __slots__ = _fields = ("node_id", "soft", "_spill_on_unavailable", "_fail_on_unavailable")

    def __init__(
        self,
        node_id: str | bytes,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        text = node_id.hex() if isinstance(node_id, bytes) else node_id
        if not isinstance(text, str):
            raise OptionTypeError(
                f"node_id must be a hex string, not {type(node_id).__name__}", option=_OPTION
            )
        if not text or len(text) % 2 or any(c not in "0123456789abcdefABCDEF" for c in text):
            raise InvalidOptionError(
                f"node_id {text!r} is no node's hex id; see fastray.nodes()", option=_OPTION
            )
        if _spill_on_unavailable and not soft:
            raise InvalidOptionError("_spill_on_unavailable needs soft=True", option=_OPTION)
        if _fail_on_unavailable and soft:
            raise InvalidOptionError("_fail_on_unavailable needs soft=False", option=_OPTION)
        self.node_id = text.lower()
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable


class _Values(_Value):
    __slots__ = _fields = ("values",)

    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        if not values:
            raise InvalidOptionError(f'{name}() needs at least one value: {name}("a")', option=_OPTION)
        for value in values:
            if not isinstance(value, str):
                raise InvalidOptionError(f"{name}() takes strings, not {value!r}", option=_OPTION)
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""

    __slots__ = ()


class NotIn(_Values):
    """The label has none of these values, or is not there."""

    __slots__ = ()


class Exists(_Value):
    """The node has the label."""

    __slots__ = ()


class DoesNotExist(_Value):
    """The node does not have the label."""

    __slots__ = ()


if TYPE_CHECKING:
    Operator = Union[In, NotIn, Exists, DoesNotExist]


class NodeLabelSchedulingStrategy(_Value):
    """Run on a node whose labels meet `hard`, rather one that also meets `soft`.

    Raises InvalidOptionError (a ValueError) for anything but dicts of label names to operators.
    """

    __slots__ = _fields = ("hard", "soft")

    def __init__(self, hard: dict[str, Operator], *, soft: dict[str, Operator] | None = None) -> None:
        self.hard = _expressions("hard", hard)
        self.soft = _expressions("soft", soft)
        if not self.hard and not self.soft:
            raise InvalidOptionError("hard and soft must not both be empty", option=_OPTION)


def _expressions(which: str, given: object) -> dict[str, Operator]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidOptionError(
            f"{which} must be a dict of labels to operators, not {given!r}", option=_OPTION
        )
    for name, operator in given.items():
        if not isinstance(name, str):
            raise InvalidOptionError(f"{which} has a label {name!r} that is no string", option=_OPTION)
        if not isinstance(operator, (In, NotIn, Exists, DoesNotExist)):
            raise InvalidOptionError(
                f"{which}[{name!r}] must be In, NotIn, Exists or DoesNotExist, not {operator!r}",
                option=_OPTION,
            )
    return dict(given)


STRATEGIES = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)
