"""Actors and their callers are killed: restarts, retries, what a failed call says, checkpoints and replay.

`FASTRAY_CRASH_SEED` replays the killers' choices (not the moments at which the processes are).
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from pathlib import Path

import numpy
import pytest

import fastray
from fastray._native.actors import actor_state
from fastray.exceptions import ActorDiedError, ActorUnavailableError

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

SEED = int(os.environ.get("FASTRAY_CRASH_SEED", "1"))
GET_S = 60
CALLS = 10_000


@pytest.fixture(scope="module", autouse=True)
def session(request):
    import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    fastray.init(num_cpus=2)
    yield
    fastray.shutdown()
    cloudpickle.unregister_pickle_by_value(__import__("sys").modules[__name__])


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


class Killer(threading.Thread):
    """Kills one of the actors every few milliseconds until it is stopped."""

    def __init__(self, actors, every_s, seed=SEED):
        super().__init__(daemon=True)
        self.actors, self.every_s = actors, every_s
        self.random = random.Random(seed)
        self.kills = 0
        self._stop_now = threading.Event()

    def run(self):
        while not self._stop_now.wait(self.random.random() * 2 * self.every_s):
            pid = pid_of(self.random.choice(self.actors))
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exc):
        self._stop_now.set()
        self.join()


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
    with pytest.raises(ValueError):
        get(actor.raise_it.remote(str(tmp_path / "d"), ValueError()))
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
    with Killer([actor], 0.03) as killer:
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


# ---- checkpoints -----------------------------------------------------------------------------------------


class Saved:
    """Counts, and counts its executions in a file of bytes."""

    def __init__(self, runs=None):
        self.count, self.runs = 0, runs
        self.array = numpy.zeros(4)

    def add(self, n):
        if self.runs:
            mark(self.runs)
        self.count += n
        self.array[n % 4] += n
        return self.count, float(self.array.sum())

    def add_then_die(self, path, n):
        self.count += n
        mark(path)
        if marks(path) == 1:
            die()
        return self.count

    def numbers(self, n):
        for _ in range(n):
            self.count += 1
            yield self.count

    def fail(self):
        self.count += 1000
        raise ValueError("after a change")

    @fastray.method(read_only=True)
    def read(self, path=None):
        if path:
            mark(path)
        return self.count

    def __fastray_save__(self):
        return self.count, self.array

    def __fastray_restore__(self, state):
        self.count, self.array = state


Checkpointed = fastray.remote(max_restarts=-1, checkpoint_calls=50)(Saved)


def test_a_killed_actor_with_checkpoints_answers_as_if_nothing_had_happened():
    actor = Checkpointed.remote()
    with Killer([actor], 0.05) as killer:  # a restart takes about 10 ms
        refs = []
        while killer.kills < 15:
            refs += [actor.add.remote(1) for _ in range(2000)]
            get(refs[-1])
    assert get(refs) == [(i, float(i)) for i in range(1, len(refs) + 1)]


def test_at_most_the_calls_since_the_last_checkpoint_run_again(tmp_path):
    runs = str(tmp_path / "runs")
    actor = Checkpointed.remote(runs)
    calls = restarts = 0
    for round_ in range(6):
        get([actor.add.remote(1) for _ in range(70 + round_)])
        calls += 70 + round_
        kill_now(actor)
        restarts += 1
        assert get(actor.read.remote()) == calls
        assert marks(runs) <= calls + 50 * restarts


def test_the_call_in_flight_runs_once_more_and_counts_once(tmp_path):
    actor = Checkpointed.remote()
    get([actor.add.remote(1) for _ in range(10)])
    assert get(actor.add_then_die.remote(str(tmp_path / "once"), 5)) == 15
    assert get(actor.read.remote()) == 15
    kill_now(actor)  # once more: the log must not have it twice
    assert get(actor.read.remote()) == 15


def test_reads_are_not_run_again(tmp_path):
    actor = Checkpointed.remote()
    path = str(tmp_path / "reads")
    get([actor.add.remote(1), *[actor.read.remote(path) for _ in range(20)]])
    kill_now(actor)
    assert get(actor.read.remote()) == 1
    assert marks(path) == 20


def test_generators_and_calls_that_raised_are_replayed():
    actor = Checkpointed.remote()
    assert [get(ref) for ref in actor.numbers.remote(3)] == [1, 2, 3]
    with pytest.raises(ValueError):
        get(actor.fail.remote())
    kill_now(actor)
    assert get(actor.read.remote()) == 1003


def test_arguments_of_logged_calls_are_kept():
    class Sums:
        def __init__(self):
            self.sum = 0

        def add(self, array, box):
            self.sum += int(array.sum()) + int(fastray.get(box[0]).sum())

        @fastray.method(read_only=True)
        def read(self):
            return self.sum

        def __fastray_save__(self):
            return self.sum

        def __fastray_restore__(self, state):
            self.sum = state

    actor = fastray.remote(max_restarts=-1, checkpoint_calls=1000)(Sums).remote()
    for i in range(20):
        ref = fastray.put(numpy.full(50_000, i))
        actor.add.remote(ref, [fastray.put(numpy.full(10, i))])
        del ref
    total = get(actor.read.remote())
    kill_now(actor)
    assert get(actor.read.remote()) == total == sum(50_010 * i for i in range(20))


@pytest.mark.parametrize("where", ["save", "restore"])
def test_killed_while_it_saves_or_restores(tmp_path, where):
    path = str(tmp_path / where)

    class Dies(Saved):
        def __fastray_save__(self):
            if where == "save":
                mark(path)
                if marks(path) in (2, 3):
                    die()
            return super().__fastray_save__()

        def __fastray_restore__(self, state):
            super().__fastray_restore__(state)
            if where == "restore":
                mark(path)
                if marks(path) < 3:
                    die()

    actor = fastray.remote(max_restarts=-1, checkpoint_calls=10)(Dies).remote()
    get([actor.add.remote(1) for _ in range(15)])
    if where == "restore":
        kill_now(actor)
    refs = [actor.add.remote(1) for _ in range(85)]
    assert [count for count, _ in get(refs)] == list(range(16, 101))


def test_a_checkpoint_every_so_many_seconds():
    actor = fastray.remote(max_restarts=-1, checkpoint_calls=4000, checkpoint_s=0.001)(Saved).remote()
    for _ in range(20):
        get(actor.add.remote(1))
    kill_now(actor)
    assert get(actor.read.remote()) == 20


def test_a_state_that_cannot_be_saved_leaves_the_checkpoint_before_it():
    class Unsaved(Saved):
        def __fastray_save__(self):
            if self.count > 15:
                return threading.Lock()
            return super().__fastray_save__()

    actor = fastray.remote(max_restarts=-1, checkpoint_calls=10)(Unsaved).remote()
    get([actor.add.remote(1) for _ in range(45)])
    kill_now(actor)
    assert get(actor.read.remote()) == 45


def test_ten_megabytes_of_state():
    class Big(Saved):
        def __init__(self):
            super().__init__()
            self.array = numpy.zeros(1_250_000)

    actor = fastray.remote(max_restarts=-1, checkpoint_calls=5)(Big).remote()
    for i in range(3):
        get([actor.add.remote(1) for _ in range(12)])
        kill_now(actor)
        assert get(actor.read.remote()) == 12 * (i + 1)
