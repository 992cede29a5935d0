"""References that travel: into tasks, out of them, into workers' globals; and when one end dies."""

from __future__ import annotations

import gc
import os
import signal

import numpy as np
import pytest
from integration_helpers import eventually, is_alive, kill_self, store_bytes

import fastray

GET_S = 30
MB = 2**20


def big():
    return fastray.put(np.ones(4 * MB, np.uint8))


def freed():
    gc.collect()
    return eventually(lambda: store_bytes() < MB, 3)


@fastray.remote
def echo(value):
    return value


@fastray.remote
def put_here(value):
    """A reference that this worker owns, and its pid."""
    return [fastray.put(value)], os.getpid()


@fastray.remote
def keep(box, name):
    import integration_keeper

    integration_keeper.kept[name] = box
    return os.getpid()


@fastray.remote
def look(name):
    import integration_keeper

    return integration_keeper.kept.get(name)


@fastray.remote
def forget(name):
    import integration_keeper

    integration_keeper.kept.pop(name, None)


@pytest.fixture(autouse=True)
def session(tmp_path, monkeypatch):
    """A session of its own for each test, whose workers find a module with a dictionary `kept`."""
    (tmp_path / "integration_keeper.py").write_text("kept = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    fastray.init(num_cpus=2)
    yield
    fastray.shutdown()


@pytest.fixture
def one_worker(session):
    """The same with one worker: every task runs in it."""
    fastray.shutdown()
    fastray.init(num_cpus=1)


def test_a_reference_passed_in_and_returned_names_the_same_object():
    ref = big()
    back = fastray.get(echo.remote([ref]), timeout=GET_S)[0]
    assert back == ref
    del ref
    assert fastray.get(back).sum() == 4 * MB
    del back
    assert freed()


def test_a_reference_returned_by_a_task_outlives_the_drivers_own():
    ref = big()
    result = echo.remote([ref])
    del ref
    gc.collect()
    inner = fastray.get(result, timeout=GET_S)[0]
    del result
    assert fastray.get(inner).sum() == 4 * MB
    del inner
    assert freed()


def test_a_reference_kept_in_a_worker_after_its_task_keeps_the_object(one_worker):
    ref = big()
    fastray.get(keep.remote([ref], "a"), timeout=GET_S)
    del ref
    gc.collect()
    filler = [fastray.put(np.zeros(MB, np.uint8)) for _ in range(10)]
    box = fastray.get(look.remote("a"), timeout=GET_S)
    assert fastray.get(box[0]).sum() == 4 * MB
    del box, filler
    assert store_bytes() >= 4 * MB
    fastray.get(forget.remote("a"), timeout=GET_S)
    assert freed()


def test_a_reference_kept_by_a_worker_that_dies_is_given_back(one_worker):
    ref = big()
    pid = fastray.get(keep.remote([ref], "a"), timeout=GET_S)
    del ref
    gc.collect()
    assert store_bytes() >= 4 * MB
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pid))
    assert freed()


def test_a_task_that_borrows_and_dies_gives_its_reference_back():
    @fastray.remote(max_retries=0)
    def borrow_and_die(box):
        array = fastray.get(box[0])
        assert array.sum() == 4 * MB
        kill_self()

    ref = big()
    with pytest.raises(fastray.exceptions.WorkerCrashedError):
        fastray.get(borrow_and_die.remote([ref]), timeout=GET_S)
    assert fastray.get(ref).sum() == 4 * MB
    del ref
    assert freed()


def test_an_object_put_in_a_worker_and_returned_is_readable_here_and_in_other_tasks():
    (ref,), _pid = fastray.get(put_here.remote(np.ones(4 * MB, np.uint8)), timeout=GET_S)
    assert fastray.get(ref).sum() == 4 * MB
    assert fastray.get(echo.remote(ref), timeout=GET_S).sum() == 4 * MB
    assert fastray.get(fastray.get(echo.remote([ref]), timeout=GET_S)[0]).sum() == 4 * MB
    del ref
    assert freed()


