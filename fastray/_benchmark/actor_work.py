"""The work of the actor rows: loops over `api`, which is fastray or ray (the same program runs on both).

A loop takes the api and the number of operations, checks its results and returns the seconds they took.
"""

from __future__ import annotations

import time
from time import perf_counter, perf_counter_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CALLERS = 4


class Echo:
    """What the calls are made to."""

    def echo(self, x: Any) -> Any:
        return x


class AsyncEcho:
    async def echo(self, x: Any) -> Any:
        return x


def _ready(api: Any, cls: type, count: int = 1, **options: Any) -> list[Any]:
    remote = api.remote(**options)(cls) if options else api.remote(cls)
    actors = [remote.remote() for _ in range(count)]
    api.get([actor.echo.remote(0) for actor in actors])
    return actors


def calls(api: Any, count: int, cls: type = Echo, **options: Any) -> float:
    """One caller, one actor: `count` individual calls, then get(list)."""
    actor = _ready(api, cls, **options)[0]
    start = perf_counter()
    values = api.get([actor.echo.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(count))
    return took


def one_to_many(api: Any, count: int, actors: int) -> float:
    """One caller, `actors` actors in turn."""
    all_actors = _ready(api, Echo, actors)
    start = perf_counter()
    refs = [actor.echo.remote(i) for i in range(count // actors) for actor in all_actors]
    values = api.get(refs)
    took = perf_counter() - start
    assert values == [i for i in range(count // actors) for _ in all_actors]
    return took * count / len(refs)


def _call_all(api: Any, actors: list[Any], count: int) -> int:
    refs = [actor.echo.remote(i) for i in range(count // len(actors)) for actor in actors]
    return len(api.get(refs))


def many_to_many(api: Any, count: int, actors: int) -> float:
    """`CALLERS` callers (tasks), each calls `actors` actors in turn."""
    all_actors = _ready(api, Echo, actors)
    caller = api.remote(num_cpus=0)(_caller(api.__name__))
    api.get([caller.remote(all_actors, actors) for _ in range(CALLERS)])
    start = perf_counter()
    done = api.get([caller.remote(all_actors, count // CALLERS) for _ in range(CALLERS)])
    took = perf_counter() - start
    return took * count / float(sum(done))


def _caller(module: str) -> Any:  # a function made here is pickled by value: the worker imports its own api
    def call(actors: list[Any], count: int) -> int:
        import importlib

        return _call_all(importlib.import_module(module), actors, count)

    return call


def round_trips(api: Any, count: int, cls: type = Echo) -> list[int]:
    """Nanoseconds of `get(actor.echo.remote(i))`, sorted."""
    actor = _ready(api, cls)[0]
    took = []
    for i in range(count):
        start = perf_counter_ns()
        value = api.get(actor.echo.remote(i))
        took.append(perf_counter_ns() - start)
        assert value == i
    return sorted(took)


def wait_one_by_one(api: Any, count: int) -> float:
    """`wait` for one after the other of `count` calls in flight."""
    actor = _ready(api, Echo)[0]
    left = [actor.echo.remote(i) for i in range(count)]
    start = perf_counter()
    done = []
    while left:
        ready, left = api.wait(left)
        done += ready
    took = perf_counter() - start
    assert sorted(api.get(done)) == list(range(count))
    return took


def create(api: Any, count: int) -> float:
    """`count` actors, from the first `.remote()` to the last one's first answer."""
    remote = api.remote(num_cpus=0)(Echo)
    api.get(remote.remote().echo.remote(0))
    start = perf_counter()
    actors = [remote.remote() for _ in range(count)]
    assert api.get([actor.echo.remote(i) for i, actor in enumerate(actors)]) == list(range(count))
    return perf_counter() - start


def own_memory(api: Any, count: int) -> float:
    """Private bytes of one actor's process, the mean of `count`."""
    actors = [api.remote(num_cpus=0)(_Sized).remote() for _ in range(count)]
    sizes = api.get([actor.private_bytes.remote() for actor in actors])
    return float(sum(sizes)) / count


class _Sized:
    def private_bytes(self) -> int:
        time.sleep(0.05)  # after the start: what it took for that is given back
        with open("/proc/self/smaps_rollup") as f:
            return 1024 * sum(int(line.split()[1]) for line in f if line.startswith("Private"))
