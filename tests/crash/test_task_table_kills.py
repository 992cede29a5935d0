"""The task table while agents and servers of the store are killed: what ran on goes on, what failed meanwhile is told,
nothing is counted for dead that lives. See docs/internals/gcs.md."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc")

from cluster_helpers import Nodes, kill_and_wait, row_of, sees
from daemon_helpers import HELPERS
from waiting import eventually, free_port, note, open_gate, tally, wait_for_gate

import fastray
from fastray.exceptions import TaskError
from fastray.util import state

pytestmark = pytest.mark.crash
GET_S = 60.0


@pytest.fixture
def pair(tmp_path):
    """A head and a node; this process is a driver of the node."""
    made = Nodes(tmp_path / "runtime", port=free_port())
    made.join()
    for node in made.all:
        assert sees(node, *made.all)
    assert eventually(lambda: len(made.head.helpers()) == HELPERS)
    with fastray.init(address=made.all[1].path):
        yield made
    made.stop()


@fastray.remote(max_retries=0, num_cpus=0)
def hold(log, gate):
    note(log)
    wait_for_gate(gate)
    if gate.endswith("bad"):
        raise ValueError("after all")


@fastray.remote(max_retries=0)
def refuse(text):
    raise ValueError(text)


def attempts(name, **others):
    filters = [("name", "=", name), *((field, "=", value) for field, value in others.items())]
    return state.list_tasks(filters=filters, limit=10_000)


def counts(name):
    found = state.summarize_tasks()["cluster"]["summary"].get(name, {"state_counts": {}})
    return found["state_counts"]


def fail(n, text):
    refs = [refuse.remote(text) for _ in range(n)]
    fastray.wait(refs, num_returns=n, timeout=GET_S)
    with pytest.raises(TaskError):
        fastray.get(refs[0], timeout=GET_S)


def test_what_runs_on_under_the_next_agent_has_not_failed(pair, tmp_path):
    head, node = pair.all
    log, gates = str(tmp_path / "log"), [str(tmp_path / name) for name in ("good", "bad")]
    refs = [hold.remote(log, gate) for gate in gates]
    assert eventually(lambda: len(tally(log)) == 2 and counts("hold") == {"RUNNING": 2})
    fail(50, "before")
    assert eventually(lambda: counts("refuse") == {"FAILED": 50})
    began = {row.task_id: row.start_time_ms for row in attempts("hold")}
    epoch = row_of(head, node)["epoch"]
    for expected in (100, 150):
        kill_and_wait(node.helpers("node agent")[0])
        fail(50, "meanwhile")
        assert eventually(lambda e=expected: counts("refuse") == {"FAILED": e}), counts("refuse")
    assert row_of(head, node)["epoch"] > epoch
    assert eventually(lambda: counts("hold") == {"RUNNING": 2}), attempts("hold")
    assert {row.task_id: row.start_time_ms for row in attempts("hold")} == began
    for gate in gates:
        open_gate(gate)
    fastray.wait(refs, num_returns=2, timeout=GET_S)
    assert eventually(lambda: counts("hold") == {"FINISHED": 1, "FAILED": 1})
    (bad,) = attempts("hold", state="FAILED")
    assert (bad.task_id, bad.error_message) == (refs[1].task_id(), "ValueError: after all")
    assert abs(bad.start_time_ms - began[bad.task_id]) <= 5  # two clocks: of the task's own events, and of its failure


def test_what_ended_without_an_agent_is_told_by_the_next_one(pair, tmp_path):
    node = pair.all[1]
    log, gate = str(tmp_path / "log"), str(tmp_path / "good")
    ref = hold.remote(log, gate)
    assert eventually(lambda: counts("hold") == {"RUNNING": 1})
    kill_and_wait(node.helpers("node agent")[0])
    open_gate(gate)
    fastray.get(ref, timeout=GET_S)
    assert eventually(lambda: counts("hold") == {"FINISHED": 1}), attempts("hold")


def test_failures_while_the_store_is_away_come_later(pair, tmp_path):
    head = pair.head
    log, gate = str(tmp_path / "log"), str(tmp_path / "good")
    ref = hold.remote(log, gate)
    fail(20, "before")
    assert eventually(lambda: counts("hold") == {"RUNNING": 1} and counts("refuse") == {"FAILED": 20})
    for pid in head.helpers("fastray.gcs"):
        kill_and_wait(pid)
    fail(30, "meanwhile")
    open_gate(gate)
    fastray.get(ref, timeout=GET_S)
    assert eventually(lambda: counts("refuse") == {"FAILED": 50}), counts("refuse")
    assert eventually(lambda: counts("hold") == {"FINISHED": 1}), counts("hold")
    assert {row.error_message for row in attempts("refuse")} == {"ValueError: before", "ValueError: meanwhile"}
