"""The cluster's task table as its users see it: `list_tasks`, `get_task`, `summarize_tasks`, `fastray list tasks` and
`fastray summary tasks`, over two nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import far_cluster
from integration_helpers import eventually, open_gate, wait_for_gate

import fastray
from fastray.exceptions import ActorDiedError, TaskError, WorkerCrashedError
from fastray.util import state

GET_S = 60

far = fastray.remote(resources={"far": 0.01}, num_cpus=0)


# Names of functions are cut in the table (63 bytes): those of nested ones here would be.
def hold(gate):
    wait_for_gate(gate)


@fastray.remote(max_retries=1, retry_exceptions=True, resources={"far": 0.01}, num_cpus=0)
def refuse(text):
    raise ValueError(text)


@fastray.remote(max_retries=1)
def crash():
    os._exit(3)


@fastray.remote
def use(value):
    return value


@fastray.remote
class Actor:
    def refuse(self):
        raise KeyError("k")

    def crash(self):
        os.kill(os.getpid(), signal.SIGKILL)


@fastray.remote
def items():
    yield 1
    raise ValueError("enough")


@fastray.remote
def cancelled(gate):
    wait_for_gate(gate)


def quick(x):
    return x


@fastray.remote(max_retries=0)
def flood():
    raise ValueError


@fastray.remote
def shown(text):
    raise ValueError(text)


@fastray.remote(resources={"third": 1}, num_cpus=0, max_retries=0)
def last(gate):
    wait_for_gate(gate)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    with far_cluster(folder, resources={"far": 4}) as made:
        yield made


def rows(name, **others):
    """Those of the function, when all of `others` hold."""
    filters = [("name", "=", name), *((field, "=", value) for field, value in others.items())]
    return state.list_tasks(filters=filters, limit=1000)


def counts(name):
    return state.summarize_tasks()["cluster"]["summary"].get(name, {"state_counts": {}})["state_counts"]


def shell(*arguments):
    command = [sys.executable, "-m", "fastray", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GET_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_tasks_of_all_nodes_are_listed_and_then_finished(cluster, tmp_path):
    gate = str(tmp_path / "gate")

    refs = [far(hold).remote(gate), fastray.remote(hold).remote(gate)]
    name = "hold"
    assert eventually(lambda: len(rows(name, state="RUNNING")) == 2)
    found = {row.node_id: row for row in rows(name)}
    assert set(found) == {cluster.head_node.node_id, cluster.far_node.node_id}
    here = found[cluster.head_node.node_id]
    assert here.task_id == refs[1].task_id()
    assert (here.job_id, here.type) == (fastray.get_runtime_context().get_job_id(), "NORMAL_TASK")
    assert here.worker_pid in {row.pid for row in state.list_workers()}
    assert here.start_time_ms > 0
    assert here.end_time_ms is None
    assert counts(name) == {"RUNNING": 2}
    assert rows(name, node_id=cluster.far_node.node_id)[0].node_id == cluster.far_node.node_id
    assert rows(name, state="RUNNING", job_id="07000000") == []
    open_gate(gate)
    fastray.get(refs, timeout=GET_S)
    assert eventually(lambda: counts(name) == {"FINISHED": 2})
    ended = state.get_task(refs[1])
    assert (ended.state, ended.error_type, ended.start_time_ms) == ("FINISHED", None, here.start_time_ms)
    assert ended.end_time_ms > ended.start_time_ms


def test_each_failed_attempt_is_listed_with_its_reason(cluster):
    refused, crashed = refuse.remote("no" * 500), crash.remote()
    used, actor = use.remote(refused), Actor.remote()
    calls = [actor.refuse.remote()]
    for ref, error in ((used, ValueError), (crashed, WorkerCrashedError), (calls[0], KeyError)):
        with pytest.raises(error):
            fastray.get(ref, timeout=GET_S)
    calls += [actor.crash.remote(), actor.refuse.remote()]
    for call in calls[1:]:
        with pytest.raises(ActorDiedError):
            fastray.get(call, timeout=GET_S)
    assert eventually(lambda: len(rows("refuse")) == 2 and len(rows("crash")) == 2)
    later, first = rows("refuse")
    assert [(row.attempt_number, row.state, row.error_type) for row in (first, later)] == [
        (n, "FAILED", "TASK_EXECUTION_EXCEPTION") for n in (0, 1)
    ]
    assert first.error_message.startswith("ValueError: nono")
    assert (first.node_id, first.task_id == later.task_id) == (cluster.far_node.node_id, True)
    assert first.worker_pid
    both = state.get_task(crashed)
    assert [(row.attempt_number, row.error_type, row.error_message) for row in both] == [
        (n, "WORKER_DIED", "its worker died: exit code 3") for n in (1, 0)
    ]
    assert all(row.start_time_ms and row.end_time_ms >= row.start_time_ms for row in both)
    assert eventually(lambda: state.get_task(used) is not None)
    assert state.get_task(used).error_message.startswith("an argument failed: ValueError: nono")
    assert eventually(lambda: all(state.get_task(call) is not None for call in calls))
    assert [(row.error_type, row.type) for row in map(state.get_task, calls)] == [
        ("TASK_EXECUTION_EXCEPTION", "ACTOR_TASK"), ("ACTOR_DIED", "ACTOR_TASK"), ("ACTOR_DIED", "ACTOR_TASK"),
    ]  # fmt: skip


def test_a_stream_that_raises_and_a_cancelled_task_have_failed(tmp_path):
    stream = items.remote()
    assert fastray.get(next(stream), timeout=GET_S) == 1
    with pytest.raises(ValueError, match="enough"):
        fastray.get(next(stream), timeout=GET_S)
    gate = str(tmp_path / "gate")
    running = cancelled.remote(gate)
    assert eventually(lambda: state.get_task(running) is not None)
    fastray.cancel(running)
    assert eventually(lambda: counts("items") == {"FAILED": 1})
    assert eventually(lambda: counts("cancelled") == {"FAILED": 1})
    assert state.get_task(running).error_type == "TASK_CANCELLED"
    open_gate(gate)


def test_finished_tasks_are_counted_all_and_sampled_boundedly():
    name = "quick"
    fastray.get([fastray.remote(quick).remote(i) for i in range(5000)], timeout=GET_S)
    fastray.get([far(quick).remote(i) for i in range(1000)], timeout=GET_S)
    assert eventually(lambda: counts(name).get("FINISHED", 0) >= 5900)  # a worker's last beat may be estimated
    assert counts(name)["FINISHED"] <= 6100
    samples = rows(name)
    assert 0 < len(samples) <= 16
    assert {row.state for row in samples} == {"FINISHED"}
    summary = state.summarize_tasks()["cluster"]["summary"][name]
    assert 0 <= summary["finished_estimated"] <= summary["state_counts"]["FINISHED"]
    assert summary["seconds_max"] <= summary["seconds_sum"]


def test_a_flood_of_failures_is_bounded_and_every_one_is_counted():
    def failed():
        found = state.summarize_tasks()["cluster"]["summary"]
        return sum(found.get(n, {"state_counts": {}})["state_counts"].get("FAILED", 0) for n in ("flood", "(not seen)"))

    before = failed()
    n = 20_000
    refs = [flood.remote() for _ in range(n)]
    with pytest.raises(TaskError):
        fastray.get(refs, timeout=GET_S)
    fastray.wait(refs, num_returns=n, timeout=GET_S)
    assert eventually(lambda: failed() - before >= n)
    assert failed() - before == n
    assert len(state.list_tasks(filters=[("state", "=", "FAILED")], limit=100_000)) <= 10_000


def test_the_shell_shows_the_same(cluster, tmp_path):
    with pytest.raises(ValueError, match="line"):
        fastray.get(shown.remote("line 1\nline 2"), timeout=GET_S)
    name = "shown"
    assert eventually(lambda: rows(name))
    (row,) = json.loads(shell("list", "tasks", "--filter", f"name={name}", "--json"))
    assert row == state.list_tasks(filters=[("name", "=", name)])[0]
    header, line = shell("list", "tasks", "-f", f"name={name}", "-f", "state!=RUNNING").splitlines()
    assert header.split()[:4] == ["task_id", "attempt", "function", "state"]
    assert line.endswith("ValueError: line 1")
    assert len(shell("list", "tasks", "--limit", "1").splitlines()) == 2
    assert name in shell("summary", "tasks")
    summary = json.loads(shell("summary", "tasks", "--json"))["cluster"]["summary"]
    assert summary[name]["state_counts"] == {"FAILED": 1}


@pytest.mark.parametrize(
    ("given", "match"),
    [({"limit": 0}, "limit"), ({"filters": [("state", "<", 1)]}, "filter"), ({"filters": [("x", "=", 1)]}, "no field")],
)
def test_wrong_filters_and_limits_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        state.list_tasks(**given)


def test_an_id_of_no_task_finds_nothing():
    assert state.get_task("00" * 16) is None
    assert state.list_tasks(filters=[("task_id", "=", "no id")]) == []
    assert state.list_tasks(filters=[("node_id", "=", "00" * 28)]) == []


def test_tasks_of_a_dead_node_have_failed_with_it(cluster, tmp_path):
    gate = str(tmp_path / "gate")
    third = cluster.add_node(num_cpus=1, resources={"third": 1})
    third_id = third.node_id
    ref = last.remote(gate)
    name = "last"
    assert eventually(lambda: rows(name, state="RUNNING"))
    cluster.kill_node(third)
    assert eventually(lambda: len(rows(name, error_type="NODE_DIED")) == 2)  # the attempt there, and the task here
    there = rows(name, node_id=third_id)[0]
    assert (there.state, there.error_message.partition(":")[0]) == ("FAILED", "node died")
    mine = state.get_task(ref)
    assert (mine.node_id, third_id in mine.error_message) == (cluster.head_node.node_id, True)
