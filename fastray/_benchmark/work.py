"""The work that is measured: plain functions that run as tasks, and loops around fastray's API.

A loop takes the number of operations, checks its results and returns the seconds they took (the check is not
in them). Nothing here starts a session; `Gate` stops a worker so that one side can be measured alone. Used
by fastray.microbenchmark and benchmarks/; the plain functions also run on the peers (peers.py).
"""

from __future__ import annotations

import os
import tempfile
import time
from time import perf_counter, perf_counter_ns

import fastray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# ---- functions that run as tasks ----------------------------------------------------------


def add_one(x: int) -> int:
    return x + 1


def add(a: int, b: int) -> int:
    return a + b


def length(x: Any) -> int:
    return len(x)


def keywords(a: int, *, b: int = 0, c: str = "") -> int:
    return a + b + len(c)


def ignore(_x: Any) -> None:
    return None


def spin_10us(x: int) -> int:
    end = perf_counter_ns() + 10_000
    while perf_counter_ns() < end:
        pass
    return x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hold(fifo: str) -> None:
    """Keeps its worker busy, without using the CPU, until the other end of the fifo is opened."""
    with open(fifo, "rb") as pipe:
        pipe.read()


def submit_children(count: int) -> int:
    """A task that submits tasks: the sum of their results."""
    f = fastray.remote(add_one)
    return sum(fastray.get([f.remote(i) for i in range(count)]))


# ---- loops --------------------------------------------------------------------------------


