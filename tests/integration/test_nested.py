"""Tasks that call tasks: any depth, any width, never a deadlock on CPUs."""

from __future__ import annotations

import os
import threading

import pytest

import fastray

GET_S = 60

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def fib(n):
    return n if n < 2 else sum(fastray.get([fib.remote(n - 1), fib.remote(n - 2)]))


@fastray.remote
def leaf(i):
    return i


@fastray.remote
def depth(n):
    return 0 if n == 0 else 1 + fastray.get(depth.remote(n - 1))


def test_the_depth_of_nesting_may_exceed_the_cpus_many_times():
    assert fastray.get(depth.remote(40), timeout=GET_S) == 40


def test_fibonacci_by_tasks():
    assert fastray.get(fib.remote(12), timeout=GET_S) == 144


def test_a_thousand_roots_spawn_and_block_with_two_cpus():
    @fastray.remote
    def root(i):
        return sum(fastray.get([leaf.remote(i + k) for k in range(4)]))

    refs = [root.remote(i) for i in range(1000)]
    assert fastray.get(refs, timeout=GET_S) == [4 * i + 6 for i in range(1000)]


def test_roots_that_spawn_roots_that_block():
    @fastray.remote
    def middle(i):
        return sum(fastray.get([leaf.remote(i) for _ in range(3)]))

    @fastray.remote
    def root(i):
        return sum(fastray.get([middle.remote(i) for _ in range(3)]))

    assert fastray.get([root.remote(i) for i in range(100)], timeout=GET_S) == [9 * i for i in range(100)]


def test_the_number_of_processes_stays_small_while_a_thousand_roots_block():
    from integration_helpers import worker_pids

    @fastray.remote
    def root(i):
        return fastray.get(leaf.remote(i))

    refs = [root.remote(i) for i in range(1000)]
    fastray.get(refs, timeout=GET_S)
    assert len(worker_pids()) < 60


def test_a_task_that_waits_with_wait_gives_its_cpu_back():
    @fastray.remote
    def waiting(i):
        refs = [leaf.remote(k) for k in range(5)]
        done = 0
        while refs:
            ready, refs = fastray.wait(refs)
            done += len(ready)
        return done + i

    assert fastray.get([waiting.remote(i) for i in range(50)], timeout=GET_S) == [5 + i for i in range(50)]


def test_a_task_submits_much_more_than_it_gets():
    @fastray.remote
    def spawner(n):
        refs = [leaf.remote(i) for i in range(n)]
        return fastray.get(refs[-1])

    assert fastray.get([spawner.remote(5000) for _ in range(4)], timeout=GET_S) == [4999] * 4


def test_a_task_uses_threads_that_all_submit_and_get():
    @fastray.remote
    def threaded():
        results = [0] * 8

        def work(i):
            results[i] = sum(fastray.get([leaf.remote(k) for k in range(100)]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    assert fastray.get(threaded.remote(), timeout=GET_S) == [4950] * 8


def test_errors_of_nested_tasks_come_up_with_their_type():
    @fastray.remote
    def bottom():
        raise LookupError("at the bottom")

    @fastray.remote
    def middle():
        return fastray.get(bottom.remote())

    @fastray.remote
    def top():
        return fastray.get(middle.remote())

    with pytest.raises(LookupError, match="at the bottom") as caught:
        fastray.get(top.remote(), timeout=GET_S)
    assert isinstance(caught.value, fastray.exceptions.TaskError)
    for name in ("bottom", "middle", "top"):
        assert name in str(caught.value)


def test_a_caught_error_of_a_nested_task_is_over():
    @fastray.remote
    def bottom():
        raise LookupError

    @fastray.remote
    def top():
        try:
            fastray.get(bottom.remote())
        except LookupError:
            return "caught"

    assert fastray.get(top.remote(), timeout=GET_S) == "caught"


def test_put_in_nested_tasks_and_get_across_levels():
    @fastray.remote
    def inner(box):
        return [fastray.put(fastray.get(box[0]) + 1)]

    @fastray.remote
    def outer(n):
        box = [fastray.put(0)]
        for _ in range(n):
            box = fastray.get(inner.remote(box))
        return box

    (ref,) = fastray.get(outer.remote(10), timeout=GET_S)
    assert fastray.get(ref, timeout=GET_S) == 10


def test_tasks_of_zero_cpus_run_beside_tasks_that_hold_all():
    @fastray.remote(num_cpus=2)
    def whole():
        return fastray.get(leaf.options(num_cpus=0).remote(os.getpid())), os.getpid()

    inner, outer = fastray.get(whole.remote(), timeout=GET_S)
    assert inner == outer


def test_nested_tasks_that_need_every_cpu_do_not_deadlock():
    @fastray.remote(num_cpus=2)
    def whole(n):
        return n if n == 0 else fastray.get(whole.remote(n - 1))

    assert fastray.get(whole.remote(5), timeout=GET_S) == 0


def test_no_nested_call_needs_the_result_of_its_caller_to_be_kept():
    @fastray.remote
    def fire_and_forget(path, i):
        if i:
            fire_and_forget.remote(path, i - 1)
        else:
            with open(path, "x"):
                pass

    import tempfile

    from integration_helpers import eventually

    with tempfile.TemporaryDirectory() as folder:
        fire_and_forget.remote(f"{folder}/end", 50)
        assert eventually(lambda: os.path.exists(f"{folder}/end"))
