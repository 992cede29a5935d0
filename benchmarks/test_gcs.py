"""Claims: 20,000 operations of the global control store a second, all durable before they are acknowledged; back
within 500 ms after SIGKILL with 10^5 records, within 30 ms with a standby; memory flat over 10^6 finished tasks.

The server is a process of its own, on SQLite; one client, one call for each operation: the client makes the
batches. Each row goes into the JSON (`extra_info`); a goal is not asserted, since the machine is shared.
"""

from __future__ import annotations

import os
import threading
import time

import pytest

pytest.importorskip("grpc")

from fastray.exceptions import GcsUnavailableError
from fastray.gcs import auth, commands
from fastray.gcs.client import GcsClient
from fastray.gcs.process import GcsProcess
from fastray.gcs.records import Node, Task

OPERATIONS = 40_000
RECORDS = 100_000
TASKS = 1_000_000
TASKS_A_REPORT = 500


@pytest.fixture
def store(tmp_path, request):
    """(server, start, client): `start(port)` starts another server on the same database."""
    servers = []

    def start(port: int = 0, **options: bool) -> GcsProcess:
        options = {"store": f"sqlite:{tmp_path}/gcs.db", "token_path": f"{tmp_path}/token", **options}
        servers.append(GcsProcess(port=port, **options))
        return servers[-1]

    start(followed="standby" in request.node.name)
    token = auth.load_token(f"{tmp_path}/token", environ={})
    client = GcsClient(servers[0].address, token)
    over = threading.Event()
    pulse = threading.Thread(target=_beat, args=(client, over), daemon=True)
    pulse.start()
    yield servers[0], start, client
    over.set()
    pulse.join()
    client.close()
    for server in reversed(servers):  # a standby before the server that it stands by for
        server.stop()


def _beat(client: GcsClient, over: threading.Event) -> None:
    """The benchmark's node, if it has one, has epoch 1: it is the first of its store."""
    client.stay_connected()
    while not over.wait(0.5):
        try:
            client.beat(1, 1, {}, {}, full=True)
        except GcsUnavailableError:
            continue


def _record(benchmark, title: str, unit: str, goal: float, values: list[float], best: float) -> None:
    benchmark.extra_info.update(claim=title, system="fastray", unit=unit, goal=goal, values=values, best=best)
    print(f"\n{title}: best {best:,.4g} {unit} of {[round(value, 4) for value in values]}, goal {goal:,.4g}")


def _rss_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("what", ["keys (synced)", "keys (synced, standby)", "locations (not synced)"])
def test_operations(store, benchmark, request, what):
    _, _, client = store
    epoch = client.call(commands.NodeRegister(Node(b"n", "h:1", {"CPU": 2.0})))
    rates = []

    def sample() -> None:
        begin = time.perf_counter()
        if what.startswith("keys"):
            made = (commands.KvPut("n", os.urandom(16), b"v" * 32) for _ in range(OPERATIONS))
        else:
            made = (commands.ObjectsAdd(epoch, [(os.urandom(16), 100, b"task")]) for _ in range(OPERATIONS))
        futures = [client.submit(command) for command in made]
        for future in futures:
            future.result()
        rates.append(OPERATIONS / (time.perf_counter() - begin))

    benchmark.pedantic(sample, rounds=request.config.getoption("rounds"), iterations=1)
    _record(benchmark, f"GCS operations, {what}", "/s", 20_000, rates, max(rates))


def test_one_synced_write_at_a_time(store, benchmark, request):
    _, _, client = store
    client.call(commands.KvPut("n", b"k", b"v"))
    times = []

    def sample() -> None:
        for number in range(100):
            begin = time.perf_counter()
            client.call(commands.KvPut("n", b"k", b"%d" % number))
            times.append(time.perf_counter() - begin)

    benchmark.pedantic(sample, rounds=request.config.getoption("rounds"), iterations=1)
    median = sorted(times)[len(times) // 2]
    _record(benchmark, "GCS write, one at a time, p50", "s", 0.01, [median], median)


def _fill(client: GcsClient) -> None:
    epoch = client.call(commands.NodeRegister(Node(b"n", "h:1", {"CPU": 2.0})))
    for _ in range(RECORDS // 1000):
        client.submit(commands.ObjectsAdd(epoch, [(os.urandom(16), 100, b"task") for _ in range(1000)]))
    client.flush()


def test_restart(store, benchmark, request):
    """From SIGKILL to the first durable write of a connected client."""
    server, start, client = store
    _fill(client)
    times = []
    running = [server]

    def sample() -> None:
        begin = time.perf_counter()
        port = running[-1].port
        running[-1].kill()
        running.append(start(port))
        client.call(commands.KvPut("n", b"k", b"v"))
        times.append(time.perf_counter() - begin)

    benchmark.pedantic(sample, rounds=request.config.getoption("rounds"), iterations=1)
    _record(benchmark, "GCS back after SIGKILL with 10^5 records", "s", 0.5, times, min(times))


def test_standby_takes_over(store, benchmark, request):
    """A client writes without a pause, one synced write after the other; the server is killed every second. The
    longest of its writes over each kill.
    """
    server, start, client = store
    _fill(client)
    stalls = []
    running = [server, start(server.port, standby=True)]
    over = threading.Event()
    longest = [0.0]

    def write() -> None:
        number = 0
        while not over.is_set():
            begin = time.perf_counter()
            client.call(commands.KvPut("n", b"k", b"%d" % number))
            longest[0] = max(longest[0], time.perf_counter() - begin)
            number += 1

    def sample() -> None:
        time.sleep(1.0)
        longest[0] = 0.0
        running[-2].kill()
        running[-1].serving()
        client.flush()
        stalls.append(longest[0])
        running.append(start(server.port, standby=True))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        benchmark.pedantic(sample, rounds=4 * request.config.getoption("rounds"), iterations=1)
    finally:
        over.set()
        writer.join()
    median = sorted(stalls)[len(stalls) // 2]
    _record(benchmark, "GCS stall over SIGKILL with a standby, p50", "s", 0.03, stalls, median)


def test_memory(store, benchmark):
    """Resident memory of the server after 10 % and after all of the tasks."""
    server, _, client = store
    epoch = client.call(commands.NodeRegister(Node(b"n", "h:1", {"CPU": 2.0})))
    sizes = []

    def run() -> None:
        for first in range(0, TASKS, TASKS_A_REPORT):
            now = time.time()
            tasks = [
                Task(os.urandom(16), f"module.f{i % 20}", state="FINISHED", started_at=now, ended_at=now + 0.001)
                for i in range(TASKS_A_REPORT)
            ]
            client.submit(commands.TasksReport(epoch, tasks))
            if first % (TASKS // 10) == 0:
                client.flush()
                sizes.append(_rss_mb(server.pid))
        client.flush()
        sizes.append(_rss_mb(server.pid))

    benchmark.pedantic(run, rounds=1, iterations=1)
    assert sum(row[2] for row in client.call(commands.TasksSummary())) == TASKS
    _record(benchmark, "GCS memory over 10^6 finished tasks", "MB", sizes[1], sizes, sizes[-1])
