"""cancel: waiting, running, finished tasks; force; children; what `get` says."""

from __future__ import annotations

import os
import time

import pytest
from integration_helpers import eventually, is_alive, note, open_gate, tally, wait_for_gate

import fastray
from fastray.exceptions import TaskCancelledError, WorkerCrashedError

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def stay(started, gate=None):
    open_gate(started)
    if gate is None:
        time.sleep(600)
    else:
        wait_for_gate(gate, 600)
    return "ended"


@fastray.remote
def quick(x=1):
    return x


@pytest.fixture
def place(tmp_path):
    return lambda name: str(tmp_path / name)


@pytest.fixture
def full(place):
    """Both CPUs are taken until the gate is opened."""
    gate = place("full gate")
    refs = [stay.remote(place(f"full {i}"), gate) for i in range(2)]
    for i in range(2):
        wait_for_gate(place(f"full {i}"))
    yield gate
    if not os.path.exists(gate):
        open_gate(gate)
    assert fastray.get(refs, timeout=GET_S) == ["ended"] * 2


def assert_cancelled(ref):
    with pytest.raises(TaskCancelledError):
        fastray.get(ref, timeout=GET_S)
    assert fastray.wait([ref], timeout=0) == ([ref], [])


def test_a_task_that_waits_for_a_worker_never_runs(full, place):
    @fastray.remote
    def leave_a_trace():
        open_gate(place("trace"))

    ref = leave_a_trace.remote()
    fastray.cancel(ref)
    assert_cancelled(ref)
    open_gate(full)
    assert fastray.get(quick.remote(), timeout=GET_S) == 1
    assert not os.path.exists(place("trace"))


def test_a_task_that_waits_for_a_dependency_never_runs(place):
    late = stay.remote(place("started"), place("gate"))
    ref = quick.remote(late)
    fastray.cancel(ref)
    assert_cancelled(ref)
    open_gate(place("gate"))
    assert fastray.get(late, timeout=GET_S) == "ended"


@pytest.mark.parametrize("force", [False, True])
def test_a_running_task_is_stopped(place, force):
    ref = stay.remote(place("started"))
    wait_for_gate(place("started"))
    fastray.cancel(ref, force=force)
    if force:  # as in Ray, where the worker is killed
        with pytest.raises((TaskCancelledError, WorkerCrashedError)):
            fastray.get(ref, timeout=GET_S)
    else:
        assert_cancelled(ref)
    assert fastray.get([quick.remote(i) for i in range(100)], timeout=GET_S) == list(range(100))


def test_a_running_task_may_clean_up_and_even_refuse(place):
    @fastray.remote
    def careful():
        try:
            open_gate(place("started"))  # in here: the cancellation may come at once
            time.sleep(600)
        except KeyboardInterrupt:
            note(place("trace"), "interrupted")
            raise
        finally:
            note(place("trace"), "finally")

    @fastray.remote
    def stubborn():
        try:
            open_gate(place("started too"))  # in here: the cancellation may come at once
            time.sleep(600)
        except KeyboardInterrupt:
            return "refused"

    ref = careful.remote()
    wait_for_gate(place("started"))
    fastray.cancel(ref)
    assert_cancelled(ref)
    assert eventually(lambda: tally(place("trace")) == ["interrupted", "finally"])
    ref = stubborn.remote()
    wait_for_gate(place("started too"))
    fastray.cancel(ref)
    try:
        assert fastray.get(ref, timeout=GET_S) == "refused"
    except TaskCancelledError:
        pass


def test_force_stops_a_task_that_cannot_be_interrupted(place):
    import ctypes

    @fastray.remote
    def deaf():
        open_gate(place("started"))
        note(place("pid"), os.getpid())
        while True:
            ctypes.PyDLL(None).sleep(100)  # keeps the GIL

    ref = deaf.remote()
    wait_for_gate(place("started"))
    pid = int(eventually(lambda: tally(place("pid")))[0])
    fastray.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        fastray.get(ref, timeout=GET_S)
    assert eventually(lambda: not is_alive(pid))


@pytest.mark.parametrize("force", [False, True])
def test_a_cancelled_task_is_not_retried(place, force):
    @fastray.remote(max_retries=5, retry_exceptions=True)
    def once():
        note(place("tally"))
        open_gate(place("started"))
        time.sleep(600)

    ref = once.remote()
    wait_for_gate(place("started"))
    fastray.cancel(ref, force=force)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        fastray.get(ref, timeout=GET_S)
    fastray.get([quick.remote(i) for i in range(50)], timeout=GET_S)
    assert len(tally(place("tally"))) == 1


def test_a_finished_task_keeps_its_result():
    ref = quick.remote(5)
    assert fastray.get(ref, timeout=GET_S) == 5
    fastray.cancel(ref)
    fastray.cancel(ref, force=True)
    assert fastray.get(ref, timeout=GET_S) == 5


def test_cancelling_twice_is_the_same_as_once(full):
    ref = quick.remote()
    for _ in range(3):
        fastray.cancel(ref)
    assert_cancelled(ref)


def test_cancelling_an_object_that_was_put_does_nothing():
    ref = fastray.put(1)
    fastray.cancel(ref)
    assert fastray.get(ref, timeout=GET_S) == 1
    with pytest.raises(TypeError):
        fastray.cancel([quick.remote()])


