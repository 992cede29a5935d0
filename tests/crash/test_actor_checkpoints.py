"""Actors that keep checkpoints are killed: nothing that was answered is forgotten, little runs twice."""

from __future__ import annotations

import threading

import numpy
import pytest
from crash_helpers import Killer, die, get, kill_now, mark, marks

import fastray

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300), pytest.mark.usefixtures("node")]


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
    calls = 0
    for round_ in range(6):
        get([actor.add.remote(1) for _ in range(70 + round_)])
        calls += 70 + round_
        kill_now(actor)
        assert get(actor.read.remote()) == calls
        assert marks(runs) <= calls + 50 * (round_ + 1)


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
    with pytest.raises(ValueError, match="after a change"):
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
