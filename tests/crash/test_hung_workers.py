"""Tasks and calls that run longer than their `timeout_s`: their worker is killed, they run again or fail so.

    hang    waits for ever for a signal that does not come
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import threading
import time

import pytest
from crash_helpers import GET_S, get, mark, marks

import fastray
from fastray.exceptions import (
    ActorDiedError,
    InvalidOptionError,
    OptionTypeError,
    TaskTimeoutError,
    UnknownOptionError,
    WorkerCrashedError,
)

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120), pytest.mark.usefixtures("fresh_node")]

LIMIT_S = 0.2


def hang():
    while True:
        signal.pause()


def stop_self():
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_hung_task_runs_again_and_at_last_fails_with_its_limit(tmp_path):
    path = str(tmp_path / "runs")

    @fastray.remote(timeout_s=LIMIT_S, max_retries=2)
    def hung():
        mark(path)
        hang()

    with pytest.raises(TaskTimeoutError) as caught:
        get(hung.remote())
    assert marks(path) == 3
    error = caught.value
    assert isinstance(error, (TimeoutError, WorkerCrashedError))
    assert (error.timeout_s, error.attempts, error.signal) == (LIMIT_S, 3, signal.SIGKILL)
    assert f"timeout_s={LIMIT_S}" in str(error)
    assert "hung" in str(error)
    assert "tried 3 times" in str(error)


@pytest.mark.parametrize("how", [hang, stop_self], ids=["hangs", "is stopped"])
def test_a_task_that_hangs_once_has_a_result(tmp_path, how):
    path = str(tmp_path / "runs")

    @fastray.remote
    def once():
        mark(path)
        if marks(path) == 1:
            how()
        return marks(path)

    assert get(once.options(timeout_s=LIMIT_S).remote()) == 2


def test_a_worker_stopped_by_somebody_else_goes_on_when_the_limit_is_not_reached():
    @fastray.remote(timeout_s=GET_S, max_retries=0)
    def f():
        return os.getpid()

    pid = get(f.remote())
    assert pid

    def workers():
        return {row[2] for row in fastray.runtime.current_runtime().attachment.processes() if row[1] == 2}

    pids = workers()  # another one may still be on its way
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    refs = [f.remote() for _ in range(10)]
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert len(get(refs)) == 10
    for pid in pids:
        os.kill(pid, 0)  # lives


def test_a_stopped_worker_ends_with_its_node():
    pid = get(fastray.remote(os.getpid).remote())
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSTOP)
    os.kill(fastray.runtime.current_runtime().node.pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], GET_S)[0]
    os.close(pidfd)


def test_time_in_get_counts():
    @fastray.remote(max_retries=0, num_cpus=0)
    def child():
        hang()

    @fastray.remote(timeout_s=LIMIT_S, max_retries=0)
    def parent(refs):
        return fastray.get(refs[0])

    ref = child.remote()
    with pytest.raises(TaskTimeoutError):
        get(parent.remote([ref]))
    fastray.cancel(ref, force=True)


def test_a_stream_that_stops_fails_after_the_items_it_had():
    @fastray.remote(timeout_s=LIMIT_S, max_retries=0)
    def items():
        yield 1
        yield 2
        hang()

    stream = items.remote()
    assert [get(next(stream)), get(next(stream))] == [1, 2]
    with pytest.raises(TaskTimeoutError):
        get(next(stream))


def test_each_item_of_map_has_the_limit_for_itself():
    @fastray.remote(timeout_s=2 * LIMIT_S, max_retries=0)
    def f(i):
        time.sleep(LIMIT_S / 4)
        return i

    assert list(f.map(range(12))) == list(range(12))

    with pytest.raises(TaskTimeoutError):
        list(fastray.remote(timeout_s=LIMIT_S, max_retries=0)(lambda _: hang()).map([1]))


def test_tasks_that_end_about_when_they_are_stopped_are_either_done_or_late():
    """The worker is stopped, looked at, and goes on: none of those that were in time is lost or run twice."""

    @fastray.remote(timeout_s=0.02, max_retries=0)
    def close(i, seconds):
        time.sleep(seconds)
        return i

    @fastray.remote(max_retries=0)
    def unlimited(i):
        return i

    numbers = random.Random(7)
    rounds, late = 150, 0
    for k in range(rounds):
        near = [close.remote(i, 0.015 + numbers.random() * 0.01) for i in range(2)]
        others = [unlimited.remote(k + i) for i in range(20)]
        for i, ref in enumerate(near):
            try:
                assert get(ref) == i
            except TaskTimeoutError:
                late += 1
        assert get(others) == [k + i for i in range(20)]
    assert late < 2 * rounds


# ---- actors --------------------------------------------------------------------------------------------


@fastray.remote
class Patient:
    """Its calls hang when they are told to; `path` counts their starts."""

    def __init__(self, path=None):
        self.path = path

    @fastray.method(timeout_s=LIMIT_S)
    def call(self, wait=False, once=False):
        if self.path:
            mark(self.path)
        if wait and not (once and marks(self.path) > 1):
            hang()
        return os.getpid()

    def pid(self):
        return os.getpid()


def test_a_hung_call_takes_its_actor_with_it():
    actor = Patient.remote()
    assert get(actor.call.remote()) == get(actor.pid.remote())
    with pytest.raises(TaskTimeoutError, match=r"Patient\.call"):
        get(actor.call.remote(True))
    with pytest.raises(ActorDiedError, match="longer than its timeout_s"):
        get(actor.pid.remote())


def test_an_actor_starts_again_after_a_hung_call(tmp_path):
    path = str(tmp_path / "runs")
    actor = Patient.options(max_restarts=5).remote(path)
    before = get(actor.pid.remote())
    hung = actor.call.remote(True)
    after = actor.pid.remote()
    with pytest.raises(TaskTimeoutError):
        get(hung)
    assert get(after) != before
    with pytest.raises(TaskTimeoutError) as caught:
        get(actor.call.options(timeout_s=2 * LIMIT_S, max_task_retries=1).remote(True))
    assert (caught.value.timeout_s, caught.value.attempts) == (2 * LIMIT_S, 2)
    assert marks(path) == 3
    os.remove(path)
    assert get(actor.call.options(max_task_retries=1).remote(True, once=True)) > 0


def test_one_hung_call_of_several_at_once_is_found():
    @fastray.remote(max_concurrency=3, max_restarts=1)
    class Threads:
        def __init__(self):
            self.gate = threading.Event()

        @fastray.method(timeout_s=2 * LIMIT_S)
        def wait(self):
            self.gate.wait()

        def open(self):
            return os.getpid()

    actor = Threads.remote()
    pid = get(actor.open.remote())
    hung, fine = actor.wait.remote(), [actor.open.remote() for _ in range(20)]
    assert get(fine) == [pid] * 20
    with pytest.raises(TaskTimeoutError, match=r"wait"):
        get(hung)
    assert get(actor.open.remote()) != pid


def test_a_hung_coroutine_is_found_though_the_event_loop_goes_on():
    @fastray.remote(max_restarts=1)
    class Async:
        @fastray.method(timeout_s=2 * LIMIT_S)
        async def wait(self):
            await asyncio.Event().wait()

        async def pid(self):
            return os.getpid()

    actor = Async.remote()
    pid = get(actor.pid.remote())
    hung = actor.wait.remote()
    assert get(actor.pid.remote()) == pid
    with pytest.raises(TaskTimeoutError):
        get(hung)
    assert get(actor.pid.remote()) != pid


def test_a_hung_constructor_starts_again_and_at_last_is_the_actors_end(tmp_path):
    @fastray.remote
    class Slow:
        @fastray.method(timeout_s=LIMIT_S)
        def __init__(self, path, hangs):
            mark(path)
            if marks(path) <= hangs:
                hang()

        def answer(self):
            return 42

    once, always = str(tmp_path / "once"), str(tmp_path / "always")
    assert get(Slow.options(max_restarts=1).remote(once, 1).answer.remote()) == 42
    assert marks(once) == 2
    with pytest.raises(ActorDiedError, match=r"constructor, ran longer than its timeout_s"):
        get(Slow.options(max_restarts=2).remote(always, 99).answer.remote())
    assert marks(always) == 3


def test_a_constructors_wait_for_its_arguments_does_not_count():
    @fastray.remote
    def late():
        time.sleep(3 * LIMIT_S)
        return 7

    @fastray.remote
    class Patient:
        @fastray.method(timeout_s=2 * LIMIT_S)
        def __init__(self, value):
            self.value = value

        def get(self):
            return self.value

    assert get(Patient.remote(late.remote()).get.remote()) == 7


def test_limits_are_checked():
    @fastray.remote
    def f():
        pass

    for value in (0, -1, 0.0001, 1e9, float("nan")):
        with pytest.raises(InvalidOptionError, match="timeout_s"):
            f.options(timeout_s=value)
    with pytest.raises(OptionTypeError, match="timeout_s"):
        f.options(timeout_s="1")
    with pytest.raises(InvalidOptionError, match="timeout_s"):
        fastray.method(timeout_s=0)
    with pytest.raises(UnknownOptionError, match=r"@method\(timeout_s="):
        Patient.options(timeout_s=1)
    assert f.options(timeout_s=1) is f.options(timeout_s=1.0)
    assert get(f.options(timeout_s=None).remote()) is None
