"""Workers are killed at random while tasks run: every result is right, nothing hangs, nothing is left behind.

200,000 tasks in the suite; `FASTRAY_CRASH_TASKS=1000000` (or any number) for more. `FASTRAY_CRASH_SEED`
replays the killer's choices (not the moments at which the processes are).

    tally   4 bytes of a shared file per task, counted up at each start of it
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
from crash_helpers import SEED, PidKiller

import fastray

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600), pytest.mark.usefixtures("fresh_node")]

TASKS = int(os.environ.get("FASTRAY_CRASH_TASKS", "200000"))
KILL_EVERY_S = 0.1
GET_S = 100 + TASKS / 2000
WORKER = 2  # ProcKind


class Killer(PidKiller):
    """Kills a worker every 100 ms until it is stopped."""

    def __init__(self, seed=SEED):
        super().__init__(seed)
        from fastray.runtime import current_runtime

        self.attachment = current_runtime().attachment

    def pause_s(self):
        return KILL_EVERY_S

    def victim(self):
        pids = [row[2] for row in self.attachment.processes() if row[1] == WORKER]
        return self.random.choice(pids) if pids else 0


@pytest.fixture
def tally(tmp_path):
    """A file of `TASKS` counters of 4 bytes."""
    path = tmp_path / "tally"
    with path.open("wb") as file:
        file.truncate(4 * TASKS)
    return str(path)


def counts(path):
    return memoryview(Path(path).read_bytes()).cast("I")


@fastray.remote(max_retries=-1)
def square(path, i):
    """`i` squared; counts its starts."""
    global tally_map
    try:
        cells = tally_map
    except NameError:
        fd = os.open(path, os.O_RDWR)
        cells = tally_map = memoryview(mmap.mmap(fd, 0)).cast("I")
        os.close(fd)
    cells[i] += 1
    return i * i


def test_every_result_is_right_while_workers_are_killed(tally):
    with Killer() as killer:
        refs = [square.remote(tally, i) for i in range(TASKS)]
        values = fastray.get(refs, timeout=GET_S)
        while killer.kills < 5:  # a fast machine: give it something to kill
            assert fastray.get([square.remote(tally, i) for i in range(1000)], timeout=GET_S) == [
                i * i for i in range(1000)
            ]
    assert values == [i * i for i in range(TASKS)]
    assert fastray.get(refs, timeout=GET_S) == values
    starts = counts(tally)
    assert min(starts) >= 1
    again = sum(n - 1 for n in starts[1000:])
    assert again <= killer.kills * 2, f"{again} tasks ran more than once for {killer.kills} kills"


def test_a_window_of_tasks_with_large_values_survives_the_killer():
    @fastray.remote(max_retries=-1)
    def double(data, i):
        return data * 2, i

    with Killer() as killer:
        end = time.monotonic() + 3
        rounds = 0
        while time.monotonic() < end:
            refs = [double.remote(bytes([i]) * 5000, i) for i in range(100)]
            for i, (data, back) in enumerate(fastray.get(refs, timeout=GET_S)):
                assert back == i
                assert data == bytes([i]) * 10_000
            rounds += 1
    assert killer.kills > 10
    assert rounds > 10


def test_chains_survive_the_killer():
    @fastray.remote(max_retries=-1)
    def increment(x):
        return x + 1

    with Killer() as killer:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            ref = fastray.put(0)
            for _ in range(5000):
                ref = increment.remote(ref)
            assert fastray.get(ref, timeout=GET_S) == 5000
    assert killer.kills > 5


def test_nested_tasks_survive_the_killer():
    @fastray.remote(max_retries=-1)
    def leaf(i):
        return i

    @fastray.remote(max_retries=-1)
    def root(i):
        return sum(fastray.get([leaf.remote(i), leaf.remote(1)]))

    with Killer() as killer:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert fastray.get([root.remote(i) for i in range(20)], timeout=GET_S) == [
                i + 1 for i in range(20)
            ]
    assert killer.kills > 5


def test_several_returns_and_streams_survive_the_killer():
    @fastray.remote(max_retries=-1, num_returns=7)
    def seven(i):
        return [i + k for k in range(7)]

    @fastray.remote(max_retries=-1)
    def stream(n):
        for i in range(n):
            time.sleep(0.001)
            yield i, b"x" * 100

    with Killer() as killer:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            items = stream.remote(100)
            rows = [seven.remote(i) for i in range(50)]
            for i, row in enumerate(rows):
                assert fastray.get(row, timeout=GET_S) == [i + k for k in range(7)]
            got = [fastray.get(ref, timeout=GET_S)[0] for ref in items]
            assert got == list(range(100))
    assert killer.kills > 5


# What the node adopted from a dead worker it takes back on its own slow tick, not at once: 20 results' worth.
KEPT_BYTES_MAX = 2_000_000


def test_nothing_is_kept_in_the_store_for_dead_workers():
    from fastray.runtime import current_runtime

    @fastray.remote(max_retries=-1)
    def make(i):
        return bytes([i % 256]) * 100_000

    attachment = current_runtime().attachment
    with Killer():
        for _ in range(30):
            values = fastray.get([make.remote(i) for i in range(50)], timeout=GET_S)
            assert [value[0] for value in values] == list(range(50))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        attachment.counters()
        if attachment.store_usage()["object_bytes"] < KEPT_BYTES_MAX:
            break
        fastray.get(make.remote(1), timeout=GET_S)
        time.sleep(0.05)
    assert attachment.store_usage()["object_bytes"] < KEPT_BYTES_MAX
