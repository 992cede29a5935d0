"""Actors and their callers are killed: restarts, retries, what a failed call says."""

from __future__ import annotations

import threading
import time

import pytest
from crash_helpers import GET_S, Killer, die, get, kill_now, mark, marks

import fastray
from fastray.exceptions import ActorDiedError, ActorUnavailableError

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300), pytest.mark.usefixtures("node")]

CALLS = 10_000


class Fragile:
    def __init__(self, starts=None, die_at=()):
        if starts is not None:
            mark(starts)
            if marks(starts) in die_at:
                die()
        self.count = 0

    def add(self, n=1):
        self.count += n
        return self.count

    def echo(self, x):
        return x

    def die_once(self, path, x):
        """Kills its process the first time it runs."""
        mark(path)
        if marks(path) == 1:
            die()
        return x

    def die(self):
        die()

    @fastray.method(retry_exceptions=True)
    def flaky(self, path, failures):
        mark(path)
        if marks(path) <= failures:
            raise OSError("not yet")
        return marks(path)

    @fastray.method(retry_exceptions=[KeyError])
    def raise_it(self, path, error):
        mark(path)
        raise error

    def stop(self, seconds):
        time.sleep(seconds)


Remote = fastray.remote(Fragile)


# ---- restarts ------------------------------------------------------------------------------------------


def test_between_calls_it_starts_again_and_the_constructor_runs_again(tmp_path):
    starts = str(tmp_path / "starts")
    actor = Remote.options(max_restarts=3).remote(starts)
    for round_ in range(1, 4):
        assert get([actor.add.remote() for _ in range(3)]) == [1, 2, 3]
        kill_now(actor)
        assert get(actor.echo.remote("alive")) == "alive"
        assert marks(starts) == round_ + 1
    kill_now(actor)
    with pytest.raises(ActorDiedError, match="Restarts: 3 of 3"):
        get(actor.add.remote())


def test_in_the_constructor(tmp_path):
    starts = str(tmp_path / "starts")
    actor = Remote.options(max_restarts=2).remote(starts, die_at=(1, 2))
    assert get(actor.add.remote()) == 1
    assert marks(starts) == 3


def test_in_the_constructor_too_often(tmp_path):
    starts = str(tmp_path / "starts")
    actor = Remote.options(max_restarts=2).remote(starts, die_at=(1, 2, 3))
    with pytest.raises(ActorDiedError, match="did not run"):
        get(actor.add.remote())
    assert marks(starts) == 3


def test_while_it_restarts(tmp_path):
    starts = str(tmp_path / "starts")
    actor = Remote.options(max_restarts=-1).remote(starts, die_at=(2, 3, 4))
    refs = [actor.echo.remote(i) for i in range(10)]
    assert get(refs) == list(range(10))
    kill_now(actor)
    assert get([actor.echo.remote(i) for i in range(CALLS)]) == list(range(CALLS))
    assert marks(starts) == 5


# ---- calls in flight -------------------------------------------------------------------------------------


def test_a_call_in_flight_without_retries_may_have_run_and_the_rest_runs(tmp_path):
    actor = Remote.options(max_restarts=1).remote()
    refs = [actor.echo.remote(0), actor.die_once.remote(str(tmp_path / "once"), 1)]
    refs += [actor.echo.remote(i) for i in range(2, CALLS)]
    with pytest.raises(ActorUnavailableError, match="may have run"):
        get(refs[1])
    assert get(refs[:1] + refs[2:]) == [0, *range(2, CALLS)]


def test_a_call_in_flight_with_retries_runs_again(tmp_path):
    actor = Remote.options(max_restarts=1, max_task_retries=1).remote()
    once = str(tmp_path / "once")
    refs = [actor.die_once.remote(once, "again"), *[actor.echo.remote(i) for i in range(100)]]
    assert get(refs) == ["again", *range(100)]
    assert marks(once) == 2


def test_retries_of_one_method_only(tmp_path):
    actor = Remote.options(max_restarts=-1).remote()
    ref = actor.die_once.options(max_task_retries=2).remote(str(tmp_path / "once"), 5)
    assert get(ref) == 5


def test_retries_and_restarts_have_an_end():
    actor = Remote.options(max_restarts=-1, max_task_retries=2).remote()
    with pytest.raises(ActorUnavailableError):
        get(actor.die.remote())
    assert get(actor.echo.remote(1)) == 1
    actor = Remote.options(max_restarts=2, max_task_retries=-1).remote()
    with pytest.raises(ActorDiedError, match="may have run"):
        get(actor.die.remote())


