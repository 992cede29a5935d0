"""Queues ten million tasks behind one that waits, then runs them: what they take, and that nothing falls over.

    python benchmarks/ten_million.py                 # about 2 GB and a minute
    python benchmarks/ten_million.py --tasks 1000000

Three rounds: results fetched in slices, every one checked; references dropped while all tasks are queued, so that they
run unwanted; and all cancelled. Memory is the PSS of this program and all its descendants, with the shared memory.

Not part of `make bench`: it needs memory that a shared machine may not have.
"""

from __future__ import annotations

import argparse
import os
import time

import fastray
from fastray._benchmark.processes import pss_bytes
from fastray._benchmark.work import Gate, add_one

SLICE = 100_000
WORKERS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000_000, metavar="N", help="default %(default)s")
    tasks = parser.parse_args().tasks
    fastray.init(num_cpus=WORKERS)
    function = fastray.remote(add_one)
    assert fastray.get(function.remote(1)) == 2
    for name, end in (("get", fetch), ("drop", drop), ("cancel", cancel)):
        run(name, tasks, function, end)
    fastray.shutdown()


def run(name, tasks, function, end) -> None:
    gate, before, start = Gate(), memory(), time.perf_counter()
    refs = [function.remote(i) for i in range(tasks)]
    submitted, queued = time.perf_counter() - start, memory() - before
    start = time.perf_counter()
    end(refs, gate, function)
    took = time.perf_counter() - start
    print(
        f"{name:6} {tasks:,} queued in {submitted:.1f} s ({tasks / submitted / 1e6:.2f} M/s), {queued / 1e6:,.0f} MB, "
        f"{queued / tasks:.0f} B a task; ended in {took:.1f} s ({tasks / took / 1e6:.2f} M/s); "
        f"{(memory() - before) / 1e6:,.0f} MB stay",
        flush=True,
    )


def fetch(refs, gate, function) -> None:
    """All results, in slices: ten million Python ints at once would take more than the tasks."""
    gate.open()
    refs.reverse()
    first = 0
    while refs:
        part = refs[: -SLICE - 1 : -1]
        del refs[-len(part) :]
        assert fastray.get(part) == list(range(first + 1, first + len(part) + 1))
        first += len(part)


def drop(refs, gate, function) -> None:
    """Nobody wants the results; the tasks run, and what comes after them does."""
    refs.clear()
    gate.open()
    assert fastray.get(function.remote(1)) == 2


def cancel(refs, gate, function) -> None:
    """None of them runs."""
    for ref in refs:
        fastray.cancel(ref)
    refs.clear()
    gate.open()
    assert fastray.get(function.remote(1)) == 2


def memory() -> int:
    from fastray.runtime import current_runtime

    current_runtime().attachment.counters()  # frees what nobody holds
    return pss_bytes(os.getpid())


if __name__ == "__main__":
    main()