def tasks(count: int) -> float:
    """One `f.remote(i)` each, then one `get(list)`."""
    f = fastray.remote(add_one)
    start = perf_counter()
    values = fastray.get([f.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return took


def windows(count: int, window: int) -> float:
    """`window` tasks in flight: submit that many, get them, submit the next."""
    f = fastray.remote(add_one)
    expected = list(range(1, window + 1))
    wrong = 0
    start = perf_counter()
    for _ in range(count // window):
        wrong += fastray.get([f.remote(i) for i in range(window)]) != expected
    took = perf_counter() - start
    assert not wrong
    return took


def arguments(kind: str, count: int) -> float:
    """Tasks with another kind of argument: dict, keywords, 1KB, ref_done."""
    if kind == "keywords":
        f = fastray.remote(keywords)
        start = perf_counter()
        values = fastray.get([f.remote(i, b=2, c="xyz") for i in range(count)])
        took = perf_counter() - start
        assert values == list(range(5, count + 5))
        return took
    f = fastray.remote(length)
    value: Any = {"dict": {"a": 1, "b": 2.5}, "1KB": b"x" * 1024, "ref_done": "four"}[kind]
    argument = fastray.put(value) if kind == "ref_done" else value
    start = perf_counter()
    values = fastray.get([f.remote(argument) for _ in range(count)])
    took = perf_counter() - start
    assert values == [len(value)] * count
    return took


def pending_references(count: int) -> float:
    """Tasks in pairs, the second takes the reference of the first, which is not done yet as a rule."""
    f = fastray.remote(add_one)
    start = perf_counter()
    refs = [f.remote(f.remote(i)) for i in range(count // 2)]
    values = fastray.get(refs)
    took = perf_counter() - start
    assert values == list(range(2, count // 2 + 2))
    return took


def fmap(count: int) -> float:
    f = fastray.remote(add_one)
    start = perf_counter()
    values = list(f.map(range(count)))
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return took


def chain(count: int) -> float:
    f = fastray.remote(add_one)
    start = perf_counter()
    x = f.remote(0)
    for _ in range(count - 1):
        x = f.remote(x)
    value = fastray.get(x)
    took = perf_counter() - start
    assert value == count
    return took


def tree(leaves: int) -> float:
    """A binary reduction by references of `leaves` tasks: 2 * leaves - 1 tasks."""
    f, join = fastray.remote(add_one), fastray.remote(add)
    start = perf_counter()
    level = [f.remote(i) for i in range(leaves)]
    while len(level) > 1:
        level = [join.remote(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    value = fastray.get(level[0])
    took = perf_counter() - start
    assert value == leaves * (leaves + 1) // 2
    return took


def nested(count: int, owners: int = 2) -> float:
    """`owners` tasks that submit and get count / owners tasks each."""
    parent = fastray.remote(submit_children)
    each = count // owners
    start = perf_counter()
    sums = fastray.get([parent.remote(each) for _ in range(owners)])
    took = perf_counter() - start
    assert sums == [each * (each + 1) // 2] * owners
    return took


def wait_one_by_one(count: int) -> float:
    """Seconds for `count` calls of wait(), each on the references that are left."""
    f = fastray.remote(add_one)
    left = [f.remote(i) for i in range(count)]
    seen = 0
    start = perf_counter()
    while left:
        ready, left = fastray.wait(left)
        seen += len(ready)
    took = perf_counter() - start
    assert seen == count
    return took


def puts(count: int) -> float:
    start = perf_counter()
    refs = [fastray.put(i) for i in range(count)]
    took = perf_counter() - start
    assert fastray.get(refs[-1]) == count - 1
    return took


def gets(count: int) -> float:
    refs = [fastray.put(i) for i in range(count)]
    start = perf_counter()
    values = [fastray.get(ref) for ref in refs]
    took = perf_counter() - start
    assert values == list(range(count))
    return took


def round_trips(count: int, pause_s: float = 0.0, idle: bool = False) -> list[int]:
    """Sorted nanoseconds of `get(f.remote(i))`; with a pause before each, the worker sleeps when it comes.

    The driver computes in the pause, or is `idle`: then its core has to wake up too.
    """
    f = fastray.remote(add_one)
    took = []
    for i in range(count):
        if idle:
            time.sleep(pause_s)
        end = perf_counter() + pause_s
        while not idle and perf_counter() < end:
            pass
        start = perf_counter_ns()
        value = fastray.get(f.remote(i))
        took.append(perf_counter_ns() - start)
        assert value == i + 1
    return sorted(took)


# ---- large arrays -------------------------------------------------------------------------


def large_array(size_bytes: int) -> Any:
    import numpy as np

    return np.arange(size_bytes // 8, dtype="f8")


def put_against_copy(size_bytes: int, rounds: int) -> tuple[float, float]:
    """(median seconds of put, median seconds of a.copy()) of one array, in turn."""
    a = large_array(size_bytes)
    put_s, copy_s = [], []
    for _ in range(rounds):
        start = perf_counter()
        ref = fastray.put(a)
        put_s.append(perf_counter() - start)
        assert fastray.get(ref)[-1] == a[-1]
        del ref
        start = perf_counter()
        b = a.copy()
        copy_s.append(perf_counter() - start)
        assert b[-1] == a[-1]
        del b
    return median(put_s), median(copy_s)


def get_large(size_bytes: int, rounds: int) -> float:
    """Median seconds of `get` of one large array, no copy."""
    a = large_array(size_bytes)
    ref = fastray.put(a)
    took = []
    for _ in range(rounds):
        start = perf_counter()
        b = fastray.get(ref)
        took.append(perf_counter() - start)
        assert b[-1] == a[-1]
        assert not b.flags.owndata
    return median(took)


# ---- uneven durations ---------------------------------------------------------------------


def heavy_tail(count: int, seed: int = 7) -> list[float]:
    """Naps of 0.5 to 200 ms, most of them short (Pareto)."""
    import random

    rng = random.Random(seed)
    return [min(0.2, 0.0005 * rng.paretovariate(0.75)) for _ in range(count)]


def ideal_makespan(naps: list[float], workers: int) -> float:
    """What no schedule beats: the sum shared evenly, or the longest nap."""
    return max(sum(naps) / workers, max(naps))


def uneven(naps: list[float]) -> float:
    f = fastray.remote(nap)
    start = perf_counter()
    values = fastray.get([f.remote(s) for s in naps])
    took = perf_counter() - start
    assert values == naps
    return took


def work_10us(count: int) -> float:
    f = fastray.remote(spin_10us)
    start = perf_counter()
    values = fastray.get([f.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(count))
    return took


# ---- one side at a time -------------------------------------------------------------------


class Gate:
    """Holds the only worker of the session: tasks pile up until `open`."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="fastray-gate-")
        self._fifo = os.path.join(self._folder, "fifo")
        os.mkfifo(self._fifo)
        self.held = fastray.remote(hold).remote(self._fifo)

    def open(self) -> None:
        with open(self._fifo, "wb"):  # waits until the worker stands in its open()
            pass
        fastray.get(self.held)
        os.unlink(self._fifo)
        os.rmdir(self._folder)


def sides(count: int) -> dict[str, float]:
    """ns per task of each side alone, in a session with one worker: submit, execute, get, free."""
    f = fastray.remote(add_one)
    fastray.get([f.remote(i) for i in range(count)])  # records and rings are there from now on
    gate = Gate()
    start = perf_counter()
    refs = [f.remote(i) for i in range(count)]
    submitted = perf_counter()
    gate.open()
    opened = perf_counter()
    fastray.get(refs[-1])
    executed = perf_counter()
    values = fastray.get(refs)
    got = perf_counter()
    assert values == list(range(1, count + 1))
    del values
    freeing = perf_counter()
    del refs
    freed = perf_counter()
    spent = {
        "submit": submitted - start,
        "execute": executed - opened,
        "get": got - executed,
        "free": freed - freeing,
    }
    return {side: seconds * 1e9 / count for side, seconds in spent.items()}


def memory_per_pending(count: int) -> float:
    """Bytes per queued task, private and shared, with its reference and its place in a list.

    To be called in a fresh process and session: what an earlier task used stays resident.
    """
    f = fastray.remote(add_one)
    gate = Gate()
    before = status_bytes("self", "VmRSS")
    refs = [f.remote(i) for i in range(count)]
    used = status_bytes("self", "VmRSS") - before
    gate.open()
    values = fastray.get(refs)
    assert values[0] == 1
    assert values[-1] == count
    return used / count


# ---- small things ------------------------------------------------------------------------------------


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def status_bytes(pid: int | str, key: str) -> int:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(key)
