"""The paper's Figure 7, step by step: `add.remote(a, b)` with a on one node and b on another, then `get(c)`, as both
agents recorded it. docs/internals/remote_task.md explains the steps; a number here is the paper's, with a prime for
those of Figure 7b.

    N1    the head, where the driver is; a is put there
    N2    the other node: b is made there, add runs there, c stays there until it is asked for
"""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import far_cluster
from integration_helpers import eventually, open_gate, wait_for_gate

import fastray
from fastray.cluster import inquiry
from fastray.cluster.launch import find_token
from fastray.cluster_utils import Cluster
from fastray.exceptions import GetTimeoutError, InvalidOptionError
from fastray.gcs import commands
from fastray.gcs.client import GcsClient
from fastray.runtime import current_runtime
from fastray.transfer import trace

GET_S = 60
A_SIZE, B_SIZE = 200_000, 400_000  # doubles: 1.6 and 3.2 MB, so that add goes where b is
STEPS_OF_EXECUTION = (
    "1 driver submits",
    "2 to the global scheduler",
    "3 arguments looked up",
    "4 placed",
    "0 function in the table",
    "4 task leaves",
    "0 function made on N2",
    "4 task arrives",
    "5 a is missing",
    "6 its node is asked",
    "6 N1 hears it",
    "7 a leaves",
    "7 a arrives",
    "7 a is in the store",
    "8 worker runs add",
    "9 a and b are read",
)
STEPS_OF_RESULT = (
    "1' get looks",
    "2' callback is left",
    "3' add ends",
    "4' entry leaves",
    "5' entry arrives",
    "5' callback",
    "6' N2 is asked",
    "6' N2 hears it",
    "6' c leaves",
    "6' c arrives",
    "6' c is in the store",
    "7' get returns",
)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(trace.VARIABLE, "1")
        with far_cluster(tmp_path_factory.mktemp("runtime"), resources={"far": 1}) as made:
            yield made


@fastray.remote(resources={"far": 0.01}, num_cpus=0)
def make(n):
    return np.full(n, 2.0)


@fastray.remote(resources={"far": 0.01}, num_cpus=0)
def number():
    return 5


@fastray.remote
def add(a, b, gate):
    times = {"started": time.time_ns()}
    totals = float(a.sum()), float(b.sum())
    times["read"] = time.time_ns()
    views = not (a.flags.owndata or b.flags.owndata or a.flags.writeable or b.flags.writeable)
    wait_for_gate(gate)
    c = a + b[: len(a)]
    times["ended"] = time.time_ns()
    return c, totals, views, times


def events_of(cluster):
    """(of N1, of N2)"""
    return [trace.of_node(node.session_path) for node in (cluster.head_node, cluster.far_node)]


def handle_of(ref):
    return trace.name(current_runtime().attachment.handle_of(ref))


def find(events, kind, **about):
    return [event for event in events if event["kind"] == kind and about.items() <= event.items()]


def one(events, kind, **about):
    found = find(events, kind, **about)
    assert len(found) == 1, (kind, about, found)
    return found[0]


def nothing_waits(cluster):
    """As the agent of N1 knows it, by the last heartbeats."""
    return not any(row["queues"] for row in inquiry.ask(cluster.head_node.session_path, "nodes"))


def run(cluster, folder):
    """Runs it; the handles of a and c, what the driver and the task saw."""
    gate = str(folder / "gate")
    a, b = fastray.put(np.ones(A_SIZE)), make.remote(B_SIZE)
    assert fastray.wait([b], fetch_local=False, timeout=GET_S)[0] == [b]
    assert eventually(lambda: nothing_waits(cluster))  # make waited there for a worker, which counts against N2
    seen = {"submitted": time.time_ns()}
    c = add.remote(a, b, gate)
    seen["looks"] = time.time_ns()
    with pytest.raises(GetTimeoutError):
        fastray.get(c, timeout=0.1)
    seen["left"] = time.time_ns()
    handles = handle_of(a), handle_of(c)
    open_gate(gate)
    # nobody waits in `get` now: what it left brings c here
    assert eventually(lambda: find(events_of(cluster)[0], "replicated", value=handles[1]))
    value, totals, views, times = fastray.get(c, timeout=GET_S)
    seen["returned"] = time.time_ns()
    assert np.array_equal(value, np.full(A_SIZE, 3.0))
    assert (totals, views) == ((A_SIZE, 2.0 * B_SIZE), True)
    return *handles, {**seen, **times}


