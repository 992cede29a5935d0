"""`f.map(iterable)`: many items in one task, as many as take about a millisecond.

A task costs about 200 ns, an item in a fused task about 50, so short calls gain much by being fused, and
long ones must not be: 100 items of 10 ms in one task would leave the other workers idle. So the first tasks
hold one item; each reports how long it took, and the number of items follows the measured time. A window of
a few tasks per worker is in flight; the iterable is read as the window moves, the results come in order.
"""

from __future__ import annotations

import time
from collections import deque

from fastray._native.wait import get
from fastray.options import parse_task_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray.remote_function import RemoteFunction

TARGET_NS = 1_000_000  # a fused task should take about this
ITEMS_MAX = 10_000
GROWTH_MAX = 8  # from one measurement to the next
TASKS_PER_WORKER = 4  # in flight
SINGLE_WINDOW = 10_000  # the same when items are not fused

Outcome = tuple["list[Any]", "list[tuple[int, bytes]]", int]


class FusedCall:
    """The function that a fused task runs: `function` on each item, errors kept per item."""

    def __init__(self, function: Callable[[Any], Any], name: str) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = name

    def __call__(self, items: list[Any]) -> Outcome:
        """(values, [(index, dumped exception)], nanoseconds)."""
        function = self.function
        values: list[Any] = []
        errors: list[tuple[int, bytes]] = []
        append = values.append
        start = time.perf_counter_ns()
        for item in items:
            try:
                append(function(item))
            except Exception as error:
                from fastray.serialization import dump_exception

                errors.append((len(values), dump_exception(error, self.__name__)))
                append(None)
        return values, errors, time.perf_counter_ns() - start


def fused_map(function: RemoteFunction, iterable: Iterable[Any], timeout: float | None) -> Iterator[Any]:
    """Checks the arguments now, runs as it is iterated (see RemoteFunction.map)."""
    from fastray import api
    from fastray.remote_function import RemoteFunction
    from fastray.runtime import current_runtime

    items = iter(iterable)
    options = parse_task_options({"num_returns": 1}, function._options)
    fused = RemoteFunction(FusedCall(function.__wrapped__, function.__name__), options)
    workers = int(api.cluster_resources().get("CPU", 1))
    deadline = None if timeout is None else time.monotonic() + timeout
    if current_runtime().is_durable or options.cache is not None:
        return _single(RemoteFunction(function.__wrapped__, options), items, deadline)
    most = 1 if function._options.timeout_s else ITEMS_MAX  # the limit is that of a call
    return _results(fused, items, max(2, workers * TASKS_PER_WORKER), most, deadline)


def _results(
    fused: RemoteFunction, items: Iterator[Any], window: int, most: int, deadline: float | None
) -> Iterator[Any]:
    in_flight: deque[ObjectRef[Any]] = deque()
    size = 1
    more = True
    while True:
        while more and len(in_flight) < window:
            chunk = [item for _, item in zip(range(size), items)]
            more = len(chunk) == size
            if chunk:
                in_flight.append(fused.remote(chunk))
        if not in_flight:
            return
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        values, errors, took_ns = get(in_flight.popleft(), timeout=left)
        size = min(most, _next_size(size, len(values), took_ns))
        if errors:
            yield from _raising(values, dict(errors))
        else:
            yield from values


def _single(
    function: RemoteFunction, items: Iterator[Any], deadline: float | None
) -> Iterator[Any]:
    """In a durable session, or with a cache: a task for each item, so that it is found again by its content."""
    in_flight = deque(function.remote(item) for _, item in zip(range(SINGLE_WINDOW), items))
    while in_flight:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        value = get(in_flight.popleft(), timeout=left)
        in_flight.extend(function.remote(item) for _, item in zip(range(1), items))
        yield value


def _next_size(size: int, items: int, took_ns: int) -> int:
    wanted = items * TARGET_NS // max(took_ns, 1)
    return max(1, min(wanted, size * GROWTH_MAX, ITEMS_MAX))


def _raising(values: list[Any], errors: dict[int, bytes]) -> Iterator[Any]:
    from fastray.serialization import load_exception

    for i, value in enumerate(values):
        if i in errors:
            raise load_exception(errors[i])
        yield value