def test_without_restarts_ten_thousand_calls_fail(tmp_path):
    actor = Remote.remote()
    refs = [actor.die.remote(), *[actor.echo.remote(i) for i in range(CALLS)]]
    with pytest.raises(ActorDiedError, match="may have run"):
        get(refs[0])
    for ref in (refs[1], refs[CALLS // 2], refs[-1]):
        with pytest.raises(ActorDiedError, match="did not run"):
            get(ref)
    assert len(fastray.wait(refs, num_returns=len(refs), timeout=GET_S)[0]) == CALLS + 1


def test_order_is_kept_over_restarts():
    @fastray.remote(max_restarts=-1, max_task_retries=-1)
    class Order:
        last = -1

        def next(self, i):
            in_order, self.last = i > self.last, i
            return in_order

    actor = Order.remote()
    with Killer([actor], 0.01) as killer:
        refs = []
        while killer.kills < 10:
            refs += [actor.next.remote(len(refs) + i) for i in range(1000)]
            get(refs[-1])
    assert all(get(refs))


def test_exceptions_are_retried_as_asked(tmp_path):
    actor = Remote.options(max_task_retries=3).remote()
    assert get(actor.flaky.remote(str(tmp_path / "a"), 2)) == 3
    with pytest.raises(OSError, match="not yet"):
        get(actor.flaky.remote(str(tmp_path / "b"), 9))
    assert marks(tmp_path / "b") == 4
    with pytest.raises(KeyError):
        get(actor.raise_it.remote(str(tmp_path / "c"), KeyError()))
    with pytest.raises(ValueError, match="not retried"):
        get(actor.raise_it.remote(str(tmp_path / "d"), ValueError("not retried")))
    assert (marks(tmp_path / "c"), marks(tmp_path / "d")) == (4, 1)


# ---- several at once -------------------------------------------------------------------------------------


@fastray.remote(max_restarts=-1, max_task_retries=-1)
class Loop:
    async def echo(self, x):
        return x


@fastray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=4)
class Threads:
    def echo(self, x):
        return x


@fastray.remote(max_restarts=-1, max_task_retries=-1, concurrency_groups={"a": 1, "b": 2})
class Groups:
    @fastray.method(concurrency_group="a")
    def echo(self, x):
        return x

    @fastray.method(concurrency_group="b")
    def other(self, x):
        return x


@pytest.mark.parametrize("cls", [Loop, Threads, Groups])
def test_actors_that_run_several_calls_lose_none(cls):
    actor = cls.remote()
    with Killer([actor], 0.1) as killer:  # threads and event loops take their time to start on a loaded machine
        done = 0
        while killer.kills < 8:
            refs = [actor.echo.remote(i) for i in range(2000)]
            assert get(refs) == list(range(2000))
            done += 1
    assert done > 0


def test_a_call_that_waited_for_its_group_has_not_run():
    @fastray.remote(max_restarts=1, concurrency_groups={"one": 1})
    class One:
        @fastray.method(concurrency_group="one")
        def block(self):
            threading.Event().wait()

        @fastray.method(concurrency_group="one")
        def echo(self, x):
            return x

        def ready(self):
            return True

    actor = One.remote()
    blocked = actor.block.remote()
    waiting = [actor.echo.remote(i) for i in range(10)]
    assert get(actor.ready.remote())
    kill_now(actor)
    with pytest.raises(ActorUnavailableError):
        get(blocked)
    assert get(waiting) == list(range(10))


# ---- callers ---------------------------------------------------------------------------------------------


def test_callers_are_killed_with_calls_in_their_queues():
    target = Remote.remote()

    @fastray.remote(max_retries=0, num_cpus=0)
    def caller(target, then_die):
        refs = [target.echo.remote(i) for i in range(2000)]
        if then_die:
            die()
        return fastray.get(refs)

    bad = [caller.remote(target, True) for _ in range(4)]
    good = [caller.remote(target, False) for _ in range(2)]
    assert get(good) == [list(range(2000))] * 2
    for ref in bad:
        with pytest.raises(fastray.exceptions.WorkerCrashedError):
            get(ref)
    assert get(target.add.remote()) == 1


def test_an_actor_outlives_its_creator_while_somebody_holds_it():
    @fastray.remote(max_restarts=0)
    class Creator:
        def make(self):
            return Remote.remote()

    creator = Creator.remote()
    actor = get(creator.make.remote())
    assert get(actor.add.remote()) == 1
    fastray.kill(creator)
    with pytest.raises(ActorDiedError):
        get(creator.make.remote())
    assert get(actor.add.remote()) == 2


def test_an_actor_that_dies_again_and_again_starts_as_often(tmp_path):
    @fastray.remote(max_restarts=-1, max_task_retries=-1)
    class Stubborn:
        def __init__(self, starts):
            mark(starts)
            if marks(starts) <= 4:
                die()

        def call(self, calls):
            mark(calls)
            if marks(calls) <= 5:
                die()
            return marks(calls)

    starts, calls = str(tmp_path / "starts"), str(tmp_path / "calls")
    actor = Stubborn.remote(starts)
    assert get(actor.call.remote(calls)) == 6
    assert marks(starts) == 4 + 6
