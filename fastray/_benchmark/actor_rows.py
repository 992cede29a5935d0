"""The rows of `fastray microbenchmark` that have to do with actors; see rows.py for the words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastray
from fastray._benchmark import actor_work
from fastray._benchmark.peers import Peer
from fastray._benchmark.rows import PeerRun, Row

Loop = Callable[..., float]


def _rate(loop: Loop, full: int, *more: Any, **options: Any) -> Callable[[bool], float]:
    def measure(quick: bool) -> float:
        count = full // 5 if quick else full
        return count / loop(fastray, count, *more, **options)

    return measure


def _peer(loop: Loop, full: int, *more: Any, **options: Any) -> PeerRun:
    """The same loop on ray; other peers have no actors of this kind."""

    def run(peer: Peer, quick: bool) -> float | None:
        api = getattr(peer, "ray", None)
        count = full // 5 if quick else full
        return None if api is None else count / loop(api, count, *more, **options)

    return run


def _both(title: str, goal: float, loop: Loop, full: int, ray_full: int, *more: Any, **options: Any) -> Row:
    return Row(
        title, 2, "/s", goal, _rate(loop, full, *more, **options), _peer(loop, ray_full, *more, **options)
    )


def _round_trip(title: str, goal: float, cls: type, percentile: float) -> Row:
    def middle(api: Any, count: int) -> float:
        took = actor_work.round_trips(api, count, cls)
        return took[int(len(took) * percentile)] / 1000

    def peer(peer: Peer, _quick: bool) -> float | None:
        api = getattr(peer, "ray", None)
        return None if api is None else middle(api, 300)

    return Row(title, 2, "us", goal, lambda quick: middle(fastray, 4000 if quick else 20_000), peer)


def actor_rows() -> list[Row]:
    """Calls, round trips, many callers, creation."""
    work = actor_work
    return [
        _both("actor calls, one caller, one actor", 3e6, work.calls, 1_000_000, 2000),
        _round_trip("actor round trip, p50", 2, work.Echo, 0.5),
        _round_trip("actor round trip, p99", 0, work.Echo, 0.99),
        _both("asyncio-actor calls", 2e5, work.calls, 200_000, 2000, work.AsyncEcho),
        _round_trip("asyncio-actor round trip, p50", 0, work.AsyncEcho, 0.5),
        _both("threaded-actor calls, 2 threads", 0, work.calls, 50_000, 2000, max_concurrency=2),
        _both("actor calls, 1 caller to 4 actors", 0, work.one_to_many, 400_000, 2000, 4),
        _both("actor calls, 1 caller to 16 actors", 0, work.one_to_many, 400_000, 2000, 16),
        _both("actor calls, 4 callers to 4 actors", 0, work.many_to_many, 400_000, 4000, 4),
        _both("wait(calls) one by one, 1,000 calls", 3e5, work.wait_one_by_one, 1000, 1000),
        _both("actors created, to the first answer", 300, work.create, 500, 20),
        Row("memory of one actor, private", 2, "B", 6e6, lambda _quick: work.own_memory(fastray, 20)),
    ]
