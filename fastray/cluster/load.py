"""What a node's heartbeats say: what is free, what waits, as differences to the one before. Called by agent.py.

    free    resource -> amount that no running task holds, 0.0 when it is used up
    queue   scheduling class -> [tasks that wait, mean seconds of one]; classes with nothing waiting are left out
    short   a queue that is gone before anybody could act on it: others are not told of it

How long a task of a class takes is not measured by anybody; it follows from how many were taken while so many workers
had the class: seconds x workers / tasks. Idle workers make it too long, so it is only taken while tasks wait.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastray._native.session import Attachment

SECONDS_UNKNOWN = 0.1  # as fastray/scheduling/view.py
WEIGHT = 0.3  # of the last look in the mean
SHORT_S = 0.05  # of work

Queues = dict[str, list[float]]


def free_resources(attachment: Attachment) -> dict[str, float]:
    """By name, with those that are used up; bytes for memory."""
    from fastray.node_state import available_resources, total_resources

    return {**dict.fromkeys(total_resources(attachment), 0.0), **available_resources(attachment)}


def without_short(queues: Queues) -> Queues:
    return {name: queue for name, queue in queues.items() if queue[0] * queue[1] >= SHORT_S}


class QueueMeter:
    """Turns looks at the node's queues into lengths and means. Pure: rows and times in."""

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}
        self._seconds: dict[int, float] = {}
        self._last = 0.0

    def look(self, rows: Iterable[tuple[int, int, int, int]], now: float) -> Queues:
        """`rows` as of `class_queues`: (class, waiting, taken, workers)."""
        passed, self._last = now - self._last, now
        queues: Queues = {}
        for number, waiting, taken, workers in rows:
            before = self._taken.get(number, taken)
            self._taken[number] = taken
            if not waiting:
                continue
            if workers and taken > before and passed > 0:
                mean = passed * workers / (taken - before)
                known = self._seconds.get(number, mean)
                self._seconds[number] = known + WEIGHT * (mean - known)
            queues[str(number)] = [float(waiting), round(self._seconds.get(number, SECONDS_UNKNOWN), 7)]
        return queues


class Difference(NamedTuple):
    version: int
    full: bool
    available: dict[str, float]
    queues: Queues


class Differences:
    """What to send, given what was acknowledged. After a beat without an answer everything is sent."""

    def __init__(self) -> None:
        self._version = 0
        self._available: dict[str, float] = {}
        self._queues: Queues = {}
        self._full = True

    def are_none(self, available: Mapping[str, float], queues: Queues) -> bool:
        """All of this was told and acknowledged."""
        return not self._full and available == self._available and queues == self._queues

    def next(self, available: Mapping[str, float], queues: Queues) -> Difference:
        """Its version is that of the one before when nothing has changed."""
        full, self._full = self._full, True  # until `acknowledged`
        changed = {name: amount for name, amount in available.items() if full or self._available.get(name) != amount}
        lengths = {name: queue for name, queue in queues.items() if full or self._queues.get(name) != queue}
        gone: Queues = {name: [] for name in self._queues if name not in queues and not full}
        self._available, self._queues = dict(available), queues
        if full or changed or lengths or gone:
            self._version += 1
        return Difference(self._version, full, changed, {**lengths, **gone})

    def acknowledged(self, *, resync: bool) -> None:
        self._full = resync