def test_one_task_over_two_nodes(cluster, tmp_path):
    a, c, seen = run(cluster, tmp_path)
    n1, n2 = events_of(cluster)
    assert {event["kind"] for event in n1 + n2} <= set(trace.KINDS)
    far = cluster.far_node.node_id

    located = one(n1, "located", task=c)
    by_value, (here, first), (there, second) = located["arguments"]
    assert by_value[1] == cluster.head_node.node_id
    assert (first, second) == (cluster.head_node.node_id, far)
    assert here >= 8 * A_SIZE
    assert there >= 8 * B_SIZE
    put = one(n1, "function_put", name="add")
    came = one(n2, "fetch_sent", remote=a)  # its value is the handle that stands for a on N2
    here = came["value"]
    replica = one(n2, "replicated", value=here, remote=a)
    assert replica["complete"]
    assert 8 * A_SIZE < replica["bytes"] < 8 * A_SIZE + 100  # its codec says what the buffer is
    execution = [
        seen["submitted"],
        one(n1, "routed", task=c),
        located,
        one(n1, "placed", task=c, node=far),
        put,
        one(n1, "task_sent", task=c),
        one(n2, "function_made", name="add", digest=put["digest"]),
        one(n2, "task_got", task=c),
        one(n2, "asked", value=here, node=cluster.head_node.node_id),
        came,
        one(n1, "fetch_got", value=here, remote=a),
        one(n1, "value_sent", value=here, bulk=True),
        one(n2, "value_got", value=here, bulk=True),
        replica,
        seen["started"],
        seen["read"],
    ]
    in_order(STEPS_OF_EXECUTION, execution)

    entry = one(n1, "result_got", task=c, state="away")
    replica = one(n1, "replicated", value=c, remote=entry["remote"])
    assert replica["complete"]
    assert 8 * A_SIZE < replica["bytes"] < 8 * A_SIZE + 100  # its codec says what the buffer is
    assert entry["bytes"] >= 8 * A_SIZE
    result = [
        seen["looks"],
        seen["left"],
        seen["ended"],
        one(n2, "result_sent", task=c, state="away", remote=entry["remote"]),
        entry,
        one(n1, "asked", value=c, node=far),
        one(n1, "fetch_sent", value=c, remote=entry["remote"]),
        one(n2, "fetch_got", value=c, remote=entry["remote"]),
        one(n2, "value_sent", value=c, bulk=True),
        one(n1, "value_got", value=c, bulk=True),
        replica,
        seen["returned"],
    ]
    in_order(STEPS_OF_RESULT, result)

    assert eventually(lambda: function_in_table(cluster, put["digest"]))


def in_order(names, events):
    times = [event if isinstance(event, int) else event["time_ns"] for event in events]
    steps = list(zip(times, names, strict=True))
    assert sorted(steps, key=lambda step: step[0]) == steps


def function_in_table(cluster, digest):
    head = cluster.head_node
    client = GcsClient(head.address, find_token(head.address, head.session_path))
    try:
        return client.call(commands.FunctionGet(bytes.fromhex(digest)))
    finally:
        client.close()


def test_a_small_result_comes_with_the_news_of_it(cluster):
    ref = number.remote()
    assert fastray.get(ref, timeout=GET_S) == 5
    n1, n2 = events_of(cluster)
    task = handle_of(ref)
    steps = [
        one(n1, "task_sent", task=task),
        one(n2, "task_got", task=task),
        one(n2, "result_sent", task=task, state="done"),
        one(n1, "result_got", task=task, state="done"),
    ]
    in_order(("4 leaves", "4 arrives", "4' entry leaves", "5' entry arrives"), steps)
    assert not find(n1, "asked", value=task)
    placed = find(n1, "class_placed", node=cluster.far_node.node_id, count=1)
    assert any(find(n1, "class_routed", cls=event["cls"], waiting=1) for event in placed)


def test_tasks_that_would_wait_here_are_sent_away(cluster, tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote
    def hold():
        wait_for_gate(gate)
        return fastray.get_runtime_context().get_node_id()

    refs = [hold.remote() for _ in range(8)]
    far = cluster.far_node.node_id
    spilled = eventually(lambda: find(events_of(cluster)[0], "class_spilled", node=far))
    open_gate(gate)
    nodes = fastray.get(refs, timeout=GET_S)
    assert 1 <= spilled[0]["count"] <= nodes.count(far)
    sent = {event["task"] for event in find(events_of(cluster)[0], "task_sent")}
    assert sent & {handle_of(ref) for ref in refs}


def test_a_node_that_was_not_told_to_trace_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv(trace.VARIABLE)
    cluster = Cluster(initialize_head=True)
    try:
        with pytest.raises(InvalidOptionError, match="FASTRAY_TRACE=1"):
            trace.of_node(cluster.head_node.session_path)
    finally:
        cluster.shutdown()
