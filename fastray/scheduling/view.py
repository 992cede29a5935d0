"""A node as the scheduler sees it, a request, and the outcomes. Plain values.

    wait    seconds until a node would start one more task: what queues there times how long such tasks take,
            over its CPUs
    move    bytes of arguments that a node does not have

Made by global_scheduler.py and the tests; read by policy.py and bundles.py.
"""

from __future__ import annotations

from typing import NamedTuple

from fastray.scheduling.resources import UNIT, Units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastray.util.scheduling_strategies import Operator

SECONDS_UNKNOWN = 0.1  # of a task whose class has never run


class NodeView:
    """Mutable: the global scheduler takes away what it placed."""

    __slots__ = ("available", "labels", "node_id", "total", "wait_s")

    def __init__(
        self,
        node_id: bytes,
        total: Units,
        available: Units | None = None,
        labels: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> None:
        self.node_id = node_id
        self.total = total
        self.available = dict(total) if available is None else available
        self.labels = dict(labels or {})
        self.wait_s = wait_s

    @property
    def cpus(self) -> float:
        return max(1.0, self.total.get("CPU", 0) / UNIT)

    def use(self, asked: Mapping[str, int]) -> float:
        """The fullest of its resources, 0 to 1 and above, once `asked` runs here."""
        fullest = 0.0
        for name, total in self.total.items():
            if total and name in asked:
                used = total - self.available.get(name, 0) + asked[name]
                fullest = max(fullest, used / total)
        return fullest


def queue_wait_s(queues: Iterable[Sequence[float]], cpus: float) -> float:
    """Of queues of (tasks, mean seconds of one)."""
    return sum(count * seconds for count, seconds in queues) / cpus


class Argument(NamedTuple):
    size: int  # bytes
    nodes: frozenset[bytes]  # that have a copy


class Bundle(NamedTuple):
    """A placed bundle of a placement group; `number` is its place in the group."""

    number: int
    node_id: bytes
    total: Units
    available: Units


class Request(NamedTuple):
    """`strategy` is "DEFAULT", "SPREAD", or a NodeAffinity- or NodeLabelSchedulingStrategy.

    A request inside a placement group has the group's `bundles` and the index of the one it wants, or -1.
    """

    resources: Units
    strategy: object = "DEFAULT"
    labels: Mapping[str, Operator] = {}
    arguments: Sequence[Argument] = ()
    seconds: float = SECONDS_UNKNOWN  # the mean of its class
    origin: bytes = b""  # the node that asks
    bundles: Sequence[Bundle] | None = None
    bundle_index: int = -1


class Placed(NamedTuple):
    node_id: bytes
    now: bool  # its resources are free at this moment
    bundle_index: int = -1


class Infeasible(NamedTuple):
    """No node can ever run it, as the cluster is. `missing`: resource -> (asked for, the most there is)."""

    reason: str
    missing: dict[str, tuple[float, float]] = {}


class Busy(NamedTuple):
    """It has to wait for resources, and its strategy allows no queue: a placement group, a strict affinity."""

    reason: str
