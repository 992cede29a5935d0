"""Tasks that kill each worker that runs them: they end after `max_retries`, their error says how, and their
neighbours do not notice. The flight recorder of the dead, as the caller sees it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time

import pytest
from crash_helpers import die, get, mark, marks
from waiting import eventually

import fastray
from fastray.exceptions import ActorDiedError, TaskError, TaskTimeoutError, WorkerCrashedError

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120), pytest.mark.usefixtures("fresh_node")]

MB = 1_000_000


def error_of(ref, kind=WorkerCrashedError):
    with pytest.raises(kind) as caught:
        get(ref)
    return caught.value


@fastray.remote
def innocent(i):
    return i


@fastray.remote
def poison():
    die()


def test_a_thousand_innocent_tasks_beside_five_poisonous_ones():
    poisons = [poison.remote() for _ in range(5)]
    refs = [innocent.options(max_retries=0).remote(i) for i in range(1000)]
    assert get(refs) == list(range(1000))
    for ref in poisons:
        error = error_of(ref)
        assert (error.attempts, error.signal, len(error.earlier)) == (4, signal.SIGKILL, 3)
        assert len({error.pid, *(attempt.pid for attempt in error.earlier)}) == 4


def test_a_task_that_may_be_retried_for_ever_stands_back(tmp_path):
    path = str(tmp_path / "runs")

    @fastray.remote(max_retries=-1)
    def endless():
        mark(path)
        die()

    poisons = [endless.remote() for _ in range(3)]
    for _ in range(5):
        assert get([innocent.remote(i) for i in range(1000)]) == list(range(1000))
    assert eventually(lambda: marks(path) >= 9)  # each was tried again at once twice
    for ref in poisons:
        fastray.cancel(ref, force=True)
        error_of(ref, fastray.exceptions.TaskCancelledError)


def test_the_error_says_how_each_attempt_ended(tmp_path):
    path = str(tmp_path / "runs")

    @fastray.remote(max_retries=3, timeout_s=0.3)
    def unlucky():
        mark(path)
        run = marks(path)
        if run == 1:
            die()
        if run == 2:
            os._exit(3)
        if run == 3:
            signal.pause()
        print("about to crash", file=sys.stderr)
        ctypes.string_at(0)

    error = error_of(unlucky.remote())
    assert not isinstance(error, TaskTimeoutError)
    assert [(a.signal, a.exit_code, a.timeout_s) for a in error.earlier] == [
        (signal.SIGKILL, None, None),
        (None, 3, None),
        (signal.SIGKILL, None, 0.3),
    ]
    assert (error.signal, error.attempts) == (signal.SIGSEGV, 4)
    text = str(error)
    for part in (
        "was killed by SIGSEGV (11) while it ran task unlucky; tried 4 times.",
        f"Attempt 1: pid {error.earlier[0].pid} was killed by SIGKILL (9).",
        f"Attempt 2: pid {error.earlier[1].pid} exited with code 3.",
        f"Attempt 3: pid {error.earlier[2].pid} was killed by fastray because of timeout_s=0.3.",
        "Last lines of its stderr:\nabout to crash",
    ):
        assert part in text
    assert "\x1e" not in text


def test_the_error_names_the_task_and_what_its_process_did():
    @fastray.remote
    def nap(seconds):  # longer than anybody spins for a result
        time.sleep(seconds)

    @fastray.remote(max_retries=0)
    def bomb(refs):
        block = bytearray(100 * MB)
        fastray.get(refs[0])
        fastray.get(nap.remote(len(block) / 1e9))
        die()

    first = get(innocent.remote(1))
    ref = bomb.remote([innocent.remote(first)])
    error = error_of(ref)
    assert error.task_id == ref.task_id()
    assert ref.task_id() in str(error)
    assert 100 * MB <= error.peak_memory_bytes <= 1000 * MB
    assert 0 < error.uptime_s < 120
    assert error.died_at > 0
    kinds = [event.kind for event in error.events]
    assert kinds[0] == "lease"
    running = [event for event in error.events if event.kind == "task" and event.task_id == ref.task_id()]
    assert [(event.name, event.took_s) for event in running] == [(running[0].name, None)]
    assert running[0].name.endswith("bomb")
    waits = [event for event in error.events if event.kind == "blocked"]
    assert waits
    assert waits[-1].name.endswith("nap")
    assert waits[-1].took_s < waits[-1].ago_s <= running[0].ago_s
    assert "did not end" in str(error)
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.events, back.earlier) == (str(error), error.events, error.earlier)


def test_a_recorder_that_wrapped_around_has_the_last_tasks():
    @fastray.remote
    def step(i):
        if i == 500:
            die()
        if i % 2:
            raise ValueError(i)
        return i

    with pytest.raises(WorkerCrashedError) as caught:
        refs = [step.options(max_retries=0, num_cpus=2).remote(i) for i in range(501)]
        for ref in refs[:500:2]:
            get(ref)
        get(refs[500])
    tasks = [event for event in caught.value.events if event.kind == "task"]
    assert len(tasks) == 31
    assert tasks[-1].task_id == refs[500].task_id()
    assert [event.task_id for event in tasks] == [ref.task_id() for ref in refs[-31:]]
    assert [event.failed for event in tasks] == [i % 2 == 1 for i in range(470, 501)]


def test_the_error_travels_through_tasks_and_names_its_own_task():
    @fastray.remote
    def waits_for(value):
        return value

    @fastray.remote(max_retries=0)
    def asks(refs):
        return fastray.get(refs[0])

    ref = poison.options(max_retries=1).remote()
    direct = error_of(ref)
    dependent = error_of(waits_for.remote(ref))
    assert (dependent.last_task, dependent.task_id) == ("poison", ref.task_id())
    assert dependent.events == direct.events
    asked = error_of(asks.remote([ref]))
    assert isinstance(asked, TaskError)
    assert asked.cause.events == direct.events
    assert asked.cause.task_id == ref.task_id()


def test_a_dead_actor_reports_the_same():
    @fastray.remote
    class Fragile:
        def ok(self):
            return 1

        def die(self):
            self.block = bytearray(50 * MB)
            die()

    actor = Fragile.remote()
    assert get([actor.ok.remote() for _ in range(100)]) == [1] * 100
    last = actor.die.remote()
    report = error_of(last, ActorDiedError).report
    assert len(report.events) == 8
    assert [event.kind for event in report.events] == ["task"] * 8
    assert report.events[-1].task_id == last.task_id()
    assert report.events[-1].took_s is None
    assert report.peak_memory_bytes > 50 * MB
    assert report.uptime_s > 0
    assert "Fragile.die" in str(report.events[-1])
    assert "did not end" in report.describe()


def test_a_checkpoint_is_among_the_events():
    @fastray.remote(max_restarts=0, checkpoint_calls=2)
    class Saves:
        def __fastray_save__(self):
            return 1

        def __fastray_restore__(self, state):
            pass

        def call(self):
            return 1

        def die(self):
            die()

    actor = Saves.remote()
    assert get([actor.call.remote() for _ in range(3)]) == [1] * 3
    events = error_of(actor.die.remote(), ActorDiedError).report.events
    assert [event.detail for event in events if event.kind == "checkpoint"] == [2]
    assert "checkpoint after 2 calls" in "\n".join(map(str, events))
