"""Drivers of a daemon killed at any moment, with all sorts of work in flight; the daemon killed. Others see nothing of
the first and say so at once after the second.

    victim    a driver that is killed
    watcher   this process: a driver of the same node that checks each of its results
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys

import pytest
from crash_helpers import SEED
from daemon_helpers import Daemon, idle
from waiting import eventually, free_port

import fastray
from fastray import sessions
from fastray.exceptions import LocalRayletDiedError

GET_S = 60.0
ROUNDS = int(os.environ.get("FASTRAY_CRASH_DRIVERS", "12"))

BUSY = """
import os, sys, random
sys.path.insert(0, os.environ["ROOT"])
import fastray
fastray.init(address=os.environ["DAEMON"])

@fastray.remote
def leaf(x): return x + 1
@fastray.remote
def tree(n): return 1 if n == 0 else sum(fastray.get([tree.remote(n - 1), tree.remote(n - 1)]))
@fastray.remote(num_returns=2)
def two(x): return x, [x] * 100
@fastray.remote
def stream(n):
    for i in range(n):
        yield i
@fastray.remote
class Counter:
    def __init__(self): self.n = 0
    def add(self, x): self.n += 1; return self.n
    def spawn(self): return Counter.remote()

counters = [Counter.remote() for _ in range(2)]
big = fastray.put(bytes(1 << 20))
while True:
    refs = [leaf.remote(i) for i in range(10_000)]
    chain = leaf.remote(0)
    for _ in range(200): chain = leaf.remote(chain)
    more = [two.remote(i) for i in range(200)] + [tree.remote(4)]
    more += [c.add.remote(big) for c in counters for _ in range(50)]
    items = stream.remote(50)
    other = counters[0].spawn.remote()
    print("in flight", flush=True)
    fastray.get(refs)
    fastray.get(chain)
    for item in items: fastray.get(item)
    fastray.get(other)
"""

ATTACH = """
import os, sys
sys.path.insert(0, os.environ["ROOT"])
import fastray
from fastray import runtime
print("in flight", flush=True)
while True:
    fastray.init(address=os.environ["DAEMON"])
    fastray.shutdown()
"""


def start(program, daemon):
    """A victim, in flight."""
    environment = {**os.environ, "DAEMON": daemon.path, "ROOT": os.path.dirname(fastray.__path__[0])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout.readline() == b"in flight\n"
    return process


def kill_later(process, seconds):
    """SIGKILL after so long, or when it ends before."""
    pidfd = os.pidfd_open(process.pid)
    select.select([pidfd], [], [], seconds)
    os.close(pidfd)
    process.kill()
    process.wait()
    process.stdout.close()



@pytest.mark.crash
def test_another_driver_gets_every_result_while_drivers_are_killed(daemon):
    dice = random.Random(SEED)
    fastray.init(address=daemon.path)

    @fastray.remote
    def square(x):
        return x * x

    @fastray.remote
    class Sum:
        def __init__(self):
            self.total = 0

        def add(self, x):
            self.total += x
            return self.total

    total = Sum.remote()
    for i in range(ROUNDS):
        victims = [start(BUSY, daemon) for _ in range(2)]
        refs = [square.remote(x) for x in range(3000)]
        sums = [total.add.remote(1) for _ in range(500)]
        kill_later(victims[0], dice.random() * 0.1)
        assert fastray.get(refs, timeout=GET_S) == [x * x for x in range(3000)]
        kill_later(victims[1], dice.random() * 0.02)
        assert fastray.get(sums, timeout=GET_S) == list(range(500 * i + 1, 500 * i + 501))
    del total, refs, sums
    fastray.shutdown()

    def at_rest():
        held = daemon.held()
        return held["processes"] == 2 and not held["children"] and not held["actors"] and held["functions"] == 0

    assert eventually(at_rest), daemon.held()
    assert daemon.held()["classes"] == 1
    assert daemon.held()["bytes"] < 100_000, daemon.held()


@pytest.mark.crash
def test_a_driver_killed_while_it_attaches_gives_all_back(daemon):
    dice = random.Random(SEED)
    before = idle(daemon)
    for _ in range(4 * ROUNDS):
        kill_later(start(ATTACH, daemon), dice.random() * 0.02)
    assert eventually(lambda: daemon.held() == before), (before, daemon.held())


@pytest.mark.crash
def test_when_the_daemon_is_killed_all_end_and_drivers_say_so(tmp_path):
    port = free_port()
    made = Daemon(tmp_path / "runtime", port=port)
    victim = start(BUSY, made)
    fastray.init(address=made.path)

    @fastray.remote
    def pid():
        return os.getpid()

    @fastray.remote
    def stuck():
        signal.pause()

    worker = os.pidfd_open(fastray.get(pid.remote(), timeout=GET_S))
    ref = stuck.remote()
    made.kill()
    assert select.select([worker], [], [], GET_S)[0], "a worker outlives its node"
    os.close(worker)
    with pytest.raises(LocalRayletDiedError, match=str(made.pid)):
        fastray.get(ref, timeout=GET_S)
    assert not fastray.is_initialized()
    assert victim.wait(GET_S) == 1  # by the same error
    victim.stdout.close()
    with pytest.raises(ConnectionError):
        fastray.init(address=made.path)
    assert os.listdir(os.path.dirname(made.path)) == [os.path.basename(made.path)]  # what is left of it
    again = Daemon(tmp_path / "runtime", port=port)
    assert again.path == made.path
    with fastray.init(address=again.path):
        assert fastray.get(pid.remote(), timeout=GET_S) > 0
    again.kill()
    assert sessions.remove_stale(again.path)
    assert os.listdir(os.path.dirname(made.path)) == []
