"""Owners, borrowers and sleepers among the workers die at random: what they owned is kept, what they held is let go.

`FASTRAY_CRASH_DEATHS` is the number of kills in each test, `FASTRAY_CRASH_SEED` replays what is drawn.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from crash_helpers import GET_S, SEED, get

import fastray
from fastray.runtime import current_runtime

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600), pytest.mark.usefixtures("node")]

DEATHS = int(os.environ.get("FASTRAY_CRASH_DEATHS", "20"))
WORKER = 2  # ProcKind


def workers():
    return [row[2] for row in current_runtime().attachment.processes() if row[1] == WORKER]


def kill_a_worker(rng):
    """At a random moment of the next two milliseconds."""
    deadline = time.monotonic() + GET_S
    while time.monotonic() < deadline:
        time.sleep(rng.random() * 0.002)
        pids = workers()
        try:
            if pids:
                return os.kill(rng.choice(pids), signal.SIGKILL)
        except ProcessLookupError:  # it is being buried
            pass
    raise TimeoutError("there is no worker to kill")


@fastray.remote
def square(x):
    return x * x


@fastray.remote(max_retries=-1)
def owner(i):
    """Owns an object and tasks, which its caller holds when it is gone."""
    return [fastray.put(bytes([i % 256]) * 50_000), *[square.remote(i + k) for k in range(5)]]


def test_what_dead_owners_had_is_kept():
    rng = random.Random(SEED)
    for i in range(DEATHS):
        lists = [owner.remote(i + k) for k in range(8)]
        kill_a_worker(rng)
        refs = get(lists)
        kill_a_worker(rng)
        for k, (data, *squares) in enumerate(refs):
            assert get(data) == bytes([(i + k) % 256]) * 50_000
            assert get(squares) == [(i + k + n) ** 2 for n in range(5)]


def test_dead_borrowers_keep_nothing():
    @fastray.remote(max_retries=-1)
    def keep(box):
        global kept
        kept = box
        return len(fastray.get(box[0]))

    rng = random.Random(SEED)
    attachment = current_runtime().attachment
    for _ in range(DEATHS):
        ref = fastray.put(bytes(1_000_000))
        sizes = [keep.remote([ref]) for _ in range(8)]
        kill_a_worker(rng)
        assert get(sizes) == [1_000_000] * 8
        del ref, sizes
    deadline = time.monotonic() + GET_S
    while workers() and time.monotonic() < deadline:  # the last ones hold one each
        for pid in workers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        get([square.remote(i) for i in range(10)])
        attachment.counters()
        if attachment.store_usage()["object_bytes"] < 1_000_000:
            break
    assert attachment.store_usage()["object_bytes"] < 1_000_000


def test_sleepers_die_while_they_are_woken():
    """A waker takes the sleeper's bit and names it as polling: the bit of a dead one must not keep others asleep."""
    rng = random.Random(SEED)
    for i in range(DEATHS):
        assert get(square.remote(i)) == i * i
        victim = rng.choice(workers() or [0])
        ref = None
        if rng.random() < 0.5:
            ref = square.remote(i)  # wakes it
        try:
            if victim:
                os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
        refs = [square.remote(k) for k in range(3)]
        assert get(refs) == [0, 1, 4]
        assert ref is None or get(ref) == i * i
