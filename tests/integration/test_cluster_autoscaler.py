"""The hook of whoever can add nodes: what no node has waits for one that joins, instead of failing."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

pytest.importorskip("grpc")

from integration_helpers import eventually

import fastray
from fastray import autoscaler
from fastray.autoscaler import Demand
from fastray.cluster_utils import Cluster
from fastray.exceptions import ActorDiedError, InvalidOptionError, TaskUnschedulableError
from fastray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

GET_S = 60


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    fastray.init(address=made.address)
    yield made
    autoscaler.unregister_hook()
    fastray.shutdown()
    made.shutdown()


class Hook:
    """Notes what it is called with."""

    def __init__(self):
        self.calls = []
        self.called = threading.Event()

    def __call__(self, demands):
        self.calls.append(demands)
        self.called.set()

    def sees(self, *demands):
        return eventually(lambda: bool(self.calls) and sorted(map(repr, self.calls[-1])) == sorted(map(repr, demands)))


@fastray.remote(resources={"more": 1}, num_cpus=0)
def where():
    return fastray.get_runtime_context().get_node_id()


@fastray.remote(resources={"more": 1}, num_cpus=0.5)
class Counter:
    def add(self):
        return 1


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def test_what_no_node_has_waits_for_one_that_joins(cluster):
    hook = Hook()
    autoscaler.register_hook(hook)
    refs = [where.remote() for _ in range(3)]
    counter = Counter.remote()
    labelled = where.options(resources={}, num_cpus=1, label_selector={"zone": "b"}).remote()
    assert hook.sees(
        Demand({"more": 1.0}, {}, 3), Demand({"CPU": 0.5, "more": 1.0}, {}, 1), Demand({"CPU": 1.0}, {"zone": "b"}, 1)
    )
    assert not fastray.wait([*refs, labelled], timeout=0.2)[0]
    node = cluster.add_node(num_cpus=2, resources={"more": 5}, labels={"zone": "b"})
    assert get([*refs, labelled]) == [node.node_id] * 4
    assert get(counter.add.remote()) == 1
    assert hook.sees()


def test_a_value_elsewhere_does_not_change_that(cluster):
    """A task that is placed one by one, because of its argument."""
    hook = Hook()
    autoscaler.register_hook(hook)
    first = cluster.add_node(num_cpus=1, resources={"first": 1})
    cluster.wait_for_nodes()
    array = fastray.remote(lambda: b"x" * 1_000_000).options(resources={"first": 1}).remote()
    fastray.wait([array], fetch_local=False)
    ref = fastray.remote(len).options(resources={"more": 1}).remote(array)
    assert hook.sees(Demand({"CPU": 1.0, "more": 1.0}, {}, 1))
    cluster.add_node(num_cpus=1, resources={"more": 1})
    assert get(ref) == 1_000_000
    assert first.alive


def test_without_a_hook_it_fails_at_once_and_after_it_again(cluster):
    with pytest.raises(TaskUnschedulableError, match="more"):
        get(where.remote())
    hook = Hook()
    autoscaler.register_hook(hook)
    ref = where.remote()
    counter = Counter.remote()
    assert hook.sees(Demand({"more": 1.0}, {}, 1), Demand({"CPU": 0.5, "more": 1.0}, {}, 1))
    autoscaler.unregister_hook()
    with pytest.raises(TaskUnschedulableError, match="more"):
        get(ref)
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_a_node_by_its_id_is_nobody_s_to_add(cluster):
    autoscaler.register_hook(Hook())
    strategy = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(TaskUnschedulableError):
        get(where.options(resources={}, scheduling_strategy=strategy).remote())


def test_the_hook_of_a_driver_that_ended_counts_no_more(cluster):
    program = (
        "import fastray, sys; from fastray import autoscaler\n"
        f"fastray.init(address={cluster.address!r}); autoscaler.register_hook(print); print('there', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout.readline() == "there\n"
        ref = where.remote()
        assert not fastray.wait([ref], timeout=0.5)[0]
        driver.kill()
    with pytest.raises(TaskUnschedulableError):
        get(ref)


def test_a_hook_that_raises_is_called_again(cluster, capfd):
    calls = []

    def hook(demands):
        calls.append(demands)
        raise RuntimeError("no machine left")

    autoscaler.register_hook(hook)
    refs = [where.remote()]
    assert eventually(lambda: calls)
    refs.append(where.remote())
    assert eventually(lambda: calls[-1] == [Demand({"more": 1.0}, {}, 2)])
    assert "no machine left" in capfd.readouterr().err
    autoscaler.unregister_hook()  # it may still be printing
    del refs


def test_a_hook_needs_a_cluster(monkeypatch):
    with pytest.raises(InvalidOptionError, match="needs a driver of a cluster"):
        autoscaler.register_hook(print)
    with pytest.raises(InvalidOptionError, match="is a function"):
        autoscaler.register_hook(None)
    fastray.shutdown()
