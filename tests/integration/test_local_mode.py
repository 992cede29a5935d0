"""`init(local_mode=True)`: everything runs in this process, while `.remote` is called, with the same outcomes."""

from __future__ import annotations

import os
import sys

import pytest
from integration_helpers import note, tally

import fastray
from fastray.exceptions import ActorDiedError, ReplayError, TaskCancelledError, TaskError, WorkerCrashedError


@pytest.fixture(autouse=True)
def session():
    fastray.init(local_mode=True)
    yield
    fastray.shutdown()


@fastray.remote
def divide(a, b):
    return a / b


@fastray.remote
class Counter:
    def __init__(self, start=1):
        self.n = 10 // start

    def add(self, k=1):
        self.n += k
        return self.n

    def pid(self):
        return os.getpid()

    def fail(self):
        raise KeyError("k")

    def leave(self):
        fastray.actor.exit_actor()

    def items(self, n):
        yield from range(n)
        raise ValueError("end")

    async def later(self, x):
        return x

    async def stream(self, n):
        for i in range(n):
            yield i
        raise ValueError("end")


def test_tasks_run_here_and_errors_are_those_of_tasks():
    assert fastray.get(fastray.remote(os.getpid).remote()) == os.getpid()
    ref = divide.remote(1, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        fastray.get(ref)
    assert isinstance(caught.value, TaskError)
    assert caught.value.task_id == ref.task_id()
    with pytest.raises(ZeroDivisionError):  # of the dependency
        fastray.get(divide.remote(ref, 1))
    with pytest.raises(ZeroDivisionError):
        fastray.replay(ref)
    two = fastray.remote(num_returns=2)(lambda fail: 1 / 0 if fail else (1, 2))
    assert fastray.get(two.remote(False)) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        fastray.get(two.remote(True)[1])


def test_arguments_are_copies():
    mine = [0]
    ref = fastray.remote(lambda values: values.append(1) or len(values)).remote(mine)
    assert (fastray.get(ref), mine) == (2, [0])


def test_exceptions_are_retried(tmp_path):
    @fastray.remote(retry_exceptions=True, max_retries=2)
    def flaky(path):
        note(path)
        if len(tally(path)) < 3:
            raise ValueError
        return len(tally(path))

    assert fastray.get(flaky.remote(str(tmp_path / "tally"))) == 3


def test_streams_have_their_items_and_their_error():
    @fastray.remote
    def items(n):
        for i in range(n):
            if i == 2:
                raise ValueError(i)
            yield i

    assert [fastray.get(ref) for ref in items.remote(2)] == [0, 1]
    refs = list(items.remote(5))
    assert fastray.get(refs[:2]) == [0, 1]
    with pytest.raises(ValueError, match="2"):
        fastray.get(refs[2])


def test_cancelling_what_has_run_changes_nothing():
    done, failed = divide.remote(1, 1), divide.remote(1, 0)
    for ref in (done, failed):
        fastray.cancel(ref)
        fastray.cancel(ref, force=True)
    assert fastray.get(done) == 1
    with pytest.raises(ZeroDivisionError):
        fastray.get(failed)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(TaskCancelledError):
        fastray.get(fastray.remote(interrupt).remote())


def test_leaving_the_process_is_the_error_of_a_crash():
    with pytest.raises(WorkerCrashedError, match=r"sys\.exit\(3\)") as caught:
        fastray.get(fastray.remote(lambda: sys.exit(3)).remote())
    assert caught.value.exit_code == 3


def test_actors_keep_their_state_and_errors():
    counter = Counter.remote()
    assert fastray.get([counter.add.remote() for _ in range(3)]) == [11, 12, 13]
    assert fastray.get(counter.pid.remote()) == os.getpid()
    with pytest.raises(KeyError):
        fastray.get(counter.fail.remote())
    assert fastray.get(counter.later.remote(5)) == 5
    for stream in (counter.items.remote(2), counter.stream.remote(2)):
        refs = list(stream)
        assert fastray.get(refs[:2]) == [0, 1]
        with pytest.raises(ValueError, match="end"):
            fastray.get(refs[2])
    with pytest.raises(ReplayError, match="local mode"):
        fastray.replay(counter.add.remote())


def test_an_actor_whose_constructor_fails_is_dead():
    counter = Counter.options(name="unborn").remote(0)
    with pytest.raises(ActorDiedError, match="ZeroDivisionError"):
        fastray.get(counter.add.remote())
    with pytest.raises(ValueError, match="unborn"):
        fastray.get_actor("unborn")


def test_actors_end():
    killed, left = Counter.options(name="killed").remote(), Counter.options(name="left").remote()
    assert fastray.get(fastray.get_actor("killed").add.remote()) == 11
    fastray.kill(killed)
    with pytest.raises(ActorDiedError):
        fastray.get(left.leave.remote())
    for actor, name in ((killed, "killed"), (left, "left")):
        with pytest.raises(ActorDiedError):
            fastray.get(actor.add.remote())
        with pytest.raises(ValueError, match=name):
            fastray.get_actor(name)
