"""Durable sessions under kills: drivers and workers are killed at random moments, many times; the program that is
started again ends with every result right, and what had finished did not run again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from crash_helpers import SEED

import fastray

ROUNDS = int(os.environ.get("FASTRAY_CRASH_ROUNDS", "12"))
TASKS = 20_000
WORKERS = 2
WAIT_S = 60.0

# Leaves, trees of leaves, chains, several returns, arrays, and random draws whose negation must fit.
PROGRAM = """
import os, random, sys
import fastray

path, runs, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3])

def note(kind, i):
    fd = os.open(runs, os.O_WRONLY | os.O_APPEND)
    os.write(fd, kind.encode() + i.to_bytes(7, "little"))
    os.close(fd)

@fastray.remote(max_retries=-1)
def leaf(i):
    note("l", i)
    return i

@fastray.remote(max_retries=-1)
def tree(i, n):
    total = sum(fastray.get([leaf.remote(10_000_000 + 100 * i + k) for k in range(n)]))
    note("t", i)
    return total

@fastray.remote(max_retries=-1, num_returns=2)
def pair(i):
    note("p", i)
    return i, str(i) * 20

@fastray.remote(max_retries=-1)
def draw():
    return random.getrandbits(60)

@fastray.remote(max_retries=-1)
def negative(x):
    return -x

@fastray.remote(max_retries=-1)
def array(i):
    import numpy
    note("a", i)
    return numpy.full(20_000, i)

fastray.init(num_cpus=2, durable=path)
print("session", flush=True)
leaves = [leaf.remote(i) for i in range(tasks)]
trees = [tree.remote(i, 5) for i in range(tasks // 50)]
pairs = [pair.remote(i) for i in range(tasks // 50)]
draws = [draw.remote() for _ in range(tasks // 50)]
negatives = [negative.remote(d) for d in draws]
arrays = [array.remote(i) for i in range(tasks // 500)]
assert fastray.get(leaves) == list(range(tasks))
for i, total in enumerate(fastray.get(trees)):
    assert total == sum(10_000_000 + 100 * i + k for k in range(5)), (i, total)
for i, (a, b) in enumerate(pairs):
    assert fastray.get([a, b]) == [i, str(i) * 20]
values = fastray.get(draws)
assert len(set(values)) == len(values)
assert fastray.get(negatives) == [-v for v in values]
for i, a in enumerate(fastray.get(arrays)):
    assert a.shape == (20_000,) and (a == i).all()
print("complete", flush=True)
"""


def start(folder):
    root = str(Path(fastray.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "random"}
    command = [sys.executable, str(folder / "program.py"), folder / "durable", folder / "runs", TASKS]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def workers_of(driver):
    """Pids of the workers of the driver's node."""
    found = []
    for node in children(driver.pid):
        found += children(node)
    return found


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def runs_of(path):
    data = path.read_bytes()
    return Counter(data[i : i + 8] for i in range(0, len(data), 8))


def disturb(driver, choice, seconds):
    """Lets the driver run for a while, kills some workers meanwhile, then it. The number of workers killed."""
    kills, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline and driver.poll() is None:
        time.sleep(choice.random() * 0.05)
        workers = workers_of(driver)  # once: they come and go
        for pid in choice.sample(workers, k=min(1, len(workers))):
            try:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
    driver.kill()
    return kills


@pytest.mark.parametrize("with_workers", [False, True])
def test_any_number_of_kills(tmp_path, with_workers):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "runs").touch()
    choice = random.Random(SEED)
    kills = 0
    for _ in range(ROUNDS):
        driver = start(tmp_path)
        assert driver.stdout.readline() == "session\n"
        if with_workers:
            kills += disturb(driver, choice, choice.random() * 0.4)
        else:
            time.sleep(choice.random() * 0.15)
            driver.kill()
        output, _ = driver.communicate(timeout=WAIT_S)
        assert "Error" not in output, output
    driver = start(tmp_path)
    output, _ = driver.communicate(timeout=WAIT_S)
    assert output.endswith("complete\n"), output
    counts = runs_of(tmp_path / "runs")
    assert sum(counts.values()) - len(counts) <= ROUNDS * WORKERS + kills
    before = (tmp_path / "runs").stat().st_size
    output, _ = start(tmp_path).communicate(timeout=WAIT_S)
    assert output.endswith("complete\n"), output
    assert (tmp_path / "runs").stat().st_size == before
