"""`await ref`, `ref.future()`: values, errors, cancellation, many at once, several loops and threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest
from integration_helpers import kill_self, open_gate, wait_for_gate

import fastray

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def square(x):
    return x * x


@fastray.remote
def fail(error):
    raise error


@pytest.fixture
def late(tmp_path):
    """(reference of a task that waits, function that lets it go)"""
    gate = str(tmp_path / "gate")

    @fastray.remote
    def wait():
        wait_for_gate(gate)
        return "late"

    opened = []

    def let_go():
        opened.append(open_gate(gate))

    yield wait.remote(), let_go
    if not opened:
        let_go()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, GET_S))


def test_await_gives_the_value_done_or_not(late):
    ref, let_go = late

    async def main():
        done = square.remote(3)
        fastray.wait([done])
        assert await done == 9
        assert await done == 9
        asyncio.get_running_loop().call_later(0.01, let_go)
        return await ref

    assert run(main()) == "late"


def test_gather_and_wait_for_thousands():
    async def main():
        values = await asyncio.gather(*[square.remote(i) for i in range(2000)])
        assert values == [i * i for i in range(2000)]
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(_await(square.remote(i))) for i in range(5)]
        )
        assert not pending
        return sorted(task.result() for task in done)

    async def _await(ref):
        return await ref

    assert run(main()) == [0, 1, 4, 9, 16]


def test_other_coroutines_run_while_one_awaits(late):
    ref, let_go = late

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            for _ in range(20):
                await asyncio.sleep(0)
                ticks += 1
            let_go()

        value, _ = await asyncio.gather(ref, tick())
        return value, ticks

    assert run(main()) == ("late", 20)


@pytest.mark.parametrize(
    "error", [KeyError("k"), OSError(2, "x"), StopIteration(1), asyncio.CancelledError()]
)
def test_an_error_is_raised_where_it_is_awaited(error):
    async def main():
        with pytest.raises(fastray.exceptions.TaskError) as caught:
            await fail.remote(error)
        return caught.value

    got = run(main())
    assert type(got.cause) is type(error)


def test_a_timeout_of_asyncio_leaves_the_task_running(late):
    ref, let_go = late

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(ref), 0.02)
        let_go()
        return await ref

    async def _await(ref):
        return await ref

    assert run(main()) == "late"


def test_cancelled_and_crashed_tasks_end_their_awaits(late):
    ref, _ = late

    @fastray.remote(max_retries=0)
    def crash():
        kill_self()

    async def main():
        fastray.cancel(ref)
        with pytest.raises(fastray.exceptions.TaskCancelledError):
            await ref
        with pytest.raises(fastray.exceptions.WorkerCrashedError):
            await crash.remote()

    run(main())


def test_loops_in_several_threads():
    results = []

    def work(k):
        async def main():
            return await asyncio.gather(*[square.remote(k + i) for i in range(100)])

        results.append(asyncio.run(main()) == [(k + i) ** 2 for i in range(100)])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_S)
    assert results == [True] * 5


def test_asyncio_in_a_task():
    @fastray.remote
    def work():
        async def main():
            return await asyncio.gather(*[square.remote(i) for i in range(20)])

        return asyncio.run(main())

    assert fastray.get(work.remote(), timeout=GET_S) == [i * i for i in range(20)]


def test_futures_of_concurrent_futures(late):
    ref, let_go = late
    futures = [square.remote(i).future() for i in range(100)]
    done, pending = concurrent.futures.wait(futures, GET_S)
    assert not pending
    assert sorted(f.result() for f in done) == sorted(i * i for i in range(100))
    assert isinstance(fail.remote(KeyError(1)).future().exception(GET_S), KeyError)
    slow = ref.future()
    assert not slow.done()
    with pytest.raises(concurrent.futures.TimeoutError):
        slow.result(0.01)
    seen = []
    slow.add_done_callback(lambda future: seen.append(future.result()))
    let_go()
    assert slow.result(GET_S) == "late"
    assert seen == ["late"]


def test_a_cancelled_future_leaves_the_task_alone(late):
    ref, let_go = late
    future = ref.future()
    assert future.cancel()
    let_go()
    assert fastray.get(ref, timeout=GET_S) == "late"


def test_futures_end_with_their_session(run_program):
    run_program(
        """
        import concurrent.futures, time, fastray
        fastray.init(num_cpus=1)
        ref = fastray.remote(lambda: time.sleep(600)).remote()
        future = ref.future()
        fastray.shutdown()
        concurrent.futures.wait([future], 10)
        assert future.done()
        try:
            future.result(0)
        except (fastray.exceptions.RayError, concurrent.futures.CancelledError):
            pass
        fastray.init(num_cpus=1)
        assert fastray.remote(lambda: 5).remote().future().result(20) == 5
        """
    )
