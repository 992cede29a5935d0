"""The rows of `fastray microbenchmark` over two nodes of this machine, joined by loopback; see rows.py for the words.

Each row starts its own cluster: a head, where the driver is, and a node that alone has the resource "far". Every task
that asks for it is placed, sent, run there, and answered. Without grpcio and pyarrow the rows are left out.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import fastray
from fastray._benchmark import work
from fastray._benchmark.rows import Row

FAR = {"resources": {"far": 0.001}, "num_cpus": 0}
STORE_BYTES = 1 << 30
TASKS, CALLS, ROUND_TRIPS = 200_000, 200_000, 1_000
VALUE_BYTES, VALUES = 100_000_000, 4
WARM = 2_000
LOCAL_TASKS = 1_000_000


@contextmanager
def _two_nodes() -> Iterator[None]:
    """This process is a driver of the head."""
    import os

    from fastray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("FASTRAY_TMPDIR")
        os.environ["FASTRAY_TMPDIR"] = folder
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES}
        )
        try:
            cluster.add_node(num_cpus=1, resources={"far": 1}, object_store_memory=STORE_BYTES)
            cluster.wait_for_nodes()
            fastray.init(address=cluster.address, log_to_driver=False)
            yield
        finally:
            fastray.shutdown()
            cluster.shutdown()
            os.environ.pop("FASTRAY_TMPDIR")
            if before is not None:
                os.environ["FASTRAY_TMPDIR"] = before


def _in_cluster(measure: Callable[[bool], float]) -> Callable[[bool], float]:
    def run(quick: bool) -> float:
        with _two_nodes():
            return measure(quick)

    return run


def _tasks(quick: bool) -> float:
    remote = fastray.remote(**FAR)(work.add_one)
    fastray.get([remote.remote(i) for i in range(WARM)])
    count = TASKS // 5 if quick else TASKS
    start = perf_counter()
    values = fastray.get([remote.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return count / took


def _round_trip(_quick: bool) -> float:
    """us, the median."""
    remote = fastray.remote(**FAR)(work.add_one)
    times = []
    for i in range(WARM // 10 + ROUND_TRIPS):
        start = perf_counter()
        assert fastray.get(remote.remote(i)) == i + 1
        times.append(perf_counter() - start)
    return statistics.median(times[WARM // 10 :]) * 1e6


class _Adder:
    def add_one(self, i: int) -> int:
        return i + 1


def _calls(quick: bool) -> float:
    actor = fastray.remote(**FAR)(_Adder).remote()
    fastray.get([actor.add_one.remote(i) for i in range(WARM)])
    count = CALLS // 5 if quick else CALLS
    start = perf_counter()
    values = fastray.get([actor.add_one.remote(i) for i in range(count)])
    took = perf_counter() - start
    assert values == list(range(1, count + 1))
    return count / took


def _make(size: int) -> Any:
    import numpy

    return numpy.ones(size, numpy.uint8)


def _transfer(_quick: bool) -> float:
    """GB/s of a large result, from get() to the array here; the median of some, after one."""
    make = fastray.remote(**FAR)(_make)
    rates = []
    for _ in range(VALUES + 1):
        ref = make.remote(VALUE_BYTES)
        fastray.wait([ref], fetch_local=False)
        start = perf_counter()
        array = fastray.get(ref)
        rates.append(VALUE_BYTES / (perf_counter() - start) / 1e9)
        assert len(array) == VALUE_BYTES
        assert array[-1] == 1
        del array, ref
    return statistics.median(rates[1:])


def _local(quick: bool) -> float:
    """Rate of tasks on the driver's node, which is part of a cluster, against a private node; both in turn."""
    count = LOCAL_TASKS // 5 if quick else LOCAL_TASKS

    def rate() -> float:
        remote = fastray.remote(work.add_one)
        fastray.get([remote.remote(i) for i in range(WARM)])
        best = float("inf")
        for _ in range(5):
            start = perf_counter()
            fastray.get([remote.remote(i) for i in range(count)])
            best = min(best, perf_counter() - start)
        return count / best

    with _two_nodes():
        clustered = rate()
    fastray.init(num_cpus=1, log_to_driver=False)
    try:
        return clustered / rate()
    finally:
        fastray.shutdown()


def cluster_rows() -> list[Row]:
    """Two nodes on loopback: tasks, a round trip, actor calls, a large result; the local path beside a private one."""
    if any(importlib.util.find_spec(name) is None for name in ("grpc", "msgspec", "pyarrow")):
        return []
    rows = [
        ("tasks to another node", "/s", 3e5, _in_cluster(_tasks)),
        ("round trip to another node", "us", 300, _in_cluster(_round_trip)),
        ("actor calls to another node", "/s", 0, _in_cluster(_calls)),
        ("100 MB from another node", "GB/s", 2, _in_cluster(_transfer)),
        ("local tasks in a cluster against a private node", "x", 0.95, _local),
    ]
    return [Row(title, 1, unit, goal, measure, session=False) for title, unit, goal, measure in rows]
