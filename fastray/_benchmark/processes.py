"""Measurements that need processes of their own: startup, idle memory, memory per task, a stolen core.

Used by run.py and rows.py. What is started here is ended here, by its own handle.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as stat:
                parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found.extend(child for child, parent in parents.items() if parent == member)
    return found


def pss_bytes(pid: int) -> int:
    """Proportional set size of the process and all its descendants."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError), open(f"/proc/{member}/smaps_rollup") as rollup:
            total += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    return total


@contextlib.contextmanager
def stolen_core() -> Iterator[None]:
    """A process that uses a whole core, for as long as the block runs."""
    hog = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        yield
    finally:
        hog.kill()
        hog.wait()


_STARTUP = {
    "fastray": """
import fastray
fastray.init(num_cpus={workers})
result = fastray.get(fastray.remote(abs).remote(-7))
""",
    "pool": """
import multiprocessing
pool = multiprocessing.get_context("fork").Pool({workers})
result = pool.apply(abs, (-7,))
""",
    "executor": """
import concurrent.futures, multiprocessing
pool = concurrent.futures.ProcessPoolExecutor({workers}, mp_context=multiprocessing.get_context("fork"))
result = pool.submit(abs, -7).result()
""",
    "ray": """
import ray, logging
ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
result = ray.get(ray.remote(lambda x: abs(x)).remote(-7))
""",
    "dask": """
from dask.distributed import Client
client = Client(n_workers={workers}, threads_per_worker=1, dashboard_address=None)
result = client.submit(abs, -7).result()
""",
}


def _python(program: str) -> subprocess.Popen[str]:
    """A fresh interpreter that runs `program` and finds this fastray."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        text=True,
    )


def fresh_memory_per_pending(count: int) -> float:
    """`memory_per_pending` in a process and a session of its own."""
    child = _python(
        "import fastray\nfastray.init(num_cpus=1)\nfrom fastray._benchmark import work\n"
        f"work.tasks(1000)\nprint(work.memory_per_pending({count}))\n"
    )
    out, _ = child.communicate(timeout=100)
    return float(out)


def startup_systems() -> list[str]:
    return list(_STARTUP)


def startup(system: str, workers: int) -> tuple[float, int]:
    """In a fresh process: (seconds from before the import to the first result, idle PSS of its processes).

    The interpreter's own start is not in the seconds.
    """
    body = "".join(f"    {line}\n" for line in _STARTUP[system].format(workers=workers).strip().splitlines())
    program = (
        "if __name__ == '__main__':\n    import time\n    start = time.perf_counter()\n"
        + body
        + "    took = time.perf_counter() - start\n    assert result == 7\n"
        + "    print(took, flush=True)\n    input()\n"
    )
    child = _python(program)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the program that starts {system} failed")
        time.sleep(0.3)
        pss = pss_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.close()
        child.wait(30)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()
    return float(line), pss
