"""Looking around: the runtime context of drivers and tasks, nodes, resources in all and left."""

from __future__ import annotations

import json
import os
import re

import pytest
from integration_helpers import eventually, open_gate, wait_for_gate

import fastray

GET_S = 30


@pytest.fixture(scope="module", autouse=True)
def session():
    fastray.init(num_cpus=2, num_gpus=1, resources={"lab": 3}, namespace="here")
    yield
    fastray.shutdown()


@fastray.remote
def look():
    context = fastray.get_runtime_context()
    return {
        "task": context.get_task_id(),
        "name": context.get_task_name(),
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "worker": context.get_worker_id(),
        "namespace": context.namespace,
        "attempt": context.get_attempt_number(),
        "resources": context.get_assigned_resources(),
        "actor": context.get_actor_id(),
        "group": context.get_placement_group_id(),
        "environment": json.loads(context.get_runtime_env_string()),
        "pid": os.getpid(),
        "all": context.get(),
    }


def test_ids_of_driver_and_task_fit_together():
    here = fastray.get_runtime_context()
    there = fastray.get(look.remote(), timeout=GET_S)
    assert there["job"] == here.get_job_id()
    assert there["node"] == here.get_node_id() == fastray.nodes()[0]["NodeID"]
    assert there["worker"] != here.get_worker_id()
    for name, digits in (("job", 8), ("node", 56), ("worker", 56)):
        assert re.fullmatch(f"[0-9a-f]{{{digits}}}", there[name])
    assert there["actor"] is None
    assert there["group"] is None
    assert there["attempt"] == 0
    assert there["environment"] == {}


def test_task_ids_differ_and_name_their_reference():
    refs = [look.remote() for _ in range(20)]
    ids = [row["task"] for row in fastray.get(refs, timeout=GET_S)]
    assert len(set(ids)) == 20
    assert all(re.fullmatch("[0-9a-f]+", task) for task in ids)
    assert [ref.task_id().hex() if hasattr(ref.task_id(), "hex") else ref.task_id() for ref in refs] == ids


def test_the_namespace_of_the_driver_is_the_tasks():
    assert fastray.get_runtime_context().namespace == "here"
    assert fastray.get(look.remote(), timeout=GET_S)["namespace"] == "here"


def test_name_and_resources_are_those_asked_for():
    row = fastray.get(look.remote(), timeout=GET_S)
    assert "look" in row["name"]
    assert row["resources"] == {"CPU": 1}
    row = fastray.get(
        look.options(name="other", num_cpus=0.5, num_gpus=1, resources={"lab": 2}).remote(), timeout=GET_S
    )
    assert row["name"] == "other"
    assert row["resources"] == {"CPU": 0.5, "GPU": 1, "lab": 2}
    assert fastray.get(look.options(num_cpus=0).remote(), timeout=GET_S)["resources"] == {}


def test_the_driver_is_no_task():
    context = fastray.get_runtime_context()
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    assert context.get()["namespace"] == "here"


def test_the_context_in_a_thread_of_a_task():
    @fastray.remote
    def threaded():
        import threading

        rows = []
        thread = threading.Thread(target=lambda: rows.append(fastray.get_runtime_context().get_job_id()))
        thread.start()
        thread.join()
        return rows[0]

    assert fastray.get(threaded.remote(), timeout=GET_S) == fastray.get_runtime_context().get_job_id()


def test_resources_in_all():
    there = fastray.cluster_resources()
    assert (there["CPU"], there["GPU"], there["lab"]) == (2, 1, 3)
    assert there["memory"] > 0
    assert there["object_store_memory"] > 0
    assert fastray.get(fastray.remote(fastray.cluster_resources).remote(), timeout=GET_S) == there
    (node,) = fastray.nodes()
    assert node["Alive"] is True
    assert node["Resources"] == there


def test_available_resources_follow_what_runs(tmp_path):
    @fastray.remote(num_cpus=1.5, resources={"lab": 1})
    def stay(started, gate):
        open_gate(started)
        wait_for_gate(gate)

    def left():
        there = fastray.available_resources()
        return there.get("CPU", 0), there.get("GPU", 0), there.get("lab", 0)

    assert eventually(lambda: left() == (2, 1, 3)), left()
    ref = stay.remote(str(tmp_path / "started"), str(tmp_path / "gate"))
    wait_for_gate(tmp_path / "started")
    assert left() == (0.5, 1, 2)
    open_gate(tmp_path / "gate")
    fastray.get(ref, timeout=GET_S)
    assert eventually(lambda: left() == (2, 1, 3)), left()


def test_a_resource_that_is_used_up_is_not_in_the_list(tmp_path):
    @fastray.remote(num_cpus=0, resources={"lab": 3})
    def stay(started, gate):
        open_gate(started)
        wait_for_gate(gate)

    ref = stay.remote(str(tmp_path / "started"), str(tmp_path / "gate"))
    wait_for_gate(tmp_path / "started")
    assert "lab" not in fastray.available_resources()
    open_gate(tmp_path / "gate")
    fastray.get(ref, timeout=GET_S)


def test_a_waiting_task_gives_its_cpu_back(tmp_path):
    @fastray.remote
    def inner(started, gate):
        open_gate(started)
        wait_for_gate(gate)

    @fastray.remote
    def outer(started, gate):
        fastray.get(inner.remote(started, gate))

    ref = outer.remote(str(tmp_path / "started"), str(tmp_path / "gate"))
    wait_for_gate(tmp_path / "started")
    assert eventually(lambda: fastray.available_resources().get("CPU", 0) == 1)
    open_gate(tmp_path / "gate")
    fastray.get(ref, timeout=GET_S)
