"""The task table as transcripts: reports in, rows and counts out."""

from __future__ import annotations

import pytest
from gcs_transcripts import World, kind

from fastray.gcs import commands as c
from fastray.gcs import task_table
from fastray.gcs.records import Task


@pytest.fixture
def world():
    return World()


def test_finished_tasks_are_counted_sampled_and_go_to_history(world):
    epoch = world.join()
    world.say(c.TasksReport(epoch, [Task(b"t1", "f", started_at=1.0, spec=b"s")]))
    assert world.say(c.TasksSummary()) == [("f", 1, 0, 0, 0, 0, 0, False)]
    world.say(c.TasksReport(epoch, [Task(b"t1", "f", state="FINISHED", ended_at=3.0)]))
    assert world.say(c.TasksSummary()) == [("f", 0, 1, 0, 2.0, 2.0, 0, False)]
    assert world.state.tasks.rows == {}
    for number in range(100):
        ended = Task(b"x%d" % number, "f", state="FINISHED", started_at=10.0, ended_at=10.0 + number)
        world.say(c.TasksReport(epoch, [ended]))
        ((key, row),) = world.last.history
        assert (key, row.epoch) == (ended.task_id, epoch)
    stats = world.state.tasks.stats.rows[b"f"]
    assert (stats.finished, stats.seconds_max) == (101, 99.0)
    assert [task.task_id for task in stats.recent] == [b"x%d" % n for n in range(92, 100)]
    assert [task.task_id for task in stats.slowest] == [b"x%d" % n for n in range(99, 91, -1)]
    assert len(world.say(c.TasksList(function="f"))) == task_table.SAMPLES_MAX
    world.restart()
    assert world.say(c.TasksSummary())[0][:3] == ("f", 0, 101)


def test_failed_tasks_stay_in_full_up_to_a_limit(world, monkeypatch):
    monkeypatch.setattr(task_table, "FAILED_MAX", 2)
    epoch = world.join()
    for number in range(3):
        failed = Task(b"t%d" % number, "f", state="FAILED", started_at=1.0, ended_at=2.0 + number, error="boom")
        world.say(c.TasksReport(epoch, [failed]))
        assert len(world.last.history) == 1
    assert [t.task_id for t in world.say(c.TasksList(state="FAILED"))] == [b"t2", b"t1"]
    world.restart()
    assert [(t.task_id, t.error) for t in world.say(c.TasksList())] == [(b"t2", "boom"), (b"t1", "boom")]
    assert world.say(c.TasksSummary()) == [("f", 0, 0, 3, 6.0, 3.0, 0, False)]


def test_tasks_of_a_dead_node_fail_and_its_late_words_count_once(world):
    epoch = world.join()
    world.say(c.TasksReport(epoch, [Task(b"t", "f", started_at=999.0), Task(b"u", "f", 1, started_at=999.0)]))
    world.say(c.NodeDied(epoch, "silent"))
    failed = world.say(c.TasksList())
    assert {(t.task_id, t.state, t.error, t.ended_at) for t in failed} == {
        (b"t", "FAILED", "node died: silent", 1000.0),
        (b"u", "FAILED", "node died: silent", 1000.0),
    }
    other = world.join(b"n2", b"d2")
    world.say(c.TasksReport(other, [Task(b"t", "f", state="FINISHED")]))  # the attempt that was counted
    assert world.say(c.TasksSummary())[0][2:4] == (0, 2)
    world.say(c.TasksReport(other, [Task(b"t", "f", 1, state="FINISHED")]))  # the next attempt
    assert world.say(c.TasksSummary())[0][2:4] == (1, 2)


def test_tasks_that_survived_their_nodes_agent_run_on_and_end_once(world):
    epoch = world.join()
    tasks = [Task(b"t%d" % n, "f", started_at=990.0) for n in range(3)]
    world.say(c.TasksReport(epoch, tasks))
    other = world.join()  # the same node, by its next agent
    assert world.say(c.TasksSummary())[0][1:5] == (0, 0, 3, 30.0)
    assert {t.error_type for t in world.say(c.TasksList(state="FAILED", task=b"t"))} == {"NODE_DIED"}
    ends = [
        Task(b"t1", "f", state="FINISHED", ended_at=1000.0),
        Task(b"t2", "f", state="FAILED", ended_at=1000.0, error_type="WORKER_DIED"),
    ]
    survived = [(task.task_id, 0) for task in tasks]
    world.say(c.TasksReport(other, ends, survived=[*survived, (b"unknown", 0)]))
    world.say(c.TasksReport(other, [], survived=survived))  # again: what failed for a reason of its own stays failed
    assert world.say(c.TasksSummary())[0][1:5] == (1, 1, 1, 20.0)
    assert [(t.task_id, t.state, t.epoch) for t in world.say(c.TasksList(task=b"t0"))] == [(b"t0", "RUNNING", other)]
    world.restart()
    world.say(c.NodeDied(other, "x"))
    assert world.say(c.TasksSummary())[0][1:4] == (0, 1, 2)


def test_what_nobody_saw_one_by_one_is_counted(world):
    epoch = world.join()
    world.say(c.TasksReport(epoch, [], [("f", 10, 4, 5.0, 2.0), ("g", 1, 0, 0.5, 0.5)], unseen=7))
    world.say(c.TasksReport(epoch, [Task(b"t", "f", state="FINISHED", actor=True)], [("f", 5, 0, 1.0, 3.0)]))
    assert world.say(c.TasksSummary()) == [
        ("(not seen)", 0, 0, 7, 0, 0, 0, False),
        ("f", 0, 16, 0, 6.0, 3.0, 4, True),
        ("g", 0, 1, 0, 0.5, 0.5, 0, False),
    ]


def test_running_tasks_are_listed_first_however_old(world):
    epoch = world.join()
    ended = [Task(b"x%d" % n, "f", state="FAILED", ended_at=1.0 + n) for n in range(3)]
    world.say(c.TasksReport(epoch, [*ended, Task(b"old", "g", started_at=0.5, job=2)]))
    assert [t.task_id for t in world.say(c.TasksList(limit=2))] == [b"old", b"x2"]
    assert [t.task_id for t in world.say(c.TasksList(job=2, node=b"n1"))] == [b"old"]
    assert world.say(c.TasksList(node=b"n2")) == []


def test_an_attempt_runs_where_it_was_reported_last(world):
    first, second = world.join(), world.join(b"n2", b"d2")
    world.say(c.TasksReport(first, [Task(b"t", "f")]))
    world.say(c.TasksReport(second, [Task(b"t", "f")]))
    world.say(c.NodeDied(first, "x"))
    assert [(t.state, t.epoch) for t in world.say(c.TasksList())] == [("RUNNING", second)]


def test_a_task_of_an_unknown_state_refuses_the_report(world):
    epoch = world.join()
    assert kind(world.say(c.TasksReport(epoch, [Task(b"t", "f", state="DONE")]))) == "invalid"
    assert world.say(c.TasksSummary()) == []


def test_functions_beyond_the_limit_are_counted_together(world, monkeypatch):
    monkeypatch.setattr(task_table, "FUNCTIONS_MAX", 2)
    epoch = world.join()
    for name in "abcd":
        world.say(c.TasksReport(epoch, [Task(name.encode(), name, state="FINISHED")]))
    assert [(row[0], row[2]) for row in world.say(c.TasksSummary())] == [("(others)", 2), ("a", 1), ("b", 1)]
