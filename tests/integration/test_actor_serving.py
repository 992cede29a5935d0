"""Actors that run several calls at once: threads, event loops, concurrency groups; cancellation."""

from __future__ import annotations

import asyncio
import threading

import pytest
from integration_helpers import open_gate, wait_for_gate

import fastray
from fastray.exceptions import ActorDiedError, TaskCancelledError

GET_S = 30
pytestmark = pytest.mark.usefixtures("node")


def get(ref):
    return fastray.get(ref, timeout=GET_S)


@fastray.remote
class Async:
    def __init__(self):
        self.event = asyncio.Event()
        self.inside = self.most = 0
        self.seen = None

    async def wait(self, x):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.event.wait()
        self.inside -= 1
        return x

    async def set(self):
        self.event.set()
        return self.inside

    async def numbers(self, n):
        for i in range(n):
            yield i
            await asyncio.sleep(0)

    async def broken_numbers(self):
        yield 1
        raise ValueError("no more")

    def plain(self):
        return threading.current_thread() is threading.main_thread(), asyncio.get_running_loop().is_running()

    async def add(self, ref_in_list):
        return 1 + await ref_in_list[0]

    async def fail(self):
        await asyncio.sleep(0)
        raise KeyError("async")

    async def forever(self, gate):
        open_gate(gate)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.seen = "cancelled"
            raise

    async def what_was_seen(self):
        return self.seen

    async def how_many(self):
        return self.most

    async def name(self):
        before = fastray.get_runtime_context().get_task_name()
        await asyncio.sleep(0)
        return before, fastray.get_runtime_context().get_task_name()

    async def leave(self):
        fastray.actor.exit_actor()


# ---- event loops -----------------------------------------------------------------------------------------


def test_a_thousand_calls_are_in_flight_at_once():
    actor = Async.remote()
    refs = [actor.wait.remote(i) for i in range(999)]
    assert get(actor.set.remote()) <= 999
    assert get(refs) == list(range(999))


def test_max_concurrency_bounds_what_runs_at_once():
    actor = Async.options(max_concurrency=3).remote()
    refs = [actor.wait.remote(i) for i in range(2)]
    assert get(actor.set.remote()) == 2
    assert get(refs + [actor.wait.remote(i) for i in range(50)])[:2] == [0, 1]
    assert get(actor.how_many.remote()) <= 3


def test_async_generators_plain_methods_and_awaited_references():
    actor = Async.remote()
    assert [get(ref) for ref in actor.numbers.remote(5)] == [0, 1, 2, 3, 4]
    assert get(actor.plain.remote()) == (True, True)
    assert get(actor.add.remote([fastray.put(4)])) == 5
    broken = actor.broken_numbers.remote()
    assert get(next(broken)) == 1
    with pytest.raises(ValueError, match="no more"):
        get(next(broken))


def test_the_driver_awaits_calls():
    actor = Async.remote()

    async def main():
        return await asyncio.gather(*[actor.add.remote([fastray.put(i)]) for i in range(20)])

    assert asyncio.run(main()) == list(range(1, 21))


def test_an_exception_in_a_coroutine_leaves_the_actor_alive():
    actor = Async.remote()
    with pytest.raises(KeyError, match="async"):
        get(actor.fail.remote())
    assert get(actor.add.remote([fastray.put(0)])) == 1


def test_cancellation_reaches_the_coroutine(tmp_path):
    actor = Async.remote()
    gate = str(tmp_path / "gate")
    ref = actor.forever.remote(gate)
    wait_for_gate(gate)
    fastray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    assert get(actor.what_was_seen.remote()) == "cancelled"


def test_each_coroutine_knows_which_call_it_is():
    actor = Async.remote()
    assert set(get([actor.name.remote() for _ in range(10)])) == {("Async.name", "Async.name")}


def test_exit_from_a_coroutine():
    actor = Async.remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(actor.leave.remote())


def test_the_streams_consumer_holds_the_producer_back():
    actor = Async.remote()
    numbers = actor.numbers.options(_generator_backpressure_num_objects=2).remote(50)
    assert [get(ref) for ref in numbers] == list(range(50))


# ---- threads ---------------------------------------------------------------------------------------------


