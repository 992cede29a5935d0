"""What a node tells the task table, as a transcript: looks at workers and failures in, reports out."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc")

from fastray.cluster import tasks
from fastray.cluster.tasks import TaskReporter
from fastray.gcs.records import Task

SECOND = 10**9
SESSION = 0xAB


class Node:
    """One worker in slot 2, a log of failures, and the reporter that looks at them once in each `look`."""

    def __init__(self, **begin):
        self.reporter = TaskReporter(SESSION, **begin)
        self.now = 100 * SECOND
        self.incarnation, self.started, self.written, self.ring = 1, 0, 0, {}
        self.held, self.claimed = [], set()
        self.failures, self.oldest = [], 0
        self.told = None

    def run(self, record, name="f", seconds=1.0, raised=False, attempt=0):
        """A task from begin to end, between two looks."""
        self.begin(record, name, attempt)
        self.end(record, seconds, raised)

    def begin(self, record, name="f", attempt=0):
        self.ring[self.written] = [self.written, name, record, self.now, 0, False]
        self.written, self.started = self.written + 1, self.started + 1
        self.ring = dict(list(self.ring.items())[-31:])
        self.held = [(record, 1000 + record, name, attempt, False, 0, 3, False)]
        self.claimed = {1000 + record}

    def end(self, record, seconds=1.0, raised=False):
        self.now += int(seconds * SECOND)
        for event in self.ring.values():
            if event[2] == record and not event[4]:
                event[4:] = [self.now, raised]
        self.held, self.claimed = [], set()

    def fail(self, record, text="ValueError: x", attempt=0, name="f"):
        self.failures.append((record, 0, name, attempt, 3, 77, False, self.now - SECOND, self.now, 1, text))

    def look(self):
        self.now += SECOND // 10
        oldest = max(0, self.written - 31)
        incarnation, since, _ = self.reporter.marks().get(2, (0, 0, 0))
        since = since if incarnation == self.incarnation else 0
        events = [tuple(event) for event in self.ring.values() if event[0] >= since]
        worker = (2, self.incarnation, 77, 3, self.started, self.written, oldest, self.held, events, False)
        self.reporter.look(self.now, [worker], len(self.failures), self.claimed.__contains__)

    def read(self, since, most):
        first = max(since, self.oldest)
        return first, self.failures[first : first + most]

    def report(self, answer="acknowledged"):
        report = self.reporter.take(9, self.read)
        if report is not None:
            self.told = getattr(self.reporter, answer)() or self.told
        return report


def states(report):
    return [(int.from_bytes(task.task_id[8:], "big"), task.attempt, task.state) for task in report.tasks]


def total(*reports):
    """Finished tasks that these reports make the store count."""
    rows = sum(task.state == "FINISHED" for report in reports if report for task in report.tasks)
    return rows + sum(count[1] for report in reports if report for count in report.counts)


def test_an_idle_node_reports_nothing():
    node = Node()
    node.look()
    assert node.report() is None


def test_a_task_is_told_when_it_runs_at_two_looks_and_when_it_has_ended():
    node = Node()
    node.begin(5)
    node.look()
    assert node.report() is None
    node.look()
    (row,) = node.report().tasks
    assert (row.state, row.function, row.job, row.worker, row.started_at) == ("RUNNING", "f", 3, 77, 100.0)
    assert row.task_id.hex() == f"{SESSION:016x}{5:016x}"
    node.look()
    assert node.report() is None
    node.end(5)
    node.look()
    report = node.report()
    assert states(report) == [(5, 0, "FINISHED")]
    assert report.counts == []
    node.look()
    assert node.report() is None


def test_short_tasks_are_counted_and_sampled():
    node = Node()
    for record in range(1, 11):
        node.run(record, seconds=0.001 * record)
    node.run(20, "g")
    node.look()
    report = node.report()
    assert total(report) == 11
    assert states(report) == [(9, 0, "FINISHED"), (10, 0, "FINISHED"), (20, 0, "FINISHED")]
    assert {count[0]: count[1:3] for count in report.counts} == {"f": (8, 0), "g": (0, 0)}
    assert sum(count[3] for count in report.counts) + sum(t.ended_at - t.started_at for t in report.tasks) == (
        pytest.approx(1.055)
    )


def test_tasks_that_no_look_saw_are_estimated_and_said_to_be():
    node = Node()
    node.look()
    for record in range(1, 1001):
        node.run(record, "f" if record % 4 else "g", seconds=0.001)
    node.look()
    report = node.report()
    assert total(report) == 1000
    found = {count[0]: count for count in report.counts}
    assert found["f"][2] + found["g"][2] == 1000 - 31
    assert 600 < found["f"][2] < 850
    node.run(2000, "h")
    node.look()
    assert total(node.report()) == 1


def test_each_event_is_counted_once_while_an_older_one_goes_on():
    node = Node()
    node.begin(1, "long")
    for record in range(2, 6):
        node.run(record, seconds=0.01)
        node.look()
    assert total(node.report()) == 4
    node.end(1)
    node.look()
    assert total(node.report()) == 1


def test_a_failure_is_told_with_its_reason_and_not_as_finished():
    node = Node()
    node.run(5, raised=True)
    node.fail(5, "KeyError: 'k'")
    node.look()
    report = node.report()
    (row,) = report.tasks
    assert (row.state, row.error_type, row.error) == ("FAILED", "TASK_EXECUTION_EXCEPTION", "KeyError: 'k'")
    assert (row.worker, row.job, row.ended_at - row.started_at) == (77, 3, 1.0)
    assert (report.counts, report.unseen) == ([], 0)
    assert node.told[0] == 1
    assert node.report() is None


def test_a_running_task_that_fails_is_told_once_whatever_comes_first():
    for failed_before_look in (True, False):
        node = Node()
        node.begin(5)
        node.look()
        node.look()
        node.report()
        node.fail(5)
        if failed_before_look:  # noted, and not sealed yet
            assert states(node.report()) == [(5, 0, "FAILED")]
            node.end(5, raised=True)
            node.look()
        else:
            node.end(5, raised=True)
            node.look()
            assert states(node.report()) == [(5, 0, "FAILED")]
        node.look()
        assert node.report() is None


def test_the_attempt_after_a_failure_is_the_next_one():
    node = Node()
    node.run(5, raised=True)
    node.fail(5)
    node.look()
    assert states(node.report()) == [(5, 0, "FAILED")]
    node.run(5)
    node.look()
    assert states(node.report()) == [(5, 1, "FINISHED")]
    node.begin(5, attempt=1)
    node.look()
    node.look()
    assert states(node.report()) == [(5, 1, "RUNNING")]


def test_a_task_whose_process_is_dead_waits_until_somebody_looked_after_it():
    node = Node()
    node.begin(5)
    node.look()
    node.look()
    node.report()
    node.held, node.ring, node.incarnation = [], {}, 2
    node.look()
    assert node.report() is None
    node.claimed = set()
    node.fail(5, "signal 9")
    node.look()
    assert states(node.report()) == [(5, 0, "FAILED")]


def test_failures_beyond_a_report_wait_and_what_was_overwritten_is_counted(monkeypatch):
    monkeypatch.setattr(tasks, "ROWS_MAX", 10)
    node = Node()
    for record in range(1, 26):
        node.fail(record)
    node.oldest = 5
    node.look()
    first = node.report()
    assert (len(first.tasks), first.unseen, node.told[0]) == (10, 5, 15)
    second = node.report()
    assert (len(second.tasks), second.unseen) == (10, 0)
    assert node.report() is None


def test_a_running_task_whose_failure_was_overwritten_still_ends():
    node = Node()
    node.begin(5)
    node.look()
    node.look()
    node.report()
    node.end(5, raised=True)
    node.fail(5)
    node.fail(6)
    node.oldest = 2
    node.look()
    report = node.report()
    assert states(report) == [(5, 0, "FAILED")]
    assert report.tasks[0].error == tasks.OVERWRITTEN
    assert report.unseen == 1  # the other one


def test_a_failure_that_is_being_written_is_looked_at_again_and_then_passed_over():
    node = Node()
    node.fail(1)
    node.failures.append(None)
    node.fail(3)
    assert states(node.report()) == [(1, 0, "FAILED")]
    node.fail(2)
    node.failures[1] = node.failures.pop()  # its writer has finished
    assert states(node.report()) == [(2, 0, "FAILED"), (3, 0, "FAILED")]
    node.failures.append(None)
    node.fail(5)
    assert node.report() is None
    report = node.report()  # its writer is dead
    assert (states(report), report.unseen) == ([(5, 0, "FAILED")], 1)


def test_what_a_store_that_is_away_did_not_get_comes_with_the_next_report():
    node = Node()
    node.begin(1, "long")
    node.look()
    node.look()
    node.fail(50)
    lost = node.report("lost")
    assert states(lost) == [(1, 0, "RUNNING"), (50, 0, "FAILED")]
    assert node.told is None
    node.end(1)
    for record in range(2, 5):
        node.run(record, seconds=0.01)
    node.look()
    lost = node.report("lost")
    assert (total(lost), (1, 0, "FINISHED") in states(lost)) == (4, True)
    node.run(9, seconds=0.01)
    node.look()
    report = node.report()
    assert {(1, 0, "FINISHED"), (50, 0, "FAILED"), (9, 0, "FINISHED")} <= set(states(report))
    assert total(report) == 5
    assert node.report() is None


def test_a_store_that_is_away_for_long_costs_bounded_memory(monkeypatch):
    monkeypatch.setattr(tasks, "ROWS_MAX", 10)
    monkeypatch.setattr(tasks, "NEWS_MAX", 20)
    node = Node()
    reports = []
    for record in range(1, 101):
        node.begin(record)
        node.look()
        node.look()
        node.end(record)
        node.fail(1000 + record)
        node.look()
        node.report("lost")
        assert len(node.reporter._news) <= 30
    node.look()
    for _ in range(30):
        reports.append(node.report())
        node.look()
    failed = sum(state == "FAILED" for report in reports if report for _, _, state in states(report))
    assert failed == 100
    assert total(*reports) == 100
    assert sum(report.unseen for report in reports if report) == 0


def test_functions_of_a_report_are_bounded(monkeypatch):
    monkeypatch.setattr(tasks, "TALLIES_MAX", 3)
    monkeypatch.setattr(tasks, "SAMPLED_MAX", 1)
    node = Node()
    for record in range(1, 11):
        node.run(record, f"f{record}")
    node.look()
    report = node.report()
    assert {count[0] for count in report.counts} == {"f1", "f2", "f3", tasks.OTHERS}
    assert total(report) == 10
    assert len(report.tasks) == 1


def test_the_next_agent_goes_on_where_the_last_one_was_answered():
    node = Node()
    for record in range(1, 4):
        node.run(record, seconds=0.01)
    node.fail(10)
    node.begin(20, "runs on")
    node.look()
    node.look()
    assert total(node.report()) == 3
    taken, marks = node.told
    assert (taken, marks) == (1, {2: (1, 4, 4)})
    before = [Task(SESSION.to_bytes(8, "big") + (20).to_bytes(8, "big"), "runs on", job=3, started_at=100.03)]
    before += [Task(SESSION.to_bytes(8, "big") + (21).to_bytes(8, "big"), "ended", job=3, started_at=100.0)]
    before += [Task(SESSION.to_bytes(8, "big") + (22).to_bytes(8, "big"), "failed", job=3, started_at=100.0)]
    for task in before:
        task.state, task.error, task.error_type = "FAILED", "x", "NODE_DIED"  # with the epoch of the last agent
    node.fail(11)
    node.fail(22)
    node.reporter = TaskReporter(SESSION, taken, marks, before)
    node.look()
    report = node.report()
    assert report.survived == [(task.task_id, 0) for task in before]
    assert sorted(states(report)) == [(11, 0, "FAILED"), (21, 0, "FINISHED"), (22, 0, "FAILED")]
    assert report.counts == []  # those were told
    assert [task.error for task in report.tasks if task.state == "FINISHED"] == [""]
    node.end(20)
    node.look()
    report = node.report()
    assert states(report) == [(20, 0, "FINISHED")]
    assert (report.tasks[0].started_at, report.tasks[0].job) == (100.03, 3)
    assert report.survived == []


def test_a_slot_that_another_process_took_is_counted_from_its_begin():
    node = Node()
    node.run(1)
    node.look()
    assert total(node.report()) == 1
    node.incarnation, node.started, node.written, node.ring = 2, 0, 0, {}
    node.run(2)
    node.run(3)
    node.look()
    assert total(node.report()) == 2


def test_a_call_that_waits_for_its_turn_does_not_run():
    node = Node()
    node.held = [(5, 1005, "A.m", 0, True, 0, 3, True)]
    node.claimed = {1005}
    node.look()
    node.look()
    assert node.report() is None
