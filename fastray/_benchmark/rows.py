"""The rows of `fastray microbenchmark`: what is measured, its goal, and how a peer does the same work.

    row     one line of the table; its value is a rate (more is better) or a time or size (less is better)
    goal    what fastray is to reach on 2 cores, 0 for none; see docs/internals/performance.md
    quick   a fifth of the work, for a look

`Row.measure(quick)` runs in a fresh session with `workers` workers; `Row.peer(peer, quick)` on a started
peer, or it is None where peers have nothing like it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, perf_counter_ns
from typing import Any, NamedTuple, Optional

from fastray._benchmark import processes, work
from fastray._benchmark.peers import Peer

PeerRun = Callable[[Any, bool], Optional[float]]
ROUND_TRIPS = 200  # of a peer
LARGE_BYTES = 100_000_000
RATES = ("/s", "x", "GB/s")  # units of which more is better


class Row(NamedTuple):
    title: str
    workers: int
    unit: str  # "/s" rates, else times and sizes
    goal: float  # 0: none
    measure: Callable[[bool], float]
    peer: PeerRun | None = None
    stolen: bool = False  # with another process that takes a core
    session: bool = True  # False: the work starts processes of its own

    @property
    def is_rate(self) -> bool:
        return self.unit in RATES


def _size(full: int, quick: bool) -> int:
    return full // 5 if quick else full


def _rate(loop: Callable[..., float], full: int, *more: Any) -> Callable[[bool], float]:
    """loop(count, *more) as operations/s."""

    def measure(quick: bool) -> float:
        count = _size(full, quick)
        return count / loop(count, *more)

    return measure


def _arguments(kind: str, full: int) -> Callable[[bool], float]:
    return lambda quick: _size(full, quick) / work.arguments(kind, _size(full, quick))


def _peer_tasks(function: Callable[..., Any], argument: Any = None) -> PeerRun:
    """Throughput: one submission each, then all results."""

    def run(peer: Peer, quick: bool) -> float:
        count = _size(peer.tasks, quick)
        given = list(range(count)) if argument is None else [argument] * count
        start = perf_counter()
        values = peer.run(function, given)
        took = perf_counter() - start
        assert len(values) == count
        assert values[-1] == function(given[-1])
        return count / took

    return run


def _peer_windows(window: int) -> PeerRun:
    def run(peer: Peer, quick: bool) -> float:
        repeats = max(2, _size(peer.tasks, quick) // max(window, 50))
        expected = [work.add_one(i) for i in range(window)]
        start = perf_counter()
        for _ in range(repeats):
            assert peer.run(work.add_one, list(range(window))) == expected
        return repeats * window / (perf_counter() - start)

    return run


def _peer_fmap(peer: Peer, quick: bool) -> float | None:
    if not hasattr(peer, "map_in_chunks"):
        return None
    count = _size(500_000, quick)
    start = perf_counter()
    values = peer.map_in_chunks(work.add_one, range(count))
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return count / took


def _peer_round_trip(peer: Peer, _quick: bool) -> float:
    took = []
    for i in range(ROUND_TRIPS):
        start = perf_counter_ns()
        assert peer.call(work.add_one, i) == i + 1
        took.append(perf_counter_ns() - start)
    return sorted(took)[ROUND_TRIPS // 2] / 1000


def _peer_method(name: str, full: int, *before: Any, after: tuple[Any, ...] = ()) -> PeerRun:
    """A loop that only some peers have; full counts are theirs."""

    def run(peer: Peer, quick: bool) -> float | None:
        loop = getattr(peer, name, None)
        count = _size(full, quick)
        return None if loop is None else count / loop(*before, count, *after)

    return run


def _peer_tree(peer: Peer, _quick: bool) -> float | None:
    loop = getattr(peer, "tree", None)
    return None if loop is None else 511 / loop(work.add_one, work.add, 256)


def _peer_uneven(peer: Peer, quick: bool) -> float:
    naps = work.heavy_tail(_size(600, quick))
    peer.run(work.add_one, list(range(4)))  # its workers are there
    start = perf_counter()
    assert peer.run(work.nap, naps) == naps
    return work.ideal_makespan(naps, peer.workers) / (perf_counter() - start)


def _uneven(quick: bool) -> float:
    naps = work.heavy_tail(_size(600, quick))
    work.tasks(100)
    return work.ideal_makespan(naps, 2) / work.uneven(naps)


def _round_trip(percentile: float, pause_s: float = 0.0, idle: bool = False) -> Callable[[bool], float]:
    def measure(quick: bool) -> float:
        work.round_trips(100)
        took = work.round_trips(_size(1000 if pause_s else 20_000, quick), pause_s, idle)
        return took[int(len(took) * percentile)] / 1000

    return measure


def _tree(leaves: int) -> float:
    return (2 * leaves - 1) / work.tree(leaves)


def _put_large(_quick: bool) -> float:
    work.put_against_copy(LARGE_BYTES, 2)
    put_s, copy_s = work.put_against_copy(LARGE_BYTES, 9)
    return copy_s / put_s


def _windows(workers: int, window: int, stolen: bool) -> Row:
    title = f"windows of {window:,} in flight" + (", a core stolen" if stolen else "")
    peer = None if stolen or workers == 1 else _peer_windows(window)
    return Row(title, workers, "/s", 1e6, _rate(work.windows, 200_000, window), peer, stolen)


def _throughput() -> list[Row]:
    add_one = _peer_tasks(work.add_one)
    table = [
        Row("tasks, f.remote(i) each, get(list)", 1, "/s", 4e6, _rate(work.tasks, 1_000_000), add_one),
        Row("tasks, f.remote(i) each, get(list)", 2, "/s", 4e6, _rate(work.tasks, 1_000_000), add_one),
        Row("tasks, a core stolen", 1, "/s", 1e6, _rate(work.tasks, 500_000), None, True),
        Row("tasks, a core stolen", 2, "/s", 1e6, _rate(work.tasks, 500_000), None, True),
        Row(
            "argument: dict",
            2,
            "/s",
            7e5,
            _arguments("dict", 300_000),
            _peer_tasks(work.length, {"a": 1, "b": 2.5}),
        ),
        Row("arguments: keywords", 2, "/s", 7e5, _arguments("keywords", 300_000)),
        Row(
            "argument: 1 KB of bytes",
            2,
            "/s",
            7e5,
            _arguments("1KB", 300_000),
            _peer_tasks(work.length, b"x" * 1024),
        ),
        Row("argument: ObjectRef, done", 2, "/s", 1e6, _arguments("ref_done", 300_000)),
        Row("argument: ObjectRef, not done", 2, "/s", 7e5, _rate(work.pending_references, 300_000)),
        Row("f.map", 2, "/s", 8e6, _rate(work.fmap, 1_000_000), _peer_fmap),
    ]
    for stolen in (False, True):
        table += [_windows(workers, window, stolen) for window in (10, 1000) for workers in (1, 2)]
    return table


def _other() -> list[Row]:
    work_10us = _peer_tasks(work.spin_10us)
    nested = _peer_method("nested", 2000, after=(2,))
    return [
        Row("tasks of 10 us of work", 2, "/s", 185e3, _rate(work.work_10us, 100_000), work_10us),
        Row("round trip, p50", 1, "us", 2, _round_trip(0.5), _peer_round_trip),
        Row("round trip, p99", 1, "us", 60, _round_trip(0.99)),
        Row("round trip through a sleep, p50", 1, "us", 10, _round_trip(0.5, 0.0001)),
        Row("round trip after 1 ms idle, p50", 1, "us", 0, _round_trip(0.5, 0.001, True)),
        Row(
            "chain x = f.remote(x)",
            2,
            "/s",
            1e6,
            _rate(work.chain, 200_000),
            _peer_method("chain", 500, work.add_one),
        ),
        Row(
            "binary tree by references",
            2,
            "/s",
            7e5,
            lambda quick: _tree(1 << (13 if quick else 16)),
            _peer_tree,
        ),
        Row("nested, 2 owners", 2, "/s", 1.5e6, _rate(work.nested, 400_000), nested),
        Row(
            "wait(refs) one by one, 1,000 refs",
            2,
            "/s",
            3e5,
            lambda _quick: 1000 / work.wait_one_by_one(1000),
            _peer_method("wait_one_by_one", 1000, work.add_one),
        ),
        Row("put, small", 1, "/s", 1.5e6, _rate(work.puts, 500_000), _peer_method("puts", 2000)),
        Row("get, small, one by one", 1, "/s", 5e6, _rate(work.gets, 500_000), _peer_method("gets", 2000)),
        Row("put of 100 MB against a.copy()", 1, "x", 1.0, _put_large),
        Row("get of 100 MB, zero-copy", 1, "us", 4, lambda _quick: work.get_large(LARGE_BYTES, 200) * 1e6),
        Row("600 uneven naps against the ideal", 2, "x", 0.98, _uneven, _peer_uneven),
        Row(
            "memory per pending task",
            1,
            "B",
            256,
            lambda quick: processes.fresh_memory_per_pending(_size(1_000_000, quick)),
            session=False,
        ),
        Row(
            "import + init + first result",
            2,
            "ms",
            60,
            lambda _q: processes.startup("fastray", 2)[0] * 1e3,
            session=False,
        ),
        Row(
            "idle runtime, PSS",
            2,
            "MB",
            60,
            lambda _q: processes.startup("fastray", 2)[1] / 1e6,
            session=False,
        ),
    ]


def rows() -> list[Row]:
    """The table, in the order of the goals."""
    from fastray._benchmark.actor_rows import actor_rows
    from fastray._benchmark.cluster_rows import cluster_rows
    from fastray._benchmark.fault_rows import fault_rows

    return _throughput() + _other() + actor_rows() + fault_rows() + cluster_rows()


def select(*titles: str) -> list[Row]:
    """The rows whose titles begin so, each title once (the worker count is then the caller's to choose)."""
    found: dict[str, Row] = {}
    for row in rows():
        if row.title.startswith(titles):
            found.setdefault(row.title, row)
    if not found:
        raise KeyError(f"no row begins with {titles}")
    return list(found.values())