@fastray.remote(max_concurrency=3)
class Threads:
    def __init__(self):
        self.barrier = threading.Barrier(3)
        self.lock = threading.Lock()
        self.total = 0

    def meet(self):
        self.barrier.wait(GET_S)
        return threading.current_thread().name, fastray.get_runtime_context().get_task_name()

    def add(self, n):
        with self.lock:
            self.total += n
        return n

    def sum(self):
        return self.total

    def numbers(self, n):
        yield from range(n)

    def nested(self, n):
        return fastray.get(double.remote(n))


@fastray.remote
def double(x):
    return 2 * x


def test_calls_run_in_threads_at_the_same_time():
    actor = Threads.remote()
    names = get([actor.meet.remote() for _ in range(3)])
    assert len({name for name, _ in names}) == 3
    assert {task for _, task in names} == {"Threads.meet"}


def test_many_calls_in_threads():
    actor = Threads.remote()
    assert get([actor.add.remote(i) for i in range(3000)]) == list(range(3000))
    assert get(actor.sum.remote()) == sum(range(3000))
    assert [get(ref) for ref in actor.numbers.remote(3)] == [0, 1, 2]
    assert get([actor.nested.remote(i) for i in range(30)]) == [2 * i for i in range(30)]


# ---- concurrency groups ----------------------------------------------------------------------------------


@fastray.remote(concurrency_groups={"io": 1, "control": 1})
class Groups:
    def __init__(self):
        self.event = threading.Event()

    @fastray.method(concurrency_group="io")
    def wait(self):
        return self.event.wait(GET_S)

    @fastray.method(concurrency_group="control")
    def set(self):
        self.event.set()

    def plain(self):
        return "default"


def test_a_full_group_does_not_hold_up_another():
    actor = Groups.remote()
    waiting = [actor.wait.remote() for _ in range(5)]
    assert get(actor.plain.remote()) == "default"
    get(actor.set.remote())
    assert get(waiting) == [True] * 5


def test_a_call_can_choose_its_group():
    actor = Groups.remote()
    waiting = actor.wait.remote()
    get(actor.wait.options(concurrency_group="control").options(name="x")._options and actor.set.remote())
    assert get([waiting, actor.plain.options(concurrency_group="io").remote()]) == [True, "default"]


def test_groups_of_an_event_loop():
    @fastray.remote(concurrency_groups={"one": 1})
    class Loop:
        def __init__(self):
            self.event = asyncio.Event()
            self.inside = 0

        @fastray.method(concurrency_group="one")
        async def one(self):
            self.inside += 1
            assert self.inside == 1
            await self.event.wait()
            self.inside -= 1
            return True

        async def set(self):
            self.event.set()

    actor = Loop.remote()
    refs = [actor.one.remote() for _ in range(5)]
    get(actor.set.remote())
    assert get(refs) == [True] * 5


def test_a_group_that_is_not_there():
    with pytest.raises(ValueError, match="no concurrency group 'nowhere'"):

        @fastray.remote
        class Wrong:
            @fastray.method(concurrency_group="nowhere")
            def f(self): ...


# ---- cancelling ------------------------------------------------------------------------------------------


@fastray.remote
class One:
    def hold(self, started, gate):
        open_gate(started)
        wait_for_gate(gate)
        return fastray.get_runtime_context().is_canceled()

    def trace(self, path):
        open_gate(path)


def test_a_queued_call_is_cancelled_and_never_runs(tmp_path):
    gate, trace = str(tmp_path / "gate"), tmp_path / "trace"
    actor = One.remote()
    running = actor.hold.remote(str(tmp_path / "started"), gate)
    queued = actor.trace.remote(str(trace))
    wait_for_gate(str(tmp_path / "started"))
    fastray.cancel(queued)
    with pytest.raises(TaskCancelledError):
        get(queued)
    open_gate(gate)
    assert get(running) is False
    assert not trace.exists()


def test_a_running_call_is_not_interrupted_but_told(tmp_path):
    gate = str(tmp_path / "gate")
    actor = One.remote()
    running = actor.hold.remote(str(tmp_path / "started"), gate)
    wait_for_gate(str(tmp_path / "started"))
    fastray.cancel(running)
    open_gate(gate)
    assert get(running) is True
