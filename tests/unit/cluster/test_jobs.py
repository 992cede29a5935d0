"""The node's table of jobs told to the store, as a transcript: entries in, commands out."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc")

from fastray.cluster.jobs import BLOCK, LEFT_MIN, JobReporter
from fastray.exceptions import GcsUnavailableError
from fastray.gcs import commands as c
from fastray.gcs.records import FINISHED, RUNNING, Job

RUNS, DETACHED, OVER = 1, 2, 3  # JobState


def entry(number, state=RUNS, namespace="ns"):
    return (number, state, 7, 0, 0, namespace, "program")


class Store:
    """Notes commands; answers none while `away`."""

    def __init__(self, rows=()):
        self.rows = list(rows)
        self.said = []
        self.away = False
        self.last = 0

    def read(self, table):
        assert table == "job"
        return self.rows

    def call(self, command):
        if self.away:
            raise GcsUnavailableError(address="here", waited_s=1.0)
        if isinstance(command, c.JobsReserve):
            self.last += command.count
            return self.last - command.count + 1
        self.said.append((type(command).__name__, command.job_id))
        return None

    def take(self):
        said, self.said = self.said, []
        return said


def make(rows=(), entries=()):
    store, given = Store(rows), []
    reporter = JobReporter(store, b"n", lambda first, count: given.append((first, count)))
    reporter.begin(list(entries))
    return store, reporter, given


def test_beginnings_and_ends_are_told_once():
    store, reporter, given = make()
    assert given == [(1, BLOCK)]
    reporter.look([entry(1)])
    reporter.look([entry(1)])
    assert store.take() == [("JobStart", 1)]
    reporter.look([entry(1, DETACHED), entry(2)])
    reporter.look([entry(1, OVER), entry(2)])
    assert store.take() == [("JobEnd", 1), ("JobStart", 2)]


def test_a_job_that_was_over_before_it_was_seen_is_told_all_the_same():
    store, reporter, _ = make()
    reporter.look([entry(1, OVER)])
    assert store.take() == [("JobStart", 1), ("JobEnd", 1)]


def test_what_the_store_did_not_hear_is_told_again():
    store, reporter, _ = make()
    store.away = True
    with pytest.raises(GcsUnavailableError):
        reporter.look([entry(1)])
    store.away = False
    reporter.look([entry(1)])
    assert store.take() == [("JobStart", 1)]
    store.away = True
    with pytest.raises(GcsUnavailableError):
        reporter.look([entry(1, OVER)])
    store.away = False
    reporter.look([entry(1, OVER)])
    assert store.take() == [("JobEnd", 1)]


def test_the_next_agent_takes_over_what_runs_and_ends_what_ended():
    rows = [Job(number, "ns", b"before", node=b"n", state=RUNNING) for number in (1, 2)]
    rows += [Job(3, "ns", b"before", node=b"n", state=FINISHED), Job(4, "ns", b"x", node=b"other", state=FINISHED)]
    entries = [entry(1), entry(2, OVER), entry(3, OVER), entry(5, OVER)]
    store, _, _ = make(rows, entries)
    assert store.take() == [("JobStart", 1), ("JobStart", 2), ("JobEnd", 2), ("JobStart", 5), ("JobEnd", 5)]


def test_numbers_are_reserved_before_they_run_out():
    _, reporter, given = make()
    for number in range(1, BLOCK - LEFT_MIN + 1):
        reporter.look([entry(number)])
    assert given == [(1, BLOCK)]
    reporter.look([entry(BLOCK - LEFT_MIN + 1)])
    assert given == [(1, BLOCK), (BLOCK + 1, BLOCK)]


def test_a_block_that_could_not_be_reserved_is_asked_for_again():
    store, reporter, given = make()
    entries = [entry(number) for number in range(1, BLOCK)]
    reporter.look(entries[:30])
    store.away = True
    with pytest.raises(GcsUnavailableError):
        reporter.look(entries)
    store.away = False
    reporter.look(entries)
    assert given == [(1, BLOCK), (BLOCK + 1, BLOCK)]


def test_numbers_of_an_agent_before_are_not_counted():
    """The node still gives them away; they are lower than the new block's."""
    store, given = Store(), []
    store.last = 640
    reporter = JobReporter(store, b"n", lambda first, count: given.append((first, count)))
    reporter.begin([entry(number, OVER) for number in range(500, 600)])
    assert given == [(641, BLOCK)]


def test_a_job_without_a_namespace_has_one_of_its_own():
    names = []
    store, reporter, _ = make()
    store.call = lambda command: names.append(command.namespace)
    reporter.look([entry(258, namespace="")])
    assert names == ["anonymous-02010000"]
