"""What the crash tests share: killing processes for sure, counting runs in a file, a thread that kills actors.

`FASTRAY_CRASH_SEED` replays the killers' choices (not the moments at which the processes are).
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
from pathlib import Path

import fastray
from fastray._native.actors import actor_state

SEED = int(os.environ.get("FASTRAY_CRASH_SEED", "1"))
GET_S = 60
ALIVE = 4  # ActorState


def get(ref):
    return fastray.get(ref, timeout=GET_S)


def pid_of(actor):
    return actor_state(actor._fastray_ref)[1]


def kill_now(actor):
    """Kills its process; when this returns it is dead."""
    pid = pid_of(actor)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], GET_S)[0]
    os.close(pidfd)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def mark(path):
    with open(path, "a") as file:
        file.write("x")


def marks(path):
    return len(Path(path).read_text()) if Path(path).exists() else 0


class PidKiller(threading.Thread):
    """Kills the `victim()` (a pid, 0 for nobody) after each `pause_s()` until it is stopped."""

    def __init__(self, seed=SEED):
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.kills = 0
        self._stop_now = threading.Event()

    def run(self):
        while not self._stop_now.wait(self.pause_s()):
            pid = self.victim()
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:  # it left by itself
                    pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exc):
        self._stop_now.set()
        self.join()


class Killer(PidKiller):
    """Kills one of the actors every few milliseconds until it is stopped; one that starts is spared mostly, or on a
    loaded machine none would ever come to its first call."""

    def __init__(self, actors, every_s, seed=SEED):
        super().__init__(seed)
        self.actors, self.every_s = actors, every_s

    def pause_s(self):
        return self.random.random() * 2 * self.every_s

    def victim(self):
        state, pid, *_ = actor_state(self.random.choice(self.actors)._fastray_ref)
        return pid if state == ALIVE or self.random.random() < 0.2 else 0
