"""The rows of `fastray microbenchmark` that have to do with deaths and lost results; see rows.py for the words."""

from __future__ import annotations

import os
import random
import signal
import threading
from time import monotonic, perf_counter
from typing import Any

import fastray
from fastray._benchmark import work
from fastray._benchmark.rows import Row

KILL_EVERY_S = 0.1
CHAIN = 10_000
WIDTH = 2000  # doubles of each array of the chain: too big for a record
WORKER = 2  # ProcKind


class Killer(threading.Thread):
    """Kills a worker every 100 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self._stop_now = threading.Event()

    def run(self) -> None:
        from fastray.runtime import current_runtime

        attachment = current_runtime().attachment
        choice = random.Random(1)
        while not self._stop_now.wait(KILL_EVERY_S):
            pids = [row[2] for row in attachment.processes() if row[1] == WORKER]
            try:
                os.kill(choice.choice(pids), signal.SIGKILL)
                self.kills += 1
            except (IndexError, ProcessLookupError):  # none at this moment, or it left by itself
                pass

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def _tasks(count: int) -> float:
    remote = fastray.remote(max_retries=-1)(work.add_one)
    start = perf_counter()
    values = fastray.get([remote.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return took


def _under_kills(quick: bool) -> float:
    """Rate while a worker is killed every 100 ms, against the undisturbed one of the same run; at least three kills."""
    count = 200_000 if quick else 1_000_000
    quiet = min(_tasks(count) for _ in range(2)) / count
    killer = Killer()
    killer.start()
    took, done = 0.0, 0
    try:
        while killer.kills < 3 or done < count:
            took += _tasks(count)
            done += count
    finally:
        killer.stop()
    return quiet / (took / done)


def _stamp(_x: int) -> Any:
    import numpy

    return numpy.full(WIDTH, monotonic())


def _same(array: Any) -> Any:
    return array + 0.0


def _chain() -> Any:
    first, then = fastray.remote(_stamp), fastray.remote(_same)
    ref = first.remote(0)
    for _ in range(CHAIN - 1):
        ref = then.remote(ref)
    fastray.get(ref)
    return ref


def _evict(ref: Any) -> None:
    """Also what is behind it: lineage alone holds that, and it goes at a sweep once workers have let go of it."""
    from fastray.recovery.lineage import snapshot
    from fastray.runtime import current_runtime

    end = monotonic() + 30
    while any(node.bytes for node in snapshot(ref)[0].values()):
        current_runtime().attachment.counters()  # sweeps
        fastray.evict(ref)
        if monotonic() > end:
            raise RuntimeError("the chain's results are still in use")


def _replay_starts(_quick: bool) -> float:
    """ms from get() of a chain's end, all of it lost, to the run of its first task."""
    ref = _chain()
    _evict(ref)
    start = monotonic()
    return float((fastray.get(ref)[0] - start) * 1e3)


def _replay_rate(_quick: bool) -> float:
    """Tasks of a lost chain run again per second."""
    ref = _chain()
    _evict(ref)
    start = perf_counter()
    fastray.get(ref)
    return CHAIN / (perf_counter() - start)


def fault_rows() -> list[Row]:
    """Kills every 100 ms; replay of a chain of 10,000."""
    return [
        Row("tasks with a kill every 100 ms against none", 2, "x", 0.7, _under_kills),
        Row("replay of a lost chain of 10,000, to its start", 2, "ms", 10, _replay_starts),
        Row("replay of a lost chain of 10,000", 2, "/s", 0, _replay_rate),
    ]
