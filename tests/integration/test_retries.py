"""Tasks that are run again: crashes and max_retries, exceptions and retry_exceptions, max_calls."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest
from integration_helpers import (
    eventually,
    is_alive,
    kill_self,
    note,
    open_gate,
    tally,
    wait_for_gate,
    worker_pids,
)

import fastray
from fastray.exceptions import TaskCancelledError

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "tally")


@fastray.remote
def crash_until(path, n, how):
    """Dies in its first `n` runs; then returns how often it was run."""
    note(path)
    if len(tally(path)) <= n:
        how()
    return len(tally(path))


@pytest.mark.parametrize(
    "how", [kill_self, lambda: os._exit(3), lambda: os.abort(), lambda: ctypes.string_at(0)]
)
def test_a_task_whose_worker_dies_is_run_again(path, how):
    assert fastray.get(crash_until.remote(path, 2, how), timeout=GET_S) == 3


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_after_max_retries_the_crash_is_the_result(path, retries):
    ref = crash_until.options(max_retries=retries).remote(path, 1000, kill_self)
    with pytest.raises(fastray.exceptions.WorkerCrashedError):
        fastray.get(ref, timeout=GET_S)
    assert len(tally(path)) == retries + 1


def test_max_retries_of_minus_one_never_gives_up(path):
    assert fastray.get(crash_until.options(max_retries=-1).remote(path, 20, kill_self), timeout=GET_S) == 21


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_crash_names_the_signal_the_task_and_the_process(number):
    @fastray.remote(max_retries=0)
    def doomed():
        kill_self(number)

    with pytest.raises(fastray.exceptions.WorkerCrashedError) as caught:
        fastray.get(doomed.remote(), timeout=GET_S)
    assert caught.value.signal == number
    assert caught.value.last_task == "doomed"
    assert caught.value.pid
    assert signal.Signals(number).name in str(caught.value)


def test_a_crash_tells_the_exit_code_and_the_last_words():
    @fastray.remote(max_retries=0)
    def doomed():
        os.write(2, b"these were the last words\n")
        os._exit(42)

    with pytest.raises(fastray.exceptions.WorkerCrashedError) as caught:
        fastray.get(doomed.remote(), timeout=GET_S)
    assert caught.value.exit_code == 42
    assert caught.value.signal is None
    assert "these were the last words" in caught.value.stderr_tail


def test_print_to_stderr_before_a_crash_is_in_the_error():
    import sys

    @fastray.remote(max_retries=0)
    def doomed():
        print("about to die", file=sys.stderr)
        kill_self()

    with pytest.raises(fastray.exceptions.WorkerCrashedError) as caught:
        fastray.get(doomed.remote(), timeout=GET_S)
    assert "about to die" in caught.value.stderr_tail


def test_a_crash_fails_every_return_and_the_dependents():
    @fastray.remote(max_retries=0, num_returns=2)
    def doomed():
        kill_self()

    @fastray.remote
    def after(x):
        return x

    refs = doomed.remote()
    for ref in [*refs, after.remote(refs[0]), after.remote(after.remote(refs[1]))]:
        with pytest.raises(fastray.exceptions.WorkerCrashedError):
            fastray.get(ref, timeout=GET_S)


def test_a_retried_task_gets_its_arguments_again(path):
    @fastray.remote
    def work(path, big, ref, keyword=None):
        note(path)
        if len(tally(path)) < 3:
            kill_self()
        return len(big), ref, keyword

    ref = work.remote(path, b"x" * 500_000, fastray.put([1, 2]), keyword={"a": 1})
    assert fastray.get(ref, timeout=GET_S) == (500_000, [1, 2], {"a": 1})


def test_tasks_that_wait_behind_a_crash_are_not_counted_as_tries(path, tmp_path):
    """A worker dies with tasks queued for it: they were never started, so they keep all their tries."""
    gate = str(tmp_path / "gate")

    @fastray.remote(max_retries=0)
    def doomed():
        wait_for_gate(gate)
        kill_self()

    @fastray.remote(max_retries=0)
    def fine(i):
        return i

    first = [doomed.remote(), doomed.remote()]
    rest = [fine.remote(i) for i in range(1000)]
    open_gate(gate)
    assert fastray.get(rest, timeout=GET_S) == list(range(1000))
    for ref in first:
        with pytest.raises(fastray.exceptions.WorkerCrashedError):
            fastray.get(ref, timeout=GET_S)


def test_finished_results_stay_when_their_worker_dies():
    @fastray.remote
    def make(i):
        return [i] * 50_000

    refs = [make.remote(i) for i in range(20)]
    fastray.wait(refs, num_returns=20, timeout=GET_S)
    for pid in worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(is_alive, worker_pids())) or True)
    assert [value[0] for value in fastray.get(refs, timeout=GET_S)] == list(range(20))


def test_the_attempt_number_counts_crashes(path):
    @fastray.remote
    def attempt(path):
        number = fastray.get_runtime_context().get_attempt_number()
        note(path, number)
        if number < 2:
            kill_self()
        return number

    assert fastray.get(attempt.remote(path), timeout=GET_S) == 2
    assert tally(path) == ["0", "1", "2"]


# ---- exceptions -----------------------------------------------------------------------------------------


@fastray.remote
def fail_until(path, n, error=ValueError):
    note(path)
    if len(tally(path)) <= n:
        raise error("not yet")
    return len(tally(path))


def test_an_exception_is_not_retried_unless_asked(path):
    with pytest.raises(ValueError, match="not yet"):
        fastray.get(fail_until.remote(path, 2), timeout=GET_S)
    assert len(tally(path)) == 1


@pytest.mark.parametrize("retry_on", [True, [ValueError], [KeyError, ValueError], [Exception]])
def test_retry_exceptions_runs_it_again(path, retry_on):
    ref = fail_until.options(retry_exceptions=retry_on).remote(path, 2)
    assert fastray.get(ref, timeout=GET_S) == 3


def test_retry_exceptions_takes_subclasses_and_leaves_others(path):
    f = fail_until.options(retry_exceptions=[LookupError])
    assert fastray.get(f.remote(path, 2, KeyError), timeout=GET_S) == 3
    with pytest.raises(ValueError, match="not yet"):
        fastray.get(f.remote(path, 10), timeout=GET_S)
    assert len(tally(path)) == 4


def test_retry_exceptions_of_a_class_defined_here(path):
    class Mine(Exception):
        pass

    assert fastray.get(fail_until.options(retry_exceptions=[Mine]).remote(path, 1, Mine), timeout=GET_S) == 2


def test_retry_exceptions_gives_up_after_max_retries(path):
    ref = fail_until.options(retry_exceptions=True, max_retries=2).remote(path, 100)
    with pytest.raises(ValueError, match="not yet"):
        fastray.get(ref, timeout=GET_S)
    assert len(tally(path)) == 3


def test_tasks_that_raise_for_ever_leave_room_for_others(path):
    @fastray.remote
    def length(text):
        return len(text)

    stuck = [fail_until.options(retry_exceptions=True, max_retries=-1).remote(path, 1 << 30) for _ in range(4)]
    assert eventually(lambda: len(tally(path)) > 20)
    for _ in range(20):
        assert fastray.get([length.remote("x" * i) for i in range(100)], timeout=GET_S) == list(range(100))
    for ref in stuck:
        fastray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            fastray.get(ref, timeout=GET_S)


def test_crashes_and_exceptions_share_one_count_of_retries(path):
    @fastray.remote(retry_exceptions=True, max_retries=3)
    def both(path):
        note(path)
        if len(tally(path)) % 2:
            raise ValueError("odd")
        kill_self()

    with pytest.raises((ValueError, fastray.exceptions.WorkerCrashedError)):
        fastray.get(both.remote(path), timeout=GET_S)
    assert len(tally(path)) == 4


# ---- max_calls ------------------------------------------------------------------------------------------


def test_max_calls_replaces_the_worker():
    @fastray.remote(max_calls=1)
    def pid():
        return os.getpid()

    pids = fastray.get([pid.remote() for _ in range(8)], timeout=GET_S)
    assert len(set(pids)) == 8
    assert eventually(lambda: not any(is_alive(p) for p in pids))


def test_max_calls_counts_per_function():
    @fastray.remote(max_calls=3)
    def pid():
        return os.getpid()

    pids = fastray.get([pid.remote() for _ in range(30)], timeout=GET_S)
    assert all(pids.count(p) <= 3 for p in pids)


def test_results_of_a_worker_that_left_stay():
    @fastray.remote(max_calls=1)
    def make(i):
        return fastray.put([i] * 100_000), [i] * 50_000

    pairs = fastray.get([make.remote(i) for i in range(4)], timeout=GET_S)
    for i, (ref, items) in enumerate(pairs):
        assert items == [i] * 50_000
        assert fastray.get(ref, timeout=GET_S) == [i] * 100_000
