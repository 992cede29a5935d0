"""The store's server is SIGKILLed again and again, at random moments, while clients write.

    acknowledged    a write whose future has its result
    standby         a second server that takes over; without it, a new server is started

Nothing that was acknowledged may be missing afterwards, nothing may have been applied twice, and no client may
see an error. FASTRAY_CRASH_KILLS sets how often (the default keeps the suite short), FASTRAY_CRASH_SEED the
moments.
"""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

pytest.importorskip("grpc")

from fastray.gcs import auth, commands
from fastray.gcs.client import GcsClient
from fastray.gcs.process import GcsProcess
from fastray.gcs.records import Node, Task

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("FASTRAY_CRASH_KILLS", "5"))
SEED = int(os.environ.get("FASTRAY_CRASH_SEED", "1"))
KILL_AFTER_S_MAX = 0.15
IN_FLIGHT_MAX = 100
RECENT = 5_000


class Store:
    def __init__(self, folder, standby: bool) -> None:
        self.options = {"store": f"sqlite:{folder}/gcs.db", "token_path": f"{folder}/token"}
        self.server = GcsProcess(followed=standby, **self.options)
        self.token = auth.load_token(self.options["token_path"], environ={})
        self.standby = self.stand_by() if standby else None

    def client(self) -> GcsClient:
        return GcsClient(self.server.address, self.token)

    def stand_by(self) -> GcsProcess:
        return GcsProcess(standby=True, port=self.server.port, **self.options)

    def kill_and_go_on(self) -> None:
        self.server.kill()
        if self.standby is None:
            self.server = GcsProcess(port=self.server.port, **self.options)
        else:
            self.server = self.standby
            self.server.serving()
            self.standby = self.stand_by()

    def stop(self) -> None:
        if self.standby is not None:
            self.standby.kill()
        self.server.stop()


@pytest.fixture(params=[False, True], ids=["restart", "standby"])
def store(request, tmp_path):
    store = Store(tmp_path, request.param)
    yield store
    store.stop()


class Writer(threading.Thread):
    """Writes one kind of command with a number, and keeps what was acknowledged, in order."""

    def __init__(self, store: Store, command) -> None:
        super().__init__(daemon=True)
        self.client = store.client()
        self.command = command
        self.replies: list[object] = []
        self.error: Exception | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            futures, number = [], 0
            while not self.stopping.is_set():
                futures += [self.client.submit(self.command(number + i)) for i in range(IN_FLIGHT_MAX)]
                number += IN_FLIGHT_MAX
                for future in futures:
                    self.replies.append(future.result(60))
                futures.clear()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.stopping.set()
        self.join()
        self.client.close(goodbye=False)
        if self.error is not None:
            raise self.error


def parts(count: int) -> list[range]:
    """Numbers to look at: the latest, and every so many of all before. In small parts: a heartbeat waits for a
    call that keeps the interpreter.
    """
    return [range(max(0, count - RECENT), count), range(0, count, max(1, count // RECENT))]


def kill_at_random(store: Store, writers: list[Writer], check) -> None:
    chance = random.Random(SEED)
    for writer in writers:
        writer.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, KILL_AFTER_S_MAX))  # the moment is the point
        acknowledged = [len(writer.replies) for writer in writers]
        store.kill_and_go_on()
        check(acknowledged)
    for writer in writers:
        writer.stop()
    check([len(writer.replies) for writer in writers])


def test_no_acknowledged_write_is_lost_and_none_is_applied_twice(store):
    """Durable writes, of two clients at once; numbers of jobs show what was applied."""
    jobs = Writer(store, lambda number: commands.JobStart("ns", str(number)))
    keys = Writer(store, lambda number: commands.KvPut("n", b"%d" % number, b"v%d" % number))
    reader = store.client()

    def check(acknowledged: list[int]) -> None:
        started, written = acknowledged
        for part in parts(written):
            there = reader.call(commands.KvGet("n", [b"%d" % i for i in part]))
            assert there == [b"v%d" % i for i in part]
        probe = reader.call(commands.JobStart("probe"))
        probes.append(probe)
        assert probe > started

    probes: list[int] = []
    kill_at_random(store, [jobs, keys], check)
    everything = range(len(keys.replies))
    for first in everything[::RECENT]:
        part = everything[first : first + RECENT]
        there = reader.call(commands.KvGet("n", [b"%d" % i for i in part]))
        assert there == [b"v%d" % i for i in part]
    reader.close(goodbye=False)
    assert all(reply is True for reply in keys.replies)  # False: the key was there, written twice
    assert sorted([*jobs.replies, *probes]) == list(range(1, len(jobs.replies) + len(probes) + 1))
    assert jobs.replies == sorted(jobs.replies)


def test_what_a_node_reports_survives_and_counts_once(store):
    """Not synced to the disk, but with the kernel: locations, counts of tasks."""
    node = store.client()
    epoch = node.call(commands.NodeRegister(Node(b"n", "h:1", {"CPU": 1.0})))
    node.stay_connected()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            try:
                node.beat(epoch, 1, {}, {}, full=True)
            except Exception:
                continue  # the server is away

    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    objects = Writer(store, lambda number: commands.ObjectsAdd(epoch, [(b"%d" % number, number, b"t")]))
    tasks = Writer(
        store, lambda number: commands.TasksReport(epoch, [Task(b"%d" % number, "f", state="FINISHED")])
    )
    reader = store.client()

    def check(acknowledged: list[int]) -> None:
        made, ended = acknowledged
        for part in parts(made):
            there = reader.call(commands.ObjectsLocate([b"%d" % i for i in part]))
            assert there == [[i, [b"n"], b"t"] for i in part]
        assert ended == 0 or reader.call(commands.TasksSummary())[0][2] >= ended

    kill_at_random(store, [objects, tasks], check)
    assert reader.call(commands.TasksSummary())[0][2] == len(tasks.replies)
    ended = len(tasks.replies)
    print(f"{ended} tasks, {len(objects.replies)} objects")
    for number in range(max(0, ended - 1000), ended, 50):  # the oldest are trimmed, when there are a million
        assert len(reader.history(b"%d" % number)) == 1
    over.set()
    pulse.join()
    reader.close()
    node.close(goodbye=False)
