"""`fastray.util.state`: tables of a session, from its driver and from a task."""

from __future__ import annotations

import os

import pytest
from integration_helpers import eventually, open_gate, wait_for_gate

import fastray
from fastray.util import state

GET_S = 30.0


@fastray.remote
class Named:
    def pid(self):
        return os.getpid()

    def jobs(self):
        return [row.asdict() for row in state.list_jobs()]


def test_a_private_session_has_one_job_and_one_node(node):
    context = fastray.get_runtime_context()
    (job,) = state.list_jobs()
    assert (job.job_id, job.status, job.pid) == (context.get_job_id(), "RUNNING", os.getpid())
    assert (job.namespace, job.end_time) == (context.namespace, None)
    assert job["entrypoint"]
    (only,) = state.list_nodes()
    assert (only.node_id, only.state, only.is_head_node) == (context.get_node_id(), "ALIVE", True)
    assert only.resources_total == fastray.cluster_resources()


def test_actors_and_workers_are_listed(node):
    named = Named.options(name="one", namespace="here").remote()
    pid = fastray.get(named.pid.remote(), timeout=GET_S)
    (row,) = state.list_actors(filters=[("state", "=", "ALIVE")])
    assert (row.class_name, row.name, row.ray_namespace, row.pid) == ("Named", "one", "here", pid)
    assert row.actor_id == named._actor_id.hex()
    assert row.job_id == fastray.get_runtime_context().get_job_id()
    workers = {row.pid: row for row in state.list_workers()}
    assert workers[pid].worker_type == "WORKER"
    assert workers[os.getpid()].worker_type == "DRIVER"
    assert workers[os.getpid()].worker_id == fastray.get_runtime_context().get_worker_id()
    assert fastray.get(named.jobs.remote(), timeout=GET_S)[0]["job_id"] == row.job_id


def test_filters_and_limits(node):
    kept = [Named.options(name=f"n{i}").remote() for i in range(5)]
    fastray.get([actor.pid.remote() for actor in kept], timeout=GET_S)
    alive = [("state", "=", "ALIVE")]
    assert len(state.list_actors(filters=[*alive, ("name", "=", "n3")])) == 1
    assert len(state.list_actors(filters=[*alive, ("name", "!=", "n3")])) == 4
    assert len(state.list_actors(filters=alive, limit=2)) == 2
    for wrong in ({"limit": 0}, {"filters": [("name", "<", "n3")]}, {"filters": [("nothing", "=", 1)]}):
        with pytest.raises(ValueError, match=r"limit|filter|field"):
            state.list_actors(**wrong)
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = state.list_actors()[0].nothing


def hold(gate):
    wait_for_gate(gate)


def refuse():
    raise ValueError("no")


def test_tasks_of_a_private_node_are_listed(node, tmp_path):
    gate = str(tmp_path / "gate")

    held, refused = fastray.remote(hold).remote(gate), fastray.remote(refuse).remote()
    with pytest.raises(ValueError, match="no"):
        fastray.get(refused, timeout=GET_S)
    assert eventually(lambda: state.list_tasks(filters=[("state", "=", "RUNNING")]))
    (row,) = state.list_tasks(filters=[("name", "=", "hold")])
    assert (row.task_id, row.state, row.job_id) == (held.task_id(), "RUNNING", state.list_jobs()[0].job_id)
    failed = state.get_task(refused)
    assert (failed.state, failed.error_type, failed.error_message) == (
        "FAILED", "TASK_EXECUTION_EXCEPTION", "ValueError: no",
    )  # fmt: skip
    assert failed.node_id == state.list_nodes()[0].node_id
    open_gate(gate)
    fastray.get(held, timeout=GET_S)
    assert eventually(lambda: getattr(state.get_task(held), "state", "") == "FINISHED")  # its event ends after its seal
    summary = state.summarize_tasks()["cluster"]
    assert summary["summary"]["refuse"]["state_counts"] == {"FAILED": 1}
    assert summary["total_tasks"] >= 2
    assert state.get_task("00" * 16) is None
