"""Other task runtimes behind one interface, so that the same work runs on each of them in the same run.

A peer takes one call per task, as fastray does (`f.remote(i)` and `get(list)`), with the fastest form it has
for that: Pool.map with chunks of one, Executor.submit, ray's f.remote, dask's client.submit. Peers are slow,
so each says how many tasks a run should have. A peer that is not installed is left out with the reason.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Peer(ABC):
    """One peer, started with `workers` worker processes."""

    name = ""
    module = ""
    tasks = 5000  # of a throughput run

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @abstractmethod
    def run(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        """One call per argument, all results in order."""

    def call(self, function: Callable[..., Any], argument: Any) -> Any:
        """One round trip."""
        return self.run(function, [argument])[0]

    @abstractmethod
    def close(self) -> None:
        """Its processes are gone afterwards."""


class Pool(Peer):
    name, module, tasks = "multiprocessing.Pool", "multiprocessing", 20_000

    def __init__(self, workers: int) -> None:
        import multiprocessing

        super().__init__(workers)
        self._pool = multiprocessing.get_context("fork").Pool(workers)

    def run(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        return self._pool.map(function, arguments, chunksize=1)

    def call(self, function: Callable[..., Any], argument: Any) -> Any:
        return self._pool.apply(function, (argument,))

    def map_in_chunks(self, function: Callable[..., Any], arguments: range) -> list[Any]:
        """The batched form: what `f.map` is compared with."""
        return self._pool.map(function, arguments, chunksize=max(1, len(arguments) // (8 * self.workers)))

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


class Executor(Peer):
    name, module, tasks = "ProcessPoolExecutor", "concurrent.futures", 10_000

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pool = self._make(workers)

    def _make(self, workers: int) -> Any:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))

    def run(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        futures = [self._pool.submit(function, a) for a in arguments]
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Loky(Executor):
    name, module, tasks = "loky", "loky", 5000

    def _make(self, workers: int) -> Any:
        from loky import get_reusable_executor

        return get_reusable_executor(max_workers=workers)

    def close(self) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)


class Ray(Peer):
    name, module, tasks = "ray", "ray", 2000

    def __init__(self, workers: int) -> None:
        import logging
        import os

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        super().__init__(workers)
        self.ray = ray
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        self._remote: dict[Any, Any] = {}

    def remote(self, function: Callable[..., Any]) -> Any:
        if function not in self._remote:
            self._remote[function] = self.ray.remote(function)
        return self._remote[function]

    def run(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        f = self.remote(function)
        values: list[Any] = self.ray.get([f.remote(a) for a in arguments])
        return values

    def close(self) -> None:
        self.ray.shutdown()

    # ---- what only ray has in this form ------------------------------------------------------------------

    def chain(self, function: Callable[..., Any], count: int) -> float:
        f = self.remote(function)
        start = perf_counter()
        x = f.remote(0)
        for _ in range(count - 1):
            x = f.remote(x)
        assert self.ray.get(x) == count
        return perf_counter() - start

    def tree(self, leaf: Callable[..., Any], join: Callable[..., Any], leaves: int) -> float:
        f, g = self.remote(leaf), self.remote(join)
        start = perf_counter()
        level = [f.remote(i) for i in range(leaves)]
        while len(level) > 1:
            level = [g.remote(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        assert self.ray.get(level[0]) == leaves * (leaves + 1) // 2
        return perf_counter() - start

    def wait_one_by_one(self, function: Callable[..., Any], count: int) -> float:
        f = self.remote(function)
        left = [f.remote(i) for i in range(count)]
        start = perf_counter()
        while left:
            _, left = self.ray.wait(left)
        return perf_counter() - start

    def puts(self, count: int) -> float:
        start = perf_counter()
        refs = [self.ray.put(i) for i in range(count)]
        took = perf_counter() - start
        assert self.ray.get(refs[-1]) == count - 1
        return took

    def gets(self, count: int) -> float:
        refs = [self.ray.put(i) for i in range(count)]
        start = perf_counter()
        values = [self.ray.get(ref) for ref in refs]
        took = perf_counter() - start
        assert values == list(range(count))
        return took

    def nested(self, count: int, owners: int) -> float:
        parent = self.ray.remote(ray_children)
        start = perf_counter()
        sums = self.ray.get([parent.remote(count // owners) for _ in range(owners)])
        took = perf_counter() - start
        each = count // owners
        assert sums == [each * (each + 1) // 2] * owners
        return took


def ray_children(count: int) -> int:
    import ray

    from fastray._benchmark.work import add_one

    f = ray.remote(add_one)
    return sum(ray.get([f.remote(i) for i in range(count)]))


class Dask(Peer):
    name, module, tasks = "dask", "distributed", 2000

    def __init__(self, workers: int) -> None:
        from dask.distributed import Client

        super().__init__(workers)
        self._client = Client(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )

    def run(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        futures = [self._client.submit(function, a, pure=False) for a in arguments]
        values: list[Any] = self._client.gather(futures)
        return values

    def chain(self, function: Callable[..., Any], count: int) -> float:
        start = perf_counter()
        x = self._client.submit(function, 0, pure=False)
        for _ in range(count - 1):
            x = self._client.submit(function, x, pure=False)
        assert x.result() == count
        return perf_counter() - start

    def close(self) -> None:
        self._client.close()
        if self._client.cluster is not None:
            self._client.cluster.close()


PEERS: dict[str, type[Peer]] = {"pool": Pool, "executor": Executor, "loky": Loky, "ray": Ray, "dask": Dask}


def missing(name: str) -> str:
    """Why this peer cannot be measured here; an empty string when it can."""
    module = PEERS[name].module
    found = importlib.util.find_spec(module.partition(".")[0]) is not None
    return "" if found else f"{module} is not installed"


def available() -> list[str]:
    return [name for name in PEERS if not missing(name)]
