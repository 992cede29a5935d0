"""Scheduling strategies and labels on one node: spread, affinity, labels of `init` and of a daemon."""

from __future__ import annotations

import pytest
from daemon_helpers import Daemon

import fastray
from fastray.exceptions import ActorUnschedulableError, TaskUnschedulableError
from fastray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

GET_S = 30
UNKNOWN = "ab" * 28


@pytest.fixture(scope="module")
def session():
    fastray.init(num_cpus=2, labels={"zone": "a", "disk": "ssd"})
    yield fastray.get_runtime_context().get_node_id()
    fastray.shutdown()


@fastray.remote
def where():
    return fastray.get_runtime_context().get_node_id()


@fastray.remote
class Where:
    def node(self):
        return fastray.get_runtime_context().get_node_id()


def _strategy(node):
    return {"scheduling_strategy": node}


def runs():
    """Options with which a task runs on this node."""
    affinity = NodeAffinitySchedulingStrategy
    yield "spread", lambda me: _strategy("SPREAD")
    yield "default", lambda me: _strategy("DEFAULT")
    yield "own node", lambda me: _strategy(affinity(me, soft=False))
    yield "own node, soft", lambda me: _strategy(affinity(me, soft=True))
    yield "another, soft", lambda me: _strategy(affinity(UNKNOWN, soft=True))
    yield "another, spills", lambda me: _strategy(affinity(UNKNOWN, soft=True, _spill_on_unavailable=True))
    yield "label", lambda me: {"label_selector": {"zone": "a", "disk": "!hdd"}}
    yield "label of several", lambda me: {"label_selector": {"zone": "in(a, b)", "rack": "!in(1,2)"}}
    yield "node id as a label", lambda me: {"label_selector": {"ray.io/node-id": me}}
    yield "hard", lambda me: _strategy(NodeLabelSchedulingStrategy({"zone": In("a", "b"), "disk": Exists()}))
    yield "hard, not", lambda me: _strategy(NodeLabelSchedulingStrategy({"zone": NotIn("b"), "rack": DoesNotExist()}))
    yield "soft", lambda me: _strategy(NodeLabelSchedulingStrategy({}, soft={"zone": In("b")}))
    yield "fallback", lambda me: {
        "label_selector": {"zone": "b"}, "fallback_strategy": [{"label_selector": {"zone": "a"}}],
    }  # fmt: skip


@pytest.mark.parametrize("options", [pytest.param(make, id=name) for name, make in runs()])
def test_it_runs_here(session, options):
    assert fastray.get(where.options(**options(session)).remote(), timeout=GET_S) == session
    actor = Where.options(**options(session)).remote()
    assert fastray.get(actor.node.remote(), timeout=GET_S) == session


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (_strategy(NodeAffinitySchedulingStrategy(UNKNOWN, soft=False)), f"node {UNKNOWN} is not in this session"),
        ({"label_selector": {"zone": "b"}}, r"label_selector: no node has the labels zone in \(b\)"),
        ({"label_selector": {"rack": "1"}}, r"no node has the labels rack in \(1\)"),
        ({"label_selector": {"zone": "!a"}}, r"zone not in \(a\)"),
        (_strategy(NodeLabelSchedulingStrategy({"zone": In("b")})), r"strategy: no node has .* zone in \(b\)"),
        (_strategy(NodeLabelSchedulingStrategy({"rack": Exists()})), "rack exists"),
        (
            {"label_selector": {"zone": "b"}, "fallback_strategy": [{"label_selector": {"zone": "c"}}]},
            r"zone in \(b\)",
        ),
    ],
    ids=str,
)
def test_what_cannot_run_here_says_so_at_once(session, options, error):
    with pytest.raises(TaskUnschedulableError, match=error):
        where.options(**options).remote()
    with pytest.raises(ActorUnschedulableError, match=error):
        Where.options(**options).remote()


def test_tasks_know_the_labels_too(session):
    @fastray.remote
    def look():
        labels = fastray.get_runtime_context().get_node_labels()
        child = fastray.get(where.options(label_selector={"zone": "a"}).remote(), timeout=GET_S)
        with pytest.raises(TaskUnschedulableError):
            where.options(label_selector={"zone": "b"}).remote()
        return labels, child

    labels, child = fastray.get(look.remote(), timeout=GET_S)
    assert labels == {"zone": "a", "disk": "ssd", "ray.io/node-id": session} == fastray.nodes()[0]["Labels"]
    assert child == session


def test_labels_of_a_daemon(session, tmp_path):
    fastray.shutdown()
    daemon = Daemon(tmp_path, labels={"zone": "d"})
    try:
        with fastray.init(address=daemon.path):

            @fastray.remote
            def nested():
                return fastray.get(where.options(label_selector={"zone": "d"}).remote(), timeout=GET_S)

            assert fastray.nodes()[0]["Labels"]["zone"] == "d"
            assert fastray.get(nested.remote(), timeout=GET_S) == fastray.nodes()[0]["NodeID"]
            with pytest.raises(TaskUnschedulableError):
                fastray.get(where.options(label_selector={"zone": "a"}).remote(), timeout=GET_S)
    finally:
        daemon.stop()
    fastray.init(num_cpus=2, labels={"zone": "a", "disk": "ssd"})