def test_a_result_of_a_nested_task_returned_as_a_reference():
    @fastray.remote
    def outer():
        return [echo.remote(np.ones(4 * MB, np.uint8)), echo.remote(2)]

    array_ref, two_ref = fastray.get(outer.remote(), timeout=GET_S)
    assert fastray.get(array_ref, timeout=GET_S).sum() == 4 * MB
    assert fastray.get(two_ref, timeout=GET_S) == 2
    del array_ref, two_ref
    assert freed()


def test_a_reference_returned_by_itself_is_got_twice():
    @fastray.remote
    def outer():
        return echo.remote(5)

    inner = fastray.get(outer.remote(), timeout=GET_S)
    assert isinstance(inner, fastray.ObjectRef)
    assert fastray.get(inner, timeout=GET_S) == 5


def test_an_unfinished_task_of_a_task_that_ended_is_finished(tmp_path):
    from integration_helpers import open_gate, wait_for_gate

    gate = str(tmp_path / "gate")

    @fastray.remote
    def slow():
        wait_for_gate(gate)
        return "late"

    @fastray.remote
    def outer():
        return [slow.remote()]

    (inner,) = fastray.get(outer.remote(), timeout=GET_S)
    assert fastray.wait([inner], timeout=0) == ([], [inner])
    open_gate(gate)
    assert fastray.get(inner, timeout=GET_S) == "late"


def test_a_reference_handed_down_through_tasks_arrives_at_the_last():
    @fastray.remote
    def hand_down(box, depth):
        if depth == 0:
            return int(fastray.get(box[0]).sum())
        return fastray.get(hand_down.remote(box, depth - 1))

    ref = hand_down.remote([big()], 6)
    gc.collect()
    assert fastray.get(ref, timeout=GET_S) == 4 * MB
    del ref
    assert freed()


def test_a_reference_goes_round_through_owner_and_borrowers_many_times():
    ref = fastray.put(b"x" * 100_000)
    for _ in range(300):
        ref = fastray.get(echo.remote([ref]), timeout=GET_S)[0]
    assert fastray.get(ref) == b"x" * 100_000
    del ref
    assert freed()


def test_many_references_borrowed_at_once_come_back():
    refs = [fastray.put(i) for i in range(20_000)]
    back = fastray.get(echo.remote(refs), timeout=GET_S)
    assert back == refs
    del refs
    gc.collect()
    assert fastray.get(back) == list(range(20_000))


def test_an_object_whose_owner_died_is_an_error_or_still_there():
    """The worker that put it dies. Its block may be adopted; get must not hang and not give wrong data."""
    (ref,), pid = fastray.get(put_here.remote(np.ones(4 * MB, np.uint8)), timeout=GET_S)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pid))
    try:
        assert fastray.get(ref, timeout=GET_S).sum() == 4 * MB
    except fastray.exceptions.OwnerDiedError:
        pass


def test_an_unfinished_task_whose_owner_died_ends_and_does_not_hang(tmp_path):
    from integration_helpers import open_gate, wait_for_gate

    gate = str(tmp_path / "gate")

    @fastray.remote
    def slow():
        wait_for_gate(gate)
        return "late"

    @fastray.remote
    def outer():
        return [slow.remote()], os.getpid()

    (inner,), pid = fastray.get(outer.remote(), timeout=GET_S)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pid))
    open_gate(gate)
    try:
        assert fastray.get(inner, timeout=GET_S) == "late"
    except fastray.exceptions.OwnerDiedError:
        pass


def test_a_result_holding_references_of_a_dead_worker_does_not_hang():
    box, pid = fastray.get(put_here.remote(1), timeout=GET_S)
    wrapped = fastray.put(box)
    del box
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pid))
    (inner,) = fastray.get(wrapped)
    try:
        assert fastray.get(inner, timeout=GET_S) == 1
    except fastray.exceptions.ObjectLostError:
        pass


def test_containers_of_containers_of_borrowed_references_are_freed():
    @fastray.remote
    def wrap(box):
        return [[fastray.put(box)], box]

    box = [big()]
    for _ in range(5):
        box = fastray.get(wrap.remote(box), timeout=GET_S)
    inner = box
    while not isinstance(inner, fastray.ObjectRef):
        inner = inner[-1]
    assert fastray.get(inner).sum() == 4 * MB
    del box, inner
    assert freed()