def test_dependents_of_a_cancelled_task_are_cancelled(place):
    first = stay.remote(place("started"))
    second = quick.remote(first)
    third = quick.remote(second)
    wait_for_gate(place("started"))
    fastray.cancel(first)
    for ref in (first, second, third):
        assert_cancelled(ref)


def test_every_return_of_a_cancelled_task_is_cancelled(place, full):
    @fastray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    refs = three.remote()
    fastray.cancel(refs[1])
    for ref in refs:
        assert_cancelled(ref)


def test_get_that_waits_learns_of_the_cancellation(place):
    import threading

    ref = stay.remote(place("started"))
    wait_for_gate(place("started"))
    timer = threading.Timer(0.05, fastray.cancel, [ref])
    timer.start()
    with pytest.raises(TaskCancelledError):
        fastray.get([quick.remote(), ref], timeout=GET_S)
    timer.join()


@pytest.mark.parametrize("recursive", [True, False])
def test_children_are_cancelled_with_their_parent_when_asked(place, recursive):
    @fastray.remote
    def child():
        note(place("child pid"), os.getpid())
        try:
            wait_for_gate(place("gate"), 600)
        except KeyboardInterrupt:
            note(place("trace"), "cancelled")
            raise
        note(place("trace"), "ended")

    @fastray.remote
    def parent():
        return fastray.get(child.remote())

    ref = parent.remote()
    assert eventually(lambda: tally(place("child pid")))
    fastray.cancel(ref, recursive=recursive)
    assert_cancelled(ref)
    if not recursive:
        open_gate(place("gate"))
    assert eventually(lambda: tally(place("trace")))
    assert tally(place("trace")) == ["cancelled" if recursive else "ended"]


def test_grandchildren_are_cancelled_too(place):
    @fastray.remote
    def leaf():
        try:
            open_gate(place("leaf started"))  # in here: the cancellation may come at once
            time.sleep(600)
        except KeyboardInterrupt:
            note(place("trace"), "leaf")
            raise

    @fastray.remote
    def middle():
        return fastray.get(leaf.remote())

    @fastray.remote
    def root():
        return fastray.get(middle.remote())

    ref = root.remote()
    wait_for_gate(place("leaf started"))
    fastray.cancel(ref)
    assert_cancelled(ref)
    assert eventually(lambda: tally(place("trace")) == ["leaf"])


def test_a_task_sees_that_it_was_cancelled(place):
    @fastray.remote
    def watch():
        context = fastray.get_runtime_context()
        before = context.is_canceled()
        try:
            open_gate(place("started"))  # in here: the cancellation may come at once
            time.sleep(600)
        except KeyboardInterrupt:
            note(place("trace"), f"{before},{context.is_canceled()}")
            raise

    ref = watch.remote()
    wait_for_gate(place("started"))
    fastray.cancel(ref)
    assert_cancelled(ref)
    assert tally(place("trace")) == ["False,True"]
    with pytest.raises(RuntimeError):
        fastray.get_runtime_context().is_canceled()


def test_a_stream_is_cancelled_after_the_items_it_made(place):
    @fastray.remote
    def stream():
        yield 1
        yield 2
        open_gate(place("started"))
        time.sleep(600)

    items = stream.remote()
    wait_for_gate(place("started"))
    fastray.cancel(items)
    assert [fastray.get(next(items)), fastray.get(next(items))] == [1, 2]
    with pytest.raises(TaskCancelledError):
        fastray.get(next(items), timeout=GET_S)
    with pytest.raises(StopIteration):
        next(items)


def test_a_borrowed_reference_cancels_the_task(place):
    @fastray.remote
    def stop(refs):
        fastray.cancel(refs[0])

    ref = stay.remote(place("started"))
    wait_for_gate(place("started"))
    fastray.get(stop.remote([ref]), timeout=GET_S)
    assert_cancelled(ref)


def test_thousands_are_cancelled_while_they_start_and_end():
    """Whatever each was doing: a value or TaskCancelledError, nothing hangs, workers stay well."""
    for _ in range(5):
        refs = [quick.remote(i) for i in range(2000)]
        for ref in refs[::2]:
            fastray.cancel(ref)
        values = 0
        for i, ref in enumerate(refs):
            try:
                assert fastray.get(ref, timeout=GET_S) == i
                values += 1
            except TaskCancelledError:
                assert i % 2 == 0
        assert values >= 1000


def test_a_cancellation_while_the_function_is_loaded_is_not_lost(place):
    def load():
        open_gate(place("loading"))
        time.sleep(0.1)

    class SlowToLoad:
        def __reduce__(self):
            return load, ()

    slow = SlowToLoad()

    @fastray.remote
    def task():
        time.sleep(600 if slow is None else 601)

    ref = task.remote()
    wait_for_gate(place("loading"))
    fastray.cancel(ref)
    assert_cancelled(ref)


def test_an_interrupt_that_comes_late_hits_no_other_task():
    @fastray.remote
    def brief():
        time.sleep(0.0005)
        return 1

    for _ in range(100):
        doomed, innocent = brief.remote(), [brief.remote() for _ in range(4)]
        time.sleep(0.0005)
        fastray.cancel(doomed)
        assert fastray.get(innocent, timeout=GET_S) == [1] * 4


def test_dropping_the_reference_does_not_cancel(place):
    @fastray.remote
    def leave_a_trace():
        open_gate(place("trace"))

    leave_a_trace.remote()
    wait_for_gate(place("trace"))
